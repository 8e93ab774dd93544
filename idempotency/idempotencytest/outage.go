package idempotencytest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/pgidem/pgidem/idempotency"
	"github.com/pgidem/pgidem/tenancy"
)

var errBroken = errors.New("broken on purpose")

// testPlainStoreDown: a plain store that cannot be asked is no empty one.
func testPlainStoreDown(t *testing.T, f *fixture) {
	s := f.serveOver(t, brokenPlain{}, create())
	for range 2 { // and the claim in the process is given up
		a := s.do(t, call{key: "k"})
		a.wantProblem(t, http.StatusServiceUnavailable, "store_unavailable")
		if strings.Contains(a.body, errBroken.Error()) {
			t.Errorf("the problem shows what is behind it: %s", a.body)
		}
	}
	s.wantRuns(t, 0)
}

type brokenPlain struct{}

func (brokenPlain) Get(context.Context, uuid.UUID, string) (*idempotency.Record, error) {
	return nil, errBroken
}

func (brokenPlain) Put(context.Context, *idempotency.Record) error { return errBroken }

func testStoreDownAtClaim(t *testing.T, f *leaseFixture) {
	store := &faultyStore{
		LeaseStore: f.leases,
		claim: func(context.Context, func() (idempotency.ClaimResult, error)) (idempotency.ClaimResult, error) {
			return idempotency.ClaimResult{}, errBroken
		},
		release: func(context.Context, func() error) error { return errBroken },
	}
	s := f.serveOver(t, store, create())
	a := s.do(t, call{key: "k"})
	a.wantProblem(t, http.StatusServiceUnavailable, "store_unavailable")
	if a.Header.Get("Retry-After") == "" || strings.Contains(a.body, errBroken.Error()) {
		t.Errorf("answer %v %s", a.Header, a.body)
	}
	s.wantRuns(t, 0)
	s.wantDecisions(t, idempotency.DecisionStoreError)
}

func testFailOpen(t *testing.T, f *leaseFixture) {
	store := &faultyStore{LeaseStore: f.leases, claim: func(context.Context, func() (idempotency.ClaimResult, error)) (idempotency.ClaimResult, error) {
		return idempotency.ClaimResult{}, errBroken
	}}
	s := f.serveOver(t, store, func(w http.ResponseWriter, r *http.Request) { io.Copy(w, r.Body) }, idempotency.WithFailOpen())
	s.do(t, call{key: "k", body: "echo"}).want(t, http.StatusOK, "echo")
	s.wantDecisions(t, idempotency.DecisionRanUnprotected)
}

func testStoreDownAtCompletion(t *testing.T, f *leaseFixture) {
	store := &faultyStore{LeaseStore: f.leases, complete: func(context.Context, func() error) error { return errBroken }}
	s := f.serveOver(t, store, create(), idempotency.WithStoreTimeout(2*time.Second), f.withLease())
	s.do(t, call{key: "k"}).want(t, http.StatusCreated, `{"id":1}`)
	s.wantDecisions(t, idempotency.DecisionCompleteFailed)
	s.do(t, call{key: "k"}).wantProblem(t, http.StatusConflict, "in_flight") // the lease decides
	f.pass(t)
	s.do(t, call{key: "k"}).want(t, http.StatusCreated, `{"id":2}`)
}

func testStoreBackForCompletion(t *testing.T, f *leaseFixture) {
	tries := 0
	store := &faultyStore{LeaseStore: f.leases, complete: func(_ context.Context, real func() error) error {
		if tries++; tries < 3 {
			return errBroken
		}
		return real()
	}}
	s := f.serveOver(t, store, create())
	s.do(t, call{key: "k"}).want(t, http.StatusCreated, `{"id":1}`)
	if a := s.do(t, call{key: "k"}); !a.replayed() {
		t.Errorf("a retry got %d %s", a.StatusCode, a.body)
	}
	s.wantDecisions(t, idempotency.DecisionExecuted, idempotency.DecisionReplayed)
}

func testStoreDownAtRelease(t *testing.T, f *leaseFixture) {
	store := &faultyStore{LeaseStore: f.leases, release: func(context.Context, func() error) error { return errBroken }}
	s := f.serveOver(t, store, func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(http.StatusBadGateway) })
	s.do(t, call{key: "k"}).want(t, http.StatusBadGateway, "")
	s.wantDecisions(t, idempotency.DecisionReleaseFailed)
}

