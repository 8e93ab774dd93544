package idempotencytest

import (
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/pgidem/pgidem/idempotency"
)

// keeping is a claim whose request is to be kept.
func (f *leaseFixture) keeping(key string) idempotency.ClaimRequest {
	req := f.request(key)
	req.Kept = true
	req.Request = &idempotency.KeptRequest{
		Method: http.MethodPost, Target: "/v1/payments?a=%20", Host: "api.example.com",
		Pattern: "POST /v1/payments/{id}", PathValues: map[string]string{"id": "1"},
		Header: map[string][]string{idempotency.HeaderKey: {key}}, Body: []byte(`{"amount":1}`),
	}
	return req
}

// recovering is the claim of a worker.
func (f *leaseFixture) recovering(key string) idempotency.ClaimRequest {
	req := f.request(key)
	req.Kept, req.Recovery = true, true
	return req
}

func (f *leaseFixture) release(t *testing.T, c idempotency.Claim) {
	t.Helper()
	if err := f.leases.Release(f.ctx, c); err != nil {
		t.Fatalf("Release: %v", err)
	}
}

// recovered claims for a worker, and checks which attempt that is.
func (f *leaseFixture) recovered(t *testing.T, key string, attempt int) idempotency.Claim {
	t.Helper()
	req := f.recovering(key)
	if got := f.claim(t, req, idempotency.OutcomeClaimed).Attempt; got != attempt {
		t.Fatalf("Claim for a recovery: attempt %d, want %d", got, attempt)
	}
	return req.Claim
}

func testRequestIsRecovered(t *testing.T, f *leaseFixture) {
	f.claim(t, f.keeping("k"), idempotency.OutcomeClaimed)
	f.claim(t, f.recovering("k"), idempotency.OutcomeInFlight)
	f.pass(t)
	other := f.recovering("k")
	other.RequestHash = otherHash
	f.claim(t, other, idempotency.OutcomeMismatch)
	c := f.recovered(t, "k", 2)
	f.claim(t, f.recovering("k"), idempotency.OutcomeInFlight)
	repeated := f.recovering("k")
	repeated.Token = c.Token
	if got := f.claim(t, repeated, idempotency.OutcomeClaimed).Attempt; got != 2 {
		t.Fatalf("a repeated claim: attempt %d, want 2", got)
	}
	f.complete(t, c, 201)
	f.claim(t, f.recovering("k"), idempotency.OutcomeCompleted)
	if rec := f.claim(t, f.request("k"), idempotency.OutcomeCompleted).Record; rec.ResponseStatus != 201 {
		t.Fatalf("status %d, want 201", rec.ResponseStatus)
	}
}

func testRecoveryOfNothing(t *testing.T, f *leaseFixture) {
	f.claim(t, f.recovering("absent"), idempotency.OutcomeNotInterrupted)
	f.claim(t, f.recovering("absent"), idempotency.OutcomeNotInterrupted) // the first has left nothing

	f.claim(t, f.request("not kept"), idempotency.OutcomeClaimed)
	f.pass(t)
	f.claim(t, f.recovering("not kept"), idempotency.OutcomeNotInterrupted)
	if got := f.claim(t, f.request("not kept"), idempotency.OutcomeClaimed).Attempt; got != 2 {
		t.Fatalf("attempt %d after a recovery that was none, want 2", got)
	}

	expires := f.keeping("expired")
	expires.TTL = f.span()
	f.claim(t, expires, idempotency.OutcomeClaimed)
	f.pass(t)
	f.claim(t, f.recovering("expired"), idempotency.OutcomeNotInterrupted)
}

func testRequestEndsWithCompletion(t *testing.T, f *leaseFixture) {
	first := f.keeping("k")
	first.TTL = f.span()
	f.claim(t, first, idempotency.OutcomeClaimed)
	f.complete(t, first.Claim, 201)
	f.pass(t) // it expires
	f.claim(t, f.request("k"), idempotency.OutcomeClaimed)
	f.pass(t)
	f.claim(t, f.recovering("k"), idempotency.OutcomeNotInterrupted)
}

