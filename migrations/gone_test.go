package migrations_test

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgidem/pgidem/internal/pgtest"
	"github.com/pgidem/pgidem/migrations"
	"github.com/pgidem/pgidem/tenancy"
)

func only(target migrations.Target) iter.Seq2[migrations.Target, error] {
	return func(yield func(migrations.Target, error) bool) { yield(target, nil) }
}

func exists(t *testing.T, pool *pgxpool.Pool, schema tenancy.Schema) (there bool) {
	t.Helper()
	if err := pool.QueryRow(t.Context(), `SELECT EXISTS (SELECT FROM pg_namespace WHERE nspname = $1)`, schema.String()).Scan(&there); err != nil {
		t.Fatal(err)
	}
	return there
}

// TestAllBringsNobodyBack who is dropped while the run is at another.
func TestAllBringsNobodyBack(t *testing.T) {
	t.Parallel()
	for name, before := range map[string]func(t *testing.T, pool *pgxpool.Pool, list []tenancy.Schema){
		"behind": func(t *testing.T, pool *pgxpool.Pool, list []tenancy.Schema) {
			all(t, pool, list, migrations.WithFS(upTo(t, latest-1)))
		},
		"empty": func(t *testing.T, pool *pgxpool.Pool, list []tenancy.Schema) {
			for _, schema := range list {
				run(t, pool, `CREATE SCHEMA `+schema.Quoted())
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pool := pgtest.NewPool(t)
			list := tenants(t, 2)
			before(t, pool, list)
			report, err := migrations.All(t.Context(), pool.Config().ConnString(), migrations.Schemas(list...), migrations.WithWorkers(1),
				migrations.WithResult(func(r migrations.Result) {
					if r.Schema == list[0] {
						run(t, pool, `DROP SCHEMA `+list[1].Quoted()+` CASCADE`)
					}
				}))
			if !errors.Is(err, migrations.ErrAbsent) || len(report.Failures) != 1 || report.Failures[0].Schema != list[1] {
				t.Errorf("%+v, %v", report, err)
			}
			if !exists(t, pool, list[0]) || exists(t, pool, list[1]) {
				t.Error("the schema that was dropped is there again, or the other is not")
			}
		})
	}
}

// TestOneBringsNobodyBack who is dropped after it has looked at the schema, and before it has read
// what the schema has had.
func TestOneBringsNobodyBack(t *testing.T) {
	t.Parallel()
	oneBeside(t, func(tx pgx.Tx, _ migrations.Target) error {
		_, err := tx.Exec(t.Context(), `DROP SCHEMA acme CASCADE`)
		return err
	}, func(pool *pgxpool.Pool, result migrations.Result, err error) {
		if !errors.Is(err, migrations.ErrAbsent) || exists(t, pool, parse(t, "acme")) {
			t.Errorf("%+v, %v", result, err)
		}
	})
}

// oneBeside has One go to a tenant acme that is up to date, while a transaction, which ends when
// One waits for it, has done something there. It checks what comes of One.
func oneBeside(t *testing.T, do func(pgx.Tx, migrations.Target) error, check func(*pgxpool.Pool, migrations.Result, error), opts ...migrations.Option) {
	t.Helper()
	pool := pgtest.NewPool(t)
	target := migrations.Target{Schema: parse(t, "acme"), OrgID: uuid.New()}
	if _, err := migrations.All(t.Context(), pool.Config().ConnString(), only(target)); err != nil {
		t.Fatal(err)
	}
	conn, err := pool.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Release()
	var group sync.WaitGroup
	defer group.Wait()
	err = pgx.BeginFunc(t.Context(), pool, func(tx pgx.Tx) error {
		if err := do(tx, target); err != nil {
			return err
		}
		group.Go(func() {
			result, err := migrations.One(t.Context(), conn.Conn(), target, append(opts, migrations.WithLockTimeout(time.Minute))...)
			check(pool, result, err)
		})
		return waitsForALock(t, pool)
	})
	if err != nil {
		t.Error(err)
	}
}

// waitsForALock waits until somebody does.
func waitsForALock(t *testing.T, pool *pgxpool.Pool) error {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(time.Millisecond) {
		var waiting bool
		if err := pool.QueryRow(t.Context(), `SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted AND database = (SELECT oid FROM pg_database WHERE datname = current_database()))`).Scan(&waiting); err != nil || waiting {
			return err
		}
		if time.Now().After(deadline) {
			return errors.New("nobody waits for a lock")
		}
	}
}

// TestMigrationsLeaveNoTableUnpinned in a schema whose name does not say whom it belongs to.
func TestMigrationsLeaveNoTableUnpinned(t *testing.T) {
	t.Parallel()
	pool := pgtest.NewPool(t)
	url := pool.Config().ConnString()
	conn, err := pool.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Release()
	for i, change := range []string{
		"", // the migrations after the second make tables
		// As goose leaves a schema when it is killed after it made its own table:
		`DROP TABLE %[1]s.idempotency_records; DELETE FROM %[1]s.idempotency_db_version WHERE version_id > 0`,
	} {
		target := migrations.Target{Schema: parse(t, fmt.Sprintf("acme_%d", i)), OrgID: uuid.New()}
		if _, err := migrations.All(t.Context(), url, only(target), migrations.WithFS(upTo(t, 2))); err != nil {
			t.Fatal(err)
		}
		if change != "" {
			run(t, pool, fmt.Sprintf(change, target.Schema.Quoted()))
		}
		report, err := migrations.All(t.Context(), url, only(target))
		if !errors.Is(err, migrations.ErrNotPinned) || report.Failed != 1 || report.Failures[0].Tries != 1 {
			t.Errorf("case %d: %+v, %v", i, report, err)
		}
		if _, err := migrations.One(t.Context(), conn.Conn(), target); !errors.Is(err, migrations.ErrNotPinned) {
			t.Errorf("case %d: one: %v", i, err)
		}
		var n int
		if err := pool.QueryRow(t.Context(), `SELECT count(*) FROM pg_tables WHERE schemaname = $1 AND tablename IN ('idempotency_steps', 'idempotency_requests')`, target.Schema.String()).Scan(&n); err != nil || n != 0 {
			t.Errorf("case %d: %d tables stayed, %v", i, n, err)
		}
		// Nobody is asked for more where the target names no tenant.
		if _, err := migrations.All(context.WithoutCancel(t.Context()), url, migrations.Schemas(target.Schema)); err != nil {
			t.Errorf("case %d: of no tenant: %v", i, err)
		}
	}
}