// testClaimAnswerLost: the claim took effect, but its answer did not arrive. It is
// finished by asking again or, if that fails as well, undone: no row without an
// owner stays behind.
func testClaimAnswerLost(t *testing.T, f *leaseFixture) {
	for name, c := range map[string]struct {
		errs []error // of the first tries, all of which take effect
		want int
	}{
		"never":                    {nil, 201},
		"once":                     {[]error{errBroken}, 201},
		"twice":                    {[]error{errBroken, errBroken}, 503},
		"once, and then refused":   {[]error{errBroken, idempotency.ErrStoreRefused}, 503},
		"once, and then unknown":   {[]error{errBroken, tenancy.ErrUnknownTenant}, 403},
		"once, and then suspended": {[]error{errBroken, tenancy.ErrSuspendedTenant}, 403},
	} {
		tries := 0
		store := &faultyStore{LeaseStore: f.leases, claim: func(_ context.Context, real func() (idempotency.ClaimResult, error)) (idempotency.ClaimResult, error) {
			result, err := real()
			if tries++; tries <= len(c.errs) {
				return idempotency.ClaimResult{}, c.errs[tries-1]
			}
			return result, err
		}}
		s := f.serveOver(t, store, create())
		key := name
		if a := s.do(t, call{key: key}); a.StatusCode != c.want {
			t.Errorf("lost %s: %d %s, want %d", name, a.StatusCode, a.body, c.want)
		}
		s.do(t, call{key: key}).want(t, http.StatusCreated, `{"id":1}`)
		s.wantRuns(t, 1)
	}
}

// testHungCompletion: a connection that hangs uses up its own time, and not that of
// the next one.
func testHungCompletion(t *testing.T, f *leaseFixture) {
	tries := 0
	store := &faultyStore{LeaseStore: f.leases, complete: func(ctx context.Context, real func() error) error {
		if tries++; tries == 1 {
			<-ctx.Done()
			return ctx.Err()
		}
		return real()
	}}
	s := f.serveOver(t, store, create(), idempotency.WithStoreTimeout(3*time.Second))
	s.do(t, call{key: "k"}).want(t, http.StatusCreated, `{"id":1}`)
	s.wantDecisions(t, idempotency.DecisionExecuted)
}

// testStoreRefuses: a store that was reached and said no is not one that is down,
// and what its error wraps besides does not decide what the client is told.
func testStoreRefuses(t *testing.T, f *leaseFixture) {
	for _, cause := range []error{
		fmt.Errorf("%w: a constraint", idempotency.ErrStoreRefused),
		fmt.Errorf("odd: %w: %w", idempotency.ErrInFlight, idempotency.ErrStoreRefused),
	} {
		store := &faultyStore{LeaseStore: f.leases, claim: func(context.Context, func() (idempotency.ClaimResult, error)) (idempotency.ClaimResult, error) {
			return idempotency.ClaimResult{}, cause
		}}
		s := f.serveOver(t, store, create(), idempotency.WithFailOpen())
		s.do(t, call{key: "k"}).wantProblem(t, http.StatusServiceUnavailable, "store_unavailable")
		s.wantRuns(t, 0)
		s.wantDecisions(t, idempotency.DecisionStoreError)
	}
}

func testUnknownTenant(t *testing.T, f *leaseFixture) {
	f.wantRefused(t, tenancy.ErrUnknownTenant, "unknown_tenant", idempotency.DecisionUnknownTenant)
}

func testSuspendedTenant(t *testing.T, f *leaseFixture) {
	f.wantRefused(t, tenancy.ErrSuspendedTenant, "suspended_tenant", idempotency.DecisionSuspendedTenant)
}

// wantRefused checks that a tenant of which the store gives the reason gets a 403 with the
// code: the store is not down, whether the request was to wait, or to run in spite of that.
func (f *leaseFixture) wantRefused(t *testing.T, reason error, code string, decision idempotency.Decision) {
	t.Helper()
	claims := 0
	store := &faultyStore{LeaseStore: f.leases, claim: func(context.Context, func() (idempotency.ClaimResult, error)) (idempotency.ClaimResult, error) {
		claims++
		return idempotency.ClaimResult{}, fmt.Errorf("no schema: %w", reason)
	}}
	for _, opts := range [][]idempotency.Option{nil, {idempotency.WithFailOpen()}, {idempotency.WithWait(time.Second)}} {
		claims = 0
		s := f.serveOver(t, store, create(), opts...)
		s.do(t, call{key: "k"}).wantProblem(t, http.StatusForbidden, code)
		s.wantRuns(t, 0)
		s.wantDecisions(t, decision)
		if claims != 1 {
			t.Errorf("%d claims; want one, for that was an answer", claims)
		}
	}
	store.claim = func(context.Context, func() (idempotency.ClaimResult, error)) (idempotency.ClaimResult, error) {
		if claims++; claims == 1 {
			return idempotency.ClaimResult{Outcome: idempotency.OutcomeInFlight}, nil
		}
		return idempotency.ClaimResult{}, fmt.Errorf("no schema: %w", reason)
	}
	claims = 0
	s := f.serveOver(t, store, create(), idempotency.WithWait(time.Minute)) // it happens while the request waits
	s.do(t, call{key: "k"}).wantProblem(t, http.StatusForbidden, code)
	s.wantDecisions(t, decision)
}
