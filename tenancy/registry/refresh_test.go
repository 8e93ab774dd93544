package registry_test

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgidem/pgidem/internal/pgtest"
	"github.com/pgidem/pgidem/tenancy"
	"github.com/pgidem/pgidem/tenancy/registry"
)

// newDeafRegistry returns a registry that thinks it hears of changes and hears of none: it
// listens in another database.
func newDeafRegistry(t *testing.T, pool *pgxpool.Pool) *registry.Registry {
	t.Helper()
	return newRegistry(t, pool, registry.WithTTL(time.Hour), registry.WithListenConfig(pgtest.NewPool(t).Config().ConnConfig))
}

// TestRefresh: what nobody told is found out, and then known.
func TestRefresh(t *testing.T) {
	t.Parallel()
	pool := newPool(t)
	manager, r := newRegistry(t, pool), newDeafRegistry(t, pool)
	tenant := add(t, manager, registry.Active)
	isPlaced(t, r, tenant)
	listens(t, r)
	if !isPlaced(t, r, tenant) {
		t.Fatal("it is not placed as it is")
	}
	moved := tenant
	moved.Cluster = "eu-2"
	if err := manager.Move(t.Context(), tenant.OrgID, tenant.Placement(), moved.Placement()); err != nil {
		t.Fatal(err)
	}
	if !isPlaced(t, r, tenant) {
		t.Fatal("it has heard of the change, and there is nothing to be found out")
	}
	if place, err := r.Refresh(t.Context(), tenant.OrgID); err != nil || place != moved.Placement() {
		t.Errorf("%+v, %v; want it moved", place, err)
	}
	if !isPlaced(t, r, moved) {
		t.Error("what was found out is not kept")
	}

	other := add(t, manager, registry.Active)
	isPlaced(t, r, other)
	if _, err := manager.SetState(t.Context(), other.OrgID, registry.Suspended); err != nil {
		t.Fatal(err)
	}
	if place, err := r.Refresh(t.Context(), other.OrgID); !errors.Is(err, tenancy.ErrSuspendedTenant) || place != other.Placement() {
		t.Errorf("%+v, %v; want it suspended", place, err)
	}
	gone := add(t, manager, registry.Active)
	isPlaced(t, r, gone)
	if err := manager.Remove(t.Context(), gone.OrgID); err != nil {
		t.Fatal(err)
	}
	for _, org := range []uuid.UUID{gone.OrgID, uuid.New(), uuid.Nil} {
		if place, err := r.Refresh(t.Context(), org); !errors.Is(err, tenancy.ErrUnknownTenant) || place != (tenancy.Placement{}) {
			t.Errorf("%+v, %v; want it unknown", place, err)
		}
	}
}

// TestRefreshIsBounded: however often somebody finds a tenant wrong, or asks for one that is
// none, the database is asked once in a second.
func TestRefreshIsBounded(t *testing.T) {
	t.Parallel()
	direct := newPool(t)
	pool, traces := traced(t, direct)
	r := newDeafRegistry(t, pool)
	tenant := add(t, newRegistry(t, direct), registry.Active)
	isPlaced(t, r, tenant)
	listens(t, r)
	isPlaced(t, r, tenant)
	for org, want := range map[uuid.UUID]error{tenant.OrgID: nil, uuid.New(): tenancy.ErrUnknownTenant} {
		before, began := traces.n.Load(), time.Now()
		var group sync.WaitGroup
		for range 8 {
			group.Go(func() {
				for range 500 {
					if place, err := r.Refresh(t.Context(), org); !errors.Is(err, want) || err == nil && place != tenant.Placement() {
						t.Errorf("%+v, %v; want the error to be %v", place, err, want)
					}
				}
			})
		}
		group.Wait()
		n, most := traces.n.Load()-before, 2+int64(time.Since(began)/time.Second)
		if n < 1 || n > most {
			t.Errorf("4000 calls made %d queries; want 1 to %d", n, most)
		}
	}
}

// TestRefreshWhileOneIsRead: what is under way may have been read before the tenant was moved,
// and is no answer to who has found that wrong since.
func TestRefreshWhileOneIsRead(t *testing.T) {
	t.Parallel()
	direct := newPool(t)
	manager := newRegistry(t, direct)
	tenant := add(t, manager, registry.Active)
	var armed atomic.Bool
	read, held := make(chan struct{}), make(chan struct{})
	goOn := sync.OnceFunc(func() { close(held) })
	config := direct.Config()
	config.ConnConfig.Tracer = afterQuery(func() {
		if armed.CompareAndSwap(true, false) {
			close(read)
			<-held
		}
	})
	pool, err := pgxpool.NewWithConfig(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	r := newDeafRegistry(t, pool)
	_, _ = r.Place(t.Context(), uuid.New())
	listens(t, r)
	armed.Store(true)
	var placing sync.WaitGroup
	defer placing.Wait()
	defer goOn()
	placing.Go(func() { isPlaced(t, r, tenant) })
	<-read
	moved := tenant
	moved.Cluster = "eu-2"
	if err := manager.Move(t.Context(), tenant.OrgID, tenant.Placement(), moved.Placement()); err != nil {
		t.Fatal(err)
	}
	defer time.AfterFunc(50*time.Millisecond, goOn).Stop()
	for n := range 2 {
		if place, err := r.Refresh(t.Context(), tenant.OrgID); err != nil || place != moved.Placement() {
			t.Errorf("call %d: %+v, %v; want it moved", n+1, place, err)
		}
	}
	if !isPlaced(t, r, moved) {
		t.Error("what was found out is not kept")
	}
}

// afterQuery is called when a query has ended.
type afterQuery func()

func (afterQuery) TraceQueryStart(ctx context.Context, _ *pgx.Conn, _ pgx.TraceQueryStartData) context.Context {
	return ctx
}

func (fn afterQuery) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) { fn() }

// TestRefreshWithoutADatabase: what is known is wrong, and is not the answer.
func TestRefreshWithoutADatabase(t *testing.T) {
	t.Parallel()
	pool := newPool(t)
	own, err := pgxpool.NewWithConfig(t.Context(), pool.Config())
	if err != nil {
		t.Fatal(err)
	}
	r := newDeafRegistry(t, own)
	tenant := add(t, newRegistry(t, pool), registry.Active)
	if !isPlaced(t, r, tenant) {
		t.Fatal("it is not placed as it is")
	}
	own.Close()
	for name, look := range map[string]func(context.Context, uuid.UUID) (tenancy.Placement, error){"Refresh": r.Refresh, "Place after it": r.Place} {
		if name == "Place after it" {
			_, _ = r.Refresh(t.Context(), tenant.OrgID)
		}
		place, err := look(t.Context(), tenant.OrgID)
		if err == nil || errors.Is(err, tenancy.ErrUnknownTenant) || errors.Is(err, tenancy.ErrSuspendedTenant) || place != (tenancy.Placement{}) {
			t.Errorf("%s: %+v, %v; want a passing fault", name, place, err)
		}
	}
}
