package idempotency

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"time"

	"github.com/google/uuid"
)

// await waits for the attempt in flight to end, for as long as [WithWait] allows and
// the client stays, and claims the key again whenever it may have. It returns the
// last answer and when that was asked for.
func (x *exchange) await(req *ClaimRequest) (result ClaimResult, asked time.Time, err error) {
	ctx, cancel := context.WithTimeout(x.r.Context(), x.wait)
	defer cancel()

	const firstPause = 25 * time.Millisecond
	const longestPause = time.Second // nobody signals that a lease has lapsed, and signals get lost
	pause := longestPause
	ended, stop := x.watch(req.OrgID, req.Key)
	defer stop()
	if ended == nil {
		pause = firstPause
	}
	waiting := *req
	waiting.Await = true
	for {
		asked = time.Now()
		result, err = x.claim(&waiting, asked)
		if err != nil || result.Outcome != OutcomeInFlight || ctx.Err() != nil {
			return result, asked, err
		}
		select {
		case _, open := <-ended:
			if !open {
				ended, pause = nil, firstPause // a store that has no more to tell
			}
		case <-time.After(pause*3/4 + rand.N(pause/4)): // so that those who wait together do not ask together
			pause = min(2*pause, longestPause)
		case <-ctx.Done(): // one last look, unless nobody is there to be told
			if x.r.Context().Err() != nil {
				return result, asked, nil
			}
		}
	}
}

// watch returns a channel that tells when an attempt at the key has ended, nil when
// the store cannot tell.
func (x *exchange) watch(orgID uuid.UUID, key string) (ended <-chan struct{}, stop func()) {
	store, ok := x.store.(WatchStore)
	if !ok {
		return nil, func() {}
	}
	ended, stop, err := store.Watch(orgID, key)
	if err != nil {
		if !x.deaf.Swap(true) { // once, until it can again
			x.logger.WarnContext(x.r.Context(), "idempotency: requests that wait ask again and again, because the store cannot tell them", slog.String("error", err.Error()))
		}
		return nil, func() {}
	}
	x.deaf.Store(false)
	return ended, stop
}
