// Package storetest sets the conformance suites of package idempotencytest to work
// on a pgstore.Store over whatever PostgreSQL a pool leads to.
package storetest

import (
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgidem/pgidem/idempotency"
	"github.com/pgidem/pgidem/idempotency/idempotencytest"
	"github.com/pgidem/pgidem/idempotency/pgstore"
	"github.com/pgidem/pgidem/migrations"
	"github.com/pgidem/pgidem/tenancy"
)

// PerOrg is the directory that the tests put their tenants in.
var PerOrg = perOrg()

func perOrg() tenancy.Directory {
	dir, err := tenancy.PerOrg("")
	if err != nil {
		panic(err)
	}
	return dir
}

// SchemaOf returns the schema of a tenant.
func SchemaOf(t testing.TB, org uuid.UUID) tenancy.Schema {
	t.Helper()
	schema, err := PerOrg.Schema(t.Context(), org)
	if err != nil {
		t.Fatal(err)
	}
	return schema
}

// NewTenant makes a tenant with a migrated schema of its own.
func NewTenant(t testing.TB, pool *pgxpool.Pool) uuid.UUID {
	t.Helper()
	return NewTenantOf(t, pool, uuid.New())
}

// NewTenantOf is NewTenant for an org_id that is given.
func NewTenantOf(t testing.TB, pool *pgxpool.Pool, org uuid.UUID) uuid.UUID {
	t.Helper()
	if err := migrations.Up(t.Context(), pool.Config().ConnString(), SchemaOf(t, org)); err != nil {
		t.Fatal(err)
	}
	return org
}

// NewStore returns a store over the pool.
func NewStore(t testing.TB, pool *pgxpool.Pool, opts ...pgstore.Option) *pgstore.Store {
	t.Helper()
	store, err := pgstore.New(pool, PerOrg, opts...)
	if err != nil {
		t.Fatal(err)
	}
	return store
}

// Advance lets time pass for a tenant by moving all of its times back.
func Advance(t testing.TB, pool *pgxpool.Pool, org uuid.UUID, d time.Duration) {
	t.Helper()
	schema := SchemaOf(t, org).Quoted()
	for _, sql := range []string{
		`UPDATE ` + schema + `.idempotency_records
		SET created_at = created_at - $1::interval, expires_at = expires_at - $1::interval, lease_until = lease_until - $1::interval`,
		`UPDATE ` + schema + `.idempotency_steps SET created_at = created_at - $1::interval, expires_at = expires_at - $1::interval`,
		`UPDATE ` + schema + `.idempotency_requests
		SET created_at = created_at - $1::interval, expires_at = expires_at - $1::interval, next_at = next_at - $1::interval`,
	} {
		if _, err := pool.Exec(t.Context(), sql, d); err != nil {
			t.Fatal(err)
		}
	}
}

// store knows the tenants of one test, so that the test can let time pass for them
// and for nobody else's.
type store struct {
	*pgstore.Store
	pool *pgxpool.Pool
	orgs []uuid.UUID
}

// Suite returns what the suites of idempotencytest need to run over the pool.
func Suite(pool *pgxpool.Pool, storeOpts ...pgstore.Option) (newStore func(testing.TB) idempotency.Store, opts []idempotencytest.Option) {
	return SuiteBehind(pool, pool, storeOpts...)
}

// SuiteBehind is Suite over a pool whose connections lead through a pooler, with a pool of
// direct ones for what that cannot do.
func SuiteBehind(pool, direct *pgxpool.Pool, storeOpts ...pgstore.Option) (newStore func(testing.TB) idempotency.Store, opts []idempotencytest.Option) {
	newStore = func(t testing.TB) idempotency.Store {
		s, err := pgstore.New(pool, PerOrg, append(storeOpts, pgstore.WithListenConfig(direct.Config().ConnConfig))...)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(s.Close)
		return &store{Store: s, pool: direct}
	}
	newTenant := func(t testing.TB, s idempotency.Store) uuid.UUID {
		of := s.(*store)
		org := NewTenant(t, of.pool)
		of.orgs = append(of.orgs, org)
		return org
	}
	advance := func(t testing.TB, s idempotency.Store, d time.Duration) {
		of := s.(*store)
		for _, org := range of.orgs {
			Advance(t, of.pool, org, d)
		}
	}
	return newStore, []idempotencytest.Option{
		idempotencytest.WithTenant(newTenant),
		idempotencytest.WithAdvance(advance),
	}
}

// NewSchema makes a migrated schema that no tenant is pinned to.
func NewSchema(t testing.TB, pool *pgxpool.Pool, name string) tenancy.Schema {
	t.Helper()
	schema, err := tenancy.ParseSchema(name)
	if err != nil {
		t.Fatal(err)
	}
	if err := migrations.Up(t.Context(), pool.Config().ConnString(), schema); err != nil {
		t.Fatal(err)
	}
	return schema
}
