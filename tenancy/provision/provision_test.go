package provision_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"go.uber.org/goleak"

	"github.com/pgidem/pgidem/internal/pgtest"
	"github.com/pgidem/pgidem/migrations"
	"github.com/pgidem/pgidem/tenancy"
	"github.com/pgidem/pgidem/tenancy/provision"
	"github.com/pgidem/pgidem/tenancy/registry"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(pgtest.Tests{M: m}) }

func parse(t *testing.T, name string) tenancy.Schema {
	t.Helper()
	schema, err := tenancy.ParseSchema(name)
	if err != nil {
		t.Fatal(err)
	}
	return schema
}

// newPool returns a pool on a database with a control schema and the name of a role that
// stands for the service's.
func newPool(t *testing.T) (pool *pgxpool.Pool, role string) {
	t.Helper()
	pool = pgtest.NewPool(t)
	if err := migrations.UpControl(t.Context(), pool.Config().ConnString(), parse(t, registry.DefaultSchema)); err != nil {
		t.Fatal(err)
	}
	role = "pgidem_service_" + strings.ReplaceAll(uuid.NewString(), "-", "")
	run(t, pool, `CREATE ROLE `+role)
	t.Cleanup(func() {
		for _, sql := range []string{`DROP OWNED BY ` + role, `DROP ROLE ` + role} {
			if _, err := pool.Exec(context.Background(), sql); err != nil {
				t.Error(err)
			}
		}
	})
	return pool, role
}

func run(t *testing.T, pool *pgxpool.Pool, sql string, args ...any) {
	t.Helper()
	if _, err := pool.Exec(t.Context(), sql, args...); err != nil {
		t.Fatal(err)
	}
}

func newProvisioner(t *testing.T, pool *pgxpool.Pool, opts ...provision.Option) (*provision.Provisioner, *registry.Registry) {
	t.Helper()
	tenants, err := registry.New(pool)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(tenants.Close)
	p, err := provision.New(tenants, pool, opts...)
	if err != nil {
		t.Fatal(err)
	}
	return p, tenants
}

// wantWhole checks that a tenant is active, at the newest version, as it should be, and
// usable by the service's role.
func wantWhole(t *testing.T, pool *pgxpool.Pool, tenants *registry.Registry, org uuid.UUID, role string) registry.Tenant {
	t.Helper()
	tenant, err := tenants.Tenant(t.Context(), org)
	if err != nil || tenant.State != registry.Active || tenant.Version != migrations.Latest() {
		t.Fatalf("%+v, %v; want it to be active at %d", tenant, err, migrations.Latest())
	}
	list, err := migrations.Status(t.Context(), pool.Config().ConnString(), func(yield func(migrations.Target, error) bool) {
		yield(migrations.Target{Schema: tenant.Schema, OrgID: org}, nil)
	})
	if err != nil || list[0].Standing != migrations.UpToDate || list[0].Drift != nil {
		t.Fatalf("%+v, %v", list, err)
	}
	if role != "" {
		if err := store(t, pool, role, tenant.Schema, org); err != nil {
			t.Errorf("as the service: %v", err)
		}
	}
	if err := store(t, pool, "", tenant.Schema, uuid.New()); err == nil {
		t.Error("a row of another tenant was taken")
	}
	return tenant
}

// store writes and reads a row as a role, and takes it back.
func store(t *testing.T, pool *pgxpool.Pool, role string, schema tenancy.Schema, org uuid.UUID) error {
	t.Helper()
	tx, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback(context.Background())
	if role != "" {
		if _, err := tx.Exec(t.Context(), `SET LOCAL ROLE `+role); err != nil {
			t.Fatal(err)
		}
	}
	if _, err = tx.Exec(t.Context(), `INSERT INTO `+schema.Quoted()+`.idempotency_steps
		VALUES (now(), now(), gen_random_uuid(), $1, 'key', '\x00', 'name', '\x00')`, org); err != nil {
		return err
	}
	_, err = tx.Exec(t.Context(), `DELETE FROM `+schema.Quoted()+`.idempotency_steps`)
	return err
}

// named gives each tenant a schema of a name of its own.
type named struct{ prefix string }

