package idempotencytest

import (
	"strings"
	"testing"
	"time"

	"github.com/pgidem/pgidem/idempotency"
)

func testClaimTakesOverLapsedLease(t *testing.T, f *leaseFixture) {
	f.claim(t, f.request("key"), idempotency.OutcomeClaimed)
	for attempt := 2; attempt < 4; attempt++ {
		f.pass(t)
		if result := f.claim(t, f.request("key"), idempotency.OutcomeClaimed); result.Attempt != attempt {
			t.Fatalf("attempt %d, want %d", result.Attempt, attempt)
		}
		f.claim(t, f.request("key"), idempotency.OutcomeInFlight)
	}
}

func testClaimRefusesLapsedLease(t *testing.T, f *leaseFixture) {
	req := f.request("key")
	f.claim(t, req, idempotency.OutcomeClaimed)
	refusing := f.request("key")
	refusing.Interrupted = idempotency.Refuse
	f.claim(t, refusing, idempotency.OutcomeInFlight)
	f.pass(t)
	f.claim(t, refusing, idempotency.OutcomeInterrupted)
	f.complete(t, req.Claim, 201) // late, but nobody took over
	f.claim(t, refusing, idempotency.OutcomeCompleted)
}

func testClaimMismatchOnLapsedLease(t *testing.T, f *leaseFixture) {
	req := f.request("key")
	f.claim(t, req, idempotency.OutcomeClaimed)
	f.pass(t)
	other := f.request("key")
	other.RequestHash = strings.Repeat("ef", 32)
	f.claim(t, other, idempotency.OutcomeMismatch)
	f.complete(t, req.Claim, 201)
}

// testReleaseAfterTakeOver: what the interrupted attempt did is still unknown, so
// the next attempt must not look like a first one.
func testReleaseAfterTakeOver(t *testing.T, f *leaseFixture) {
	dead := f.request("key")
	f.claim(t, dead, idempotency.OutcomeClaimed)
	f.pass(t)
	for attempt := 2; attempt < 5; attempt++ {
		req := f.request("key")
		if result := f.claim(t, req, idempotency.OutcomeClaimed); result.Attempt != attempt {
			t.Fatalf("attempt %d, want %d", result.Attempt, attempt)
		}
		if err := f.leases.Release(f.ctx, req.Claim); err != nil {
			t.Fatalf("Release: %v", err)
		}
		wantLost(t, "Complete after Release", f.leases.Complete(f.ctx, req.Claim, f.record("key")))
		wantLost(t, "second Release", f.leases.Release(f.ctx, req.Claim))
		wantLost(t, "Complete by the dead", f.leases.Complete(f.ctx, dead.Claim, f.record("key")))
		f.wantAbsent(t, f.org, "key")
	}
	other := f.request("key")
	other.RequestHash = strings.Repeat("ef", 32)
	f.claim(t, other, idempotency.OutcomeMismatch)
}

func testCompleteAfterLapse(t *testing.T, f *leaseFixture) {
	req := f.request("key")
	f.claim(t, req, idempotency.OutcomeClaimed)
	f.pass(t)
	f.complete(t, req.Claim, 201) // nobody took over, so the outcome is welcome
	f.claim(t, f.request("key"), idempotency.OutcomeCompleted)
}

func testReleaseAfterLapse(t *testing.T, f *leaseFixture) {
	req := f.request("key")
	f.claim(t, req, idempotency.OutcomeClaimed)
	f.pass(t)
	if err := f.leases.Release(f.ctx, req.Claim); err != nil { // nobody took over
		t.Fatalf("Release: %v", err)
	}
	other := f.request("key")
	other.RequestHash = otherHash
	if result := f.claim(t, other, idempotency.OutcomeClaimed); result.Attempt != 1 {
		t.Fatalf("attempt %d after a release, want 1", result.Attempt)
	}
}

// testExtendAfterLapse: a process that was paused goes on with its lease if nobody
// took over.
func testExtendAfterLapse(t *testing.T, f *leaseFixture) {
	req := f.request("key")
	f.claim(t, req, idempotency.OutcomeClaimed)
	f.pass(t)
	if err := f.leases.Extend(f.ctx, req.Claim, f.span()); err != nil {
		t.Fatalf("Extend: %v", err)
	}
	f.claim(t, f.request("key"), idempotency.OutcomeInFlight)
}

// testTakeOverHasTermsOfItsOwn: a record tells of the attempt that completed it.
func testTakeOverHasTermsOfItsOwn(t *testing.T, f *leaseFixture) {
	f.claim(t, f.request("key"), idempotency.OutcomeClaimed)
	f.pass(t)
	req := f.request("key")
	req.TTL = 36 * time.Hour
	f.mark(t, "before")
	f.claim(t, req, idempotency.OutcomeClaimed)
	f.mark(t, "after")
	f.complete(t, req.Claim, 201)
	got := f.get(t, f.org, "key")
	f.wantBetween(t, "before", got, "after")
	if ttl := got.ExpiresAt.Sub(got.CreatedAt); ttl != req.TTL {
		t.Fatalf("the record lasts %v; want %v, as the second claim asked", ttl, req.TTL)
	}
}

func testExtendKeepsTheLease(t *testing.T, f *leaseFixture) {
	req := f.request("key")
	f.claim(t, req, idempotency.OutcomeClaimed)
	if err := f.leases.Extend(f.ctx, req.Claim, 20*f.span()); err != nil {
		t.Fatalf("Extend: %v", err)
	}
	f.pass(t)
	f.claim(t, f.request("key"), idempotency.OutcomeInFlight)
	if err := f.leases.Extend(f.ctx, req.Claim, f.span()); err != nil { // counted from now, so shorter again
		t.Fatalf("Extend: %v", err)
	}
	f.pass(t)
	f.claim(t, f.request("key"), idempotency.OutcomeClaimed)
}
