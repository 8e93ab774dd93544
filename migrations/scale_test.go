package migrations_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"text/tabwriter"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgidem/pgidem/internal/pgtest"
	"github.com/pgidem/pgidem/migrations"
	"github.com/pgidem/pgidem/tenancy"
	"github.com/pgidem/pgidem/tenancy/provision"
	"github.com/pgidem/pgidem/tenancy/registry"
)

const (
	scaleTenants = "PGIDEM_SCALE_TENANTS" // how many tenants TestScale makes
	scaleWorkers = "PGIDEM_SCALE_WORKERS" // with how many workers, if not with 1 and with 8
)

// expiredRecords is how many of each tenant the janitor finds.
const expiredRecords = 20

// TestScale measures, on a server that flushes to its disk, what many tenants take, and prints
// a table. It has nothing to say by itself, since it fails on no time: see `make
// bench-migrations`.
func TestScale(t *testing.T) {
	n, err := strconv.Atoi(os.Getenv(scaleTenants))
	if err != nil {
		t.Skip(scaleTenants, "is not set")
	}
	both := []int{1, 8}
	if n, err := strconv.Atoi(os.Getenv(scaleWorkers)); err == nil {
		both = []int{n}
	}
	janitor := filepath.Join(t.TempDir(), "idem-janitor")
	if out, err := exec.Command("go", "build", "-o", janitor, "../cmd/idem-janitor").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	server := pgtest.NewServer(t, pgtest.WithDurable(), pgtest.WithParameter("autovacuum", "on"))
	var text bytes.Buffer
	table := tabwriter.NewWriter(&text, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(table, "\tworkers\ttenants\tseconds\ttenants/s\tms each\tcatalogs, MiB\tmost of a backend, MiB\tall backends, MiB\tclient, MiB\t")
	for _, workers := range both {
		scale(t, server, janitor, table, n, workers)
	}
	if err := table.Flush(); err != nil {
		t.Fatal(err)
	}
	t.Logf("%s\n%s", server.Source(), text.String())
}

func scale(t *testing.T, server *pgtest.Server, janitor string, table *tabwriter.Writer, n, workers int) {
	url, drop, err := server.CreateDatabase(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	cfg, err := pgxpool.ParseConfig(url)
	if err != nil {
		t.Fatal(err)
	}
	cfg.MaxConns = int32(2 * workers)
	pool, err := pgxpool.NewWithConfig(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		pool.Close()
		if err := drop(context.Background()); err != nil { // the next one has the disk to itself
			t.Error(err)
		}
	}()
	if err := migrations.UpControl(t.Context(), url, parse(t, registry.DefaultSchema)); err != nil {
		t.Fatal(err)
	}
	service := fmt.Sprintf("scale_service_%d", workers)
	run(t, pool, `CREATE ROLE `+service)
	list, err := registry.New(pool)
	if err != nil {
		t.Fatal(err)
	}
	defer list.Close()
	provisioner, err := provision.New(list, pool, provision.WithServiceRole(service))
	if err != nil {
		t.Fatal(err)
	}
	orgs := make([]uuid.UUID, n)
	for i := range orgs {
		orgs[i] = uuid.New()
	}
	var schemas []tenancy.Schema
	with, next := migrations.WithWorkers(workers), migrations.WithFS(upTo(t, latest, another))
	measure := func(what string, workers, n int, do func() (client int64)) {
		pool.Reset() // so that no process of the step before is counted
		watch := watchBackends(t, url)
		start := time.Now()
		client := do()
		took := time.Since(start)
		most, all := watch()
		if client == 0 {
			client = resident(os.Getpid(), "VmRSS")
		}
		var catalogs int64
		if err := pool.QueryRow(t.Context(), `SELECT sum(pg_total_relation_size(oid)) FROM pg_class WHERE relnamespace = 'pg_catalog'::regnamespace AND relkind = 'r'`).Scan(&catalogs); err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(table, "%s\t%d\t%d\t%.2f\t%.0f\t%.2f\t%d\t%.1f\t%.1f\t%.1f\t\n", what, workers, n, took.Seconds(), float64(n)/took.Seconds(), took.Seconds()*1000/float64(n),
			catalogs>>20, mib(most), mib(all), mib(client))
		t.Logf("%d workers: %s: %.2f s", workers, what, took.Seconds())
	}
	own := func(do func()) func() int64 {
		return func() int64 { do(); return 0 }
	}
	sample := min(n, 100)
	measure("Up, new schemas", 1, sample, own(func() {
		if err := migrations.Up(t.Context(), url, tenants(t, sample)...); err != nil {
			t.Fatal(err)
		}
	}))
	measure("All, new schemas", workers, sample, own(func() {
		want(t, all(t, pool, tenants(t, sample), with), migrations.Report{Total: sample, Created: sample})
	}))
	measure("provision, registry and schema", workers, n, own(func() {
		err := provisioner.Many(t.Context(), workers, func(yield func(uuid.UUID, error) bool) {
			for _, org := range orgs {
				if !yield(org, nil) {
					return
				}
			}
		}, func(org uuid.UUID, tenant registry.Tenant, err error) {
			if err != nil {
				t.Errorf("%s: %v", org, err)
			}
			schemas = append(schemas, tenant.Schema)
		})
		if err != nil || t.Failed() {
			t.Fatal(err)
		}
	}))
	measure("All, nothing to do", workers, n, own(func() { want(t, all(t, pool, schemas, with), migrations.Report{Total: n, Current: n}) }))
	measure("Up, nothing to do", 1, sample, own(func() {
		if err := migrations.Up(t.Context(), url, schemas[:sample]...); err != nil {
			t.Fatal(err)
		}
	}))
	measure("Status, versions only", workers, n, own(func() {
		if _, err := migrations.Status(t.Context(), url, migrations.Schemas(schemas...), with, migrations.WithVersionsOnly()); err != nil {
			t.Fatal(err)
		}
	}))
	measure("Status, compared", workers, n, own(func() { intact(t, pool, schemas, latest, with) }))
	measure("All, one more migration", workers, n, own(func() { want(t, all(t, pool, schemas, with, next), migrations.Report{Total: n, Migrated: n}) }))
	expire(t, pool, schemas)
	measure(fmt.Sprintf("janitor, %d expired records each", expiredRecords), workers, n, func() int64 { return purge(t, janitor, url, workers, n, n*expiredRecords) })
	measure("janitor, nothing expired", workers, n, func() int64 { return purge(t, janitor, url, workers, n, 0) })
}

// expire gives each tenant records that are to be purged.
func expire(t *testing.T, pool *pgxpool.Pool, schemas []tenancy.Schema) {
	t.Helper()
	for len(schemas) > 0 {
		var sql strings.Builder
		part := schemas[:min(100, len(schemas))]
		schemas = schemas[len(part):]
		for _, schema := range part {
			org := schema.String()[len(schema.String())-32:]
			fmt.Fprintf(&sql, `INSERT INTO %s.idempotency_records (created_at, expires_at, lease_until, token, org_id, attempt, response_kept, key, request_hash)
				SELECT now(), now() - interval '1 h', now() - interval '1 h', gen_random_uuid(), '%s', 1, false, 'key ' || i, '\x00' FROM generate_series(1, %d) AS i;`, schema.Quoted(), org, expiredRecords)
		}
		run(t, pool, sql.String())
	}
}

// purge runs the janitor as its users do, and returns how much memory it had at most.
func purge(t *testing.T, program, url string, workers, tenants, deleted int) int64 {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), program, "--json", "--workers", strconv.Itoa(workers))
	cmd.Env = append(os.Environ(), "DATABASE_URL="+url)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	var most int64
	var err error
	for running := true; running; {
		most = max(most, resident(cmd.Process.Pid, "VmHWM"))
		select {
		case err = <-ended:
			running = false
		case <-time.After(5 * time.Millisecond):
		}
	}
	var got struct {
		Tenants int `json:"tenants_done"`
		Deleted int `json:"records_deleted"`
	}
	if err == nil {
		err = json.Unmarshal(stdout.Bytes(), &got)
	}
	if err != nil || got.Tenants < tenants || got.Deleted != deleted {
		t.Fatalf("%v: %.500s%s", err, stdout.String(), stderr.String())
	}
	return most
}

