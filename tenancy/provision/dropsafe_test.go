package provision_test

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgidem/pgidem/internal/pgtest"
	"github.com/pgidem/pgidem/migrations"
	"github.com/pgidem/pgidem/tenancy"
	"github.com/pgidem/pgidem/tenancy/provision"
	"github.com/pgidem/pgidem/tenancy/registry"
)

// before is a tracer that has fn called before each query.
type before func(sql string)

func (fn before) TraceQueryStart(ctx context.Context, _ *pgx.Conn, d pgx.TraceQueryStartData) context.Context {
	fn(d.SQL)
	return ctx
}

func (before) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}

// TestDropBesideAMove that ends between the look at the tenant and the first step.
func TestDropBesideAMove(t *testing.T) {
	t.Parallel()
	pool, _ := newPool(t)
	b := pgtest.NewPool(t)
	plain, tenants := newProvisioner(t, pool)
	tenant := suspended(t, plain)
	var once sync.Once
	cfg := pool.Config()
	cfg.ConnConfig.Tracer = before(func(string) {
		once.Do(func() {
			begun, err := tenants.BeginMove(t.Context(), tenant.OrgID, "", "b")
			if err != nil {
				t.Error(err)
			}
			if err := migrations.Up(t.Context(), b.Config().ConnString(), tenant.Schema); err != nil {
				t.Error(err)
			}
			if _, err := tenants.FinishMove(t.Context(), tenant.OrgID, begun.MoveID); err != nil {
				t.Error(err)
			}
		})
	})
	traced, err := pgxpool.NewWithConfig(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(traced.Close)
	p, err := provision.New(tenants, traced, provision.WithClusters(map[string]*pgxpool.Pool{"b": b}))
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Drop(t.Context(), tenant.OrgID, tenant.OrgID.String()); !errors.Is(err, provision.ErrState) || !strings.Contains(err.Error(), `"b"`) {
		t.Errorf("error %v", err)
	}
	const exists = `SELECT EXISTS (SELECT FROM pg_namespace WHERE nspname = $1)`
	for name, pool := range map[string]*pgxpool.Pool{"a": pool, "b": b} {
		var there bool
		if err := pool.QueryRow(t.Context(), exists, tenant.Schema.String()).Scan(&there); err != nil || !there {
			t.Errorf("schema on %s: %t, %v", name, there, err)
		}
	}
	if err := p.Drop(t.Context(), tenant.OrgID, tenant.OrgID.String()); err != nil { // where it is now
		t.Fatal(err)
	}
	var there bool
	if err := b.QueryRow(t.Context(), exists, tenant.Schema.String()).Scan(&there); err != nil || there {
		t.Errorf("schema on b after the second drop: %t, %v", there, err)
	}
	if _, err := tenants.Tenant(t.Context(), tenant.OrgID); !errors.Is(err, tenancy.ErrUnknownTenant) {
		t.Error(err)
	}
}

// TestDropTakesNothingElsewhere, and finds out before its first step what depends on the schema.
func TestDropTakesNothingElsewhere(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ sql, names string }{
		"partition":   {`CREATE TABLE %a.parted (id integer) PARTITION BY RANGE (id); CREATE TABLE %b.thing PARTITION OF %a.parted DEFAULT`, "table %b.thing depends on table %a.parted"},
		"child":       {`CREATE TABLE %b.thing () INHERITS (%a.idempotency_records)`, "table %b.thing depends on table %a.idempotency_records"},
		"foreign key": {`CREATE TABLE %b.thing (org uuid, key text, CONSTRAINT refers FOREIGN KEY (org, key) REFERENCES %a.idempotency_records (org_id, key))`, "constraint refers on table %b.thing depends on"},
		"view":        {`CREATE VIEW %b.thing AS SELECT key FROM %a.idempotency_steps`, "view %b.thing depends on table %a.idempotency_steps"},
		"type":        {`CREATE TYPE %a.colour AS ENUM ('red'); CREATE TABLE %b.thing (c %a.colour)`, "column c of table %b.thing depends on type %a.colour"},
		"default":     {`CREATE SEQUENCE %a.numbers; CREATE TABLE %b.thing (n bigint DEFAULT nextval('%a.numbers'))`, "%b.thing depends on sequence %a.numbers"},
		"trigger":     {`CREATE FUNCTION %a.f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'; CREATE TABLE %b.thing (); CREATE TRIGGER g BEFORE INSERT ON %b.thing FOR EACH ROW EXECUTE FUNCTION %a.f()`, "trigger g on table %b.thing depends on function %a.f()"},
		"operator":    {`CREATE OPERATOR %a.=== (LEFTARG = int, RIGHTARG = int, FUNCTION = int4eq); CREATE VIEW %b.thing AS SELECT 1 OPERATOR(%a.===) 2 AS b`, "view %b.thing depends on operator %a.===(integer,integer)"},
		"collation":   {`CREATE COLLATION %a.c FROM "C"; CREATE TABLE %b.thing (a text COLLATE %a.c)`, "column a of table %b.thing depends on collation %a.c"},
		"statistics":  {`CREATE STATISTICS %b.s ON org_id, key FROM %a.idempotency_records; CREATE TABLE %b.thing (n integer)`, "statistics object %b.s depends on table %a.idempotency_records"},
		"policy":      {`CREATE TABLE %b.thing (k text); CREATE POLICY p ON %b.thing USING (k IN (SELECT key FROM %a.idempotency_steps))`, "policy p on table %b.thing depends on table %a.idempotency_steps"},
		"cast":        {`CREATE TYPE %a.colour AS ENUM ('red'); CREATE CAST (text AS %a.colour) WITH INOUT`, "cast from text to %a.colour depends on type %a.colour"},
		"other kinds": {`CREATE COLLATION %a.c FROM "C"`, "collation %a.c is in it"},
		"text search": {`CREATE TABLE %b.thing (n integer); CREATE TEXT SEARCH CONFIGURATION %a.c (COPY = pg_catalog.simple)`, "text search configuration %a.c is in it"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pool, role := newPool(t)
			p, tenants := newProvisioner(t, pool, provision.WithServiceRole(role))
			a, b := suspended(t, p), suspended(t, p)
			fill := strings.NewReplacer("%a", a.Schema.String(), "%b", b.Schema.String())
			if _, err := pool.Exec(t.Context(), fill.Replace(c.sql)); err != nil {
				t.Fatal(err)
			}
			var dependent *provision.DependentError
			err := p.Drop(t.Context(), a.OrgID, a.OrgID.String(), provision.WithForeign())
			if !errors.As(err, &dependent) || dependent.Schema != a.Schema || dependent.Left || !strings.Contains(err.Error(), fill.Replace(c.names)) {
				t.Errorf("error %v, want it to have %q", err, fill.Replace(c.names))
			}
			if now, err := tenants.Tenant(t.Context(), a.OrgID); err != nil || now.State != registry.Suspended {
				t.Errorf("after the refusal: %+v, %v", now, err)
			}
			if _, err := p.Resume(t.Context(), a.OrgID); err != nil {
				t.Error(err)
			}
			wantWhole(t, pool, tenants, a.OrgID, role)
			if strings.Contains(c.sql, "%b.thing") {
				run(t, pool, `SELECT FROM `+b.Schema.Quoted()+`.thing`)
			}
		})
	}
}

