package provision_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/pgidem/pgidem/tenancy"
	"github.com/pgidem/pgidem/tenancy/provision"
	"github.com/pgidem/pgidem/tenancy/registry"
)

func suspended(t *testing.T, p *provision.Provisioner) registry.Tenant {
	t.Helper()
	tenant, err := p.Provision(t.Context(), uuid.New())
	if err != nil {
		t.Fatal(err)
	}
	if tenant, err = p.Suspend(t.Context(), tenant.OrgID); err != nil {
		t.Fatal(err)
	}
	return tenant
}

func TestDropWantsToBeSure(t *testing.T) {
	t.Parallel()
	pool, role := newPool(t)
	p, tenants := newProvisioner(t, pool, provision.WithServiceRole(role))
	tenant, err := p.Provision(t.Context(), uuid.New())
	if err != nil {
		t.Fatal(err)
	}
	stay, err := p.Provision(t.Context(), uuid.New())
	if err != nil {
		t.Fatal(err)
	}
	org, name := tenant.OrgID, tenant.Schema.String()
	if err := p.Drop(t.Context(), org, name); !errors.Is(err, provision.ErrState) {
		t.Errorf("an active tenant: %v", err)
	}
	if _, err := p.Suspend(t.Context(), org); err != nil {
		t.Fatal(err)
	}
	for _, confirm := range []string{"", "yes", strings.ToUpper(name), stay.Schema.String(), stay.OrgID.String()} {
		if err := p.Drop(t.Context(), org, confirm); !errors.Is(err, provision.ErrNotConfirmed) {
			t.Errorf("confirmed by %q: %v", confirm, err)
		}
	}
	if _, err := p.Resume(t.Context(), org); err != nil {
		t.Errorf("after drops that were refused: %v", err)
	}
	wantWhole(t, pool, tenants, org, role)
	if _, err := p.Suspend(t.Context(), org); err != nil {
		t.Fatal(err)
	}
	if err := p.Drop(t.Context(), org, name); err != nil {
		t.Fatal(err)
	}
	wantGone(t, pool, tenants, tenant)
	if err := p.Drop(t.Context(), org, name); !errors.Is(err, tenancy.ErrUnknownTenant) {
		t.Errorf("dropped twice: %v", err)
	}
	wantWhole(t, pool, tenants, stay.OrgID, role)
	if _, err := p.Provision(t.Context(), org); err != nil { // it may come back
		t.Error(err)
	}
	wantWhole(t, pool, tenants, org, role)
}

// TestDropSparesWhatIsNotOurs unless it is told to, and what lies elsewhere even then.
func TestDropSparesWhatIsNotOurs(t *testing.T) {
	t.Parallel()
	pool, role := newPool(t)
	p, tenants := newProvisioner(t, pool, provision.WithServiceRole(role))
	tenant := suspended(t, p)
	s := tenant.Schema.Quoted()
	run(t, pool, `BEGIN; SET LOCAL search_path = `+s+`;
		CREATE TYPE colour AS ENUM ('red'); CREATE DOMAIN amount AS integer CHECK (VALUE > 0); CREATE TYPE pair AS (a integer, b colour);
		CREATE TABLE "Accounts" (id integer PRIMARY KEY GENERATED ALWAYS AS IDENTITY, shade colour, last integer);
		CREATE TABLE payments (id serial PRIMARY KEY, account integer REFERENCES "Accounts", much amount);
		ALTER TABLE "Accounts" ADD FOREIGN KEY (last) REFERENCES payments;
		CREATE TABLE parted (id integer) PARTITION BY RANGE (id); CREATE TABLE part PARTITION OF parted DEFAULT;
		CREATE VIEW open AS SELECT * FROM payments; CREATE VIEW opener AS SELECT * FROM open;
		CREATE MATERIALIZED VIEW kept AS SELECT key FROM idempotency_records;
		CREATE SEQUENCE numbers; CREATE FUNCTION f(colour, amount) RETURNS integer LANGUAGE sql AS 'SELECT 1';
		CREATE PROCEDURE g() LANGUAGE sql AS 'SELECT 1'; CREATE AGGREGATE total(integer) (SFUNC = int4pl, STYPE = integer);
		COMMIT`)
	run(t, pool, `CREATE SCHEMA reports; CREATE VIEW reports.all AS SELECT key FROM `+s+`.idempotency_records`)

	var foreign *provision.ForeignError
	err := p.Drop(t.Context(), tenant.OrgID, tenant.Schema.String())
	if !errors.As(err, &foreign) || foreign.Schema != tenant.Schema {
		t.Fatalf("error %v, want a ForeignError", err)
	}
	for _, want := range []string{`table ` + tenant.Schema.String() + `."Accounts"`, "table " + tenant.Schema.String() + ".payments", "view " + tenant.Schema.String() + ".open",
		"materialized view " + tenant.Schema.String() + ".kept", "sequence " + tenant.Schema.String() + ".numbers", "type " + tenant.Schema.String() + ".colour", "domain " + tenant.Schema.String() + ".amount"} {
		if !slices.Contains(foreign.Objects, want) {
			t.Errorf("objects %q lack %q", foreign.Objects, want)
		}
	}
	if strings.Contains(strings.Join(foreign.Objects, " "), "idempotency") {
		t.Errorf("objects of the library are called foreign: %v", foreign.Objects)
	}
	if now, err := tenants.Tenant(t.Context(), tenant.OrgID); err != nil || now.State != registry.Suspended {
		t.Errorf("after the refusal: %+v, %v", now, err)
	}
	err = p.Drop(t.Context(), tenant.OrgID, tenant.Schema.String(), provision.WithForeign())
	if err == nil || !strings.Contains(err.Error(), "idempotency_records") {
		t.Errorf("with a view elsewhere that depends on it: %v", err)
	}
	run(t, pool, `DROP VIEW reports.all`)
	if err := p.Drop(t.Context(), tenant.OrgID, tenant.Schema.String(), provision.WithForeign()); err != nil {
		t.Fatal(err)
	}
	wantGone(t, pool, tenants, tenant)
}

func TestDropWaitsForNobodyForLong(t *testing.T) {
	t.Parallel()
	pool, role := newPool(t)
	p, tenants := newProvisioner(t, pool, provision.WithServiceRole(role), provision.WithTries(10*time.Millisecond, 3, time.Millisecond))
	tenant := suspended(t, p)
	tx, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback(context.Background())
	if _, err := tx.Exec(t.Context(), `SELECT FROM `+tenant.Schema.Quoted()+`.idempotency_steps`); err != nil {
		t.Fatal(err)
	}
	if err := p.Drop(t.Context(), tenant.OrgID, tenant.Schema.String()); !errors.Is(err, provision.ErrBusy) {
		t.Errorf("with a long transaction: %v", err)
	}
	if now, err := tenants.Tenant(t.Context(), tenant.OrgID); err != nil || now.State != registry.Deleting {
		t.Errorf("in between: %+v, %v", now, err)
	}
	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := p.Drop(t.Context(), tenant.OrgID, tenant.Schema.String()); err != nil {
		t.Fatal(err)
	}
	wantGone(t, pool, tenants, tenant)
}
