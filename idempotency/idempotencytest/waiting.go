package idempotencytest

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/pgidem/pgidem/idempotency"
)

// lookedAt is a store that tells who saw a key in flight.
type lookedAt struct {
	idempotency.LeaseStore
	refused chan idempotency.Token
}

func lookAt(store idempotency.LeaseStore) *lookedAt {
	return &lookedAt{LeaseStore: store, refused: make(chan idempotency.Token, 10_000)}
}

func (s *lookedAt) Claim(ctx context.Context, req idempotency.ClaimRequest) (idempotency.ClaimResult, error) {
	result, err := s.LeaseStore.Claim(ctx, req)
	if err == nil && result.Outcome == idempotency.OutcomeInFlight {
		s.refused <- req.Token
	}
	return result, err
}

// wantWaiting returns when as many requests have each seen the key in flight twice:
// they then wait.
func (s *lookedAt) wantWaiting(t *testing.T, requests int) {
	t.Helper()
	seen := make(map[idempotency.Token]int)
	for waiting := 0; waiting < requests; {
		token := within(t, "a request to wait", s.refused)
		if seen[token]++; seen[token] == 2 {
			waiting++
		}
	}
}

// watchedStore is a lookedAt over a store that watches.
type watchedStore struct {
	*lookedAt
	watches idempotency.WatchStore
}

func (s watchedStore) Watch(orgID uuid.UUID, key string) (<-chan struct{}, func(), error) {
	return s.watches.Watch(orgID, key)
}

// waitStores returns the store to wait at: as it is, and where it watches also
// without, so that the requests have to ask again and again.
func (f *leaseFixture) waitStores() map[string]*lookedAt {
	return map[string]*lookedAt{"told": lookAt(f.leases), "asking": lookAt(f.leases)}
}

// watching returns the store with its Watch, if it has one and is to be told.
func (f *leaseFixture) watching(name string, s *lookedAt) idempotency.Store {
	if watches, ok := f.leases.(idempotency.WatchStore); ok && name == "told" {
		return watchedStore{s, watches}
	}
	return s
}

// testWaitReplays: any number of duplicates wait for the first and get its response.
func testWaitReplays(t *testing.T, f *leaseFixture) {
	for name, store := range f.waitStores() {
		t.Run(name, func(t *testing.T) {
			g := newGate()
			s := f.serveOver(t, f.watching(name, store), g.ServeHTTP, idempotency.WithWait(patience))
			first := s.background(t, call{key: name})
			within(t, "the handler to begin", g.begun)
			const n = 20
			var waiting []<-chan answer
			for range n {
				waiting = append(waiting, s.background(t, call{key: name}))
			}
			store.wantWaiting(t, n)
			close(g.open)
			within(t, "the first answer", first).want(t, http.StatusCreated, "made")
			for _, w := range waiting {
				a := within(t, "a waiting answer", w)
				a.want(t, http.StatusCreated, "made")
				if !a.replayed() {
					t.Error("an answer that was waited for does not say that it is a replay")
				}
			}
			s.wantRuns(t, 1)
			s.mu.Lock()
			defer s.mu.Unlock()
			for _, e := range s.events {
				if replayed := e.Decision == idempotency.DecisionReplayed; replayed != (e.Wait > 0) {
					t.Errorf("decision %q after a wait of %v", e.Decision, e.Wait)
				}
			}
		})
	}
}

// testWaitOfAnyStore: a store that can do no more than Get and Put is waited at, too.
func testWaitOfAnyStore(t *testing.T, f *fixture) {
	g := newGate()
	s := f.serve(t, g.ServeHTTP, idempotency.WithWait(patience))
	first := s.background(t, call{key: "k"})
	within(t, "the handler to begin", g.begun)
	second := s.background(t, call{key: "k"})
	select {
	case a := <-second:
		t.Fatalf("a duplicate did not wait: %d %s", a.StatusCode, a.body)
	case <-time.After(50 * time.Millisecond): // long enough for a refusal on loopback
	}
	close(g.open)
	within(t, "the first answer", first).want(t, http.StatusCreated, "made")
	within(t, "the waiting answer", second).want(t, http.StatusCreated, "made")
	s.wantRuns(t, 1)
}

func testWaitTimesOut(t *testing.T, f *leaseFixture) {
	const wait = 60 * time.Millisecond
	g := newGate()
	s := f.serve(t, g.ServeHTTP, idempotency.WithWait(wait))
	first := s.background(t, call{key: "k"})
	within(t, "the handler to begin", g.begun)
	a := s.do(t, call{key: "k"})
	a.wantProblem(t, http.StatusConflict, "in_flight")
	if a.Header.Get("Retry-After") == "" {
		t.Error("409 without Retry-After")
	}
	if waited := s.wantEvents(t, idempotency.DecisionInFlight)[0].Wait; waited < wait {
		t.Errorf("waited for %v, want at least %v", waited, wait)
	}
	s.do(t, call{key: "k", body: "another"}).wantProblem(t, http.StatusUnprocessableEntity, "key_reused") // at once
	close(g.open)
	within(t, "the first answer", first).want(t, http.StatusCreated, "made")
}

