package move_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgidem/pgidem/internal/moved"
	"github.com/pgidem/pgidem/migrations"
	"github.com/pgidem/pgidem/tenancy"
	"github.com/pgidem/pgidem/tenancy/move"
	"github.com/pgidem/pgidem/tenancy/provision"
	"github.com/pgidem/pgidem/tenancy/registry"
)

// refuses checks that nothing makes the tenant's tables anew in a cluster that it has left for
// another.
func (w *world) refuses(t *testing.T, tenant registry.Tenant, left, to string) {
	t.Helper()
	var fenced bool
	err := w.pools[left].QueryRow(t.Context(), `SELECT EXISTS (SELECT FROM pg_namespace WHERE nspname = $1)`, moved.Fence(tenant.OrgID)).Scan(&fenced)
	if err != nil {
		t.Fatal(err)
	}
	want, says := migrations.ErrMoved, fmt.Sprintf("org %s went to cluster %q", tenant.OrgID, to)
	if fenced {
		want, says = migrations.ErrMoving, fmt.Sprintf("org %s is on its way to cluster %q", tenant.OrgID, to)
	}
	hurry := migrations.WithTries(2, time.Millisecond)
	one := func() error {
		conn, err := pgx.Connect(t.Context(), w.urls[left])
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = conn.Close(context.WithoutCancel(t.Context())) }()
		_, err = migrations.One(t.Context(), conn, migrations.Target{Schema: tenant.Schema, OrgID: tenant.OrgID}, hurry)
		return err
	}
	all := func(opts ...migrations.Option) error {
		_, err := migrations.All(t.Context(), w.urls[left], migrations.Schemas(tenant.Schema), append(opts, hurry)...)
		return err
	}
	for name, err := range map[string]error{
		"Up": migrations.Up(t.Context(), w.urls[left], tenant.Schema), "One": one(), "All": all(),
		"All, dry": all(migrations.WithDryRun()), "All, existing": all(migrations.WithExistingOnly()),
	} {
		if !errors.Is(err, want) || !strings.Contains(err.Error(), says) || strings.Contains(err.Error(), "CASCADE") { // which is for nobody who has not asked the registry
			t.Errorf("%s in cluster %s: %v", name, left, err)
		}
	}
	var tables int
	err = w.pools[left].QueryRow(t.Context(), `SELECT count(*) FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace WHERE n.nspname = $1 AND c.relkind = 'r'`, tenant.Schema.String()).Scan(&tables)
	if err != nil || tables != 0 {
		t.Errorf("%d tables in cluster %s, %v", tables, left, err)
	}
}

func (w *world) free(t *testing.T, tenant registry.Tenant, clusters ...string) {
	t.Helper()
	for _, name := range clusters {
		var taken bool
		err := w.pools[name].QueryRow(t.Context(), `SELECT EXISTS (SELECT FROM pg_namespace WHERE nspname = $1)`, tenant.Schema.String()).Scan(&taken)
		if err != nil || taken {
			t.Errorf("the name is taken in cluster %s: %t, %v", name, taken, err)
		}
	}
}

// TestMoveLeavesATombstone: from the fence on nobody makes the tenant's schema anew where it
// was, until it comes back or is dropped.
func TestMoveLeavesATombstone(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	tenant := w.newTenant(t, "a")
	ctx, cancel := context.WithCancel(t.Context())
	_, err := w.mover(t, move.WithProgress(func(s move.Step) {
		if s == move.Copying {
			w.refuses(t, tenant, "a", "b")
			cancel()
		}
	})).Move(ctx, tenant.OrgID, "b")
	if err == nil {
		t.Fatal("it was not broken off")
	}
	w.refuses(t, tenant, "a", "b")
	if _, err := w.mover(t).Cancel(t.Context(), tenant.OrgID); err != nil {
		t.Fatal(err)
	}
	w.is(t, tenant, "a", registry.Active)
	w.free(t, tenant, "b", "c")
	if err := migrations.Up(t.Context(), w.urls["a"], tenant.Schema); err != nil {
		t.Error(err)
	}

	at := "a"
	for _, to := range []string{"b", "c", "b", "a"} {
		if _, err := w.mover(t).Move(t.Context(), tenant.OrgID, to); err != nil {
			t.Fatal(err)
		}
		w.is(t, tenant, to, registry.Active)
		w.refuses(t, tenant, at, to)
		if err := migrations.Up(t.Context(), w.urls[to], tenant.Schema); err != nil {
			t.Error(err)
		}
		at = to
	}
	w.refuses(t, tenant, "b", "a")
	w.refuses(t, tenant, "c", "b")

	// It is dropped, and with it all that says where it went.
	p := w.provisioner(t)
	if _, err := p.Suspend(t.Context(), tenant.OrgID); err != nil {
		t.Fatal(err)
	}
	if err := p.Drop(t.Context(), tenant.OrgID, tenant.OrgID.String(), provision.WithForeign()); err != nil {
		t.Fatal(err)
	}
	w.free(t, tenant, w.clusters...)
}

