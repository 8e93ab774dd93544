package idempotency

import (
	"context"
	"math/rand/v2"
	"time"

	"github.com/google/uuid"
)

// await waits for the attempt in flight to end, for as long as [WithWait] allows and
// the client stays, and claims the key again whenever it may have. It returns the
// last answer and when that was asked for.
func (x *exchange) await(req ClaimRequest) (result ClaimResult, asked time.Time, err error) {
	began := time.Now()
	defer func() { x.event.Wait = time.Since(began) }()
	ctx, cancel := context.WithTimeout(x.r.Context(), x.wait)
	defer cancel()

	const longestPause = time.Second // nobody signals that a lease has lapsed, and signals get lost
	pause := longestPause
	ended, stop := x.watch(req.OrgID, req.Key)
	defer stop()
	if ended == nil {
		pause = 25 * time.Millisecond
	}
	req.Await = true
	for {
		asked = time.Now()
		result, err = x.claim(req)
		if err != nil || result.Outcome != OutcomeInFlight || ctx.Err() != nil {
			return result, asked, err
		}
		select {
		case <-ended:
		case <-time.After(pause*3/4 + rand.N(pause/2)): // so that those who wait together do not ask together
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
	if store, ok := x.store.(WatchStore); ok {
		if ended, stop, err := store.Watch(orgID, key); err == nil {
			return ended, stop
		}
	}
	return nil, func() {}
}
