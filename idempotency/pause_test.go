package idempotency_test

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pgidem/pgidem/idempotency"
)

// pausedStore is a MemoryStore whose process is paused as the first completion is on its
// way: when it wakes up, the time of that call is over.
type pausedStore struct {
	*idempotency.MemoryStore
	pause  func()
	asleep chan struct{} // closed when it wakes up
	slow   bool          // from then on no completion of the attempt is answered in time
	token  atomic.Value  // of the attempt
}

func (s *pausedStore) Complete(ctx context.Context, c idempotency.Claim, rec *idempotency.Record) error {
	if pause := s.pause; pause != nil {
		s.pause = nil
		s.token.Store(c.Token)
		pause()
		close(s.asleep)
		return context.DeadlineExceeded
	}
	if s.slow && s.token.Load() == c.Token {
		<-ctx.Done()
		return ctx.Err()
	}
	return s.MemoryStore.Complete(ctx, c, rec)
}

func (s *pausedStore) Extend(ctx context.Context, c idempotency.Claim, lease time.Duration) error {
	if s.token.Load() == c.Token { // its process has not begun this before it wakes up
		<-s.asleep
		ctx = context.WithoutCancel(ctx)
	}
	return s.MemoryStore.Extend(ctx, c, lease)
}

// TestPausedPastStoreTimeout: a process that is paused for longer than it gives the store
// stores its outcome when it wakes up, as long as no other attempt has taken over, and
// otherwise does not send it.
func TestPausedPastStoreTimeout(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		pause time.Duration // the lease is 30 seconds
		other bool          // another attempt takes over meanwhile
		slow  bool          // completions of the first go unanswered after it; its extensions do not
		want  []string
	}{
		"within the lease":            {10 * time.Second, false, false, []string{"201 by 1", "201 by 1"}},
		"beyond it":                   {time.Minute, false, false, []string{"201 by 1", "201 by 1"}},
		"and is taken over":           {time.Minute, true, false, []string{"201 by 2", "409 lease_lost", "201 by 2"}},
		"and learns it by the way":    {time.Minute, true, true, []string{"201 by 2", "409 lease_lost", "201 by 2"}},
		"and does not learn anything": {time.Minute, false, true, []string{"201 by 1", "201 by 2"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				store := &pausedStore{MemoryStore: idempotency.NewMemoryStore(), asleep: make(chan struct{}), slow: c.slow}
				h := idempotency.Require(store, idempotency.WithLogger(slog.New(slog.DiscardHandler)))(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					n, _ := idempotency.Attempt(r.Context())
					w.WriteHeader(http.StatusCreated)
					fmt.Fprint(w, "by ", n)
				}))
				var got []string
				send := func() {
					w := httptest.NewRecorder()
					h.ServeHTTP(w, request(t, "k", ""))
					text := w.Body.String()
					if w.Code == http.StatusConflict {
						var problem idempotency.Problem
						if err := json.Unmarshal(w.Body.Bytes(), &problem); err != nil {
							t.Error(err)
						}
						text = problem.Code
					}
					got = append(got, fmt.Sprint(w.Code, " ", text))
				}
				store.pause = func() {
					time.Sleep(c.pause)
					if c.other {
						send()
					}
				}
				send()
				if c.slow {
					time.Sleep(time.Minute) // past the lease of an outcome that was not stored
				}
				send()
				if fmt.Sprint(got) != fmt.Sprint(c.want) {
					t.Errorf("%q, want %q", got, c.want)
				}
			})
		})
	}
}
