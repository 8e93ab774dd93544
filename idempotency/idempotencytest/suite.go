package idempotencytest

import (
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/pgidem/pgidem/idempotency"
)

// TestStore runs the contract of [idempotency.Store] against the stores that
// newStore returns, each in a test of its own, and the contracts of
// [idempotency.LeaseStore], [idempotency.StepStore] and [idempotency.RequestStore] if they
// implement them.
func TestStore(t *testing.T, newStore func(t testing.TB) idempotency.Store, opts ...Option) {
	s := newSuite(newStore, opts)
	s.run(t, storeContract, storeLeaseContract)
	s.runSteps(t, stepContract)
	if _, ok := s.newStore(t).(idempotency.RequestStore); ok {
		s.run(t, nil, requestContract)
	}
}

// TestMiddleware runs the contract between [idempotency.Require] and its clients,
// over real HTTP, against the stores that newStore returns. A store without
// leases is tested with what one process can promise.
func TestMiddleware(t *testing.T, newStore func(t testing.TB) idempotency.Store, opts ...Option) {
	newSuite(newStore, opts).run(t, contract, leaseContract)
}

// Option tells the suite about the store under test.
type Option func(*suite)

// WithTenant gives the suite the function that makes a new tenant ready in the
// store and returns its org_id. By default the suite uses random org_ids, for
// stores in which a tenant needs no place of its own.
func WithTenant(newTenant func(t testing.TB, store idempotency.Store) uuid.UUID) Option {
	return func(s *suite) { s.newTenant = newTenant }
}

// WithAdvance gives the suite the function that lets time pass in the store: it
// moves a manual clock on, or all of the store's times back. By default the suite
// calls the store's method Advance(time.Duration), which a store that embeds a
// [Clock] has; without one it uses short times and waits for them to pass.
func WithAdvance(advance func(t testing.TB, store idempotency.Store, d time.Duration)) Option {
	return func(s *suite) { s.advance = advance }
}

// WithHTTP2 lets [TestMiddleware] speak HTTP/2 (over TLS) in place of HTTP/1.1.
func WithHTTP2() Option {
	return func(s *suite) { s.http2 = true }
}

// WithTransactions tells [TestMiddleware] that attempts run in transactions of the store
// ([idempotency.ClaimResult.Transaction]). It then leaves out what is not for them:
// responses that stream, leases that lapse, and faults that a transaction meets in
// another way.
func WithTransactions() Option {
	return func(s *suite) { s.transactions = true }
}

type suite struct {
	newStore  func(t testing.TB) idempotency.Store
	newTenant func(t testing.TB, store idempotency.Store) uuid.UUID
	advance   func(t testing.TB, store idempotency.Store, d time.Duration)
	http2     bool

	transactions bool
}

func newSuite(newStore func(t testing.TB) idempotency.Store, opts []Option) *suite {
	s := &suite{
		newStore:  newStore,
		newTenant: func(testing.TB, idempotency.Store) uuid.UUID { return uuid.New() },
	}
	for _, opt := range opts {
		opt(s)
	}
	return s
}

// run runs the tests that every store must pass and, on stores that have leases,
// those about leases, each on a fixture of its own.
func (s *suite) run(t *testing.T, tests []plainTest, leaseTests []leaseTest) {
	for _, test := range tests {
		if s.transactions && notInTransactions[test.name] {
			continue
		}
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			test.run(t, s.fixture(t))
		})
	}
	if _, ok := s.newStore(t).(idempotency.LeaseStore); !ok {
		return
	}
	for _, test := range leaseTests {
		if s.transactions && notInTransactions[test.name] {
			continue
		}
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			f := s.fixture(t)
			test.run(t, &leaseFixture{fixture: f, leases: f.store.(idempotency.LeaseStore)})
		})
	}
}

// runSteps runs the tests that stores which keep steps must pass, on such a store.
func (s *suite) runSteps(t *testing.T, tests []stepTest) {
	if _, ok := s.newStore(t).(idempotency.StepStore); !ok {
		return
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			f := s.fixture(t)
			steps := f.store.(idempotency.StepStore)
			test.run(t, &stepFixture{leaseFixture: &leaseFixture{fixture: f, leases: steps}, steps: steps})
		})
	}
}
