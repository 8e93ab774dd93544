package registry_test

import (
	"errors"
	"testing"

	"github.com/google/uuid"

	"github.com/pgidem/pgidem/tenancy"
	"github.com/pgidem/pgidem/tenancy/registry"
)

// TestGenerations: who knows a tenant that was removed changes nothing of the one that has its
// org_id and its schema now.
func TestGenerations(t *testing.T) {
	t.Parallel()
	r, ctx := newRegistry(t, newPool(t)), t.Context()
	org := uuid.New()
	add := func() registry.Tenant {
		t.Helper()
		tenant, err := r.Add(ctx, registry.Tenant{OrgID: org, Schema: perOrg(t, org), Cluster: "eu", Version: 3})
		if err != nil {
			t.Fatal(err)
		}
		return tenant
	}
	old := r.Generation(add())
	if now, err := old.SetState(ctx, registry.Active, registry.Provisioning); err != nil || now.State != registry.Active {
		t.Errorf("%+v, %v", now, err)
	}
	if now, err := old.SetState(ctx, registry.Suspended, registry.Provisioning); !errors.Is(err, registry.ErrState) || now.State != registry.Active {
		t.Errorf("from a state that it is not in: %+v, %v", now, err)
	}
	for _, version := range []int64{4, 4, 2} {
		if err := old.SetVersion(ctx, version); err != nil {
			t.Error(err)
		}
	}
	if now, err := old.Tenant(ctx); err != nil || now.Version != 4 || now.State != registry.Active {
		t.Errorf("%+v, %v", now, err)
	}
	if err := old.Remove(ctx, registry.Deleting); !errors.Is(err, registry.ErrState) {
		t.Errorf("removed from a state that it is not in: %v", err)
	}
	if err := old.Remove(ctx); err != nil {
		t.Fatal(err)
	}
	refused := func(want error) {
		t.Helper()
		_, looked := old.Tenant(ctx)
		_, set := old.SetState(ctx, registry.Deleting)
		_, begun := old.BeginMove(ctx, "eu", "us")
		for what, err := range map[string]error{"Tenant": looked, "SetState": set, "BeginMove": begun, "SetVersion": old.SetVersion(ctx, 9), "Remove": old.Remove(ctx)} {
			if !errors.Is(err, want) {
				t.Errorf("%s: %v, want %v", what, err, want)
			}
		}
	}
	refused(tenancy.ErrUnknownTenant)
	add()
	anew, err := r.SetState(ctx, org, registry.Active) // so that it could be moved
	if err != nil {
		t.Fatal(err)
	}
	refused(registry.ErrReplaced)
	if now, err := r.Tenant(ctx, org); err != nil || now != anew {
		t.Errorf("%+v, %v; want %+v", now, err, anew)
	}
	current := r.Generation(anew)
	begun, err := current.BeginMove(ctx, "eu", "us")
	if err != nil || !begun.Moving || begun.State != registry.Suspended {
		t.Errorf("%+v, %v", begun, err)
	}
	if _, err := r.CancelMove(ctx, org, begun.MoveID); err != nil {
		t.Error(err)
	}
	if current.String() == old.String() {
		t.Errorf("both are called %s", current)
	}
	to := anew.Placement()
	to.Cluster = "us"
	if err := r.Move(ctx, org, anew.Placement(), to); err != nil {
		t.Fatal(err)
	}
	if err := current.SetVersion(ctx, 9); !errors.Is(err, registry.ErrConflict) {
		t.Errorf("the version of a schema elsewhere: %v", err)
	}
	if now, err := current.SetState(ctx, registry.Deleting); err != nil || now.Cluster != "us" || now.Version != 3 {
		t.Errorf("%+v, %v", now, err)
	}
	if err := current.Remove(ctx, registry.Deleting); err != nil {
		t.Error(err)
	}
}