func (n named) Schema(_ context.Context, org uuid.UUID) (tenancy.Schema, error) {
	return tenancy.ParseSchema(n.prefix + org.String()[:8])
}

func TestProvision(t *testing.T) {
	t.Parallel()
	for name, naming := range map[string]tenancy.Directory{"by its org_id": nil, "by a name": named{"acme_"}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pool, role := newPool(t)
			opts := []provision.Option{provision.WithServiceRole(role)}
			if naming != nil {
				opts = append(opts, provision.WithNaming(naming))
			}
			p, tenants := newProvisioner(t, pool, opts...)
			org := uuid.New()
			var first registry.Tenant
			for i := range 3 {
				tenant, err := p.Provision(t.Context(), org)
				if err != nil || tenant.State != registry.Active {
					t.Fatalf("%+v, %v", tenant, err)
				}
				if i == 0 {
					first = tenant
				}
				if tenant != first {
					t.Errorf("again: %+v, before %+v", tenant, first)
				}
			}
			tenant := wantWhole(t, pool, tenants, org, role)
			if strings.HasPrefix(tenant.Schema.String(), "acme_") != (naming != nil) {
				t.Errorf("schema %s", tenant.Schema)
			}
			if _, err := pool.Exec(t.Context(), `SET ROLE `+role+`; CREATE TABLE `+tenant.Schema.Quoted()+`.mine ()`); err == nil {
				t.Error("the service's role may make tables")
			}
			run(t, pool, `CREATE TABLE `+tenant.Schema.Quoted()+`.later (id integer)`) // by a later migration, say
			run(t, pool, `SET ROLE `+role+`; INSERT INTO `+tenant.Schema.Quoted()+`.later VALUES (1); RESET ROLE`)
			for range 2 {
				if tenant, err := p.Suspend(t.Context(), org); err != nil || tenant.State != registry.Suspended {
					t.Errorf("%+v, %v", tenant, err)
				}
			}
			if _, err := p.Provision(t.Context(), org); !errors.Is(err, provision.ErrState) {
				t.Errorf("a suspended tenant: %v", err)
			}
			for range 2 {
				if tenant, err := p.Resume(t.Context(), org); err != nil || tenant.State != registry.Active {
					t.Errorf("%+v, %v", tenant, err)
				}
			}
		})
	}
}

func TestProvisionRefuses(t *testing.T) {
	t.Parallel()
	pool, _ := newPool(t)
	p, tenants := newProvisioner(t, pool)
	shared := tenancy.Placement{Schema: parse(t, "shared")}
	if err := migrations.Up(t.Context(), pool.Config().ConnString(), shared.Schema); err != nil {
		t.Fatal(err)
	}
	one, other := uuid.New(), uuid.New()
	for range 2 {
		if _, err := p.ProvisionAt(t.Context(), one, shared); !errors.Is(err, provision.ErrNotPinned) {
			t.Errorf("a schema that is shared: %v", err)
		}
	}
	if tenant, err := tenants.Tenant(t.Context(), one); err != nil || tenant.State != registry.Provisioning {
		t.Errorf("%+v, %v; want it not to be served", tenant, err)
	}
	if _, err := p.ProvisionAt(t.Context(), other, shared); !errors.Is(err, registry.ErrConflict) {
		t.Errorf("a schema that another has: %v", err)
	}
	if _, err := p.ProvisionAt(t.Context(), other, tenancy.Placement{Schema: parse(t, "x"), Cluster: "eu"}); err == nil || !strings.Contains(err.Error(), `cluster "eu"`) {
		t.Errorf("a cluster without a pool: %v", err)
	}
	if _, err := p.Provision(t.Context(), uuid.Nil); !errors.Is(err, tenancy.ErrUnknownTenant) {
		t.Errorf("the nil UUID: %v", err)
	}
	if _, err := p.Suspend(t.Context(), one); !errors.Is(err, registry.ErrState) {
		t.Errorf("suspended while it is made: %v", err)
	}
	if _, err := provision.New(tenants, nil); err == nil {
		t.Error("no pool gave no error")
	}
	if _, err := provision.New(tenants, pool, provision.WithTenantRoles()); err == nil {
		t.Error("roles of tenants that nobody can become gave no error")
	}
	if _, err := provision.New(tenants, pool, provision.WithNewOn("eu")); err == nil {
		t.Error("a cluster without a pool gave no error")
	}
}

