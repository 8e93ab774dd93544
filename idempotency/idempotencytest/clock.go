package idempotencytest

import (
	"fmt"
	"sync"
	"time"

	"github.com/pgidem/pgidem/idempotency"
)

// Clock is a clock that stands still until a test moves it. Hand its Now to
// whatever asks for the time, [idempotency.NewMemoryStoreWithClock] say. It may be
// used concurrently. Make one with [NewClock].
type Clock struct {
	mu  sync.Mutex
	now time.Time
}

// NewClock returns a Clock that shows the present time.
func NewClock() *Clock { return &Clock{now: time.Now()} }

// Now returns the time that the clock shows.
func (c *Clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

// Advance moves the clock on. It panics when d is negative: no store has to bear
// with time that runs backwards.
func (c *Clock) Advance(d time.Duration) {
	if d < 0 {
		panic(fmt.Sprintf("idempotencytest: Clock.Advance: %v is negative", d))
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

// MemoryStore is an [idempotency.MemoryStore] with a clock of its own, for tests in
// which leases lapse and records expire without anybody waiting for it: Advance
// moves the store's clock. Make one with [NewMemoryStore].
//
// The middleware that extends the lease of a running handler lives in real time.
type MemoryStore struct {
	*idempotency.MemoryStore
	*Clock
}

// NewMemoryStore returns an empty MemoryStore whose clock shows the present time.
func NewMemoryStore() *MemoryStore {
	clock := NewClock()
	return &MemoryStore{MemoryStore: idempotency.NewMemoryStoreWithClock(clock.Now), Clock: clock}
}
