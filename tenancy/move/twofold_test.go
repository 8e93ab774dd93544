package move_test

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/pgidem/pgidem/internal/moved"
	"github.com/pgidem/pgidem/tenancy/move"
	"github.com/pgidem/pgidem/tenancy/registry"
)

// TestMoveBesideAnEarlierLife: a move was cut off after the switch, the tenant was taken out of
// the registry with what it had in the other cluster, and made anew. What the move has left is
// found before the new tenant is suspended, and does not keep its own move from being cancelled.
func TestMoveBesideAnEarlierLife(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	tenant := w.newTenant(t, "a")
	ctx, cancel := context.WithCancel(t.Context())
	_, err := w.mover(t, move.WithProgress(func(s move.Step) {
		if s == move.Dropping {
			cancel()
		}
	})).Move(ctx, tenant.OrgID, "b")
	if err == nil {
		t.Fatal("it was not broken off")
	}
	if err := w.tenants.Remove(t.Context(), tenant.OrgID); err != nil {
		t.Fatal(err)
	}
	for _, cluster := range []string{"a", "b"} {
		w.exec(t, cluster, `DROP SCHEMA `+tenant.Schema.Quoted()+` CASCADE`)
	}
	if _, err := w.provisioner(t).Provision(t.Context(), tenant.OrgID); err != nil {
		t.Fatal(err)
	}
	w.refusesTwofold(t, tenant)
	if _, err := w.tenants.BeginMove(t.Context(), tenant.OrgID, "a", "b"); err != nil {
		t.Fatal(err)
	}
	now, err := w.mover(t).Cancel(t.Context(), tenant.OrgID)
	if err != nil || now.State != registry.Active || now.Moving {
		t.Errorf("cancelled: %+v, %v", now, err)
	}
	w.exec(t, "a", `SELECT FROM `+tenant.Schema.Quoted()+`.idempotency_records`)
	w.exec(t, "a", `DROP SCHEMA `+moved.Fence(tenant.OrgID)+` CASCADE`) // which is still there
	if _, err := w.mover(t).Move(t.Context(), tenant.OrgID, "b"); err != nil {
		t.Error(err)
	}
}

// TestCancelBesideAnother: where nobody can tell which of two schemas is the tenant's, none is
// served.
func TestCancelBesideAnother(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	tenant := w.newTenant(t, "a")
	w.exec(t, "a", `CREATE SCHEMA `+moved.Fence(tenant.OrgID))
	w.refusesTwofold(t, tenant)
	if _, err := w.tenants.BeginMove(t.Context(), tenant.OrgID, "a", "b"); err != nil {
		t.Fatal(err)
	}
	now, err := w.mover(t).Cancel(t.Context(), tenant.OrgID)
	if err == nil || !strings.Contains(err.Error(), "find out which of the two") || now.State != registry.Suspended || !now.Moving {
		t.Errorf("%+v, %v; want it suspended", now, err)
	}
	w.exec(t, "a", `DROP SCHEMA `+moved.Fence(tenant.OrgID))
	if _, err := w.mover(t).Cancel(t.Context(), tenant.OrgID); err != nil {
		t.Fatal(err)
	}
	w.is(t, tenant, "a", registry.Active)
}

// refusesTwofold checks that a tenant whose cluster a has a fenced schema of it as well is not
// moved, and served all the time.
func (w *world) refusesTwofold(t *testing.T, tenant registry.Tenant) {
	t.Helper()
	_, err := w.mover(t, move.WithProgress(func(s move.Step) { t.Errorf("begun: %s", s) })).Move(t.Context(), tenant.OrgID, "b")
	if err == nil || !strings.Contains(err.Error(), "find out which of the two") {
		t.Errorf("moved: %v", err)
	}
	now, err := w.tenants.Tenant(t.Context(), tenant.OrgID)
	if err != nil || now.State != registry.Active || now.Moving {
		t.Errorf("%+v, %v; want it active", now, err)
	}
	if _, err := w.mover(t).Cancel(t.Context(), tenant.OrgID); !errors.Is(err, registry.ErrConflict) {
		t.Errorf("cancelled, though nothing had begun: %v", err)
	}
}