// TestProvisionTakesOver: a schema that Up made for the tenant before there was a registry.
func TestProvisionTakesOver(t *testing.T) {
	t.Parallel()
	pool, role := newPool(t)
	p, tenants := newProvisioner(t, pool, provision.WithServiceRole(role))
	org := uuid.New()
	schema := parse(t, "tenant_"+strings.ReplaceAll(org.String(), "-", ""))
	if err := migrations.Up(t.Context(), pool.Config().ConnString(), schema); err != nil {
		t.Fatal(err)
	}
	if _, err := p.Provision(t.Context(), org); err != nil {
		t.Fatal(err)
	}
	wantWhole(t, pool, tenants, org, role)
}

func TestProvisionSideBySide(t *testing.T) {
	t.Parallel()
	pool, role := newPool(t)
	p, tenants := newProvisioner(t, pool, provision.WithServiceRole(role), provision.WithTenantRoles())
	t.Cleanup(func() { dropAll(t, pool, p, tenants) })
	org := uuid.New()
	var group sync.WaitGroup
	for range 6 { // the same one
		group.Go(func() {
			if _, err := p.Provision(t.Context(), org); err != nil {
				t.Error(err)
			}
		})
	}
	group.Wait()
	wantWhole(t, pool, tenants, org, role)

	orgs := make([]uuid.UUID, 24)
	for i := range orgs {
		orgs[i] = uuid.New()
	}
	list := func(yield func(uuid.UUID, error) bool) {
		for _, org := range append(orgs, orgs[:3]...) {
			if !yield(org, nil) {
				return
			}
		}
	}
	calls := 0
	err := p.Many(t.Context(), 4, list, func(org uuid.UUID, tenant registry.Tenant, err error) {
		if calls++; err != nil || tenant.OrgID != org {
			t.Errorf("%s: %+v, %v", org, tenant, err)
		}
	})
	if err != nil || calls != 27 {
		t.Errorf("%d calls, %v", calls, err)
	}
	for _, org := range orgs[:5] {
		wantWhole(t, pool, tenants, org, role)
	}
	broken := errors.New("the list broke off")
	err = p.Many(t.Context(), 4, func(yield func(uuid.UUID, error) bool) { yield(uuid.Nil, broken) }, nil)
	if !errors.Is(err, broken) {
		t.Errorf("a list that breaks off: %v", err)
	}
}

// dropAll takes the roles of the tenants away with them, which would outlive the database.
func dropAll(t *testing.T, pool *pgxpool.Pool, p *provision.Provisioner, tenants *registry.Registry) {
	t.Helper()
	ctx := context.Background()
	for tenant, err := range tenants.Tenants(ctx, registry.Filter{}) {
		if err != nil {
			t.Error(err)
			return
		}
		if _, err := tenants.SetState(ctx, tenant.OrgID, registry.Suspended); err != nil {
			t.Error(err)
		}
		if err := p.Drop(ctx, tenant.OrgID, tenant.OrgID.String(), provision.WithForeign()); err != nil {
			t.Error(err)
		}
	}
	var left int
	if err := pool.QueryRow(ctx, `SELECT count(*) FROM pg_roles AS r JOIN pg_namespace AS n ON n.nspname = r.rolname`).Scan(&left); err != nil || left != 0 {
		t.Errorf("%d roles left, %v", left, err)
	}
}

// steps lists what happens between the kills of TestKilledProvisioner.
func steps(t *testing.T, do func(p *provision.Provisioner)) (list []string) {
	t.Helper()
	pool, role := newPool(t)
	p, _ := newProvisioner(t, pool, provision.WithServiceRole(role), provision.WithTenantRoles(), provision.WithStep(func(step string) error {
		list = append(list, step)
		return nil
	}))
	do(p)
	return list
}

const (
	crashURL  = "PGIDEM_CRASH_TEST_DATABASE_URL"
	crashOrg  = "PGIDEM_CRASH_TEST_ORG"
	crashRole = "PGIDEM_CRASH_TEST_ROLE"
	crashStep = "PGIDEM_CRASH_TEST_STEP"
	crashDrop = "PGIDEM_CRASH_TEST_DROP"
)

