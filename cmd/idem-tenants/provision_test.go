package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/google/uuid"

	"github.com/pgidem/pgidem/internal/cli"
	"github.com/pgidem/pgidem/internal/cli/clitest"
	"github.com/pgidem/pgidem/internal/pgtest"
	"github.com/pgidem/pgidem/migrations"
	"github.com/pgidem/pgidem/tenancy/registry"
)

// provisionedJSON is provisionJSON as it is read.
type provisionedJSON struct {
	tenantJSON
	Error    string `json:"error"`
	SQLState string `json:"sqlstate"`
}

func TestProvision(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	a, b, c, d := uuid.New(), uuid.New(), uuid.New(), uuid.New()
	file := filepath.Join(t.TempDir(), "tenants")
	if err := os.WriteFile(file, []byte("# new ones\n\n"+c.String()+" # the third\n"+a.String()+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	input := strings.NewReader(strings.ReplaceAll(d.String(), "-", ""))
	r := runInput(t, map[string]string{"DATABASE_URL": f.url}, input, "provision", "--json", a.String(), b.String(), "-", "--file", file).expect(t, cli.ExitOK)
	got := objects[provisionedJSON](t, r)
	if len(got) != 4 {
		t.Errorf("%d tenants, want 4, each once: %s", len(got), r.stdout)
	}
	for _, one := range got {
		if one.Error != "" || one.State != registry.Active || one.Schema != schemaOf(t, one.OrgID).String() || one.Version != migrations.Latest() {
			t.Errorf("%+v", one)
		}
	}
	for _, org := range []uuid.UUID{a, b, c, d} {
		if f.state(t, org) != registry.Active || f.version(t, schemaOf(t, org)) != migrations.Latest() {
			t.Errorf("%s is not whole", org)
		}
	}
	f.run(t, "provision", a.String()).expect(t, cli.ExitOK, a.String()+": active in schema "+schemaOf(t, a).String())
	f.run(t, "status").expect(t, cli.ExitOK, "up to date        4")
	if r := f.run(t, "provision", "--quiet", uuid.NewString()); r != (result{}) {
		t.Errorf("%+v", r)
	}
}

func TestProvisionOptions(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	role := "service_" + strings.ReplaceAll(uuid.NewString(), "-", "")
	f.exec(t, `CREATE ROLE `+role)
	t.Cleanup(func() { // roles are the server's
		for _, sql := range []string{`DROP OWNED BY ` + role, `DROP ROLE ` + role} {
			if _, err := f.pool.Exec(context.Background(), sql); err != nil {
				t.Error(err)
			}
		}
	})
	org, other, named := uuid.New(), uuid.New(), uuid.New()
	f.run(t, "provision", org.String(), "--service-role", role).expect(t, cli.ExitOK)
	var may bool
	if err := f.pool.QueryRow(t.Context(), `SELECT has_table_privilege($1, $2, 'INSERT')`, role, schemaOf(t, org).String()+".idempotency_records").Scan(&may); err != nil || !may {
		t.Errorf("the service may not write: %t, %v", may, err)
	}
	f.run(t, "provision", other.String(), "--prefix", "org_").expect(t, cli.ExitOK, "in schema org_")
	f.run(t, "provision", named.String(), "--schema", "payments").expect(t, cli.ExitOK, "in schema payments")
	f.run(t, "inspect", named.String()).expect(t, cli.ExitOK, "payments", "0 in progress")
	f.run(t, "provision", uuid.NewString(), "--schema", "payments").expect(t, cli.ExitFailed, "payments", named.String())

	eu := pgtest.NewPool(t)
	far := uuid.New()
	f.run(t, "provision", far.String(), "--cluster", "eu").expect(t, cli.ExitUsage, `"eu"`, "--server")
	server := "eu=" + eu.Config().ConnString()
	f.run(t, "provision", far.String(), "--cluster", "eu", "--server", server).expect(t, cli.ExitOK, "active")
	if _, err := eu.Exec(t.Context(), `SELECT FROM `+schemaOf(t, far).Quoted()+`.idempotency_records`); err != nil {
		t.Error(err)
	}
	f.run(t, "status", "--server", server).expect(t, cli.ExitOK, "up to date        4")
}

func TestTenantRoles(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	org := uuid.New()
	service, schema := "service_"+strings.ReplaceAll(uuid.NewString(), "-", ""), schemaOf(t, org).String()
	f.exec(t, `CREATE ROLE `+service)
	t.Cleanup(func() {
		if _, err := f.pool.Exec(context.Background(), `DROP ROLE `+service); err != nil {
			t.Error(err)
		}
	})
	roles := func() (n int) {
		t.Helper()
		if err := f.pool.QueryRow(t.Context(), `SELECT count(*) FROM pg_catalog.pg_roles WHERE rolname = $1`, schema).Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	f.run(t, "provision", org.String(), "--service-role", service, "--tenant-roles").expect(t, cli.ExitOK)
	if roles() != 1 {
		t.Error("the tenant has no role")
	}
	f.run(t, "suspend", "--yes", org.String()).expect(t, cli.ExitOK)
	f.run(t, "drop", org.String(), "--yes", "--confirm", schema, "--service-role", service, "--tenant-roles").expect(t, cli.ExitOK)
	if roles() != 0 {
		t.Error("the tenant's role is left")
	}
}

func TestProvisionFailures(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	good, taken, suspended := uuid.New(), uuid.New(), f.register(t, registry.Suspended)
	f.exec(t, `CREATE SCHEMA `+schemaOf(t, taken).Quoted()+` CREATE TABLE idempotency_records (org_id uuid)`)

	r := f.run(t, "provision", taken.String(), suspended.OrgID.String(), good.String())
	r.expect(t, cli.ExitFailed, taken.String()+": ", suspended.OrgID.String()+": ", "suspended", good.String()+": active")
	for _, one := range objects[provisionedJSON](t, f.run(t, "provision", "--json", taken.String(), good.String()).expect(t, cli.ExitFailed)) {
		if failed := one.Error != ""; failed != (one.OrgID == taken) || failed && one.Schema != "" {
			t.Errorf("%+v", one)
		}
	}

	// One whose provisioning cannot be finished can be dropped, and the schema stays that is
	// not its own.
	f.run(t, "drop", taken.String(), "--yes", "--confirm", schemaOf(t, taken).String()).expect(t, cli.ExitOK, "dropped")
	f.exec(t, `SELECT FROM `+schemaOf(t, taken).Quoted()+`.idempotency_records`)

	// A table that a tenant lacks is not the registry's.
	broken := f.behind(t)
	if _, err := f.tenants.SetState(t.Context(), broken.OrgID, registry.Provisioning); err != nil {
		t.Fatal(err)
	}
	f.exec(t, `DROP TABLE `+broken.Schema.Quoted()+`.idempotency_steps`)
	f.run(t, "provision", broken.OrgID.String()).expect(t, cli.ExitFailed, broken.OrgID.String()+": ", "(SQLSTATE 42P01)").without(t, "idem-tenants init")

	bad := filepath.Join(t.TempDir(), "tenants")
	fresh := uuid.New()
	if err := os.WriteFile(bad, []byte(fresh.String()+"\nnobody\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		args []string
		want string
	}{
		"nobody":         {nil, "no tenant"},
		"malformed":      {[]string{fresh.String(), "nobody"}, `"nobody"`},
		"malformed line": {[]string{"--file", bad}, "line 2"},
		"no file":        {[]string{"--file", bad + "2"}, "no such file"},
		"empty input":    {[]string{"-"}, "no tenant is named"},
		"two schemas":    {[]string{fresh.String(), good.String(), "--schema", "payments"}, "one tenant"},
		"schema":         {[]string{fresh.String(), "--schema", "public"}, "--schema"},
		"prefix":         {[]string{fresh.String(), "--prefix", "pg_"}, "--prefix"},
		"tenant roles":   {[]string{fresh.String(), "--tenant-roles"}, "--service-role"},
		"workers":        {[]string{fresh.String(), "--workers", "100"}, "1 to 64"},
	} {
		t.Run(name, func(t *testing.T) {
			f.run(t, append([]string{"provision"}, test.args...)...).expect(t, cli.ExitUsage, test.want)
		})
	}
	f.run(t, "inspect", fresh.String()).expect(t, exitNotFound) // nothing was done
	f.exec(t, `DROP SCHEMA pgidem CASCADE`)
	f.run(t, "provision", fresh.String()).expect(t, cli.ExitFailed, "idem-tenants init")
}

func TestInterruptedProvision(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	var orgs []string
	for range 8 {
		orgs = append(orgs, uuid.NewString())
	}
	// Another's insert of the first one is not committed, so the worker waits for it.
	tx, err := f.pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback(context.Background()) }()
	first := uuid.MustParse(orgs[0])
	if _, err := tx.Exec(t.Context(), `INSERT INTO pgidem.tenants (org_id, schema_name) VALUES ($1, $2)`, first, schemaOf(t, first).String()); err != nil {
		t.Fatal(err)
	}
	b := f.start(t, append([]string{"provision", "--workers", "1"}, orgs...)...)
	clitest.Eventually(t, "it waits for the other", func() bool { return f.waiting(t) == 1 })
	b.stop(cli.Signalled{Signal: syscall.SIGINT})
	b.wait(t).expect(t, cli.ExitSignal+2, "0 of 8 tenants are through", "stopped by signal interrupt")
	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	f.run(t, append([]string{"provision"}, orgs...)...).expect(t, cli.ExitOK)
	f.run(t, "status").expect(t, cli.ExitOK, "up to date        8")
}

func TestDrop(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	provisioned := func() (string, string) {
		org := uuid.New()
		f.run(t, "provision", org.String()).expect(t, cli.ExitOK)
		return org.String(), schemaOf(t, org).String()
	}
	org, schema := provisioned()
	stay, staySchema := provisioned()

	f.run(t, "drop", org, "--yes", "--confirm", schema).expect(t, cli.ExitFailed, "is active", "suspend it first")
	f.run(t, "suspend", "--yes", org).expect(t, cli.ExitOK)
	f.run(t, "drop", org).expect(t, cli.ExitUsage, "no terminal")
	f.run(t, "drop", org, "--yes").expect(t, cli.ExitUsage, "--confirm NAME")
	f.run(t, "drop", org, "--confirm", schema).expect(t, cli.ExitUsage, "--yes")
	for _, name := range []string{staySchema, strings.ToUpper(schema), org} {
		f.run(t, "drop", org, "--yes", "--confirm", name).expect(t, cli.ExitFailed, "not confirmed", "nothing was done")
	}
	f.exec(t, fmt.Sprintf(`CREATE TABLE %s.payments (id integer)`, schema))
	f.run(t, "drop", org, "--yes", "--confirm", schema).expect(t, cli.ExitFailed, "payments", "nothing was dropped", "--foreign")
	f.run(t, "resume", org).expect(t, cli.ExitOK) // after drops that were refused
	f.run(t, "status").expect(t, cli.ExitOK, "up to date        2")

	f.run(t, "suspend", "--yes", org).expect(t, cli.ExitOK)
	got := object[dropJSON](t, f.run(t, "drop", org, "--yes", "--confirm", schema, "--foreign", "--json").expect(t, cli.ExitOK))
	if !got.Dropped || got.Schema != schema || got.OrgID.String() != org {
		t.Errorf("%+v", got)
	}
	f.run(t, "inspect", org).expect(t, exitNotFound)
	f.run(t, "drop", org, "--yes", "--confirm", schema).expect(t, exitNotFound)
	var left int
	if err := f.pool.QueryRow(t.Context(), `SELECT count(*) FROM pg_catalog.pg_namespace WHERE nspname = $1`, schema).Scan(&left); err != nil || left != 0 {
		t.Errorf("the schema is there: %d, %v", left, err)
	}
	f.run(t, "inspect", stay).expect(t, cli.ExitOK, "active")
	f.run(t, "provision", org).expect(t, cli.ExitOK) // it may come back
}
