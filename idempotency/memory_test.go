package idempotency_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	mathrand "math/rand/v2"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/uuid"

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

// TestMemoryStoreForgetsKeysOfThePast: what has expired is cleared away though nobody comes
// with a key like it any more.
func TestMemoryStoreForgetsKeysOfThePast(t *testing.T) {
	t.Parallel()
	store := idempotencytest.NewMemoryStore()
	claim := func(key string) {
		req := idempotency.ClaimRequest{
			Claim: idempotency.Claim{OrgID: orgA, Key: key, Token: idempotency.NewToken()},
			Lease: time.Minute, TTL: time.Hour,
		}
		if _, err := store.Claim(t.Context(), req); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 2000 {
		claim(fmt.Sprint(i))
	}
	store.Advance(2 * time.Hour)
	for range 2000 {
		claim("the one that is left")
	}
	if n := store.Len(); n != 1 {
		t.Errorf("%d records held, of which 1 counts", n)
	}
}

// TestMemoryStoreReleasesLate: a process that was paused for longer than it gives a store
// leaves no claim behind that nothing ends.
func TestMemoryStoreReleasesLate(t *testing.T) {
	t.Parallel()
	runs := 0
	observe, got := decisions()
	h := idempotency.Require(idempotency.NewMemoryStore(), quiet, observe, idempotency.WithStoreTimeout(1))(
		http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			runs++
			w.WriteHeader(http.StatusInternalServerError)
		}))
	for range 2 {
		h.ServeHTTP(httptest.NewRecorder(), request(t, "k", ""))
	}
	if runs != 2 || (*got)[0] != idempotency.DecisionReleased {
		t.Errorf("%d runs, want 2; decisions %v", runs, *got)
	}
}

// TestMemoryStoreCompletedAgain: the repetition of a Complete changes nothing, not even for
// those who are reading what the first one stored.
func TestMemoryStoreCompletedAgain(t *testing.T) {
	t.Parallel()
	store := idempotency.NewMemoryStore()
	req := idempotency.ClaimRequest{
		Claim: idempotency.Claim{OrgID: orgA, Key: "k", Token: idempotency.NewToken()},
		Lease: time.Minute, TTL: time.Hour,
	}
	if _, err := store.Claim(t.Context(), req); err != nil {
		t.Fatal(err)
	}
	complete := func(body string) {
		rec := &idempotency.Record{ResponseStatus: http.StatusOK, ResponseBody: []byte(body)}
		if err := store.Complete(t.Context(), req.Claim, rec); err != nil {
			t.Error(err)
		}
	}
	complete("first")
	var wg sync.WaitGroup
	wg.Go(func() {
		for range 1000 {
			complete("repeated")
		}
	})
	wg.Go(func() {
		again := req
		again.Token = idempotency.NewToken()
		for range 1000 {
			rec, err := store.Get(t.Context(), orgA, "k")
			if err != nil || string(rec.ResponseBody) != "first" {
				t.Errorf("%v, %v", rec, err)
				return
			}
			result, err := store.Claim(t.Context(), again)
			if err != nil || string(result.Record.ResponseBody) != "first" {
				t.Errorf("%v, %v", result.Record, err)
				return
			}
		}
	})
	wg.Wait()
}

// heldWriter is a ResponseWriter that something must let go of.
type heldWriter struct {
	*httptest.ResponseRecorder
	_ [1 << 10]byte
}

// TestMemoryStoreLetsGoOfBrokenAttempts: the record of an attempt that a rule of the user's
// broke off holds nothing of its request.
func TestMemoryStoreLetsGoOfBrokenAttempts(t *testing.T) {
	t.Parallel()
	store := idempotency.NewMemoryStore()
	h := idempotency.Require(store, quiet, idempotency.WithStorable(func(int) bool { panic("on purpose") }))(
		http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusCreated) }))
	const requests = 50
	var freed atomic.Int64
	for i := range requests {
		func() {
			defer func() { _ = recover() }()
			w := &heldWriter{ResponseRecorder: httptest.NewRecorder()}
			runtime.AddCleanup(w, func(int) { freed.Add(1) }, 0)
			h.ServeHTTP(w, request(t, fmt.Sprint(i), ""))
		}()
	}
	for deadline := time.Now().Add(20 * time.Second); freed.Load() < requests-1; { // the stack may refer to the last
		if time.Now().After(deadline) {
			t.Fatalf("of %d response writers of requests that have ended %d are held", requests, requests-freed.Load())
		}
		runtime.GC()
	}
	if n := store.Len(); n != requests {
		t.Errorf("%d records, want %d", n, requests)
	}
}