// watchBackends looks how much memory the server's processes have to themselves that work on
// the database. The function that it returns ends that, and returns the most that one had, and
// all together.
func watchBackends(t *testing.T, url string) (end func() (one, all int64)) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	var one, all int64
	stop := make(chan struct{})
	var watching sync.WaitGroup
	watching.Go(func() {
		for {
			rows, _ := conn.Query(context.Background(), `SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND backend_type = 'client backend' AND pid <> pg_backend_pid()`)
			pids, err := pgx.CollectRows(rows, pgx.RowTo[int])
			if err != nil {
				t.Error(err)
				return
			}
			var sum int64
			for _, pid := range pids {
				bytes := resident(pid, "RssAnon")
				one, sum = max(one, bytes), sum+bytes
			}
			all = max(all, sum)
			select {
			case <-stop:
				return
			case <-time.After(50 * time.Millisecond):
			}
		}
	})
	return func() (int64, int64) {
		close(stop)
		watching.Wait()
		_ = conn.Close(context.Background())
		return one, all
	}
}

// resident reads a line of /proc/PID/status, in bytes; 0 where there is none.
func resident(pid int, name string) int64 {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, name+":"); ok {
			kib, _ := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
			return kib << 10
		}
	}
	return 0
}

func mib(bytes int64) float64 { return float64(bytes) / (1 << 20) }
