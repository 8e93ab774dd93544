package idempotency

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"
)

// leaseKeeper extends the lease of a running request at every third of it, and
// cancels the handler's context when the lease is lost. It costs a timer, and a
// goroutine only while an extension is under way.
type leaseKeeper struct {
	store   LeaseStore
	claim   Claim
	lease   time.Duration
	timeout time.Duration // of one extension
	ctx     context.Context
	cancel  context.CancelFunc
	lost    context.CancelCauseFunc // cancels the handler

	mu     sync.Mutex // held while an extension is under way
	timer  *time.Timer
	lapses time.Time // when the lease has certainly lapsed, by this process's monotonic clock

	told atomic.Bool // the store has said that the lease is lost
}

// keepLease starts to keep the claim that was asked for at the given time. The
// caller must call stop.
func keepLease(ctx context.Context, store LeaseStore, c Claim, asked time.Time, lease, timeout time.Duration, lost context.CancelCauseFunc) *leaseKeeper {
	k := &leaseKeeper{
		store: store, claim: c, lease: lease, timeout: min(timeout, lease/3), lost: lost,
		lapses: asked.Add(lease),
	}
	k.ctx, k.cancel = context.WithCancel(ctx)
	k.mu.Lock() // so that a first extension sees the timer
	k.timer = time.AfterFunc(time.Until(asked.Add(lease/3)), k.extend)
	k.mu.Unlock()
	return k
}

func (k *leaseKeeper) extend() {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.ctx.Err() != nil {
		return // the timer had fired already when it was stopped
	}
	asked, timeout := time.Now(), k.timeout
	if left := k.lapses.Sub(asked); left > 0 {
		timeout = min(timeout, left)
	} // else the process was paused, or the claim slow: the store knows whether the lease still holds
	ctx, cancel := context.WithTimeout(k.ctx, timeout)
	defer cancel()
	err := k.store.Extend(ctx, k.claim, k.lease)
	left := time.Until(k.lapses)
	if errors.Is(err, ErrLeaseLost) {
		k.told.Store(true)
	}
	switch {
	case k.ctx.Err() != nil: // stop waits for us
	case err == nil:
		k.lapses = asked.Add(k.lease)
		k.timer.Reset(k.lease / 3)
	case errors.Is(err, ErrLeaseLost), left <= 0:
		// Told so, or cut off for so long that another attempt may have begun.
		k.lost(ErrLeaseLost)
	default:
		k.timer.Reset(min(k.lease/10, left))
	}
}

// stop ends the extensions and waits for the one that may be under way.
func (k *leaseKeeper) stop() {
	k.cancel()
	k.timer.Stop()
	k.mu.Lock()
	defer k.mu.Unlock()
}
