package main

import (
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"go.uber.org/goleak"

	"github.com/pgidem/pgidem/internal/pgtest"
	"github.com/pgidem/pgidem/migrations"
	"github.com/pgidem/pgidem/tenancy"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(pgtest.Tests{M: m}) }

// TestPrepare: what is prepared is what a service would have, also where some of it is there.
func TestPrepare(t *testing.T) {
	t.Parallel()
	url := pgtest.NewDatabase(t)
	for _, tenants := range []int{2, 2, 4} {
		if err := prepare(t.Context(), url, tenants); err != nil {
			t.Fatal(err)
		}
	}
	dir, err := tenancy.PerOrg("tenant_")
	if err != nil {
		t.Fatal(err)
	}
	shared, err := tenancy.ParseSchema(sharedSchema)
	if err != nil {
		t.Fatal(err)
	}
	schemas := []tenancy.Schema{shared}
	for n := range 4 {
		schema, err := dir.Schema(t.Context(), orgOf(n))
		if err != nil {
			t.Fatal(err)
		}
		schemas = append(schemas, schema)
	}
	list, err := migrations.Status(t.Context(), url, migrations.Schemas(schemas...))
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range list {
		if s.Standing != migrations.UpToDate || s.Drift != nil {
			t.Errorf("%+v", s)
		}
	}

	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(t.Context()) }()
	if _, err := conn.Exec(t.Context(), `DROP TABLE shared.`+migrations.VersionTable); err != nil {
		t.Fatal(err)
	}
	if err := prepare(t.Context(), url, 4); err == nil || !strings.Contains(err.Error(), "new database") {
		t.Errorf("schemas of an older version of the program: %v", err)
	}
}
