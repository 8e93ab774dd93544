package idempotency_test

import (
	"sync"
	"testing"
	"time"

	"github.com/pgidem/pgidem/idempotency"
	"github.com/pgidem/pgidem/idempotency/idempotencytest"
)

// manualClock is a clock that stands still until it is moved.
type manualClock struct {
	mu  sync.Mutex
	now time.Time
}

func newManualClock() *manualClock { return &manualClock{now: time.Now()} }

func (c *manualClock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *manualClock) Advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

type clockedStore struct {
	*idempotency.MemoryStore
	clock *manualClock
}

func TestMemoryStoreConformance(t *testing.T) {
	t.Parallel()
	idempotencytest.TestStore(t,
		func(testing.TB) idempotency.Store {
			clock := newManualClock()
			return clockedStore{idempotency.NewMemoryStoreWithClock(clock.Now), clock}
		},
		idempotencytest.WithAdvance(func(_ testing.TB, s idempotency.Store, d time.Duration) {
			s.(clockedStore).clock.Advance(d)
		}),
	)
}

func TestMemoryStoreForgetsExpiredRecords(t *testing.T) {
	t.Parallel()
	clock := newManualClock()
	store := idempotency.NewMemoryStoreWithClock(clock.Now)
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
	clock.Advance(2 * time.Hour)
	for range 1000 {
		claim()
	}
	if n := store.Len(); n > 1500 {
		t.Fatalf("%d records held after 1,000 of 2,000 expired; the expired pile up", n)
	}
}
