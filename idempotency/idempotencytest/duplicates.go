package idempotencytest

import (
	"fmt"
	"net/http"
	"sync"
	"testing"

	"github.com/pgidem/pgidem/idempotency"
)

func testInFlight(t *testing.T, f *fixture) {
	g := newGate()
	s := f.serve(t, g.ServeHTTP)
	first := s.background(t, call{key: "k"})
	within(t, "the handler to begin", g.begun)
	a := s.do(t, call{key: "k"})
	a.wantProblem(t, http.StatusConflict, "in_flight")
	if a.Header.Get("Retry-After") != "1" {
		t.Errorf("Retry-After %q", a.Header.Get("Retry-After"))
	}
	close(g.open)
	within(t, "the first answer", first).want(t, http.StatusCreated, "made")
	s.do(t, call{key: "k"}).want(t, http.StatusCreated, "made")
	s.wantRuns(t, 1)
	s.wantDecisions(t, idempotency.DecisionInFlight, idempotency.DecisionExecuted, idempotency.DecisionReplayed)
}

func testConcurrentDuplicates(t *testing.T, f *fixture) {
	s := f.serve(t, create())
	for round := range 5 {
		var wg sync.WaitGroup
		for range 20 {
			wg.Go(func() {
				a, err := s.try(t, call{key: fmt.Sprint("k", round)})
				if err != nil {
					t.Error(err)
					return
				}
				if a.StatusCode != http.StatusCreated && a.StatusCode != http.StatusConflict {
					t.Errorf("answer %d %s", a.StatusCode, a.body)
				}
				if want := fmt.Sprintf(`{"id":%d}`, round+1); a.StatusCode == http.StatusCreated && a.body != want {
					t.Errorf("answer %s, want %s", a.body, want)
				}
			})
		}
		wg.Wait()
		s.wantRuns(t, int64(round+1))
	}
}

func testNestedRequireIsOne(t *testing.T, f *fixture) {
	inner := idempotency.Require(f.store)(create())
	s := f.serve(t, inner.ServeHTTP)
	for range 2 {
		s.do(t, call{key: "k"}).want(t, http.StatusCreated, `{"id":1}`)
	}
	s.wantRuns(t, 1)
}

// testNestedRequireOfAnotherKey: the items of a batch are requests of their own.
func testNestedRequireOfAnotherKey(t *testing.T, f *fixture) {
	var items sync.Map
	item := idempotency.Require(f.store)(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		key, _ := idempotency.Key(r.Context())
		if _, again := items.LoadOrStore(key, true); again {
			t.Errorf("item %q ran twice", key)
		}
	}))
	s := f.serve(t, func(w http.ResponseWriter, r *http.Request) {
		for _, key := range []string{"item-1", "item-2", "item-1"} {
			sub := r.Clone(r.Context())
			sub.Header.Set(idempotency.HeaderKey, key)
			item.ServeHTTP(discard{http.Header{}}, sub)
		}
	})
	s.do(t, call{key: "batch"}).want(t, http.StatusOK, "")
	s.wantRuns(t, 1)
}

// discard is a ResponseWriter for what nobody reads.
type discard struct{ header http.Header }

func (d discard) Header() http.Header { return d.header }

func (d discard) Write(p []byte) (int, error) { return len(p), nil }

func (d discard) WriteHeader(int) {}
