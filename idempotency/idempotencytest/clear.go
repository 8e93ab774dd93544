package idempotencytest

import (
	"context"
	"testing"

	"github.com/google/uuid"

	"github.com/pgidem/pgidem/idempotency"
)

// Clear removes all records of the named orgs from the store, those in progress
// included, and leaves those of all others alone. It may be called in a
// [testing.T.Cleanup].
//
// It fails the test when the store has no method
//
//	Clear(ctx context.Context, orgID uuid.UUID) error
//
// to do it with, or when that returns an error.
func Clear(t testing.TB, store idempotency.Store, orgIDs ...uuid.UUID) {
	t.Helper()
	clearer, ok := store.(interface {
		Clear(ctx context.Context, orgID uuid.UUID) error
	})
	if !ok {
		t.Fatalf("idempotencytest.Clear: %T has no method Clear(context.Context, uuid.UUID) error; "+
			"add one, or give each test an org of its own (uuid.New()), so that there is nothing to clear", store)
	}
	ctx := context.WithoutCancel(t.Context()) // which ends before the cleanups begin
	for _, orgID := range orgIDs {
		if err := clearer.Clear(ctx, orgID); err != nil {
			t.Fatalf("idempotencytest.Clear: org %s: %v", orgID, err)
		}
	}
}
