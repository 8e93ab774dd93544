package idempotencytest

import (
	"context"
	"fmt"
	"net/http"
	"testing"

	"github.com/pgidem/pgidem/idempotency"
)

// withLease sets a lease of the length that pass lets pass.
func (f *fixture) withLease() idempotency.Option { return idempotency.WithLease(f.span()) }

// testTakeOver: the process of the first attempt hangs past its lease, a retry
// takes over, and the late first attempt can store nothing and is told so.
func testTakeOver(t *testing.T, f *leaseFixture) {
	g := newGate()
	stuck := &faultyStore{LeaseStore: f.leases, extend: func(context.Context, func() error) error { return errBroken }}
	first := f.serveOver(t, stuck, g.ServeHTTP, f.withLease(), idempotency.WithDetachedHandler())
	late := first.background(t, call{key: "k"})
	within(t, "the handler to begin", g.begun)
	f.pass(t)

	second := f.serve(t, func(w http.ResponseWriter, r *http.Request) {
		n, _ := idempotency.Attempt(r.Context())
		fmt.Fprint(w, "attempt ", n)
	})
	second.do(t, call{key: "k"}).want(t, http.StatusOK, "attempt 2")
	second.wantDecisions(t, idempotency.DecisionTakenOver)

	close(g.open)
	a := within(t, "the late attempt", late)
	a.wantProblem(t, http.StatusConflict, "lease_lost")
	first.wantDecisions(t, idempotency.DecisionLeaseLost)
	first.do(t, call{key: "k"}).want(t, http.StatusOK, "attempt 2")
}

func testInterruptedRefused(t *testing.T, f *leaseFixture) {
	s := f.serve(t, create(), idempotency.WithInterrupted(idempotency.Refuse))
	// An attempt whose process died: claimed as the middleware claims, and left.
	g := newGate()
	dead := &faultyStore{LeaseStore: f.leases,
		extend:   func(context.Context, func() error) error { return nil },
		complete: func(context.Context, func() error) error { return nil },
	}
	d := f.serveOver(t, dead, g.ServeHTTP, f.withLease())
	close(g.open)
	d.do(t, call{key: "k"})
	s.do(t, call{key: "k"}).wantProblem(t, http.StatusConflict, "in_flight")
	f.pass(t)
	for range 2 {
		s.do(t, call{key: "k"}).wantProblem(t, http.StatusConflict, "interrupted")
	}
	s.wantRuns(t, 0)
	s.wantDecisions(t, idempotency.DecisionInFlight, idempotency.DecisionInterrupted, idempotency.DecisionInterrupted)
}

// testTakeOverThatFails: an attempt that finds out nothing about the interrupted one
// before it must not make the next think that it is the first.
func testTakeOverThatFails(t *testing.T, f *leaseFixture) {
	req := f.request("k") // of a process that died
	s := f.serve(t, func(w http.ResponseWriter, r *http.Request) {
		n, _ := idempotency.Attempt(r.Context())
		if n < 4 {
			w.WriteHeader(http.StatusBadGateway)
		}
		fmt.Fprint(w, "attempt ", n)
	}, idempotency.WithFingerprint(func(*http.Request, []byte) (string, error) { return req.RequestHash, nil }))
	f.claim(t, req, idempotency.OutcomeClaimed)
	f.pass(t)
	for attempt := 2; attempt < 4; attempt++ {
		s.do(t, call{key: "k"}).want(t, http.StatusBadGateway, fmt.Sprint("attempt ", attempt))
	}
	s.do(t, call{key: "k"}).want(t, http.StatusOK, "attempt 4")
	s.wantDecisions(t, idempotency.DecisionReleased, idempotency.DecisionReleased, idempotency.DecisionTakenOver)
}

// testLeaseLostAtRelease: that another attempt has taken over is the operator's to
// know also where the handler has nothing to store.
func testLeaseLostAtRelease(t *testing.T, f *leaseFixture) {
	g := make(chan struct{})
	begun := make(chan struct{}, 1)
	stuck := &faultyStore{LeaseStore: f.leases, extend: func(context.Context, func() error) error { return nil }}
	first := f.serveOver(t, stuck, func(w http.ResponseWriter, r *http.Request) {
		begun <- struct{}{}
		<-g
		w.WriteHeader(http.StatusBadGateway)
	}, f.withLease())
	late := first.background(t, call{key: "k"})
	within(t, "the handler to begin", begun)
	f.pass(t)
	f.serve(t, create()).do(t, call{key: "k"}).want(t, http.StatusCreated, `{"id":1}`)
	close(g)
	within(t, "the late answer", late).want(t, http.StatusBadGateway, "")
	first.wantDecisions(t, idempotency.DecisionLeaseLost)
}
