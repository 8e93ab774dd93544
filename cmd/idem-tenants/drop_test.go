package main

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/pgidem/pgidem/internal/cli"
	"github.com/pgidem/pgidem/internal/cli/clitest"
	"github.com/pgidem/pgidem/internal/pgtest"
	"github.com/pgidem/pgidem/tenancy/registry"
)

// TestDropSaysWhatIsInTheWay and what to do about it.
func TestDropSaysWhatIsInTheWay(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	tenant := f.tenant(t)
	org, schema := tenant.OrgID.String(), tenant.Schema.String()
	f.run(t, "suspend", "--yes", org).expect(t, cli.ExitOK)
	drop := []string{"drop", org, "--yes", "--confirm", schema}

	f.exec(t, `CREATE SCHEMA reports CREATE VIEW keys AS SELECT key FROM `+schema+`.idempotency_records`)
	f.run(t, append(drop, "--foreign")...).expect(t, cli.ExitFailed, "view reports.keys depends on table "+schema+".idempotency_records", "nothing was dropped", "by hand").without(t, "provision: ")
	f.exec(t, `DROP SCHEMA reports CASCADE`)

	role := "service_" + strings.ReplaceAll(uuid.NewString(), "-", "")
	f.exec(t, `CREATE ROLE `+schema)
	t.Cleanup(func() {
		if _, err := f.pool.Exec(context.Background(), `DROP ROLE `+schema); err != nil {
			t.Error(err)
		}
	})
	f.run(t, append(drop, "--service-role", role, "--tenant-roles")...).expect(t, cli.ExitFailed, "leave out --tenant-roles", "COMMENT ON ROLE "+schema)

	another := uuid.New()
	f.exec(t, `UPDATE pgidem.tenants SET schema_name = 'acme' WHERE org_id = $1`, tenant.OrgID)
	f.exec(t, `CREATE SCHEMA acme CREATE TABLE idempotency_records (org_id uuid, CONSTRAINT idempotency_records_tenant_check CHECK (org_id = '`+another.String()+`'))`)
	f.run(t, "drop", org, "--yes", "--confirm", "acme").expect(t, cli.ExitFailed, "another tenant's", another.String(), "nothing was dropped", "table tenants")
	if f.state(t, tenant.OrgID) != registry.Suspended {
		t.Error("it is being dropped")
	}
	f.exec(t, `UPDATE pgidem.tenants SET schema_name = $2 WHERE org_id = $1`, tenant.OrgID, schema)
	f.run(t, drop...).expect(t, cli.ExitOK, "dropped")
}

// TestDropSaysWhereATombstoneIsInUse: what a move has left in the place where the tenant was.
func TestDropSaysWhereATombstoneIsInUse(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	tenant := f.tenant(t)
	org, schema := tenant.OrgID.String(), tenant.Schema.String()
	other := "--server=eu-2=" + pgtest.NewDatabase(t)
	for _, args := range [][]string{{"move", org, "--to", "eu-2", "--yes"}, {"suspend", "--yes", org}} {
		f.run(t, append(args, other)...).expect(t, cli.ExitOK)
	}
	drop := []string{"drop", org, "--yes", "--confirm", schema, "--foreign", other}
	f.exec(t, `CREATE SCHEMA reports CREATE VIEW went AS SELECT * FROM `+schema+`.idempotency_db_version`)
	f.run(t, drop...).expect(t, cli.ExitFailed, "view reports.went depends on", "schema "+schema+" of the nameless cluster, which a move has left empty", "nothing was dropped", "by hand").without(t, "provision: ")
	f.exec(t, `DROP SCHEMA reports CASCADE`)
	f.run(t, drop...).expect(t, cli.ExitOK, "dropped")
}

// TestMigrateSaysThatItLacksConnections, and does its work over those that it gets.
func TestMigrateSaysThatItLacksConnections(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	cfg := f.pool.Config().ConnConfig
	role := "migrator_" + strings.ReplaceAll(uuid.NewString(), "-", "")
	f.exec(t, `CREATE ROLE `+role+` LOGIN PASSWORD 'x' CONNECTION LIMIT 2`)
	f.exec(t, `GRANT CREATE ON DATABASE `+pgx.Identifier{cfg.Database}.Sanitize()+` TO `+role)
	t.Cleanup(func() {
		for _, sql := range []string{`DROP OWNED BY ` + role + ` CASCADE`, `DROP ROLE ` + role} {
			if _, err := f.pool.Exec(context.Background(), sql); err != nil {
				t.Error(err)
			}
		}
	})
	var schemas []string
	for range 60 {
		schemas = append(schemas, schemaOf(t, uuid.New()).String())
	}
	url := fmt.Sprintf("host=%s port=%d dbname=%s user=%s password=x", cfg.Host, cfg.Port, cfg.Database, role)
	env := map[string]string{"DATABASE_URL": url}
	runEnv(t, env, "migrate", "--workers", "8", "--schema", strings.Join(schemas[:30], ",")).expect(t, cli.ExitOK, "created           30", "warning: workers were refused a connection", "--workers")
	clitest.Eventually(t, "the server has ended its connections", func() (gone bool) {
		if err := f.pool.QueryRow(t.Context(), `SELECT NOT EXISTS (SELECT FROM pg_catalog.pg_stat_activity WHERE usename = $1)`, role).Scan(&gone); err != nil {
			t.Fatal(err)
		}
		return gone
	})
	got := object[migrateJSON](t, runEnv(t, env, "migrate", "--json", "--workers", "8", "--schema", strings.Join(schemas[30:], ",")).expect(t, cli.ExitOK))
	if got.Created != 30 || !strings.Contains(got.Warning, "53300") {
		t.Errorf("%+v", got)
	}
}
