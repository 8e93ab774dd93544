package idempotency_test

import (
	"testing"
	"time"

	"github.com/pgidem/pgidem/idempotency"
	"github.com/pgidem/pgidem/idempotency/idempotencytest"
)

func TestMemoryStoreConformance(t *testing.T) {
	t.Parallel()
	idempotencytest.TestStore(t, func(testing.TB) idempotency.Store { return idempotencytest.NewMemoryStore() })
}

func TestMemoryStoreForgetsExpiredRecords(t *testing.T) {
	t.Parallel()
	store := idempotencytest.NewMemoryStore()
	claim := func() {
		req := idempotency.ClaimRequest{
			Claim: idempotency.Claim{OrgID: orgA, Key: idempotency.NewToken().String(), Token: idempotency.NewToken()},
			Lease: time.Minute, TTL: time.Hour,
		}
		if _, err := store.Claim(t.Context(), req); err != nil {
			t.Fatal(err)
		}
	}
	for range 1000 {
		claim()
	}
	store.Advance(2 * time.Hour)
	for range 1000 {
		claim()
	}
	if n := store.Len(); n > 1500 {
		t.Fatalf("%d records held after 1,000 of 2,000 expired; the expired pile up", n)
	}
}
