package idempotency_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	mathrand "math/rand/v2"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pgidem/pgidem/idempotency"
	"github.com/pgidem/pgidem/idempotency/idempotencytest"
)

func TestMemoryStoreConformance(t *testing.T) {
	t.Parallel()
	idempotencytest.TestStore(t, func(testing.TB) idempotency.Store { return idempotencytest.NewMemoryStore() })
}

// TestMemoryStoreOfServices: the suites hold over a store by the system's clock, which Require
// asks without a lease to be extended, as well as over one whose clock a test moves.
func TestMemoryStoreOfServices(t *testing.T) {
	t.Parallel()
	newStore := func(testing.TB) idempotency.Store { return idempotency.NewMemoryStore() }
	t.Run("Store", func(t *testing.T) {
		t.Parallel()
		idempotencytest.TestStore(t, newStore)
	})
	t.Run("Middleware", func(t *testing.T) {
		t.Parallel()
		idempotencytest.TestMiddleware(t, newStore)
	})
}

func TestMemoryStoreForgetsExpiredRecords(t *testing.T) {
	t.Parallel()
	store := idempotencytest.NewMemoryStore()
	claim := func() {
		req := idempotency.ClaimRequest{
			Claim: idempotency.Claim{OrgID: orgA, Key: idempotency.NewToken().String(), Token: idempotency.NewToken()},
			Lease: time.Minute, TTL: time.Hour,
		}
		if _, err := store.Claim(t.Context(), req); err != nil {
			t.Fatal(err)
		}
	}
	for range 1000 {
		claim()
	}
	store.Advance(2 * time.Hour)
	for range 1000 {
		claim()
	}
	if n := store.Len(); n > 1500 {
		t.Fatalf("%d records held after 1,000 of 2,000 expired; the expired pile up", n)
	}
}

// TestMemoryStoreTellsWhoLoses: a handler whose claim goes to another, or is cleared, is
// cancelled at once, and its client told.
func TestMemoryStoreTellsWhoLoses(t *testing.T) {
	t.Parallel()
	for name, lose := range map[string]func(*idempotency.MemoryStore) error{
		"to a Clear": func(s *idempotency.MemoryStore) error { return s.Clear(t.Context(), orgA) },
		"to a Put": func(s *idempotency.MemoryStore) error {
			return s.Put(t.Context(), &idempotency.Record{OrgID: orgA, Key: "k"})
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			store := idempotency.NewMemoryStore()
			w := inHandler(t.Context(), t, store, func(ctx context.Context) {
				if err := lose(store); err != nil {
					t.Error(err)
				}
				if !isOver(ctx) || !errors.Is(context.Cause(ctx), idempotency.ErrLeaseLost) {
					t.Errorf("over %t, cause %v", isOver(ctx), context.Cause(ctx))
				}
			})
			if w.Code != http.StatusConflict || !strings.Contains(w.Body.String(), "lease_lost") {
				t.Errorf("%d %s", w.Code, w.Body)
			}
		})
	}
}

// TestMemoryStoreLetsLapse: an attempt that a rule of the user's broke off, after the handler
// had run, holds its key for a lease and no longer.
func TestMemoryStoreLetsLapse(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const lease = time.Minute
		broken, attempts := true, 0
		h := idempotency.Require(idempotency.NewMemoryStore(), idempotency.WithLease(lease), idempotency.WithStorable(func(int) bool {
			if broken {
				panic("on purpose")
			}
			return true
		}))(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			attempts, _ = idempotency.Attempt(r.Context())
			w.WriteHeader(http.StatusCreated)
		}))
		send := func() int {
			defer func() { _ = recover() }()
			w := httptest.NewRecorder()
			h.ServeHTTP(w, request(t, "k", ""))
			return w.Code
		}
		send()
		broken = false
		time.Sleep(lease - time.Second)
		if status := send(); status != http.StatusConflict {
			t.Errorf("%d within the lease, want 409", status)
		}
		time.Sleep(2 * time.Second)
		if status := send(); status != http.StatusCreated || attempts != 2 {
			t.Errorf("%d by attempt %d beyond it, want 201 by 2", status, attempts)
		}
	})
}

// TestMemoryStoreKeepsLongAttempts: a record whose attempt outlives its expiry stays until the
// attempt has ended, and is forgotten then.
func TestMemoryStoreKeepsLongAttempts(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const ttl = time.Hour
		store := idempotency.NewMemoryStore()
		long := true
		h := idempotency.Require(store, idempotency.WithTTL(ttl))(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			if long {
				time.Sleep(3 * ttl)
			}
			w.WriteHeader(http.StatusCreated)
		}))
		send := func(key string) int {
			w := httptest.NewRecorder()
			h.ServeHTTP(w, request(t, key, ""))
			return w.Code
		}
		var wg sync.WaitGroup
		wg.Go(func() {
			if status := send("long"); status != http.StatusCreated {
				t.Errorf("%d", status)
			}
		})
		synctest.Wait()
		long = false
		some := func() {
			for i := range 2000 { // of every part of the store
				send(fmt.Sprint(time.Now(), i))
			}
		}
		for range 2 {
			time.Sleep(ttl)
			some()
			if status := send("long"); status != http.StatusConflict {
				t.Errorf("%d beside the attempt, want 409", status)
			}
		}
		wg.Wait()
		time.Sleep(2 * ttl)
		some()
		if n := store.Len(); n > 2000 {
			t.Errorf("%d records held, of which 2,000 count", n)
		}
	})
}

// TestMemoryStoreForgetsInOrder: records of all ages come and go, and those that count stay.
func TestMemoryStoreForgetsInOrder(t *testing.T) {
	t.Parallel()
	store := idempotencytest.NewMemoryStore()
	random := mathrand.New(mathrand.NewPCG(1, 2))
	expires := map[string]time.Time{} // of the keys that are held
	for i := range 20_000 {
		req := idempotency.ClaimRequest{
			Claim: idempotency.Claim{OrgID: orgA, Key: fmt.Sprint(i), Token: idempotency.NewToken()},
			Lease: time.Millisecond, TTL: time.Duration(1+random.IntN(5000)) * time.Second,
		}
		if _, err := store.Claim(t.Context(), req); err != nil {
			t.Fatal(err)
		}
		if random.IntN(3) == 0 {
			if err := store.Release(t.Context(), req.Claim); err != nil {
				t.Fatal(err)
			}
		} else {
			if err := store.Complete(t.Context(), req.Claim, &idempotency.Record{ResponseStatus: http.StatusOK}); err != nil {
				t.Fatal(err)
			}
			expires[req.Key] = store.Now().Add(req.TTL)
		}
		store.Advance(time.Second)
	}
	maps.DeleteFunc(expires, func(_ string, at time.Time) bool { return !store.Now().Before(at) })
	for key := range expires {
		if _, err := store.Get(t.Context(), orgA, key); err != nil {
			t.Errorf("%s: %v", key, err)
		}
	}
	if n := store.Len(); n < len(expires) || n > len(expires)*11/10 {
		t.Errorf("%d records held, of which %d count", n, len(expires))
	}
}
