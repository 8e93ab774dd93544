package idempotencytest

import (
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pgidem/pgidem/idempotency"
)

// claimMany lets many attempts claim one key at once and returns the winners.
func (f *leaseFixture) claimMany(t *testing.T, key string, others idempotency.ClaimOutcome) []idempotency.ClaimRequest {
	const attempts = 50
	var (
		wg      sync.WaitGroup
		mu      sync.Mutex
		winners []idempotency.ClaimRequest
		start   = make(chan struct{})
	)
	for range attempts {
		wg.Go(func() {
			req := f.request(key)
			req.Lease = time.Hour // however slow the machine
			<-start
			result, err := f.leases.Claim(f.ctx, req)
			switch {
			case err != nil:
				t.Errorf("Claim: %v", err)
			case result.Outcome == idempotency.OutcomeClaimed:
				mu.Lock()
				winners = append(winners, req)
				mu.Unlock()
			case result.Outcome != others:
				t.Errorf("Claim: outcome %d, want %d", result.Outcome, others)
			}
		})
	}
	close(start)
	wg.Wait()
	return winners
}

func testConcurrentClaimsHaveOneWinner(t *testing.T, f *leaseFixture) {
	for round := range 10 {
		key := fmt.Sprint("key-", round)
		winners := f.claimMany(t, key, idempotency.OutcomeInFlight)
		if len(winners) != 1 {
			t.Fatalf("round %d: %d winners, want 1", round, len(winners))
		}
		f.complete(t, winners[0].Claim, 201)
		if late := f.claimMany(t, key, idempotency.OutcomeCompleted); len(late) != 0 {
			t.Fatalf("round %d: %d claims of a completed record", round, len(late))
		}
	}
}

func testConcurrentTakeOversHaveOneWinner(t *testing.T, f *leaseFixture) {
	for round := range 3 {
		lapsed, expired := fmt.Sprint("lapsed-", round), fmt.Sprint("expired-", round)
		f.claim(t, f.request(lapsed), idempotency.OutcomeClaimed)
		req := f.request(expired)
		req.TTL = f.span()
		f.claim(t, req, idempotency.OutcomeClaimed)
		f.complete(t, req.Claim, 201)
		f.pass(t)
		for _, key := range []string{lapsed, expired} {
			if winners := f.claimMany(t, key, idempotency.OutcomeInFlight); len(winners) != 1 {
				t.Fatalf("round %d, %s: %d winners, want 1", round, key, len(winners))
			}
		}
	}
}

// testConcurrentReleases has many attempts claim and release one key as fast as
// they can: whoever claims while another releases gets an answer, never an error,
// and no two hold the key at once.
func testConcurrentReleases(t *testing.T, f *leaseFixture) {
	var (
		wg      sync.WaitGroup
		holders atomic.Int32
		claims  atomic.Int32
	)
	for range 16 {
		wg.Go(func() {
			for range 20 {
				req := f.request("key")
				req.Lease = time.Hour
				result, err := f.leases.Claim(f.ctx, req)
				if err != nil {
					t.Errorf("Claim: %v", err)
					return
				}
				if result.Outcome != idempotency.OutcomeClaimed {
					continue
				}
				claims.Add(1)
				if n := holders.Add(1); n != 1 {
					t.Errorf("%d attempts hold the key", n)
				}
				holders.Add(-1)
				if err := f.leases.Release(f.ctx, req.Claim); err != nil {
					t.Errorf("Release: %v", err)
					return
				}
			}
		})
	}
	wg.Wait()
	if claims.Load() == 0 {
		t.Error("no claim succeeded")
	}
}

// testConcurrentEndAndTakeOver: when an attempt whose lease has lapsed wakes up at the
// very moment at which another takes over, one of the two is first, and both know
// which.
func testConcurrentEndAndTakeOver(t *testing.T, f *leaseFixture) {
	const rounds = 10
	for _, end := range []struct {
		name    string
		step    func(idempotency.Claim) error
		outcome idempotency.ClaimOutcome // what the other finds when the step was first
	}{
		{"Complete", func(c idempotency.Claim) error { return f.leases.Complete(f.ctx, c, f.record(c.Key)) }, idempotency.OutcomeCompleted},
		{"Extend", func(c idempotency.Claim) error { return f.leases.Extend(f.ctx, c, f.span()) }, idempotency.OutcomeInFlight},
		{"Release", func(c idempotency.Claim) error { return f.leases.Release(f.ctx, c) }, idempotency.OutcomeClaimed},
	} {
		var late, next [rounds]idempotency.ClaimRequest
		for i := range rounds {
			key := fmt.Sprint(end.name, "-", i)
			late[i], next[i] = f.request(key), f.request(key)
			next[i].Lease = 20 * f.span()
			f.claim(t, late[i], idempotency.OutcomeClaimed)
		}
		f.pass(t)
		var (
			wg      sync.WaitGroup
			ended   [rounds]error
			results [rounds]idempotency.ClaimResult
			errs    [rounds]error
		)
		for i := range rounds {
			wg.Go(func() { ended[i] = end.step(late[i].Claim) })
			wg.Go(func() { results[i], errs[i] = f.leases.Claim(f.ctx, next[i]) })
		}
		wg.Wait()
		for i := range rounds {
			want := idempotency.ClaimResult{Outcome: end.outcome, Attempt: results[i].Attempt}
			if end.outcome == idempotency.OutcomeClaimed {
				want.Attempt = 1
			}
			if ended[i] != nil {
				wantLost(t, end.name, ended[i])
				want = idempotency.ClaimResult{Outcome: idempotency.OutcomeClaimed, Attempt: 2}
			}
			got := results[i]
			if errs[i] != nil || got.Outcome != want.Outcome || got.Attempt != want.Attempt {
				t.Fatalf("%s returned %v, and a claim at the same time outcome %d, attempt %d, %v; want outcome %d, attempt %d",
					end.name, ended[i], got.Outcome, got.Attempt, errs[i], want.Outcome, want.Attempt)
			}
			if got.Outcome == idempotency.OutcomeClaimed { // and still holds the key
				f.claim(t, f.request(next[i].Key), idempotency.OutcomeInFlight)
				f.complete(t, next[i].Claim, 201)
			}
		}
	}
}
