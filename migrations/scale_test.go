package migrations_test

import (
	"os"
	"strconv"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgidem/pgidem/internal/pgtest"
	"github.com/pgidem/pgidem/migrations"
)

const (
	scaleTenants = "PGIDEM_SCALE_TENANTS" // how many tenants TestScale makes
	scaleWorkers = "PGIDEM_SCALE_WORKERS" // with how many workers, if not with 1 and with 8
)

// TestScale measures, on a server that flushes to its disk, what many tenants take. It has
// nothing to say by itself, since it fails on no time: see `make bench-migrations`.
func TestScale(t *testing.T) {
	n, err := strconv.Atoi(os.Getenv(scaleTenants))
	if err != nil {
		t.Skip(scaleTenants, "is not set")
	}
	both := []int{1, 8}
	if n, err := strconv.Atoi(os.Getenv(scaleWorkers)); err == nil {
		both = []int{n}
	}
	server := pgtest.NewServer(t, pgtest.WithDurable())
	next := migrations.WithFS(upTo(t, latest, another))
	for _, workers := range both {
		url, _, err := server.CreateDatabase(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		pool, err := pgxpool.New(t.Context(), url)
		if err != nil {
			t.Fatal(err)
		}
		defer pool.Close()
		schemas, with := tenants(t, n), migrations.WithWorkers(workers)
		measure := func(what string, n int, do func()) {
			start := time.Now()
			do()
			took := time.Since(start)
			t.Logf("%d workers: %-44s %8.2f s %8.0f tenants/s %8.2f ms each", workers, what, took.Seconds(), float64(n)/took.Seconds(), took.Seconds()*1000/float64(n))
		}
		sample := min(n, 100)
		measure("Up, one after the other, of new schemas", sample, func() {
			if err := migrations.Up(t.Context(), url, tenants(t, sample)...); err != nil {
				t.Fatal(err)
			}
		})
		measure("All, of new schemas", n, func() { want(t, all(t, pool, schemas, with), migrations.Report{Total: n, Created: n}) })
		measure("All, nothing to do", n, func() { want(t, all(t, pool, schemas, with), migrations.Report{Total: n, Current: n}) })
		measure("Up, one after the other, nothing to do", sample, func() {
			if err := migrations.Up(t.Context(), url, schemas[:sample]...); err != nil {
				t.Fatal(err)
			}
		})
		measure("Status, versions only", n, func() {
			if _, err := migrations.Status(t.Context(), url, migrations.Schemas(schemas...), with, migrations.WithVersionsOnly()); err != nil {
				t.Fatal(err)
			}
		})
		measure("Status, compared", n, func() { intact(t, pool, schemas, latest, with) })
		measure("All, one more migration", n, func() { want(t, all(t, pool, schemas, with, next), migrations.Report{Total: n, Migrated: n}) })
		var catalogs string
		if err := pool.QueryRow(t.Context(), `SELECT pg_size_pretty(sum(pg_total_relation_size(oid))) FROM pg_class WHERE relnamespace = 'pg_catalog'::regnamespace AND relkind = 'r'`).Scan(&catalogs); err != nil {
			t.Fatal(err)
		}
		t.Logf("%d workers: catalogs of %s", workers, catalogs)
	}
}
