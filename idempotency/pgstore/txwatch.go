package pgstore

import (
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/pgidem/pgidem/idempotency"
)

const (
	firstAsk = 25 * time.Millisecond
	lastAsk  = time.Second
)

// Watch implements [idempotency.WatchStore]. It tells at once what ends in this process.
// A transaction in another one does not see who waits for it, and to notify at each commit
// just in case would have all commits wait for each other; so for those there is a value
// from time to time.
func (t *txStore) Watch(orgID uuid.UUID, key string) (ended <-chan struct{}, stop func(), err error) {
	ch := make(chan struct{}, 1)
	stopHub := t.store.ends.WatchOn(newWaitKey(orgID, key), ch)
	asker := &asker{ch: ch, pause: t.asks}
	asker.mu.Lock() // so that the first ask sees the timer
	asker.timer = time.AfterFunc(asker.pause, asker.ask)
	asker.mu.Unlock()
	return ch, func() { stopHub(); asker.stop() }, nil
}

// ended tells those who wait in this process that the attempt of c has come to its end.
func (t *txStore) ended(c idempotency.Claim) {
	t.store.signal(c.OrgID, c.Key)
}

// asker has somebody ask again, at growing intervals.
type asker struct {
	ch chan struct{}

	mu      sync.Mutex
	timer   *time.Timer
	pause   time.Duration
	stopped bool
}

func (a *asker) ask() {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.stopped {
		return
	}
	select {
	case a.ch <- struct{}{}:
	default: // it has been told, and will ask anyway
	}
	a.pause = min(2*a.pause, lastAsk)
	a.timer.Reset(a.pause)
}

func (a *asker) stop() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.stopped = true
	a.timer.Stop()
}