// provisioner makes tenants in the cluster a, and knows the others.
func (w *world) provisioner(t *testing.T) *provision.Provisioner {
	t.Helper()
	p, err := provision.New(w.tenants, w.pools["a"], provision.WithClusters(w.pools), provision.WithNewOn("a"))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// TestMoveLostByTheRegistry: the registry has lost the tenant, or thinks that it is where it
// was. Nobody makes it anew there, or takes what says where it went away.
func TestMoveLostByTheRegistry(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	tenant := w.newTenant(t, "a")
	if _, err := w.mover(t).Move(t.Context(), tenant.OrgID, "b"); err != nil {
		t.Fatal(err)
	}
	w.exec(t, "a", `UPDATE pgidem.tenants SET cluster = 'a', state = 'suspended' WHERE org_id = $1`, tenant.OrgID)
	p := w.provisioner(t)
	if err := p.Drop(t.Context(), tenant.OrgID, tenant.OrgID.String()); !errors.Is(err, provision.ErrState) || !strings.Contains(err.Error(), `went to cluster "b"`) {
		t.Errorf("dropped where it was: %v", err)
	}
	if _, err := w.mover(t).Move(t.Context(), tenant.OrgID, "c"); err == nil || !strings.Contains(err.Error(), `went to cluster "b"`) {
		t.Errorf("moved from where it was: %v", err)
	}
	if err := w.tenants.Remove(t.Context(), tenant.OrgID); err != nil {
		t.Fatal(err)
	}
	at := tenancy.Placement{Schema: tenant.Schema, Cluster: "a"}
	for range 2 {
		if _, err := p.ProvisionAt(t.Context(), tenant.OrgID, at); !errors.Is(err, migrations.ErrMoved) {
			t.Errorf("provisioned where it was: %v", err)
		}
		if err := p.Drop(t.Context(), tenant.OrgID, tenant.OrgID.String()); err != nil { // which takes the entry alone
			t.Error(err)
		}
	}
	w.refuses(t, tenant, "a", "b")
	if _, err := w.tenants.Add(t.Context(), registry.Tenant{OrgID: tenant.OrgID, Schema: tenant.Schema, Cluster: "b", State: registry.Active}); err != nil {
		t.Fatal(err)
	}
	w.is(t, tenant, "b", registry.Active)
}

// TestMoveBesideMigrations: migrations of a list that was made before the tenant went make
// nothing where it was.
func TestMoveBesideMigrations(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	tenant := w.newTenant(t, "a")
	listed, goOn, ended := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	go func() {
		_, err := migrations.All(t.Context(), w.urls["a"], func(yield func(migrations.Target, error) bool) {
			yield(migrations.Target{Schema: tenant.Schema, OrgID: tenant.OrgID}, nil)
			close(listed)
			<-goOn
		})
		ended <- err
	}()
	<-listed
	if _, err := w.mover(t).Move(t.Context(), tenant.OrgID, "b"); err != nil {
		t.Fatal(err)
	}
	close(goOn)
	if err := <-ended; !errors.Is(err, migrations.ErrMoved) {
		t.Error(err)
	}
	w.refuses(t, tenant, "a", "b")
	w.is(t, tenant, "b", registry.Active)
}

// TestMoveWithoutATombstone: a move that a version of before tombstones has begun, or whose
// tombstone somebody has dropped, goes on with one.
func TestMoveWithoutATombstone(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for _, at := range []move.Step{move.Copying, move.Switching} {
		tenant := w.newTenant(t, "a")
		ctx, cancel := context.WithCancel(t.Context())
		_, err := w.mover(t, move.WithProgress(func(s move.Step) {
			if s == at {
				cancel()
			}
		})).Move(ctx, tenant.OrgID, "b")
		if err == nil {
			t.Fatal("it was not broken off")
		}
		w.exec(t, "a", `DROP SCHEMA `+tenant.Schema.Quoted()+` CASCADE`)
		m := w.mover(t, move.WithProgress(func(s move.Step) {
			if s == move.Copying || s == move.Dropping {
				w.refuses(t, tenant, "a", "b")
			}
		}))
		if _, err := m.Move(t.Context(), tenant.OrgID, "b"); err != nil {
			t.Fatal(err)
		}
		w.refuses(t, tenant, "a", "b")
		w.is(t, tenant, "b", registry.Active)
	}
}

// TestMoveOntoAnothersTombstone: a name that another tenant had is not free.
func TestMoveOntoAnothersTombstone(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	tenant, other := w.newTenant(t, "a"), w.newTenant(t, "a")
	stone := moved.Tombstone{OrgID: other.OrgID, Cluster: "c"}
	if err := pgx.BeginFunc(t.Context(), w.pools["b"], func(tx pgx.Tx) error { return stone.Leave(t.Context(), tx, tenant.Schema.String()) }); err != nil {
		t.Fatal(err)
	}
	if _, err := w.mover(t).Move(t.Context(), tenant.OrgID, "b"); !errors.Is(err, move.ErrOccupied) {
		t.Error(err)
	}
	w.free(t, tenant, "c")
	if _, err := w.mover(t).Move(t.Context(), tenant.OrgID, "c"); err != nil {
		t.Error(err)
	}
}
