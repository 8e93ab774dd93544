package routers_test

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/pgidem/pgidem/internal/pgtest"
	"github.com/pgidem/pgidem/internal/storetest"
)

func TestEndToEnd(t *testing.T) {
	t.Parallel()
	for _, layout := range layouts {
		t.Run(layout.name, func(t *testing.T) {
			t.Parallel()
			pool := pgtest.NewPool(t)
			for _, major := range []int{1, 2} {
				t.Run(fmt.Sprint("HTTP", major), func(t *testing.T) {
					s := serve(t, layout.make, storetest.NewStore(t, pool), storetest.NewTenant(t, pool), major)
					s.endToEnd(t)
				})
			}
		})
	}
}

// endToEnd is the test that every layout has to pass.
func (s *service) endToEnd(t *testing.T) {
	t.Run("a retry is replayed", func(t *testing.T) {
		key := uuid.NewString()
		first := s.post(t, "/v1/payments/7", key, "12.00")
		first.wantFirst(t, http.StatusCreated)
		if !strings.HasPrefix(first.body, `{"id":"7",`) || first.Header.Get("Location") != "/v1/payments/7" {
			t.Errorf("answer %q, Location %q: the route's parameter did not arrive", first.body, first.Header.Get("Location"))
		}
		for range 2 {
			s.post(t, "/v1/payments/7", key, "12.00").wantReplayOf(t, first)
		}
		s.wantRuns(t, key, 1)
		if other := s.post(t, "/v1/payments/7", uuid.NewString(), "12.00"); other.body == first.body {
			t.Errorf("another key gets %q as well", other.body)
		}
	})
	t.Run("another request with the key is refused", func(t *testing.T) {
		key := uuid.NewString()
		s.post(t, "/v1/payments/7", key, "12.00").wantFirst(t, http.StatusCreated)
		s.post(t, "/v1/payments/7", key, "13.00").wantProblem(t, http.StatusUnprocessableEntity, "key_reused")
		s.post(t, "/v1/payments/8", key, "12.00").wantProblem(t, http.StatusUnprocessableEntity, "key_reused")
		s.wantRuns(t, key, 1)
	})
	for name, tt := range map[string]struct {
		path   string
		status int
	}{
		"a status alone is replayed": {"/v1/settings", http.StatusNoContent},
		"a refusal is replayed":      {"/v1/refused", http.StatusPaymentRequired},
		"a stream is replayed":       {"/v1/stream", http.StatusOK},
	} {
		t.Run(name, func(t *testing.T) {
			key := uuid.NewString()
			first := s.post(t, tt.path, key, "")
			first.wantFirst(t, tt.status)
			if tt.status == http.StatusOK && (first.body != "piece piece piece " || first.ContentLength != -1) {
				t.Errorf("answer %q of length %d, want a stream of three pieces", first.body, first.ContentLength)
			}
			s.post(t, tt.path, key, "").wantReplayOf(t, first)
			s.wantRuns(t, key, 1)
		})
	}
	t.Run("a failure is not kept", func(t *testing.T) {
		key := uuid.NewString()
		s.post(t, "/v1/broken", key, "").wantFirst(t, http.StatusInternalServerError)
		s.post(t, "/v1/broken", key, "").wantFirst(t, http.StatusInternalServerError)
		s.wantRuns(t, key, 2)
	})
	t.Run("a panic is not kept", func(t *testing.T) {
		key := uuid.NewString()
		s.post(t, "/v1/panics", key, "").wantFirst(t, http.StatusInternalServerError)
		first := s.post(t, "/v1/panics", key, "")
		first.wantFirst(t, http.StatusCreated)
		s.post(t, "/v1/panics", key, "").wantReplayOf(t, first)
		s.wantRuns(t, key, 2)
	})
	t.Run("a handler that gave up is run again", s.runsAgainAfterGivingUp)
	t.Run("a duplicate of a running request is refused", s.refusesWhileRunning)
	t.Run("concurrent duplicates run once", s.runsDuplicatesOnce)
	t.Run("an excluded route passes through", func(t *testing.T) {
		key := uuid.NewString()
		first := s.post(t, "/v1/auth/login", key, "")
		first.wantFirst(t, http.StatusOK)
		second := s.post(t, "/v1/auth/login", key, "")
		second.wantFirst(t, http.StatusOK)
		if first.body == second.body {
			t.Errorf("both logins get %q", first.body)
		}
		s.wantRuns(t, key, 0) // no key is claimed there
	})
	t.Run("an unmatched route is not found", func(t *testing.T) {
		key := uuid.NewString()
		first := s.post(t, "/v1/nowhere", key, "")
		first.wantFirst(t, http.StatusNotFound)
		again := s.post(t, "/v1/nowhere", key, "")
		again.want(t, http.StatusNotFound)
		if first.body == "" || again.body != first.body {
			t.Errorf("answers %q and %q", first.body, again.body)
		}
	})
	t.Run("no handler but the excluded one ran without a claim", func(t *testing.T) {
		s.wantRuns(t, unclaimed, 2)
	})
}

