package registry_test

import (
	"testing"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"
	"go.uber.org/goleak"

	"github.com/pgidem/pgidem/internal/pgtest"
	"github.com/pgidem/pgidem/migrations"
	"github.com/pgidem/pgidem/tenancy"
	"github.com/pgidem/pgidem/tenancy/registry"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(pgtest.Tests{M: m}) }

func parse(t testing.TB, name string) tenancy.Schema {
	t.Helper()
	schema, err := tenancy.ParseSchema(name)
	if err != nil {
		t.Fatal(err)
	}
	return schema
}

// newPool returns a pool on a database with a control schema.
func newPool(t testing.TB) *pgxpool.Pool {
	t.Helper()
	pool := pgtest.NewPool(t)
	if err := migrations.UpControl(t.Context(), pool.Config().ConnString(), parse(t, registry.DefaultSchema)); err != nil {
		t.Fatal(err)
	}
	return pool
}

func newRegistry(t testing.TB, pool *pgxpool.Pool, opts ...registry.Option) *registry.Registry {
	t.Helper()
	r, err := registry.New(pool, opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Close)
	return r
}

// perOrg returns the schema that [tenancy.PerOrg] derives for an org.
func perOrg(t testing.TB, org uuid.UUID) tenancy.Schema {
	t.Helper()
	dir, err := tenancy.PerOrg("")
	if err != nil {
		t.Fatal(err)
	}
	schema, err := dir.Schema(t.Context(), org)
	if err != nil {
		t.Fatal(err)
	}
	return schema
}

// at returns where a tenant is, with a version.
func at(tenant registry.Tenant, version int64) tenancy.Placement {
	place := tenant.Placement()
	place.Version = version
	return place
}

// add registers a new tenant in the given state.
func add(t testing.TB, r *registry.Registry, state registry.State) registry.Tenant {
	t.Helper()
	org := uuid.New()
	tenant, err := r.Add(t.Context(), registry.Tenant{OrgID: org, Schema: perOrg(t, org), State: state})
	if err != nil {
		t.Fatal(err)
	}
	return tenant
}
