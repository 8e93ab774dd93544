package idempotencytest

import (
	"context"
	"time"

	"github.com/pgidem/pgidem/idempotency"
)

// faultyStore lets a test come between the middleware and the store. A nil
// function leaves the step as it is.
type faultyStore struct {
	idempotency.LeaseStore
	claim    func(ctx context.Context, real func() (idempotency.ClaimResult, error)) (idempotency.ClaimResult, error)
	complete func(ctx context.Context, real func() error) error
	release  func(ctx context.Context, real func() error) error
	extend   func(ctx context.Context, real func() error) error
}

func (f *faultyStore) Claim(ctx context.Context, req idempotency.ClaimRequest) (idempotency.ClaimResult, error) {
	real := func() (idempotency.ClaimResult, error) { return f.LeaseStore.Claim(ctx, req) }
	if f.claim == nil {
		return real()
	}
	return f.claim(ctx, real)
}

func (f *faultyStore) Complete(ctx context.Context, c idempotency.Claim, rec *idempotency.Record) error {
	return step(ctx, f.complete, func() error { return f.LeaseStore.Complete(ctx, c, rec) })
}

func (f *faultyStore) Release(ctx context.Context, c idempotency.Claim) error {
	return step(ctx, f.release, func() error { return f.LeaseStore.Release(ctx, c) })
}

func (f *faultyStore) Extend(ctx context.Context, c idempotency.Claim, lease time.Duration) error {
	return step(ctx, f.extend, func() error { return f.LeaseStore.Extend(ctx, c, lease) })
}

// faultyPlain is the same for a store without leases.
type faultyPlain struct {
	idempotency.Store
	put func(ctx context.Context, real func() error) error
}

func (f *faultyPlain) Put(ctx context.Context, rec *idempotency.Record) error {
	return step(ctx, f.put, func() error { return f.Store.Put(ctx, rec) })
}

func step(ctx context.Context, fault func(context.Context, func() error) error, real func() error) error {
	if fault == nil {
		return real()
	}
	return fault(ctx, real)
}