// TestMemoryStoreKeepsFarTimes: those of a Put, though a [time.Duration] cannot reach from
// one to the other.
func TestMemoryStoreKeepsFarTimes(t *testing.T) {
	t.Parallel()
	store := idempotency.NewMemoryStore()
	soon := time.Now().Add(time.Hour)
	never := time.Date(9999, time.December, 31, 0, 0, 0, 0, time.UTC)
	old := time.Date(1, time.January, 2, 0, 0, 0, 0, time.UTC)
	for _, rec := range []*idempotency.Record{
		{Key: "never", CreatedAt: time.Now(), ExpiresAt: never},
		{Key: "old", CreatedAt: old, ExpiresAt: soon},
		{Key: "old and never", CreatedAt: old, ExpiresAt: never},
	} {
		rec.OrgID, rec.ResponseStatus = orgA, http.StatusOK
		if err := store.Put(t.Context(), rec); err != nil {
			t.Fatal(err)
		}
		got, err := store.Get(t.Context(), orgA, rec.Key)
		if err != nil {
			t.Errorf("%s: %v", rec.Key, err)
			continue
		}
		if !got.CreatedAt.Equal(rec.CreatedAt) || !got.ExpiresAt.Equal(rec.ExpiresAt) {
			t.Errorf("%s: from %v to %v, want from %v to %v", rec.Key, got.CreatedAt, got.ExpiresAt, rec.CreatedAt, rec.ExpiresAt)
		}
	}
}

// TestMemoryStoreOfCollidingKeys: keys whose hashes are the same are different keys.
func TestMemoryStoreOfCollidingKeys(t *testing.T) {
	t.Parallel()
	newStore := func(testing.TB) idempotency.Store {
		store := idempotencytest.NewMemoryStore()
		idempotency.NarrowHash(store.MemoryStore, 1)
		return store
	}
	t.Run("Store", func(t *testing.T) {
		t.Parallel()
		idempotencytest.TestStore(t, newStore)
	})
	t.Run("Keys", func(t *testing.T) {
		t.Parallel()
		store := newStore(t)
		const keys = 20
		other := uuid.New()
		key := func(i int) string { return fmt.Sprint("key ", i) }
		for i := range keys {
			rec := &idempotency.Record{OrgID: orgA, Key: key(i), ResponseStatus: http.StatusOK, ResponseBody: []byte(key(i))}
			if i%3 == 0 {
				rec.ExpiresAt = time.Now().Add(time.Hour)
			}
			if err := store.Put(t.Context(), rec); err != nil {
				t.Fatal(err)
			}
		}
		store.(*idempotencytest.MemoryStore).Advance(2 * time.Hour)
		for range 200 {
			_ = store.Put(t.Context(), &idempotency.Record{OrgID: other, Key: key(0), ResponseStatus: http.StatusOK})
		}
		for i := range keys {
			rec, err := store.Get(t.Context(), orgA, key(i))
			switch {
			case i%3 == 0 && !errors.Is(err, idempotency.ErrNotFound):
				t.Errorf("%s, which has expired: %v, %v", key(i), rec, err)
			case i%3 != 0 && (err != nil || string(rec.ResponseBody) != key(i)):
				t.Errorf("%s: %v, %v", key(i), rec, err)
			}
		}
		if n, want := store.(*idempotencytest.MemoryStore).Len(), keys-7+1; n != want {
			t.Errorf("%d records, want %d", n, want)
		}
	})
}
