package provision_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgidem/pgidem/internal/moved"
	"github.com/pgidem/pgidem/migrations"
	"github.com/pgidem/pgidem/tenancy"
	"github.com/pgidem/pgidem/tenancy/provision"
	"github.com/pgidem/pgidem/tenancy/registry"
)

// TestProvisionBesideRemains: a move was cut off after the switch, and somebody who does not know
// of the cluster that the tenant had left has dropped it. When it signs up again there it is not
// waited for the end of a move, and what is said to be done is what helps.
func TestProvisionBesideRemains(t *testing.T) {
	t.Parallel()
	patient := provision.WithMigrationOptions(migrations.WithTries(1000, time.Hour))
	from, b, p, tenants := twoClusters(t, patient)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	tenant := away(t, p, tenants, from, b, true)
	org, fence := tenant.OrgID, moved.Fence(tenant.OrgID)
	ignorant, err := provision.New(tenants, b, provision.WithClusters(map[string]*pgxpool.Pool{"b": b}))
	if err != nil {
		t.Fatal(err)
	}
	if err := ignorant.Drop(ctx, org, org.String()); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		tenant, err = p.Provision(ctx, org)
		if !errors.Is(err, migrations.ErrMoved) || errors.Is(err, migrations.ErrMoving) || tenant.State != registry.Provisioning {
			t.Fatalf("%+v, %v", tenant, err)
		}
		for _, says := range []string{`went to cluster "b"`, "the registry knows of no move", "look at what that schema holds", fence, tenant.Schema.String(), "provision again"} {
			if !strings.Contains(err.Error(), says) {
				t.Errorf("%v; want it to say %q", err, says)
			}
		}
	}
	run(t, from, `SELECT FROM `+fence+`.idempotency_records`)
	run(t, from, `DROP SCHEMA `+fence+` CASCADE; DROP SCHEMA `+tenant.Schema.Quoted()+` CASCADE`)
	if _, err := p.Provision(ctx, org); err != nil {
		t.Fatal(err)
	}
	wantWhole(t, from, tenants, org, "")
}

// TestProvisionBesideRemainsOfAnother, which had the name of the schema before.
func TestProvisionBesideRemainsOfAnother(t *testing.T) {
	t.Parallel()
	from, b, p, tenants := twoClusters(t, provision.WithMigrationOptions(migrations.WithTries(1000, time.Hour)))
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	before, org, at := uuid.New(), uuid.New(), tenancy.Placement{Schema: parse(t, "acme")}
	if _, err := p.ProvisionAt(ctx, before, at); err != nil {
		t.Fatal(err)
	}
	goTo(t, tenants, from, b, before, true)
	_, err := p.ProvisionAt(ctx, org, at)
	if !errors.Is(err, migrations.ErrMoved) {
		t.Fatal(err)
	}
	for _, says := range []string{"was that of org " + before.String(), moved.Fence(before), "where the registry has it", "drop the empty schema acme by hand"} {
		if !strings.Contains(err.Error(), says) {
			t.Errorf("%v; want it to say %q", err, says)
		}
	}
}