// TestProvisioningProcess is the process that TestKilledProvisioner starts, and that kills
// itself. By itself it does nothing.
func TestProvisioningProcess(t *testing.T) {
	url := os.Getenv(crashURL)
	if url == "" {
		return
	}
	last, err := strconv.Atoi(os.Getenv(crashStep))
	if err != nil {
		t.Fatal(err)
	}
	pool, err := pgxpool.New(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	p, _ := newProvisioner(t, pool, provision.WithServiceRole(os.Getenv(crashRole)), provision.WithTenantRoles(), provision.WithStep(func(string) error {
		if n++; n == last {
			syscall.Kill(syscall.Getpid(), syscall.SIGKILL)
		}
		return nil
	}))
	org := uuid.MustParse(os.Getenv(crashOrg))
	if os.Getenv(crashDrop) != "" {
		err = p.Drop(t.Context(), org, org.String())
	} else {
		_, err = p.Provision(t.Context(), org)
	}
	t.Fatal("not killed at step", last, err)
}

func dieAt(t *testing.T, pool *pgxpool.Pool, role string, org uuid.UUID, step int, env ...string) {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), exe, "-test.run=^TestProvisioningProcess$")
	cmd.Env = append(append(os.Environ(), crashURL+"="+pool.Config().ConnString(), crashOrg+"="+org.String(), crashRole+"="+role, fmt.Sprint(crashStep, "=", step)), env...)
	out, err := cmd.CombinedOutput()
	if err == nil || !strings.Contains(err.Error(), "killed") {
		t.Fatalf("the process was to be killed at step %d: %v\n%s", step, err, out)
	}
}

// TestKilledProvisioner kills a process with SIGKILL after each step of making a tenant, and
// of dropping one; whoever does it again finishes it.
func TestKilledProvisioner(t *testing.T) {
	t.Parallel()
	org := uuid.New()
	var making, dropping int
	steps(t, func(p *provision.Provisioner) {
		t.Helper()
		count := func(err error) {
			if err != nil {
				t.Fatal(err)
			}
		}
		_, err := p.Provision(t.Context(), org)
		count(err)
		_, err = p.Suspend(t.Context(), org)
		count(err)
		count(p.Drop(t.Context(), org, org.String()))
	})
	list := steps(t, func(p *provision.Provisioner) {
		if _, err := p.Provision(t.Context(), org); err != nil {
			t.Fatal(err)
		}
		if _, err := p.Suspend(t.Context(), org); err != nil {
			t.Fatal(err)
		}
		if err := p.Drop(t.Context(), org, org.String()); err != nil {
			t.Fatal(err)
		}
	})
	making = slices.Index(list, "active") + 1
	dropping = len(list) - making
	if making < 5 || dropping < 8 {
		t.Fatalf("steps %v", list)
	}
	pool, role := newPool(t)
	p, tenants := newProvisioner(t, pool, provision.WithServiceRole(role), provision.WithTenantRoles())
	t.Cleanup(func() { dropAll(t, pool, p, tenants) })
	for step := 1; step <= making; step++ {
		org := uuid.New()
		dieAt(t, pool, role, org, step)
		if _, err := p.Provision(t.Context(), org); err != nil {
			t.Errorf("killed after %s: %v", list[step-1], err)
		}
		wantWhole(t, pool, tenants, org, role)
	}
	for step := 1; step <= dropping; step++ {
		org := uuid.New()
		tenant, err := p.Provision(t.Context(), org)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := p.Suspend(t.Context(), org); err != nil {
			t.Fatal(err)
		}
		dieAt(t, pool, role, org, step, crashDrop+"=yes")
		if _, err := p.Resume(t.Context(), org); err == nil {
			t.Errorf("killed after %s: resumed", list[making+step-1])
		}
		err = p.Drop(t.Context(), org, org.String())
		if err != nil && (!errors.Is(err, tenancy.ErrUnknownTenant) || step < dropping) {
			t.Errorf("killed after %s: %v", list[making+step-1], err)
		}
		wantGone(t, pool, tenants, tenant)
	}
}

