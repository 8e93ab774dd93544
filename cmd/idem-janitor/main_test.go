package main

import (
	"bytes"
	"context"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"go.uber.org/goleak"

	"github.com/pgidem/pgidem/internal/cli/clitest"
	"github.com/pgidem/pgidem/internal/pgtest"
	"github.com/pgidem/pgidem/migrations"
	"github.com/pgidem/pgidem/tenancy"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// newPool returns a pool on a database of the test's own, and the database's URL.
func newPool(t testing.TB) (*pgxpool.Pool, string) {
	t.Helper()
	pool := pgtest.NewPool(t)
	return pool, pool.Config().ConnString()
}

// newTenant makes a tenant with an empty table of records.
func newTenant(t testing.TB, databaseURL string) tenancy.Schema {
	t.Helper()
	dir, err := tenancy.PerOrg("")
	if err != nil {
		t.Fatal(err)
	}
	schema, err := dir.Schema(t.Context(), uuid.New())
	if err != nil {
		t.Fatal(err)
	}
	if err := migrations.Up(t.Context(), databaseURL, schema); err != nil {
		t.Fatal(err)
	}
	return schema
}

// fill adds n records of each of the kinds to a tenant.
func fill(t testing.TB, pool *pgxpool.Pool, schema tenancy.Schema, n int, kinds ...kind) {
	t.Helper()
	org := uuid.MustParse(strings.TrimPrefix(schema.String(), tenancy.DefaultPrefix))
	for _, k := range kinds {
		_, err := pool.Exec(t.Context(), `INSERT INTO `+schema.Quoted()+`.idempotency_records
				(org_id, key, token, attempt, request_hash, created_at, expires_at, lease_until, completed_at, response_status, response_kept)
			SELECT $1, $2 || n, gen_random_uuid(), 1, 'hash', now() - interval '2 days', now() + $3::interval, now() + $4::interval,
				CASE WHEN $5 THEN now() - interval '2 days' END, CASE WHEN $5 THEN 200 END, $5
			FROM generate_series(1, $6) AS n`,
			org, k.name, k.expiry, k.lease, k.completed, n)
		if err != nil {
			t.Fatal(err)
		}
	}
}

// kind is a kind of record. Its expiry and lease lie so far ahead of now.
type kind struct {
	name          string
	expiry, lease time.Duration
	completed     bool
}

var (
	expired        = kind{"expired", -time.Hour, -time.Hour, true}
	expiredLeased  = kind{"completed with the lease running", -time.Hour, time.Hour, true}
	abandoned      = kind{"abandoned", -time.Hour, -time.Hour, false}
	live           = kind{"live", time.Hour, -time.Hour, true}
	inProgress     = kind{"in progress", time.Hour, time.Hour, false}
	longInProgress = kind{"in progress past its expiry", -time.Hour, time.Hour, false}
	interrupted    = kind{"interrupted", time.Hour, -time.Hour, false}

	absent  = []kind{expired, expiredLeased, abandoned}
	present = []kind{live, inProgress, longInProgress, interrupted}
)

// keys returns the kinds of the records of a tenant, each once.
func keys(t testing.TB, pool *pgxpool.Pool, schema tenancy.Schema) []string {
	t.Helper()
	rows, err := pool.Query(t.Context(), `SELECT DISTINCT rtrim(key, '0123456789') FROM `+schema.Quoted()+`.idempotency_records ORDER BY 1`)
	if err != nil {
		t.Fatal(err)
	}
	found, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// size returns how many records a tenant has.
func size(t testing.TB, pool *pgxpool.Pool, schema tenancy.Schema) (n int) {
	t.Helper()
	if err := pool.QueryRow(t.Context(), `SELECT count(*) FROM `+schema.Quoted()+`.idempotency_records`).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

func exec(t testing.TB, pool *pgxpool.Pool, sql string) {
	t.Helper()
	if _, err := pool.Exec(t.Context(), sql); err != nil {
		t.Fatal(err)
	}
}

// result is what a run of the program came to.
type result struct {
	code           int
	stdout, stderr string
}

func janitorRun(t testing.TB, args ...string) result {
	t.Helper()
	return janitorRunEnv(t, nil, args...)
}

func janitorRunEnv(t testing.TB, env map[string]string, args ...string) result {
	t.Helper()
	var stdout, stderr bytes.Buffer
	code := run(t.Context(), args, func(name string) string { return env[name] }, &stdout, &stderr)
	return result{code, stdout.String(), stderr.String()}
}

// expect checks the exit code and that each of the texts was printed.
func (r result) expect(t testing.TB, code int, texts ...string) {
	t.Helper()
	if r.code != code {
		t.Errorf("exit code %d, want %d", r.code, code)
	}
	for _, text := range texts {
		if !strings.Contains(r.stdout+r.stderr, text) {
			t.Errorf("%q is not in the output", text)
		}
	}
	if t.Failed() {
		t.Logf("stdout:\n%s\nstderr:\n%s", r.stdout, r.stderr)
	}
}

// roundOf returns the only round of a run with --json.
func (r result) roundOf(t testing.TB) roundJSON {
	t.Helper()
	rounds := parseRounds(t, r.stdout)
	if len(rounds) != 1 {
		t.Fatalf("%d rounds, want 1; stdout:\n%s\nstderr:\n%s", len(rounds), r.stdout, r.stderr)
	}
	return rounds[0]
}

// parseRounds reads the complete lines of the output of --json.
func parseRounds(t testing.TB, stdout string) (rounds []roundJSON) {
	t.Helper()
	for line := range strings.Lines(stdout) {
		if !strings.HasSuffix(line, "\n") {
			break
		}
		var r roundJSON
		if err := json.Unmarshal([]byte(line), &r); err != nil {
			t.Fatalf("%v in %q", err, line)
		}
		rounds = append(rounds, r)
	}
	return rounds
}

// background is a run of the program that goes on beside the test.
type background struct {
	stop   context.CancelCauseFunc
	stdout clitest.Buffer
	stderr clitest.Buffer
	done   chan struct{}
	code   int
}

func start(t testing.TB, args ...string) *background {
	t.Helper()
	ctx, stop := context.WithCancelCause(context.Background())
	b := &background{stop: stop, done: make(chan struct{})}
	go func() {
		defer close(b.done)
		b.code = run(ctx, args, func(string) string { return "" }, &b.stdout, &b.stderr)
	}()
	t.Cleanup(func() {
		stop(context.Canceled)
		<-b.done
	})
	return b
}

// wait returns the result of the run when it has ended.
func (b *background) wait(t testing.TB) result {
	t.Helper()
	select {
	case <-b.done:
	case <-time.After(clitest.Patience):
		t.Fatalf("the janitor goes on; stdout:\n%s\nstderr:\n%s", b.stdout.String(), b.stderr.String())
	}
	return result{b.code, b.stdout.String(), b.stderr.String()}
}

// block locks the table of a tenant, so that a purge of it waits until the returned
// function is called.
func block(t testing.TB, pool *pgxpool.Pool, schema tenancy.Schema, mode string) (unblock func()) {
	t.Helper()
	tx, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	unblock = func() { _ = tx.Rollback(context.Background()) }
	t.Cleanup(unblock)
	if _, err := tx.Exec(t.Context(), `LOCK TABLE `+schema.Quoted()+`.idempotency_records IN `+mode+` MODE`); err != nil {
		t.Fatal(err)
	}
	return unblock
}

// blocked waits until a janitor's statement waits for a lock, and returns the
// process that runs it, which is none of the others.
func blocked(t testing.TB, pool *pgxpool.Pool, others ...int32) (pid int32) {
	t.Helper()
	if others == nil {
		others = []int32{}
	}
	clitest.Eventually(t, "a statement of the janitor waits for a lock", func() bool {
		err := pool.QueryRow(t.Context(), `SELECT pid FROM pg_catalog.pg_stat_activity
			WHERE application_name = 'idem-janitor' AND datname = current_database() AND wait_event_type = 'Lock' AND pid <> ALL ($1)`, others).Scan(&pid)
		return err == nil
	})
	return pid
}
