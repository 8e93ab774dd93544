package idempotencytest

import (
	"testing"
	"time"

	"github.com/pgidem/pgidem/idempotency"
)

func testStaleTokenChangesNothing(t *testing.T, f *leaseFixture) {
	stale, fresh := f.request("key"), f.request("key")
	f.claim(t, stale, idempotency.OutcomeClaimed)
	f.pass(t)
	f.claim(t, fresh, idempotency.OutcomeClaimed)
	wantStale := func() {
		t.Helper()
		wantLost(t, "Complete", f.leases.Complete(f.ctx, stale.Claim, f.record("key")))
		wantLost(t, "Release", f.leases.Release(f.ctx, stale.Claim))
		wantLost(t, "Extend", f.leases.Extend(f.ctx, stale.Claim, time.Hour))
	}
	wantStale()
	f.claim(t, f.request("key"), idempotency.OutcomeInFlight)
	f.complete(t, fresh.Claim, 202)
	wantStale()
	if got := f.get(t, f.org, "key").ResponseStatus; got != 202 {
		t.Fatalf("status %d, want the fresh attempt's 202", got)
	}
	never := f.request("never claimed").Claim
	wantLost(t, "Complete of nothing", f.leases.Complete(f.ctx, never, f.record("never claimed")))
	wantLost(t, "Release of nothing", f.leases.Release(f.ctx, never))
	wantLost(t, "Extend of nothing", f.leases.Extend(f.ctx, never, time.Hour))
	f.wantAbsent(t, f.org, "never claimed")
}

func testCompletedRecordIsNotReleased(t *testing.T, f *leaseFixture) {
	req := f.request("key")
	f.claim(t, req, idempotency.OutcomeClaimed)
	f.complete(t, req.Claim, 201)
	wantLost(t, "Release", f.leases.Release(f.ctx, req.Claim))
	wantLost(t, "Extend", f.leases.Extend(f.ctx, req.Claim, time.Hour))
	f.claim(t, f.request("key"), idempotency.OutcomeCompleted)
}

func testCompleteMayBeRepeated(t *testing.T, f *leaseFixture) {
	req := f.request("key")
	f.claim(t, req, idempotency.OutcomeClaimed)
	f.complete(t, req.Claim, 201)
	f.complete(t, req.Claim, 201)
	f.claim(t, f.request("key"), idempotency.OutcomeCompleted)
}

func testCompleteKeepsTermsOfTheClaim(t *testing.T, f *leaseFixture) {
	req := f.request("key")
	f.mark(t, "before")
	f.claim(t, req, idempotency.OutcomeClaimed)
	f.mark(t, "after")
	f.pass(t)
	rec := f.record("key")
	rec.RequestHash, rec.CreatedAt = "another", rec.CreatedAt.Add(-10*f.span())
	rec.ExpiresAt = rec.CreatedAt.Add(time.Minute)
	if err := f.leases.Complete(f.ctx, req.Claim, rec); err != nil {
		t.Fatalf("Complete: %v", err)
	}
	got := f.get(t, f.org, "key")
	f.wantBetween(t, "before", got, "after")
	if got.RequestHash != req.RequestHash || got.ExpiresAt.Sub(got.CreatedAt) != req.TTL {
		t.Fatalf("record %+v; want the fingerprint and the expiry of the claim", got)
	}
}

// testCompleteTakesACopy: what the middleware does with its buffers afterwards is no
// affair of the store's, and the store writes to none of them.
func testCompleteTakesACopy(t *testing.T, f *leaseFixture) {
	req := f.request("key")
	f.claim(t, req, idempotency.OutcomeClaimed)
	rec := f.record("key")
	given := rec.Clone()
	if err := f.leases.Complete(f.ctx, req.Claim, rec); err != nil {
		t.Fatalf("Complete: %v", err)
	}
	wantEqual(t, rec, given)
	want := f.get(t, f.org, "key").Clone()
	spoil(rec)
	wantEqual(t, f.get(t, f.org, "key"), want)
	spoil(f.get(t, f.org, "key"))
	wantEqual(t, f.get(t, f.org, "key"), want)
	wantEqual(t, f.claim(t, f.request("key"), idempotency.OutcomeCompleted).Record, want)
}

func testTombstone(t *testing.T, f *leaseFixture) {
	req := f.request("key")
	f.claim(t, req, idempotency.OutcomeClaimed)
	err := f.leases.Complete(f.ctx, req.Claim, &idempotency.Record{OrgID: f.org, Key: "key", ResponseStatus: 200, Tombstone: true})
	if err != nil {
		t.Fatalf("Complete: %v", err)
	}
	for _, rec := range []*idempotency.Record{
		f.claim(t, f.request("key"), idempotency.OutcomeCompleted).Record,
		f.get(t, f.org, "key"),
	} {
		if !rec.Tombstone || rec.ResponseStatus != 200 || len(rec.ResponseBody) != 0 {
			t.Fatalf("record %+v; want a tombstone with status 200", rec)
		}
	}
}
