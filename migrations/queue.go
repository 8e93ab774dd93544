package migrations

import (
	"context"
	"slices"
	"sync"
	"time"
)

// queue holds the tenants of a run that are not through. Those that were put back come after
// all others, and not before their pause is over.
type queue struct {
	mu      sync.Mutex
	fresh   []Result
	back    []waiting // by time
	taken   int
	changed chan struct{} // closed, and replaced, when a waiter should look again
	over    func()        // called when all are through
}

type waiting struct {
	result Result
	until  time.Time
}

func newQueue(results []Result, over func()) *queue {
	return &queue{fresh: results, changed: make(chan struct{}), over: over}
}

// take returns the next tenant, waiting for one to be due. It reports false when all are
// through or ctx has ended.
func (q *queue) take(ctx context.Context) (Result, bool) {
	for ctx.Err() == nil {
		result, ok, wait, changed := q.look()
		if ok {
			return result, true
		}
		if wait == 0 {
			return Result{}, false
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
		case <-changed:
		case <-timer.C:
		}
		timer.Stop()
	}
	return Result{}, false
}

// look returns a tenant, or how long to wait until looking again, or neither if all are
// through.
func (q *queue) look() (result Result, ok bool, wait time.Duration, changed <-chan struct{}) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.fresh) > 0 {
		result, q.fresh = q.fresh[0], q.fresh[1:]
		q.taken++
		return result, true, 0, nil
	}
	if len(q.back) > 0 {
		if wait = time.Until(q.back[0].until); wait <= 0 {
			result, q.back = q.back[0].result, q.back[1:]
			q.taken++
			return result, true, 0, nil
		}
		return Result{}, false, wait, q.changed
	}
	if q.taken > 0 { // it may be put back
		return Result{}, false, time.Minute, q.changed
	}
	return Result{}, false, 0, nil
}

// putBack returns a tenant that was taken, to be tried again after the pause.
func (q *queue) putBack(result Result, pause time.Duration) {
	q.mu.Lock()
	defer q.mu.Unlock()
	until := time.Now().Add(pause)
	at, _ := slices.BinarySearchFunc(q.back, until, func(w waiting, t time.Time) int { return w.until.Compare(t) })
	q.back = slices.Insert(q.back, at, waiting{result: result, until: until})
	q.release()
}

// done tells that a tenant that was taken is through.
func (q *queue) done() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.release()
}

func (q *queue) release() {
	q.taken--
	close(q.changed)
	q.changed = make(chan struct{})
	if q.taken == 0 && len(q.fresh)+len(q.back) == 0 {
		q.over()
	}
}

func (q *queue) waiting() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.back)
}
