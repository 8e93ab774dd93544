package registry_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/uuid"

	"github.com/pgidem/pgidem/tenancy"
	"github.com/pgidem/pgidem/tenancy/registry"
)

// TestMoving: a tenant that is being moved stays suspended until that is over, and is then
// what it was before.
func TestMoving(t *testing.T) {
	t.Parallel()
	r, ctx := newRegistry(t, newPool(t)), t.Context()
	for _, state := range []registry.State{registry.Active, registry.Suspended} {
		tenant := add(t, r, state)
		org := tenant.OrgID
		for range 2 { // it may be begun again
			got, err := r.BeginMove(ctx, org, tenant.Cluster, "eu-2")
			if err != nil || got.State != registry.Suspended || !got.Moving || got.MovingTo != "eu-2" || got.Resume != (state == registry.Active) || got.Cluster != tenant.Cluster {
				t.Errorf("%+v, %v", got, err)
			}
		}
		if _, err := r.BeginMove(ctx, org, tenant.Cluster, "eu-3"); !errors.Is(err, registry.ErrConflict) || !strings.Contains(err.Error(), `to "eu-2"`) {
			t.Errorf("moved elsewhere meanwhile: %v", err)
		}
		if _, err := r.BeginMove(ctx, org, "eu-9", "eu-2"); !errors.Is(err, registry.ErrConflict) {
			t.Errorf("begun from where it is not: %v", err)
		}
		for _, to := range []registry.State{registry.Active, registry.Deleting} {
			if _, err := r.SetState(ctx, org, to); !errors.Is(err, registry.ErrState) || !strings.Contains(err.Error(), "being moved") {
				t.Errorf("set to %s while it is being moved: %v", to, err)
			}
		}
		first, err := r.BeginMove(ctx, org, tenant.Cluster, "eu-2")
		if err != nil {
			t.Fatal(err)
		}
		second, err := r.BeginMove(ctx, org, tenant.Cluster, "eu-2")
		if err != nil || second.MoveID == first.MoveID {
			t.Errorf("begun again: %+v, %v", second, err)
		}
		if _, err := r.FinishMove(ctx, org, first.MoveID); !errors.Is(err, registry.ErrConflict) {
			t.Errorf("finished by a run that another has taken over from: %v", err)
		}
		if _, err := r.CancelMove(ctx, org, first.MoveID); !errors.Is(err, registry.ErrConflict) {
			t.Errorf("cancelled by it: %v", err)
		}
		if got, err := r.CancelMove(ctx, org, second.MoveID); err != nil || got.State != state || got.Moving || got.Resume || got.Cluster != tenant.Cluster {
			t.Errorf("cancelled: %+v, %v", got, err)
		}
		third, err := r.BeginMove(ctx, org, tenant.Cluster, "eu-2")
		if err != nil {
			t.Fatal(err)
		}
		if got, err := r.FinishMove(ctx, org, third.MoveID); err != nil || got.State != state || got.Moving || got.Cluster != "eu-2" || got.Schema != tenant.Schema {
			t.Errorf("finished: %+v, %v", got, err)
		}
		for name, again := range map[string]func() (registry.Tenant, error){
			"finish": func() (registry.Tenant, error) { return r.FinishMove(ctx, org, third.MoveID) },
			"cancel": func() (registry.Tenant, error) { return r.CancelMove(ctx, org, third.MoveID) },
			"begin":  func() (registry.Tenant, error) { return r.BeginMove(ctx, org, tenant.Cluster, "eu-2") },
		} {
			if _, err := again(); !errors.Is(err, registry.ErrConflict) {
				t.Errorf("%s again: %v", name, err)
			}
		}
	}
	provisioning := add(t, r, registry.Provisioning)
	if _, err := r.BeginMove(ctx, provisioning.OrgID, provisioning.Cluster, "eu-2"); !errors.Is(err, registry.ErrState) {
		t.Errorf("moved while it is provisioned: %v", err)
	}
	if _, err := r.BeginMove(ctx, add(t, r, registry.Active).OrgID, "", "EU 2"); !errors.Is(err, registry.ErrInvalid) {
		t.Errorf("moved to a cluster that cannot be: %v", err)
	}
	for _, move := range []func() (registry.Tenant, error){
		func() (registry.Tenant, error) { return r.BeginMove(ctx, uuid.New(), "", "eu-2") },
		func() (registry.Tenant, error) { return r.CancelMove(ctx, uuid.New(), uuid.New()) },
	} {
		if _, err := move(); !errors.Is(err, tenancy.ErrUnknownTenant) {
			t.Errorf("an unknown tenant: %v", err)
		}
	}
}

// TestMoveIntoATakenSchema: the schema that a tenant would come to have is another's.
func TestMoveIntoATakenSchema(t *testing.T) {
	t.Parallel()
	r, ctx := newRegistry(t, newPool(t)), t.Context()
	schema := parse(t, "shared_name")
	moved, err := r.Add(ctx, registry.Tenant{OrgID: uuid.New(), Schema: schema, Cluster: "a", State: registry.Active})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.Add(ctx, registry.Tenant{OrgID: uuid.New(), Schema: schema, Cluster: "b", State: registry.Active}); err != nil {
		t.Fatal(err)
	}
	begun, err := r.BeginMove(ctx, moved.OrgID, "a", "b")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.FinishMove(ctx, moved.OrgID, begun.MoveID); !errors.Is(err, registry.ErrConflict) {
		t.Errorf("%v", err)
	}
	if got, err := r.CancelMove(ctx, moved.OrgID, begun.MoveID); err != nil || got.State != registry.Active || got.Cluster != "a" {
		t.Errorf("%+v, %v", got, err)
	}
}

// TestSuspendedMeanwhile: a tenant that is suspended while it is being moved stays so.
func TestSuspendedMeanwhile(t *testing.T) {
	t.Parallel()
	r, ctx := newRegistry(t, newPool(t)), t.Context()
	tenant := add(t, r, registry.Active)
	begun, err := r.BeginMove(ctx, tenant.OrgID, tenant.Cluster, "eu-2")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.SetState(ctx, tenant.OrgID, registry.Suspended); err != nil {
		t.Fatal(err)
	}
	if got, err := r.FinishMove(ctx, tenant.OrgID, begun.MoveID); err != nil || got.State != registry.Suspended || got.Cluster != "eu-2" {
		t.Errorf("%+v, %v", got, err)
	}
}
