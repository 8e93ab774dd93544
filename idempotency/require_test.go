package idempotency_test

import (
	"context"
	"testing"

	"github.com/google/uuid"
	"go.uber.org/goleak"

	"github.com/pgidem/pgidem/idempotency"
	"github.com/pgidem/pgidem/idempotency/idempotencytest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var orgA = uuid.MustParse("a0000000-0000-4000-8000-00000000000a")

func TestMiddlewareOverMemory(t *testing.T) {
	t.Parallel()
	idempotencytest.TestMiddleware(t, func(testing.TB) idempotency.Store { return idempotencytest.NewMemoryStore() })
}

func TestMiddlewareOverHTTP2(t *testing.T) {
	t.Parallel()
	idempotencytest.TestMiddleware(t, func(testing.TB) idempotency.Store { return idempotencytest.NewMemoryStore() }, idempotencytest.WithHTTP2())
}

// getPut is a store without leases.
type getPut struct{ store *idempotency.MemoryStore }

func (s getPut) Get(ctx context.Context, orgID uuid.UUID, key string) (*idempotency.Record, error) {
	return s.store.Get(ctx, orgID, key)
}

func (s getPut) Put(ctx context.Context, rec *idempotency.Record) error { return s.store.Put(ctx, rec) }

func TestMiddlewareOverPlainStore(t *testing.T) {
	t.Parallel()
	idempotencytest.TestMiddleware(t, func(testing.TB) idempotency.Store { return getPut{idempotency.NewMemoryStore()} })
}

func TestPlainStoreConformance(t *testing.T) {
	t.Parallel()
	idempotencytest.TestStore(t, func(testing.TB) idempotency.Store { return getPut{idempotency.NewMemoryStore()} })
}
