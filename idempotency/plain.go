package idempotency

import (
	"context"
	"errors"
	"time"

	"github.com/google/uuid"
)

// plainStore makes a [Store] without leases look like a [LeaseStore]: its claims
// live in this process, unknown to others, and completed records in the store.
type plainStore struct {
	Store
	claims *MemoryStore // none is ever completed here
}

func newPlainStore(s Store) *plainStore {
	return &plainStore{Store: s, claims: NewMemoryStore()}
}

// Claim claims the key in this process first and only then looks for a record: in
// the other order another attempt could complete in between.
func (s *plainStore) Claim(ctx context.Context, req ClaimRequest) (ClaimResult, error) {
	if req.Await { // many who wait look at once, and most find the record: none needs a claim for that
		rec, err := s.Get(ctx, req.OrgID, req.Key)
		switch {
		case err == nil:
			return completedBy(req, rec), nil
		case !errors.Is(err, ErrNotFound) && s.claims.isHeld(req.OrgID, req.Key):
			return ClaimResult{Outcome: OutcomeInFlight}, nil // whatever ails the store, there is something to wait for
		}
	}
	result, err := s.claims.Claim(ctx, req)
	if err != nil || result.Outcome != OutcomeClaimed {
		return result, err
	}
	rec, err := s.Get(ctx, req.OrgID, req.Key)
	if errors.Is(err, ErrNotFound) {
		return result, nil
	}
	if releaseErr := s.claims.Release(context.WithoutCancel(ctx), req.Claim); err == nil {
		err = releaseErr
	}
	if err != nil {
		return ClaimResult{}, err
	}
	return completedBy(req, rec), nil
}

// completedBy is the result of a claim that has met a completed record.
func completedBy(req ClaimRequest, rec *Record) ClaimResult {
	if rec.RequestHash != req.RequestHash {
		return ClaimResult{Outcome: OutcomeMismatch}
	}
	return ClaimResult{Outcome: OutcomeCompleted, Record: rec}
}

// Complete writes the record and gives the claim up.
func (s *plainStore) Complete(ctx context.Context, c Claim, rec *Record) error {
	claimed, err := s.claims.claimed(ctx, c)
	if err != nil {
		return err
	}
	full := *rec
	full.RequestHash, full.CreatedAt, full.ExpiresAt = claimed.RequestHash, claimed.CreatedAt, claimed.ExpiresAt
	if err := s.Put(ctx, &full); err != nil {
		return err
	}
	return s.claims.Release(ctx, c)
}

// Watch implements [WatchStore]: an attempt that ends gives its claim up here.
func (s *plainStore) Watch(orgID uuid.UUID, key string) (ended <-chan struct{}, stop func(), err error) {
	return s.claims.Watch(orgID, key)
}

// Release implements [LeaseStore].
func (s *plainStore) Release(ctx context.Context, c Claim) error { return s.claims.Release(ctx, c) }

// Extend implements [LeaseStore].
func (s *plainStore) Extend(ctx context.Context, c Claim, lease time.Duration) error {
	return s.claims.Extend(ctx, c, lease)
}