func wantGone(t *testing.T, pool *pgxpool.Pool, tenants *registry.Registry, tenant registry.Tenant) {
	t.Helper()
	if _, err := tenants.Tenant(t.Context(), tenant.OrgID); !errors.Is(err, tenancy.ErrUnknownTenant) {
		t.Errorf("still registered: %v", err)
	}
	var left int
	if err := pool.QueryRow(t.Context(), `SELECT (SELECT count(*) FROM pg_namespace WHERE nspname = $1) + (SELECT count(*) FROM pg_roles WHERE rolname = $1)`,
		tenant.Schema.String()).Scan(&left); err != nil || left != 0 {
		t.Errorf("%d left of %s, %v", left, tenant.Schema, err)
	}
}

// TestCutOffAfterEachMessage cuts all connections once so many messages were sent, for each
// number of them, so also where an answer is lost of something that was done.
func TestCutOffAfterEachMessage(t *testing.T) {
	t.Parallel()
	pool, role := newPool(t)
	p, tenants := newProvisioner(t, pool, provision.WithServiceRole(role))
	for messages := 0; ; messages++ {
		org := uuid.New()
		cut := cutAfter(t, pool, messages)
		behind, _ := newProvisioner(t, cut, provision.WithServiceRole(role))
		_, failed := behind.Provision(t.Context(), org)
		tenant, err := p.Provision(t.Context(), org)
		if err != nil {
			t.Fatalf("cut off after %d messages by %v, and then: %v", messages, failed, err)
		}
		wantWhole(t, pool, tenants, org, role)
		if _, err := p.Suspend(t.Context(), org); err != nil {
			t.Fatal(err)
		}
		cut = cutAfter(t, pool, messages)
		behind, _ = newProvisioner(t, cut, provision.WithServiceRole(role), provision.WithTries(1e9, 1, 0))
		undropped := behind.Drop(t.Context(), org, org.String())
		if err := p.Drop(t.Context(), org, org.String()); err != nil && !errors.Is(err, tenancy.ErrUnknownTenant) {
			t.Fatalf("drop cut off after %d messages by %v, and then: %v", messages, undropped, err)
		}
		wantGone(t, pool, tenants, tenant)
		if failed == nil && undropped == nil {
			if messages < 10 {
				t.Fatalf("neither was cut off by %d messages: the test proves nothing", messages)
			}
			return
		}
		if messages > 500 {
			t.Fatal("no end:", failed, undropped)
		}
	}
}

func TestTenantRoles(t *testing.T) {
	t.Parallel()
	pool, role := newPool(t)
	p, tenants := newProvisioner(t, pool, provision.WithServiceRole(role), provision.WithTenantRoles())
	t.Cleanup(func() { dropAll(t, pool, p, tenants) })
	var list []registry.Tenant
	for range 2 {
		tenant, err := p.Provision(t.Context(), uuid.New())
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, tenant)
	}
	a, b := list[0], list[1]
	if err := store(t, pool, a.Schema.Quoted(), a.Schema, a.OrgID); err != nil {
		t.Errorf("A as A: %v", err)
	}
	tx, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback(context.Background())
	for _, sql := range []string{`SET LOCAL ROLE ` + role, `SET LOCAL ROLE ` + a.Schema.Quoted()} { // as the service does
		if _, err := tx.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	for _, sql := range []string{
		`SELECT count(*) FROM ` + b.Schema.Quoted() + `.idempotency_records`,
		`INSERT INTO ` + b.Schema.Quoted() + `.idempotency_steps SELECT * FROM ` + a.Schema.Quoted() + `.idempotency_steps`,
		`SELECT count(*) FROM pgidem.tenants`,
		`CREATE TABLE ` + a.Schema.Quoted() + `.mine ()`,
		`UPDATE ` + a.Schema.Quoted() + `.idempotency_db_version SET version_id = 0`,
	} {
		err := pgx.BeginFunc(t.Context(), tx, func(tx pgx.Tx) error {
			_, err := tx.Exec(t.Context(), sql)
			return err
		})
		if err == nil || !strings.Contains(err.Error(), "42501") {
			t.Errorf("as A: %s: %v; want it to be refused", sql, err)
		}
	}
}
