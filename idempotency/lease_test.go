package idempotency_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pgidem/pgidem/idempotency"
)

// lostStore is a MemoryStore in which another attempt has taken over by the time that the
// first one ends, or extends its lease.
type lostStore struct {
	*idempotency.MemoryStore
	extensions bool // are refused, too
}

func (s *lostStore) Extend(ctx context.Context, c idempotency.Claim, lease time.Duration) error {
	if s.extensions {
		c.Token = idempotency.NewToken()
	}
	return s.MemoryStore.Extend(ctx, c, lease)
}

func (s *lostStore) Complete(ctx context.Context, c idempotency.Claim, rec *idempotency.Record) error {
	c.Token = idempotency.NewToken()
	return s.MemoryStore.Complete(ctx, c, rec)
}

func (s *lostStore) Release(ctx context.Context, c idempotency.Claim) error {
	c.Token = idempotency.NewToken()
	return s.MemoryStore.Release(ctx, c)
}

// TestLostLeasesAreReported: whatever an attempt is refused that has lost its lease, one
// event says so, with the error; and no client is told a second story.
func TestLostLeasesAreReported(t *testing.T) {
	t.Parallel()
	cancelled := func(r *http.Request) {
		<-r.Context().Done()
		if cause := context.Cause(r.Context()); !errors.Is(cause, idempotency.ErrLeaseLost) {
			panic(cause)
		}
	}
	for name, c := range map[string]struct {
		extensions bool
		handle     http.HandlerFunc
		status     int
	}{
		"at an extension, of a handler that gives up": {true, func(_ http.ResponseWriter, r *http.Request) { cancelled(r) }, http.StatusConflict},
		"at an extension, of one that does not": {true, func(w http.ResponseWriter, r *http.Request) {
			cancelled(r)
			w.WriteHeader(http.StatusCreated)
		}, http.StatusConflict},
		"at the completion": {false, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusCreated) }, http.StatusConflict},
		"at the release":    {false, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusBadGateway) }, http.StatusBadGateway},
		"at the release, after a panic": {false, func(http.ResponseWriter, *http.Request) {
			panic(http.ErrAbortHandler)
		}, http.StatusOK}, // of the recorder, to which nothing was sent
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var events []idempotency.Event
			h := idempotency.Require(&lostStore{idempotency.NewMemoryStore(), c.extensions},
				idempotency.WithLease(30*time.Millisecond),
				idempotency.WithObserver(func(_ context.Context, e idempotency.Event) { events = append(events, e) }),
			)(c.handle)
			w := httptest.NewRecorder()
			func() {
				defer func() {
					if err, _ := recover().(error); err != nil && !errors.Is(err, http.ErrAbortHandler) {
						t.Errorf("panic: %v", err)
					}
				}()
				h.ServeHTTP(w, request(t, "k", ""))
			}()
			if w.Code != c.status || strings.Contains(w.Body.String(), "lease_lost") != (c.status == http.StatusConflict) {
				t.Errorf("%d %s, want %d", w.Code, w.Body, c.status)
			}
			if len(events) != 1 || events[0].Decision != idempotency.DecisionLeaseLost || !errors.Is(events[0].Err, idempotency.ErrLeaseLost) {
				t.Errorf("events %+v", events)
			}
		})
	}
}