// TestDropTakesNoTableOfAnother, whatever the registry says of the schema.
func TestDropTakesNoTableOfAnother(t *testing.T) {
	t.Parallel()
	pool, role := newPool(t)
	p, tenants := newProvisioner(t, pool, provision.WithServiceRole(role))
	owner, err := p.ProvisionAt(t.Context(), uuid.New(), tenancy.Placement{Schema: parse(t, "acme")})
	if err != nil {
		t.Fatal(err)
	}
	if err := tenants.Remove(t.Context(), owner.OrgID); err != nil {
		t.Fatal(err)
	}
	for _, state := range []registry.State{registry.Suspended, registry.Deleting} {
		org := uuid.New()
		if _, err := tenants.Add(t.Context(), registry.Tenant{OrgID: org, Schema: owner.Schema, State: state}); err != nil {
			t.Fatal(err)
		}
		if err := p.Drop(t.Context(), org, org.String(), provision.WithForeign()); !errors.Is(err, provision.ErrNotPinned) {
			t.Errorf("%s: %v", state, err)
		}
		if now, err := tenants.Tenant(t.Context(), org); err != nil || now.State != state {
			t.Errorf("%+v, %v", now, err)
		}
		if err := tenants.Remove(t.Context(), org); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := p.ProvisionAt(t.Context(), owner.OrgID, owner.Placement()); err != nil {
		t.Error(err)
	}
	wantWhole(t, pool, tenants, owner.OrgID, role)
}

// TestDropEndsAProvisioning that cannot come to its end.
func TestDropEndsAProvisioning(t *testing.T) {
	t.Parallel()
	pool, role := newPool(t)
	p, tenants := newProvisioner(t, pool, provision.WithServiceRole(role))
	shared := parse(t, "shared")
	if err := migrations.Up(t.Context(), pool.Config().ConnString(), shared); err != nil {
		t.Fatal(err)
	}
	run(t, pool, `DELETE FROM shared.idempotency_db_version WHERE version_id = $1`, migrations.Latest())
	org := uuid.New()
	if _, err := p.ProvisionAt(t.Context(), org, tenancy.Placement{Schema: shared}); !errors.Is(err, provision.ErrNotPinned) {
		t.Fatal(err)
	}
	var version int64
	if err := pool.QueryRow(t.Context(), `SELECT max(version_id) FROM shared.idempotency_db_version`).Scan(&version); err != nil || version == migrations.Latest() {
		t.Errorf("the schema that was refused is at %d, %v", version, err)
	}
	if err := p.Drop(t.Context(), org, org.String(), provision.WithForeign()); err != nil {
		t.Fatal(err)
	}
	run(t, pool, `SELECT FROM shared.idempotency_records, shared.idempotency_steps, shared.idempotency_requests`)
	if _, err := p.Provision(t.Context(), org); err != nil { // elsewhere
		t.Error(err)
	}
	wantWhole(t, pool, tenants, org, role)

	// One that was cut off is taken away with what was made of it.
	for _, step := range []string{"registered", "schema", "granted"} {
		half, _ := newProvisioner(t, pool, provision.WithServiceRole(role), provision.WithStep(func(s string) error {
			if s == step {
				return errCut
			}
			return nil
		}))
		org := uuid.New()
		tenant, err := half.Provision(t.Context(), org)
		if !errors.Is(err, errCut) {
			t.Fatal(err)
		}
		if err := p.Drop(t.Context(), org, org.String()); err != nil {
			t.Errorf("cut off at %s: %v", step, err)
		}
		wantGone(t, pool, tenants, tenant)
	}
}

// TestProvisionNeedsTheTables: a version table alone serves nobody.
func TestProvisionNeedsTheTables(t *testing.T) {
	t.Parallel()
	pool, _ := newPool(t)
	half, tenants := newProvisioner(t, pool, provision.WithStep(func(s string) error {
		if s == "schema" {
			return errCut
		}
		return nil
	}))
	tenant, err := half.Provision(t.Context(), uuid.New())
	if !errors.Is(err, errCut) {
		t.Fatal(err)
	}
	run(t, pool, `DROP TABLE `+tenant.Schema.Quoted()+`.idempotency_records`)
	p, _ := newProvisioner(t, pool)
	if _, err := p.Provision(t.Context(), tenant.OrgID); err == nil || !strings.Contains(err.Error(), "[idempotency_records]") {
		t.Errorf("without a table: %v", err)
	}
	if now, err := tenants.Tenant(t.Context(), tenant.OrgID); err != nil || now.State != registry.Provisioning {
		t.Errorf("%+v, %v", now, err)
	}
	if _, err := provision.New(tenants, pool, provision.WithMigrationOptions(migrations.WithWorkers(1), migrations.WithDryRun())); err == nil || !strings.Contains(err.Error(), "WithDryRun") {
		t.Errorf("a dry run: %v", err)
	}
}

// TestProvisionNotesNoOlderVersion than a newer program has noted meanwhile.
func TestProvisionNotesNoOlderVersion(t *testing.T) {
	t.Parallel()
	pool, _ := newPool(t)
	org, newer := uuid.New(), migrations.Latest()+1
	var tenants *registry.Registry
	p, tenants := newProvisioner(t, pool, provision.WithStep(func(step string) error {
		if step != "granted" {
			return nil
		}
		tenant, err := tenants.Tenant(t.Context(), org)
		if err != nil {
			return err
		}
		at := tenant.Placement()
		at.Version = newer
		return tenants.SetVersion(t.Context(), org, at)
	}))
	tenant, err := p.Provision(t.Context(), org)
	if err != nil || tenant.Version != newer {
		t.Errorf("version %d, want %d: %v", tenant.Version, newer, err)
	}
}

// TestDropOutlastsTheDeadlockTimeout, after which an autovacuum gives way.
func TestDropOutlastsTheDeadlockTimeout(t *testing.T) {
	t.Parallel()
	pool, _ := newPool(t)
	plain, tenants := newProvisioner(t, pool)
	tenant := suspended(t, plain)
	p, err := provision.New(tenants, pool)
	if err != nil {
		t.Fatal(err)
	}
	run(t, pool, `CREATE TABLE public.waits (t interval)`)
	run(t, pool, `CREATE FUNCTION public.note() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN INSERT INTO public.waits VALUES (current_setting('lock_timeout')::interval); END $$`)
	run(t, pool, `CREATE EVENT TRIGGER note ON sql_drop EXECUTE FUNCTION public.note()`)
	if err := p.Drop(t.Context(), tenant.OrgID, tenant.OrgID.String()); err != nil {
		t.Fatal(err)
	}
	var enough bool
	if err := pool.QueryRow(t.Context(), `SELECT min(t) > (SELECT boot_val::integer * interval '1 ms' FROM pg_settings WHERE name = 'deadlock_timeout') FROM public.waits`).Scan(&enough); err != nil || !enough {
		t.Errorf("it waits for longer: %t, %v", enough, err)
	}
}
