package pgstore

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgidem/pgidem/idempotency"
	"github.com/pgidem/pgidem/internal/db"
)

var (
	// ErrNotInProgress is returned by [EndAttempt] for a key that no attempt holds.
	ErrNotInProgress = errors.New("pgstore: no attempt is in progress")
	// ErrLeaseHeld is returned by [EndAttempt] for an attempt whose lease has not lapsed: its
	// handler is still running, as far as the database can tell.
	ErrLeaseHeld = errors.New("pgstore: the attempt's lease has not lapsed")
	// ErrInTransaction is returned by [EndAttempt] for an attempt in a transaction. The
	// server ends it, and undoes all that it did, by pg_terminate_backend.
	ErrInTransaction = errors.New("pgstore: the attempt is in a transaction")
)

// EndOptions are the terms of [EndAttempt].
type EndOptions struct {
	// Live ends an attempt also while its lease holds. Its handler is cancelled when it next
	// extends the lease (after a third of it), and may have had its effect all the same, or
	// have it yet; a retry runs beside it until then.
	Live bool
	// Forget removes the record, so that a retry is a first attempt: also where the service
	// refuses requests that were interrupted ([idempotency.Refuse]). The handler then cannot
	// tell by [idempotency.Attempt] that another attempt came before; it finds its steps. The
	// request that is kept goes as well. Without Forget the record stays, attempts are counted
	// on, and [Completer] may be the first to retry.
	Forget bool
}

// EndAttempt ends the attempt in progress that [Inspect] has seen, from outside, so that a
// retry runs at once. The attempt's token is taken away: whatever becomes of its handler, it
// can store no outcome any more. Requests that wait for it are told.
//
// It changes nothing that is completed. When the key is no longer as it was seen, the error
// wraps [idempotency.ErrLeaseLost]: look again. Others are [ErrNotInProgress],
// [ErrLeaseHeld] and [ErrInTransaction].
func EndAttempt(ctx context.Context, q Querier, seen KeyInfo, opts EndOptions) error {
	switch {
	case seen.State == KeyInTransaction:
		return fmt.Errorf("%w, of server process %d", ErrInTransaction, seen.Transaction.PID)
	case seen.Record == nil || !seen.Record.CompletedAt.IsZero():
		return fmt.Errorf("%w: the key is %s", ErrNotInProgress, seen.State)
	case seen.State == KeyInProgress && !opts.Live:
		return fmt.Errorf("%w: it holds until %s", ErrLeaseHeld, seen.Record.LeaseUntil.UTC().Format(time.RFC3339))
	}
	var texts db.Texts
	tenant := db.New(texts.Bind(q, seen.Schema.Quoted()))
	awaited, err := repeated(func() (bool, error) {
		if opts.Forget {
			return tenant.ForgetInProgress(ctx, db.ForgetInProgressParams{
				OrgID: db.UUID(seen.OrgID), Key: seen.Key, Token: db.UUID(seen.Record.Token), Live: opts.Live,
			})
		}
		return tenant.EndAttempt(ctx, db.EndAttemptParams{
			SpentToken: db.UUID(idempotency.NewToken()),
			OrgID:      db.UUID(seen.OrgID), Key: seen.Key, Token: db.UUID(seen.Record.Token), Live: opts.Live,
		})
	})
	if errors.Is(err, pgx.ErrNoRows) {
		return fmt.Errorf("pgstore: end the attempt in schema %s: %w: it has been completed, extended or taken over since it was seen", seen.Schema, idempotency.ErrLeaseLost)
	}
	if err != nil {
		return translateSchema("end the attempt", seen.Schema, err)
	}
	if awaited { // who waits looks again without it, only later
		key := newWaitKey(seen.OrgID, seen.Key)
		_ = db.New(q).Notify(ctx, db.NotifyParams{Channel: channel, Payload: hex.EncodeToString(key[:])})
	}
	return nil
}