// TestPausedProcessAsksOnceMore: a process that was paused past all deadlines, so that no
// try to store its outcome has been answered, does not send a response before it has asked.
func TestPausedProcessAsksOnceMore(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		lease  time.Duration
		last   error
		status int
	}{
		"and is another's":        {50 * time.Millisecond, idempotency.ErrLeaseLost, http.StatusConflict},
		"and is its own":          {50 * time.Millisecond, nil, http.StatusCreated},
		"and nobody knows":        {50 * time.Millisecond, errors.New("down"), http.StatusCreated},
		"whatever its clock says": {time.Hour, idempotency.ErrLeaseLost, http.StatusConflict},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			const storeTimeout = 300 * time.Millisecond
			began := time.Now()
			store := &hookedStore{MemoryStore: idempotency.NewMemoryStore(), extend: func(context.Context) error { return errors.New("cut off") }}
			late := &lateStore{hookedStore: store, complete: func() error {
				if time.Since(began) < storeTimeout {
					time.Sleep(storeTimeout) // the process is paused
					return context.DeadlineExceeded
				}
				return c.last
			}}
			h := idempotency.Require(late, idempotency.WithLease(c.lease), idempotency.WithStoreTimeout(storeTimeout))(
				http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusCreated) }))
			w := httptest.NewRecorder()
			h.ServeHTTP(w, request(t, "k", ""))
			if w.Code != c.status {
				t.Errorf("%d %s, want %d", w.Code, w.Body, c.status)
			}
		})
	}
}

type lateStore struct {
	*hookedStore
	complete func() error
}

func (s *lateStore) Complete(context.Context, idempotency.Claim, *idempotency.Record) error {
	return s.complete()
}

// TestManyLeasesAreKept: handlers of several leases keep their claims, however many run at
// a time, and until their first extension none has a goroutine of the middleware's.
func TestManyLeasesAreKept(t *testing.T) { // not beside others, to count goroutines
	for name, store := range stores() {
		t.Run(name, func(t *testing.T) { synctest.Test(t, func(t *testing.T) { keepManyLeases(t, store) }) })
	}
}

func keepManyLeases(t *testing.T, store idempotency.Store) {
	const requests, lease = 300, time.Minute
	finish := make(chan struct{})
	h := idempotency.Require(store, idempotency.WithLease(lease), idempotency.WithLogger(slog.New(slog.DiscardHandler)))(
		http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			select {
			case <-finish:
				w.WriteHeader(http.StatusCreated)
			case <-r.Context().Done():
			}
		}))
	send := func(i int) *httptest.ResponseRecorder {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, request(t, fmt.Sprint("key ", i), ""))
		return w
	}
	before := runtime.NumGoroutine()
	var wg sync.WaitGroup
	for i := range requests {
		wg.Go(func() {
			if w := send(i); w.Code != http.StatusCreated {
				t.Errorf("request %d: %d %s", i, w.Code, w.Body)
			}
		})
		time.Sleep(time.Millisecond)
	}
	synctest.Wait()
	// Of a test before, one may be ending still.
	if n := runtime.NumGoroutine() - before; n > requests {
		t.Errorf("%d goroutines for %d requests", n, requests)
	}
	for range 4 {
		time.Sleep(lease * 4 / 5)
		for i := range requests {
			if w := send(i); w.Code != http.StatusConflict {
				t.Fatalf("request %d beside the first: %d %s, want 409", i, w.Code, w.Body)
			}
		}
	}
	close(finish)
	wg.Wait()
}

// TestNoTimerOutlivesTheRequests: when no request runs any more, nothing is left that would
// fire later. A timer that is left belongs to the bubble that it was started in, so the next
// one would wait for it in vain and lose its lease.
func TestNoTimerOutlivesTheRequests(t *testing.T) {
	t.Parallel()
	const lease = time.Minute
	store := &hookedStore{MemoryStore: idempotency.NewMemoryStore()}
	extended := 0
	store.extend = func(context.Context) error { extended++; return nil }
	takes := time.Second
	h := idempotency.Require(store, idempotency.WithLease(lease))(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		time.Sleep(takes)
		w.WriteHeader(http.StatusCreated)
	}))
	for _, key := range []string{"short", "long"} {
		synctest.Test(t, func(t *testing.T) {
			w := httptest.NewRecorder()
			if h.ServeHTTP(w, request(t, key, "")); w.Code != http.StatusCreated {
				t.Errorf("%d %s", w.Code, w.Body)
			}
		})
		takes = 2*lease - time.Second
	}
	if extended < 5 {
		t.Errorf("a handler of almost two leases was extended %d times, want 5", extended)
	}
}