func testRequestEndsWithAPut(t *testing.T, f *leaseFixture) {
	f.claim(t, f.keeping("k"), idempotency.OutcomeClaimed)
	rec := f.record("k")
	rec.CreatedAt, rec.ExpiresAt = rec.CreatedAt.Add(-2*time.Hour), rec.CreatedAt.Add(-time.Hour) // expired
	f.put(t, rec)
	f.claim(t, f.request("k"), idempotency.OutcomeClaimed)
	f.pass(t)
	f.claim(t, f.recovering("k"), idempotency.OutcomeNotInterrupted)
}

func testRequestEndsWithRelease(t *testing.T, f *leaseFixture) {
	first := f.keeping("first")
	f.claim(t, first, idempotency.OutcomeClaimed)
	f.release(t, first.Claim)
	f.claim(t, f.recovering("first"), idempotency.OutcomeNotInterrupted)

	f.claim(t, f.keeping("k"), idempotency.OutcomeClaimed)
	f.pass(t)
	second := f.keeping("k")
	f.claim(t, second, idempotency.OutcomeClaimed)
	f.release(t, second.Claim)
	f.claim(t, f.recovering("k"), idempotency.OutcomeNotInterrupted)
	if got := f.claim(t, f.keeping("k"), idempotency.OutcomeClaimed).Attempt; got != 3 {
		t.Fatalf("attempt %d, want 3", got)
	}
}

func testRecoveryThatFails(t *testing.T, f *leaseFixture) {
	f.claim(t, f.keeping("k"), idempotency.OutcomeClaimed)
	f.pass(t)
	for attempt := 2; attempt <= 3; attempt++ {
		c := f.recovered(t, "k", attempt)
		c.Kept = false
		f.release(t, c)
	}
	f.recovered(t, "k", 4) // and dies
	f.pass(t)
	f.complete(t, f.recovered(t, "k", 5), 201)
}

func testRequestIsKeptAnew(t *testing.T, f *leaseFixture) {
	late := f.keeping("k")
	f.claim(t, late, idempotency.OutcomeClaimed)
	f.pass(t)
	f.claim(t, f.keeping("k"), idempotency.OutcomeClaimed)
	wantLost(t, "late Complete", f.leases.Complete(f.ctx, late.Claim, f.record("k")))
	wantLost(t, "late Release", f.leases.Release(f.ctx, late.Claim))
	f.pass(t)
	f.recovered(t, "k", 3)

	f.claim(t, f.request("not kept at first"), idempotency.OutcomeClaimed)
	f.pass(t)
	f.claim(t, f.keeping("not kept at first"), idempotency.OutcomeClaimed)
	f.pass(t)
	f.recovered(t, "not kept at first", 3)
}

func testRecoveriesHaveOneWinner(t *testing.T, f *leaseFixture) {
	const workers = 20
	for _, key := range []string{"a", "b", "c"} {
		f.claim(t, f.keeping(key), idempotency.OutcomeClaimed)
		f.pass(t)
		var mu sync.Mutex
		winners := 0
		var wg sync.WaitGroup
		for range workers {
			wg.Go(func() {
				req := f.recovering(key)
				req.Lease = time.Hour // however slow the machine
				result, err := f.leases.Claim(f.ctx, req)
				switch {
				case err != nil:
					t.Errorf("Claim: %v", err)
				case result.Outcome == idempotency.OutcomeClaimed:
					mu.Lock()
					winners++
					mu.Unlock()
				case result.Outcome != idempotency.OutcomeInFlight:
					t.Errorf("Claim: outcome %d, want %d", result.Outcome, idempotency.OutcomeInFlight)
				}
			})
		}
		wg.Wait()
		if winners != 1 {
			t.Fatalf("%d winners, want 1", winners)
		}
	}
}
