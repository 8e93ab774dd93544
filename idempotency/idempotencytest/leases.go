package idempotencytest

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/pgidem/pgidem/idempotency"
)

func testLeaseIsExtended(t *testing.T, f *leaseFixture) {
	g := newGate()
	extended := make(chan struct{}, 1000)
	store := &faultyStore{LeaseStore: f.leases, extend: func(_ context.Context, real func() error) error {
		err := real()
		if err == nil {
			extended <- struct{}{}
		}
		return err
	}}
	s := f.serveOver(t, store, g.ServeHTTP, idempotency.WithLease(1500*time.Millisecond))
	first := s.background(t, call{key: "k"})
	within(t, "the handler to begin", g.begun)
	for range 4 { // more than a lease's worth
		within(t, "an extension", extended)
	}
	s.do(t, call{key: "k"}).wantProblem(t, http.StatusConflict, "in_flight")
	close(g.open)
	within(t, "the answer", first).want(t, http.StatusCreated, "made")
	s.wantRuns(t, 1)
}

func testLostLeaseCancelsHandler(t *testing.T, f *leaseFixture) {
	store := &faultyStore{LeaseStore: f.leases, extend: func(context.Context, func() error) error {
		return fmt.Errorf("told so: %w", idempotency.ErrLeaseLost)
	}}
	causes := make(chan error, 1)
	s := f.serveOver(t, store, func(w http.ResponseWriter, r *http.Request) {
		<-r.Context().Done()
		causes <- context.Cause(r.Context())
	}, idempotency.WithLease(30*time.Millisecond))
	s.do(t, call{key: "k"}).wantProblem(t, http.StatusConflict, "lease_lost")
	if cause := within(t, "the cause", causes); !errors.Is(cause, idempotency.ErrLeaseLost) {
		t.Errorf("cause %v", cause)
	}

	cutOff := &faultyStore{LeaseStore: f.leases, extend: func(context.Context, func() error) error { return errBroken }}
	s = f.serveOver(t, cutOff, func(w http.ResponseWriter, r *http.Request) { <-r.Context().Done() },
		idempotency.WithLease(30*time.Millisecond))
	s.do(t, call{key: "cut off"}).wantProblem(t, http.StatusConflict, "lease_lost")
}

// testLeaseKeptToTheEnd: the key is held while the outcome is being stored, however
// long that takes.
func testLeaseKeptToTheEnd(t *testing.T, f *leaseFixture) {
	extended := make(chan struct{}, 1000)
	handled := make(chan struct{})
	var once sync.Once
	store := &faultyStore{
		LeaseStore: f.leases,
		extend: func(_ context.Context, real func() error) error {
			defer func() { extended <- struct{}{} }()
			return real()
		},
		complete: func(ctx context.Context, real func() error) error {
			once.Do(func() { close(handled) })
			for range 4 { // more than a lease's worth
				select {
				case <-extended:
				case <-ctx.Done():
					return ctx.Err()
				}
			}
			return real()
		},
	}
	s := f.serveOver(t, store, create(), idempotency.WithLease(1500*time.Millisecond), idempotency.WithStoreTimeout(time.Minute))
	first := s.background(t, call{key: "k"})
	within(t, "the completion", handled)
	within(t, "the answer", first).want(t, http.StatusCreated, `{"id":1}`)
	s.do(t, call{key: "k"}).want(t, http.StatusCreated, `{"id":1}`)
	s.wantRuns(t, 1)
}
