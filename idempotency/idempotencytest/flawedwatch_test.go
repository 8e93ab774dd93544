package idempotencytest_test

import (
	"context"

	"github.com/google/uuid"

	"github.com/pgidem/pgidem/idempotency"
	"github.com/pgidem/pgidem/internal/watch"
)

// flawedWatch is a flawedStore that tells of the ends of attempts, but for its flaw.
type flawedWatch struct {
	*flawedStore
	ended watch.Hub[rowKey]
}

func (s *flawedWatch) Watch(orgID uuid.UUID, key string) (<-chan struct{}, func(), error) {
	ended, stop := s.ended.Watch(rowKey{orgID, key})
	if s.flaw == "Watch hands out a closed channel" {
		closed := make(chan struct{})
		close(closed)
		ended = closed
	}
	return ended, stop, nil
}

func (s *flawedWatch) Complete(ctx context.Context, c idempotency.Claim, rec *idempotency.Record) error {
	err := s.flawedStore.Complete(ctx, c, rec)
	if s.flaw != "Watch is not told of completions" {
		s.ended.Signal(rowKey{c.OrgID, c.Key})
	}
	return err
}

func (s *flawedWatch) Release(ctx context.Context, c idempotency.Claim) error {
	err := s.flawedStore.Release(ctx, c)
	if s.flaw != "Watch is not told of releases" {
		s.ended.Signal(rowKey{c.OrgID, c.Key})
	}
	return err
}
