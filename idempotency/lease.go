package idempotency

import (
	"context"
	"errors"
	"sync"
	"time"
)

// leaseKeepers extend the leases of the requests that run under a middleware, each at
// every third of it, and cancel the handlers whose lease is lost. All of them share one
// timer, so a handler that returns before the first third, beside others, costs neither a
// timer nor a goroutine; an extension has a goroutine while it is under way.
type leaseKeepers struct {
	store   LeaseStore
	lease   time.Duration
	timeout time.Duration // of one extension
	began   time.Time     // of the keepers

	mu    sync.Mutex
	queue dueQueue[*leaseKeeper] // those that wait for their next extension
	timer *time.Timer            // nil while nothing waits
	armed bool                   // the timer is going to fire
	next  time.Duration          // when it does, from began
}

func newLeaseKeepers(store LeaseStore, c *config) *leaseKeepers {
	return &leaseKeepers{store: store, lease: c.lease, timeout: min(c.storeTimeout, c.lease/3), began: time.Now()}
}

// leaseKeeper is the lease of one running request. Its fields belong to whoever holds
// the lock of all, but during an extension.
type leaseKeeper struct {
	all     *leaseKeepers
	claim   Claim
	handler *lazyContext // of the handler that runs under the lease
	lapses  time.Time    // when the lease has certainly lapsed, by this process's monotonic clock

	place   // in the queue
	stopped bool
	told    bool               // the store has said that the lease is lost
	cancel  context.CancelFunc // of the extension under way
	ended   chan struct{}      // closed when that has ended
}

// keep starts to keep the claim that was asked for at the given time. The caller must
// call stop.
func (h *leaseKeepers) keep(c Claim, asked time.Time, handler *lazyContext) *leaseKeeper {
	k := &leaseKeeper{all: h, claim: c, handler: handler, lapses: asked.Add(h.lease)}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.wait(k, asked.Add(h.lease/3))
	return k
}

// wait puts k into the queue. The lock is held.
func (h *leaseKeepers) wait(k *leaseKeeper, due time.Time) {
	h.queue.push(k, due.Sub(h.began))
	h.arm()
}

// arm has the timer fire when the next extension is due. Where the one that it was armed for
// has ended and others wait, it fires in vain once. The lock is held.
func (h *leaseKeepers) arm() {
	if len(h.queue) == 0 {
		return
	}
	next := h.queue[0].due
	if h.armed && next >= h.next {
		return
	}
	h.armed, h.next = true, next
	if in := next - time.Since(h.began); h.timer == nil {
		h.timer = time.AfterFunc(in, h.extendDue)
	} else {
		h.timer.Reset(in)
	}
}

// rest gives the timer up when nothing waits for it: those of the middlewares of many calls
// of [Do] would add up. The lock is held.
func (h *leaseKeepers) rest() {
	if len(h.queue) == 0 && h.timer != nil {
		h.timer.Stop()
		h.timer, h.armed = nil, false
	}
}

// extendDue begins the extensions that are due.
func (h *leaseKeepers) extendDue() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.armed = false
	for now := time.Since(h.began); len(h.queue) > 0 && h.queue[0].due <= now; {
		k := h.queue[0].item
		h.queue.remove(k)
		ctx, cancel := context.WithCancel(context.WithoutCancel(k.handler))
		k.cancel, k.ended = cancel, make(chan struct{})
		go k.extend(ctx)
	}
	h.arm()
}

// extend extends the lease once.
func (k *leaseKeeper) extend(ctx context.Context) {
	defer close(k.ended)
	defer k.cancel()
	asked, timeout := time.Now(), k.all.timeout
	if left := k.lapses.Sub(asked); left > 0 {
		timeout = min(timeout, left)
	} // else the process was paused, or the claim slow: the store knows whether the lease still holds
	bounded, done := context.WithTimeout(ctx, timeout)
	defer done()
	err := k.all.store.Extend(bounded, k.claim, k.all.lease)

	if k.isLost(err, asked) {
		k.handler.end(ErrLeaseLost)
	}
}

// isLost says what an extension came to. Unless the lease is lost, k waits for the next.
func (k *leaseKeeper) isLost(err error, asked time.Time) bool {
	k.all.mu.Lock()
	defer k.all.mu.Unlock()
	now := time.Now()
	left := k.lapses.Sub(now)
	k.told = k.told || errors.Is(err, ErrLeaseLost)
	switch {
	case k.stopped:
	case err == nil:
		k.lapses = asked.Add(k.all.lease)
		k.all.wait(k, now.Add(k.all.lease/3))
	case k.told, left <= 0:
		return true // told so, or cut off for so long that another attempt may have begun
	default:
		k.all.wait(k, now.Add(min(k.all.lease/10, left)))
	}
	return false
}

// wasTold reports whether the store has said that the lease is lost.
func (k *leaseKeeper) wasTold() bool {
	k.all.mu.Lock()
	defer k.all.mu.Unlock()
	return k.told
}

// stop ends the extensions and waits for the one that may be under way.
func (k *leaseKeeper) stop() {
	k.all.mu.Lock()
	k.stopped = true
	if k.index >= 0 {
		k.all.queue.remove(k)
		k.all.rest()
		k.all.mu.Unlock()
		return
	}
	cancel, ended := k.cancel, k.ended
	k.all.mu.Unlock()
	cancel()
	<-ended
}
