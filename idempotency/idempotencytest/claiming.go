package idempotencytest

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/pgidem/pgidem/idempotency"
)

func testClaimCompleteReplay(t *testing.T, f *leaseFixture) {
	req := f.request("key")
	if result := f.claim(t, req, idempotency.OutcomeClaimed); result.Attempt != 1 {
		t.Fatalf("attempt %d, want 1", result.Attempt)
	}
	f.complete(t, req.Claim, 201)
	for range 3 {
		got := f.claim(t, f.request("key"), idempotency.OutcomeCompleted).Record
		want := f.record("key")
		want.RequestHash, want.CreatedAt, want.ExpiresAt = req.RequestHash, got.CreatedAt, got.ExpiresAt
		wantEqual(t, got, want)
		wantEqual(t, f.get(t, f.org, "key"), want)
	}
}

func testClaimInFlight(t *testing.T, f *leaseFixture) {
	f.claim(t, f.request("key"), idempotency.OutcomeClaimed)
	f.claim(t, f.request("key"), idempotency.OutcomeInFlight)
	for _, other := range []string{"another", "KEY", "key ", "ke"} {
		f.claim(t, f.request(other), idempotency.OutcomeClaimed)
	}
}

func testClaimMismatch(t *testing.T, f *leaseFixture) {
	req, other := f.request("key"), f.request("key")
	other.RequestHash = strings.Repeat("ef", 32)
	f.claim(t, req, idempotency.OutcomeClaimed)
	f.claim(t, other, idempotency.OutcomeMismatch)
	f.complete(t, req.Claim, 201)
	f.claim(t, other, idempotency.OutcomeMismatch)
}

func testClaimInProgressHasNoRecord(t *testing.T, f *leaseFixture) {
	f.claim(t, f.request("key"), idempotency.OutcomeClaimed)
	f.wantAbsent(t, f.org, "key")
}

func testClaimReleased(t *testing.T, f *leaseFixture) {
	req := f.request("key")
	f.claim(t, req, idempotency.OutcomeClaimed)
	if err := f.leases.Release(f.ctx, req.Claim); err != nil {
		t.Fatalf("Release: %v", err)
	}
	other := f.request("key")
	other.RequestHash = strings.Repeat("ef", 32) // nothing of the first one is left
	if result := f.claim(t, other, idempotency.OutcomeClaimed); result.Attempt != 1 {
		t.Fatalf("attempt %d after a release, want 1", result.Attempt)
	}
}

// testClaimRepeated: who asks again because the answer was lost finds its own claim.
func testClaimRepeated(t *testing.T, f *leaseFixture) {
	first, second := f.request("key"), f.request("key")
	for range 2 {
		if result := f.claim(t, first, idempotency.OutcomeClaimed); result.Attempt != 1 {
			t.Fatalf("attempt %d, want 1", result.Attempt)
		}
	}
	f.pass(t)
	for range 2 {
		if result := f.claim(t, second, idempotency.OutcomeClaimed); result.Attempt != 2 {
			t.Fatalf("attempt %d, want 2", result.Attempt)
		}
	}
	f.claim(t, first, idempotency.OutcomeInFlight)
	f.pass(t)
	if result := f.claim(t, second, idempotency.OutcomeClaimed); result.Attempt != 2 {
		t.Fatalf("attempt %d after the lapse, want 2: nobody took over", result.Attempt)
	}
	f.complete(t, second.Claim, 201)
	f.claim(t, second, idempotency.OutcomeCompleted)
}

func testClaimsOfTenantsNeverMeet(t *testing.T, f *leaseFixture) {
	mine, theirs := f.request("key"), f.request("key")
	theirs.OrgID = f.newTenant(t, f.store)
	theirs.Token = mine.Token // not even with the token can one touch the other's
	f.claim(t, mine, idempotency.OutcomeClaimed)
	f.claim(t, theirs, idempotency.OutcomeClaimed)
	if err := f.leases.Release(f.ctx, theirs.Claim); err != nil {
		t.Fatalf("Release: %v", err)
	}
	f.claim(t, f.request("key"), idempotency.OutcomeInFlight)
	f.claim(t, theirs, idempotency.OutcomeClaimed)
	if err := f.leases.Extend(f.ctx, mine.Claim, 20*f.span()); err != nil {
		t.Fatalf("Extend: %v", err)
	}
	f.complete(t, mine.Claim, 201)
	f.wantAbsent(t, theirs.OrgID, "key")
	f.pass(t)
	next := f.request("key")
	next.OrgID = theirs.OrgID
	f.claim(t, next, idempotency.OutcomeClaimed) // their lease was not extended
}

