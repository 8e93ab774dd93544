package migrations_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgidem/pgidem/internal/pgtest"
	"github.com/pgidem/pgidem/migrations"
)

// TestOneSaysWhyAConnectionBroke, as the caller sees nothing else of it.
func TestOneSaysWhyAConnectionBroke(t *testing.T) {
	t.Parallel()
	pool := pgtest.NewPool(t)
	conn, err := pgx.ConnectConfig(t.Context(), pool.Config().ConnConfig)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	// The second argument waits until the server process is gone.
	run(t, pool, fmt.Sprintf(`SELECT pg_terminate_backend(%d, 10000)`, conn.PgConn().PID()))
	result, err := migrations.One(t.Context(), conn, migrations.Target{Schema: tenants(t, 1)[0]})
	if err == nil || result.Err == nil || !errors.Is(err, result.Err) || result.Outcome != migrations.Failed || strings.Contains(err.Error(), "%!") {
		t.Errorf("outcome %q, %v; error %v", result.Outcome, result.Err, err)
	}
}

// TestOneSaysThatItWasCancelled while it waited for another.
func TestOneSaysThatItWasCancelled(t *testing.T) {
	t.Parallel()
	pool := pgtest.NewPool(t)
	schema := tenants(t, 1)[0]
	other, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer other.Rollback(context.Background())
	if _, err := other.Exec(t.Context(), `CREATE SCHEMA `+schema.Quoted()); err != nil {
		t.Fatal(err)
	}
	conn, err := pgx.ConnectConfig(t.Context(), pool.Config().ConnConfig)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	ctx, cancel := context.WithCancel(t.Context())
	waits := make(chan error, 1)
	go func() {
		defer cancel()
		for waiting := false; !waiting; {
			if err := pool.QueryRow(t.Context(), `SELECT count(*) > 0 FROM pg_locks WHERE pid = $1 AND NOT granted`, conn.PgConn().PID()).Scan(&waiting); err != nil {
				waits <- err
				return
			}
		}
		waits <- nil
	}()
	result, err := migrations.One(ctx, conn, migrations.Target{Schema: schema}, migrations.WithLockTimeout(time.Minute))
	if err := <-waits; err != nil {
		t.Fatal(err)
	}
	if !errors.Is(err, context.Canceled) || result.Outcome != migrations.Failed || !errors.Is(result.Err, context.Canceled) {
		t.Errorf("outcome %q, %v; error %v", result.Outcome, result.Err, err)
	}
}

// TestOneCommitsNothingOfItsCallers.
func TestOneCommitsNothingOfItsCallers(t *testing.T) {
	t.Parallel()
	pool := pgtest.NewPool(t)
	run(t, pool, `CREATE TABLE public.callers (n integer)`)
	tx, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback(context.Background())
	if _, err := tx.Exec(t.Context(), `INSERT INTO public.callers VALUES (1)`); err != nil {
		t.Fatal(err)
	}
	result, err := migrations.One(t.Context(), tx.Conn(), migrations.Target{Schema: tenants(t, 1)[0]})
	if err == nil || result.Outcome != migrations.Failed || result.Err == nil {
		t.Errorf("outcome %q, error %v", result.Outcome, err)
	}
	if err := tx.Rollback(t.Context()); err != nil {
		t.Errorf("the caller's transaction: %v", err)
	}
	var n int
	if err := pool.QueryRow(t.Context(), `SELECT count(*) FROM public.callers`).Scan(&n); err != nil || n != 0 {
		t.Errorf("%d rows were committed, %v", n, err)
	}
}

// TestLockTimeoutOutlastsTheDeadlockTimeout, after which an autovacuum gives way.
func TestLockTimeoutOutlastsTheDeadlockTimeout(t *testing.T) {
	t.Parallel()
	pool := pgtest.NewPool(t)
	list := tenants(t, 1)
	all(t, pool, list, migrations.WithFS(upTo(t, latest, `CREATE TABLE idempotency_more AS SELECT current_setting('lock_timeout')::interval AS waits;`)))
	var enough bool
	err := pool.QueryRow(t.Context(), `SELECT (SELECT waits FROM `+list[0].Quoted()+`.idempotency_more) > (SELECT boot_val::integer * interval '1 ms' FROM pg_settings WHERE name = 'deadlock_timeout')`).Scan(&enough)
	if err != nil || !enough {
		t.Errorf("a migration waits for longer: %t, %v", enough, err)
	}
}

// TestRowsInTheWayAreNotBusy: to try again helps nobody.
func TestRowsInTheWayAreNotBusy(t *testing.T) {
	t.Parallel()
	pool := pgtest.NewPool(t)
	list := tenants(t, 1)
	all(t, pool, list)
	run(t, pool, `INSERT INTO `+list[0].Quoted()+`.idempotency_steps
		SELECT now(), now(), gen_random_uuid(), '`+list[0].String()[len("tenant_"):]+`', k, '\x00', 'name', '\x00' FROM unnest(ARRAY['a', 'b']) AS k`)
	report, err := migrations.All(t.Context(), pool.Config().ConnString(), migrations.Schemas(list...), migrations.WithTries(4, time.Millisecond),
		migrations.WithFS(upTo(t, latest, `CREATE UNIQUE INDEX once ON idempotency_steps (name);`)))
	if len(report.Failures) != 1 || errors.Is(err, migrations.ErrBusy) || report.Failures[0].Tries != 1 || report.Failures[0].SQLState() != "23505" {
		t.Errorf("%+v, %v", report, err)
	}
}
