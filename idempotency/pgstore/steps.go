package pgstore

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/pgidem/pgidem/idempotency"
	"github.com/pgidem/pgidem/internal/db"
)

// LoadStep implements [idempotency.StepStore].
func (s *Store) LoadStep(ctx context.Context, c idempotency.Claim, name string) (result []byte, found bool, err error) {
	at, err := s.locateBegun(ctx, c.OrgID)
	if err != nil {
		return nil, false, err
	}
	err = s.follow(ctx, c.OrgID, at, func(at located) (err error) {
		result, err = db.New(at.tenant).LoadStep(ctx, db.LoadStepParams{Name: name, OrgID: db.UUID(c.OrgID), Key: c.Key, Token: db.UUID(c.Token)})
		return err
	})
	return result, result != nil, lostOr("load a step", c.OrgID, asOutdated(err))
}

// SaveStep implements [idempotency.StepStore]. It takes one round trip, and one more
// where there is nothing to store.
func (s *Store) SaveStep(ctx context.Context, c idempotency.Claim, name string, result []byte) (stored []byte, err error) {
	at, err := s.locateBegun(ctx, c.OrgID)
	if err != nil {
		return nil, err
	}
	err = s.follow(ctx, c.OrgID, at, func(at located) (err error) {
		stored, err = db.New(at.tenant).SaveStep(ctx, db.SaveStepParams{
			Name: name, Result: result, OrgID: db.UUID(c.OrgID), Key: c.Key, Token: db.UUID(c.Token),
		})
		return err
	})
	if errors.Is(err, pgx.ErrNoRows) {
		return storedFirst(ctx, s, c, name)
	}
	return stored, translate("save a step", c.OrgID, asOutdated(err))
}

// storedFirst returns what another has stored for a step that could not be, or says that
// the attempt has lost its key.
func storedFirst(ctx context.Context, s idempotency.StepStore, c idempotency.Claim, name string) ([]byte, error) {
	stored, found, err := s.LoadStep(ctx, c, name)
	if err == nil && !found { // it lived when it was in the way
		err = fmt.Errorf("pgstore: save a step for org %s: the one that was stored has gone; try again", c.OrgID)
	}
	return stored, err
}

// LoadStep implements [idempotency.StepStore], over a connection beside that of the
// transaction.
func (t *txStore) LoadStep(ctx context.Context, c idempotency.Claim, name string) (result []byte, found bool, err error) {
	a := t.find(c)
	if a == nil {
		return nil, false, lostOr("load a step", c.OrgID, pgx.ErrNoRows)
	}
	row, err := db.New(a.tenant).LoadLockedStep(ctx, db.LoadLockedStepParams{
		Pid: a.pid, LockKey: a.lock, ClaimedAt: a.began,
		OrgID: db.UUID(c.OrgID), Key: c.Key, RequestHash: encodeHash(a.req.RequestHash), Name: name,
	})
	if err == nil && !row.Held {
		err = pgx.ErrNoRows
	}
	if err != nil {
		return nil, false, lostOr("load a step", c.OrgID, asOutdated(err))
	}
	return row.Result, row.Result != nil, nil
}

// SaveStep implements [idempotency.StepStore]: it commits at once, over a connection
// beside that of the transaction.
func (t *txStore) SaveStep(ctx context.Context, c idempotency.Claim, name string, result []byte) (stored []byte, err error) {
	a := t.find(c)
	if a == nil {
		return nil, lostOr("save a step", c.OrgID, pgx.ErrNoRows)
	}
	stored, err = db.New(a.tenant).SaveLockedStep(ctx, db.SaveLockedStepParams{
		ClaimedAt: a.began, Ttl: a.req.TTL, Token: db.UUID(c.Token),
		OrgID: db.UUID(c.OrgID), Key: c.Key, RequestHash: encodeHash(a.req.RequestHash), Name: name, Result: result,
		Pid: a.pid, LockKey: a.lock,
	})
	if errors.Is(err, pgx.ErrNoRows) {
		return storedFirst(ctx, t, c, name)
	}
	return stored, translate("save a step", c.OrgID, asOutdated(err))
}

// find returns the running attempt of a claim, if there is one.
func (t *txStore) find(c idempotency.Claim) *txAttempt {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.running[c.Token]
}