// testPutOverAClaim: who puts a record has the last word, whoever was at it.
func testPutOverAClaim(t *testing.T, f *leaseFixture) {
	req := f.request("key")
	f.claim(t, req, idempotency.OutcomeClaimed)
	rec := f.record("key")
	rec.RequestHash = req.RequestHash
	f.put(t, rec)
	wantLost(t, "Complete", f.leases.Complete(f.ctx, req.Claim, f.record("other")))
	wantLost(t, "Release", f.leases.Release(f.ctx, req.Claim))
	wantEqual(t, f.get(t, f.org, "key"), rec)
	wantEqual(t, f.claim(t, f.request("key"), idempotency.OutcomeCompleted).Record, rec)
}

// testClaimsSeeCancelledContext: a step that was called off says so, and is no lost
// lease.
func testClaimsSeeCancelledContext(t *testing.T, f *leaseFixture) {
	req := f.request("key")
	f.claim(t, req, idempotency.OutcomeClaimed)
	ctx, cancel := context.WithCancel(f.ctx)
	cancel()
	_, err := f.leases.Claim(ctx, f.request("another"))
	for step, err := range map[string]error{
		"Claim":    err,
		"Extend":   f.leases.Extend(ctx, req.Claim, time.Hour),
		"Complete": f.leases.Complete(ctx, req.Claim, f.record("key")),
		"Release":  f.leases.Release(ctx, req.Claim),
	} {
		if !errors.Is(err, context.Canceled) || errors.Is(err, idempotency.ErrLeaseLost) {
			t.Errorf("%s with a cancelled context: %v", step, err)
		}
	}
}

func testClaimAfterExpiry(t *testing.T, f *leaseFixture) {
	req := f.request("key")
	req.TTL = f.span()
	f.claim(t, req, idempotency.OutcomeClaimed)
	f.complete(t, req.Claim, 201)
	f.pass(t)
	other := f.request("key")
	other.RequestHash = strings.Repeat("ef", 32)
	if result := f.claim(t, other, idempotency.OutcomeClaimed); result.Attempt != 1 {
		t.Fatalf("attempt %d at an expired record, want 1", result.Attempt)
	}
	f.wantAbsent(t, f.org, "key")
	f.claim(t, other, idempotency.OutcomeClaimed)
	wantLost(t, "Complete by the expired claim", f.leases.Complete(f.ctx, req.Claim, f.record("key")))
}

// testClaimAfterInterruptionExpired: what an interrupted attempt left behind counts
// no longer than a record would.
func testClaimAfterInterruptionExpired(t *testing.T, f *leaseFixture) {
	dead := f.request("key")
	dead.TTL = f.span()
	f.claim(t, dead, idempotency.OutcomeClaimed)
	f.pass(t)
	other := f.request("key")
	other.RequestHash, other.Interrupted = otherHash, idempotency.Refuse
	if result := f.claim(t, other, idempotency.OutcomeClaimed); result.Attempt != 1 {
		t.Fatalf("attempt %d after an interrupted one expired, want 1", result.Attempt)
	}
	wantLost(t, "Complete by the expired claim", f.leases.Complete(f.ctx, dead.Claim, f.record("key")))
}

func testClaimOutlivesExpiry(t *testing.T, f *leaseFixture) {
	req := f.request("key")
	req.TTL, req.Lease = f.span(), 20*f.span()
	f.claim(t, req, idempotency.OutcomeClaimed)
	f.pass(t)
	f.claim(t, f.request("key"), idempotency.OutcomeInFlight) // the lease still holds
}
