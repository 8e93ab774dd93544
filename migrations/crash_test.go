package migrations_test

import (
	"bufio"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgidem/pgidem/internal/pgtest"
	"github.com/pgidem/pgidem/migrations"
	"github.com/pgidem/pgidem/tenancy"
)

const (
	crashURL     = "PGIDEM_CRASH_TEST_DATABASE_URL"
	crashSchemas = "PGIDEM_CRASH_TEST_SCHEMAS"
	crashKills   = "PGIDEM_MIGRATION_KILLS" // how often TestKilledRuns kills; 20 by default
)

// crashFiles are the migrations in the test of killed runs: the last of them changes every
// table, and one that is half done shows.
func crashFiles(t *testing.T) migrations.Option {
	return migrations.WithFS(upTo(t, latest, another, `ALTER TABLE idempotency_requests ADD COLUMN more text;
		CREATE TABLE idempotency_more (id integer PRIMARY KEY);
		ALTER TABLE idempotency_steps ADD CONSTRAINT idempotency_steps_more_check CHECK (name <> 'more');`))
}

// TestMigratingProcess is the process that TestKilledRuns starts and kills. By itself it does
// nothing.
func TestMigratingProcess(t *testing.T) {
	url := os.Getenv(crashURL)
	if url == "" {
		return
	}
	var schemas []tenancy.Schema
	for name := range strings.SplitSeq(os.Getenv(crashSchemas), ",") {
		schemas = append(schemas, parse(t, name))
	}
	fmt.Println("running")
	report, err := migrations.All(t.Context(), url, migrations.Schemas(schemas...), crashFiles(t), migrations.WithWorkers(3),
		migrations.WithTries(100, 5*time.Millisecond), migrations.WithResult(func(r migrations.Result) { fmt.Println("ended", r.Outcome) }))
	fmt.Println("finished", report.Failed, err)
}

// migrator is a process that migrates, and says how far it is.
type migrator struct {
	cmd   *exec.Cmd
	lines *bufio.Scanner
	kill  func()
}

func startMigrator(t *testing.T, pool *pgxpool.Pool, schemas []tenancy.Schema) *migrator {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	list := make([]string, len(schemas))
	for i, schema := range schemas {
		list[i] = schema.String()
	}
	cmd := exec.CommandContext(t.Context(), exe, "-test.run=^TestMigratingProcess$")
	cmd.Env = append(os.Environ(), crashURL+"="+pool.Config().ConnString(), crashSchemas+"="+strings.Join(list, ","))
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	m := &migrator{cmd: cmd, lines: bufio.NewScanner(out)}
	m.kill = sync.OnceFunc(func() {
		cmd.Process.Kill()
		for m.lines.Scan() { // to the end of what it had said
		}
		cmd.Wait()
	})
	t.Cleanup(m.kill)
	return m
}

// read reads so many lines of a kind, or until the process has no more to say.
func (m *migrator) read(prefix string, n int) (read int) {
	for read < n && m.lines.Scan() {
		if strings.HasPrefix(m.lines.Text(), prefix) {
			read++
		}
	}
	return read
}

// TestKilledRuns kills a process with SIGKILL while it makes and migrates many schemas, at a
// random moment, and runs again: each schema is at the newest version then, and as it should
// be. Each time, some schemas are missing, some are old by a few versions, and some are left
// by the process that was killed before.
func TestKilledRuns(t *testing.T) {
	t.Parallel()
	kills := 20
	if n, err := strconv.Atoi(os.Getenv(crashKills)); err == nil {
		kills = n
	} else if testing.Short() {
		kills = 4
	}
	pool := pgtest.NewPool(t)
	files := crashFiles(t)
	half := 0
	for round := range kills {
		schemas := tenants(t, 16)
		all(t, pool, schemas[:4], migrations.WithFS(upTo(t, 1+rand.IntN(latest-1))))
		all(t, pool, schemas[4:8])
		m := startMigrator(t, pool, schemas)
		m.read("running", 1)
		ended := m.read("ended", rand.IntN(len(schemas)))
		time.Sleep(time.Duration(rand.IntN(10_000)) * time.Microsecond) // anywhere within a transaction
		m.kill()

		// What is there now, with the dead process's transactions perhaps not over yet, is
		// of one version or another, and nothing in between.
		list, err := migrations.Status(t.Context(), pool.Config().ConnString(), migrations.Schemas(schemas...), files, migrations.WithLockTimeout(10*time.Second))
		if err != nil {
			t.Fatal(err)
		}
		through := 0
		for _, s := range list {
			if s.Drift != nil || s.Standing == migrations.Broken {
				t.Errorf("round %d: after the kill %s is %s at %d, %v:\n%s", round, s.Schema, s.Standing, s.Version, s.Err, strings.Join(s.Drift, "\n"))
			}
			if s.Standing == migrations.UpToDate {
				through++
			}
		}
		if through < ended {
			t.Errorf("round %d: %d schemas were reported as through, %d are", round, ended, through)
		}
		if through > 0 && through < len(schemas) {
			half++
		}
		if round%2 == 0 {
			report := all(t, pool, schemas, files, migrations.WithTries(1000, 5*time.Millisecond))
			if report.Created+report.Migrated+report.Current != len(schemas) {
				t.Errorf("round %d: %+v", round, report)
			}
		} else { // beside another process, which is killed in its turn
			second := startMigrator(t, pool, schemas)
			second.read("running", 1)
			all(t, pool, schemas, files, migrations.WithTries(1000, 5*time.Millisecond))
			second.kill()
		}
		intact(t, pool, schemas, latest+2, files)
	}
	if half < kills/2 {
		t.Errorf("only %d of %d kills came in the middle", half, kills)
	}
}