// testWaitRunsAfterRelease: of those who wait for an attempt that comes to nothing,
// one runs, and the others wait for that one.
func testWaitRunsAfterRelease(t *testing.T, f *leaseFixture) {
	for name, store := range f.waitStores() {
		t.Run(name, func(t *testing.T) {
			g := newGate()
			var once sync.Once
			s := f.serveOver(t, f.watching(name, store), func(w http.ResponseWriter, r *http.Request) {
				failing := false
				once.Do(func() { failing = true })
				if failing {
					g.begun <- struct{}{}
					<-g.open
					w.WriteHeader(http.StatusBadGateway)
					return
				}
				io.WriteString(w, "made")
			}, idempotency.WithWait(patience))
			first := s.background(t, call{key: name})
			within(t, "the handler to begin", g.begun)
			const n = 5
			var waiting []<-chan answer
			for range n {
				waiting = append(waiting, s.background(t, call{key: name}))
			}
			store.wantWaiting(t, n)
			close(g.open)
			within(t, "the first answer", first).want(t, http.StatusBadGateway, "")
			replayed := 0
			for _, w := range waiting {
				a := within(t, "a waiting answer", w)
				a.want(t, http.StatusOK, "made")
				if a.replayed() {
					replayed++
				}
			}
			if replayed != n-1 {
				t.Errorf("%d of %d were replayed, want all but one", replayed, n)
			}
			s.wantRuns(t, 2)
		})
	}
}

// testWaitTakesOver: the lease of a process that died lapses while somebody waits.
func testWaitTakesOver(t *testing.T, f *leaseFixture) {
	req := f.request("k")
	f.claim(t, req, idempotency.OutcomeClaimed)
	store := lookAt(f.leases)
	fingerprint := idempotency.WithFingerprint(func(*http.Request, []byte) (string, error) { return req.RequestHash, nil })
	s := f.serveOver(t, f.watching("told", store), func(w http.ResponseWriter, r *http.Request) {
		n, _ := idempotency.Attempt(r.Context())
		fmt.Fprint(w, "attempt ", n)
	}, idempotency.WithWait(patience), fingerprint)
	waiting := s.background(t, call{key: "k"})
	store.wantWaiting(t, 1)
	f.pass(t)
	within(t, "the waiting answer", waiting).want(t, http.StatusOK, "attempt 2")

	f.claim(t, f.request("refused"), idempotency.OutcomeClaimed)
	refusing := lookAt(f.leases)
	s = f.serveOver(t, f.watching("told", refusing), create(), idempotency.WithWait(patience), fingerprint, idempotency.WithInterrupted(idempotency.Refuse))
	waiting = s.background(t, call{key: "refused"})
	refusing.wantWaiting(t, 1)
	f.pass(t)
	within(t, "the waiting answer", waiting).wantProblem(t, http.StatusConflict, "interrupted")
}

// testWaiterLeaves: nobody waits for a client that is gone, and it leaves no trace.
func testWaiterLeaves(t *testing.T, f *leaseFixture) {
	g := newGate()
	store := lookAt(f.leases)
	s := f.serveOver(t, f.watching("told", store), g.ServeHTTP, idempotency.WithWait(patience))
	first := s.background(t, call{key: "k"})
	within(t, "the handler to begin", g.begun)
	ctx, leave := context.WithCancel(context.Background())
	left := make(chan error, 1)
	go func() {
		_, err := s.try(t, call{key: "k", ctx: ctx})
		left <- err
	}()
	store.wantWaiting(t, 1)
	leave()
	if err := within(t, "the client to leave", left); err == nil {
		t.Error("the client got an answer after it left")
	}
	s.wantDecisions(t, idempotency.DecisionClientLeft) // though the first is still running
	close(g.open)
	within(t, "the first answer", first).want(t, http.StatusCreated, "made")
	s.do(t, call{key: "k"}).want(t, http.StatusCreated, "made")
	s.wantRuns(t, 1)
}

// testWaitStoreDown: a store that goes down while a request waits does not let it run
// beside the attempt in flight, whatever WithFailOpen says.
func testWaitStoreDown(t *testing.T, f *leaseFixture) {
	g := newGate()
	claims := 0
	store := &faultyStore{LeaseStore: f.leases, claim: func(_ context.Context, real func() (idempotency.ClaimResult, error)) (idempotency.ClaimResult, error) {
		if claims++; claims > 2 {
			return idempotency.ClaimResult{}, errBroken
		}
		return real()
	}}
	s := f.serveOver(t, store, g.ServeHTTP, idempotency.WithWait(patience), idempotency.WithFailOpen())
	first := s.background(t, call{key: "k"})
	within(t, "the handler to begin", g.begun)
	s.do(t, call{key: "k"}).wantProblem(t, http.StatusServiceUnavailable, "store_unavailable")
	close(g.open)
	within(t, "the first answer", first).want(t, http.StatusCreated, "made")
	s.wantRuns(t, 1)
	s.wantDecisions(t, idempotency.DecisionStoreError, idempotency.DecisionExecuted)
}

// testWatch: the end of an attempt is told to whoever watched before it ended.
func testWatch(t *testing.T, f *leaseFixture) {
	store, ok := f.leases.(idempotency.WatchStore)
	if !ok {
		return // a store without is asked instead; there is nothing to be tested
	}
	end := map[string]func(c idempotency.Claim) error{
		"completed": func(c idempotency.Claim) error { return store.Complete(f.ctx, c, f.record(c.Key)) },
		"released":  func(c idempotency.Claim) error { return store.Release(f.ctx, c) },
	}
	for key, end := range end {
		first, second := f.request(key), f.request(key)
		f.claim(t, first, idempotency.OutcomeClaimed)
		ended, stop, err := store.Watch(f.org, key)
		if err != nil {
			t.Fatalf("Watch: %v", err)
		}
		second.Await = true
		quiet := false
		for !quiet { // a watch may be woken without cause, when it begins
			f.claim(t, second, idempotency.OutcomeInFlight)
			select {
			case _, open := <-ended:
				if !open {
					t.Fatal("the channel of Watch was closed")
				}
			case <-time.After(300 * time.Millisecond):
				quiet = true
			}
		}
		if err := end(first.Claim); err != nil {
			t.Fatalf("%s: %v", key, err)
		}
		within(t, "the signal that the attempt was "+key, ended)
		stop()
	}
}
