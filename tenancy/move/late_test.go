package move_test

import (
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgidem/pgidem/idempotency"
	"github.com/pgidem/pgidem/idempotency/pgstore"
	"github.com/pgidem/pgidem/tenancy"
	"github.com/pgidem/pgidem/tenancy/move"
	"github.com/pgidem/pgidem/tenancy/registry"
)

// newDeafStore returns the store of a process whose registry does not hear of changes though
// it thinks so: it listens in a database without one. What it has looked up, it knows for an
// hour.
func (w *world) newDeafStore(t *testing.T) *pgstore.Store {
	t.Helper()
	clusters := pgstore.Clusters{}
	for name, pool := range w.pools {
		clusters[name] = pgstore.SinglePool(pool)
	}
	tenants, err := registry.New(w.pools["a"], registry.WithTTL(time.Hour), registry.WithListenConfig(w.pools["c"].Config().ConnConfig))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(tenants.Close)
	store, err := pgstore.NewRouted(clusters, tenants)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(store.Close)
	// It looks for somebody, and so begins to listen.
	_, _ = tenants.Place(t.Context(), w.newTenant(t, "c").OrgID)
	for deadline := time.Now().Add(30 * time.Second); tenants.Listening() != nil; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal(tenants.Listening())
		}
	}
	return store
}

// TestMoveAndWhoHasNotHeard: a process that has not heard of a move brings to its end where
// the tenant is now what it had begun where it was, and never takes the tenant for unknown.
func TestMoveAndWhoHasNotHeard(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	tenant := w.newTenant(t, "a")
	store := w.newDeafStore(t)
	var charged atomic.Int64
	handler := idempotency.Require(store, idempotency.WithLogger(slog.New(slog.DiscardHandler)), idempotency.WithStoreTimeout(300*time.Millisecond))(
		http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusCreated)
			fmt.Fprint(w, "charge ", charged.Add(1))
		}))
	send := func(key string) *httptest.ResponseRecorder {
		r := httptest.NewRequest(http.MethodPost, "/pay", strings.NewReader(`{"amount":1}`))
		r = r.WithContext(idempotency.WithOrgID(r.Context(), tenant.OrgID))
		r.Header.Set(idempotency.HeaderKey, key)
		w := httptest.NewRecorder()
		handler.ServeHTTP(w, r)
		return w
	}
	if r := send("k1"); r.Code != http.StatusCreated {
		t.Fatalf("%d %s", r.Code, r.Body)
	}
	// It is paused in the middle of an attempt, for longer than its lease.
	paused := idempotency.ClaimRequest{
		Claim: idempotency.Claim{OrgID: tenant.OrgID, Key: "paused", Token: idempotency.NewToken()}, RequestHash: "00", TTL: time.Hour, Lease: time.Millisecond,
	}
	if result, err := store.Claim(t.Context(), paused); err != nil || result.Outcome != idempotency.OutcomeClaimed {
		t.Fatalf("%+v, %v", result, err)
	}
	response := &idempotency.Record{OrgID: tenant.OrgID, Key: "paused", ResponseStatus: http.StatusCreated}
	m := w.mover(t, move.WithProgress(func(s move.Step) {
		if s != move.Copying {
			return
		}
		if r := send("k2"); r.Code != http.StatusServiceUnavailable || r.Header().Get("Retry-After") == "" {
			t.Errorf("on the way: %d %s", r.Code, r.Body)
		}
		err := store.Complete(t.Context(), paused.Claim, response)
		if err == nil || errors.Is(err, tenancy.ErrUnknownTenant) || errors.Is(err, tenancy.ErrSuspendedTenant) || errors.Is(err, idempotency.ErrLeaseLost) {
			t.Errorf("completed on the way: %v; want a passing fault", err)
		}
	}))
	if _, err := m.Move(t.Context(), tenant.OrgID, "b"); err != nil {
		t.Fatal(err)
	}
	// What it found out on the way it may believe for a second.
	var err error
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		if err = store.Complete(t.Context(), paused.Claim, response); err == nil {
			break
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	if r := send("k1"); r.Body.String() != "charge 1" {
		t.Errorf("the first again: %d %s", r.Code, r.Body)
	}
	if r := send("k2"); r.Body.String() != "charge 2" {
		t.Errorf("a new one: %d %s", r.Code, r.Body)
	}
	again := paused
	again.Token = idempotency.NewToken()
	if result, err := w.storeOf(t, w.pools["a"]).Claim(t.Context(), again); err != nil || result.Outcome != idempotency.OutcomeCompleted {
		t.Errorf("another process: %+v, %v; want the outcome of the one that was paused", result, err)
	}
}

// storeOf returns the store of a process that hears.
func (w *world) storeOf(t *testing.T, registryPool *pgxpool.Pool) *pgstore.Store {
	t.Helper()
	tenants, err := registry.New(registryPool)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(tenants.Close)
	clusters := pgstore.Clusters{}
	for name, pool := range w.pools {
		clusters[name] = pgstore.SinglePool(pool)
	}
	store, err := pgstore.NewRouted(clusters, tenants)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(store.Close)
	return store
}