func (s *service) runsAgainAfterGivingUp(t *testing.T) {
	key := uuid.NewString()
	ctx, cancel := context.WithCancel(t.Context())
	failed := make(chan error, 1)
	go func() {
		_, err := s.try(ctx, "/v1/gives-up", key, "")
		failed <- err
	}()
	within(t, "the handler", s.begun)
	cancel()
	if within(t, "the client to go", failed) == nil {
		t.Fatal("the request was answered")
	}
	// The server learns of it in its own time.
	first := s.askUntilDone(t, "/v1/gives-up", key)
	first.wantFirst(t, http.StatusCreated)
	s.post(t, "/v1/gives-up", key, "").wantReplayOf(t, first)
	s.wantRuns(t, key, 2)
}

func (s *service) refusesWhileRunning(t *testing.T) {
	key := uuid.NewString()
	var first answer
	failed := make(chan error, 1)
	go func() {
		var err error
		first, err = s.try(t.Context(), "/v1/slow", key, "")
		failed <- err
	}()
	within(t, "the handler", s.begun)
	duplicate := s.post(t, "/v1/slow", key, "")
	s.open <- struct{}{}
	if err := within(t, "the first answer", failed); err != nil {
		t.Fatalf("the first request: %v", err)
	}
	duplicate.wantProblem(t, http.StatusConflict, "in_flight")
	if duplicate.Header.Get("Retry-After") == "" {
		t.Error("no Retry-After")
	}
	first.wantFirst(t, http.StatusOK)
	s.post(t, "/v1/slow", key, "").wantReplayOf(t, first)
	s.wantRuns(t, key, 1)
}

func (s *service) runsDuplicatesOnce(t *testing.T) {
	key := uuid.NewString()
	bodies := make(chan string, 8)
	var wg sync.WaitGroup
	for range cap(bodies) {
		wg.Go(func() { bodies <- s.askUntilDone(t, "/v1/payments/7", key).body })
	}
	wg.Wait()
	close(bodies)
	first := <-bodies
	for body := range bodies {
		if body != first {
			t.Errorf("one client got %q, another %q", body, first)
		}
	}
	if !strings.HasPrefix(first, `{"id":"7",`) {
		t.Errorf("answer %q", first)
	}
	s.wantRuns(t, key, 1)
}

// askUntilDone asks again for as long as an earlier request is in flight.
func (s *service) askUntilDone(t *testing.T, path, key string) answer {
	for deadline := time.Now().Add(timeout); ; time.Sleep(2 * time.Millisecond) {
		a, err := s.try(t.Context(), path, key, "")
		switch {
		case err != nil:
			t.Errorf("POST %s: %v", path, err)
			return answer{Response: &http.Response{}}
		case a.StatusCode != http.StatusConflict || time.Now().After(deadline):
			return a
		}
	}
}
