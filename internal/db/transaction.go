package db

import (
	"context"
	"errors"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgtype"
)

// Entered is what [Tenant.EnterSelect] has found.
type Entered struct {
	EnterTenantRow
	Record ClaimSelectRow
	Found  bool        // a record
	KeptBy pgtype.UUID // the nil UUID where no request is kept, or was not asked for
}

// EnterOptions say how a transaction begins.
type EnterOptions struct {
	pgx.TxOptions
	TenantRole bool // it goes on as the role that has the schema's name
}

// becomeRole is one text for all tenants, unlike SET LOCAL ROLE, of which a connection would
// keep one for each.
const becomeRole = `SELECT set_config('role', $1::text, true)`

// EnterSelect begins a transaction and runs [Queries.EnterTenant], [Queries.ClaimSelect]
// and, if a kept request is asked for, [Queries.KeptBy] in it, all in one round trip.
func (t Tenant) EnterSelect(ctx context.Context, b Batcher, options EnterOptions, enter EnterTenantParams, arg ClaimSelectParams, kept *KeptByParams) (tx pgx.Tx, e Entered, err error) {
	selection, err := t.texts.in(t.schema, claimSelect)
	if err != nil {
		return nil, e, err
	}
	keeper, err := t.texts.in(t.schema, keptBy)
	if err != nil {
		return nil, e, err
	}
	var batch pgx.Batch
	batch.BeginTx(options.TxOptions)
	batch.Queue(enterTenant, enter.SearchPath, enter.KeyLock)
	batch.Queue(selection, arg.OrgID, arg.Key)
	if kept != nil { // looked at under the lock: before that it may have been replaced or forgotten
		batch.Queue(keeper, kept.OrgID, kept.Key, kept.RequestHash)
	}
	if options.TenantRole {
		batch.Queue(becomeRole, strings.Trim(t.schema, `"`))
	}
	// What the handler does comes after this: a statement of its that fails can be undone
	// alone, and does not give the lock away.
	batch.Queue("SAVEPOINT " + handlerSavepoint)
	results := b.SendBatch(ctx, &batch)
	defer func() { err = errors.Join(err, results.Close()) }()

	if _, err := results.Exec(); err != nil {
		return nil, e, err
	}
	if err := results.QueryRow().Scan(&e.SearchPath, &e.Locked, &e.Began, &e.Pid); err != nil {
		return nil, e, err
	}
	if err = results.QueryRow().Scan(e.Record.dest()...); err != nil && !errors.Is(err, pgx.ErrNoRows) {
		return nil, e, err
	}
	e.Found = err == nil
	if kept != nil {
		if err := results.QueryRow().Scan(&e.KeptBy); err != nil && !errors.Is(err, pgx.ErrNoRows) {
			return nil, e, err
		}
	}
	if options.TenantRole {
		if _, err := results.Exec(); err != nil {
			return nil, e, err
		}
	}
	_, err = results.Exec()
	return results.Tx(), e, err
}

// handlerSavepoint stands before all that a handler does.
const handlerSavepoint = "pgidem_handler"

// UndoHandler undoes what was done in the transaction since [Tenant.EnterSelect].
func UndoHandler(ctx context.Context, db DBTX) error {
	_, err := db.Exec(ctx, "ROLLBACK TO SAVEPOINT "+handlerSavepoint)
	return err
}

// EndedWithin reports whether a statement failed because the transaction that
// [Tenant.EnterSelect] began is not there any more: a handler has ended it, and may have
// begun another.
func EndedWithin(err error) bool {
	const codeInvalidSavepoint = "3B001"
	var pgErr *pgconn.PgError
	return errors.As(err, &pgErr) && pgErr.Code == codeInvalidSavepoint
}

// RollBack rolls the transaction that [Tenant.EnterSelect] began back, in one round trip.
// Should that have been ended within, what was begun after it is left to the caller.
func RollBack(ctx context.Context, conn *pgx.Conn) error {
	return conn.PgConn().Exec(ctx, "ROLLBACK TO SAVEPOINT "+handlerSavepoint+"; ROLLBACK").Close()
}

// UndoForgetCommit undoes what [UndoHandler] does, runs [Queries.ForgetAttempt] and
// commits, in one round trip: so the key's lock is held until the request is forgotten.
// It reports whether that was done.
func (t Tenant) UndoForgetCommit(ctx context.Context, b Batcher, arg ForgetAttemptParams) (committed bool, err error) {
	forget, err := t.texts.in(t.schema, forgetAttempt)
	if err != nil {
		return false, err
	}
	var batch pgx.Batch
	batch.Queue("ROLLBACK TO SAVEPOINT " + handlerSavepoint)
	batch.Queue(forget, arg.OrgID, arg.Key, arg.Token)
	return commitAfter(ctx, b, &batch)
}

// InsertCommit runs [Queries.DeleteSeen], if there is a record to be made room for,
// [Queries.InsertCompleted], [Queries.ForgetKey], if a request is kept, and a COMMIT in one
// round trip. It reports whether the transaction was committed: one that had failed before
// is rolled back by COMMIT without an error. One that was ended within gives an error, see
// [EndedWithin].
func (t Tenant) InsertCommit(ctx context.Context, b Batcher, seen *DeleteSeenParams, forget bool, arg InsertCompletedParams) (committed bool, err error) {
	remove, err := t.texts.in(t.schema, deleteSeen)
	if err != nil {
		return false, err
	}
	insert, err := t.texts.in(t.schema, insertCompleted)
	if err != nil {
		return false, err
	}
	forgetting, err := t.texts.in(t.schema, forgetKey)
	if err != nil {
		return false, err
	}
	var batch pgx.Batch
	batch.Queue("RELEASE SAVEPOINT " + handlerSavepoint)
	if seen != nil {
		batch.Queue(remove, seen.OrgID, seen.Key, seen.SeenToken)
	}
	batch.Queue(insert, arg.Ttl, arg.Token, arg.OrgID, arg.Attempt, arg.ResponseStatus, arg.ResponseKept,
		arg.Key, arg.RequestHash, arg.ResponseHeaders, arg.ResponseBody)
	if forget { // after the record, as a claim with a lease does it, so that none waits for the other
		batch.Queue(forgetting, arg.OrgID, arg.Key)
	}
	return commitAfter(ctx, b, &batch)
}

// commitAfter runs the batch and a COMMIT after it.
func commitAfter(ctx context.Context, b Batcher, batch *pgx.Batch) (committed bool, err error) {
	batch.Queue("COMMIT")
	results := b.SendBatch(ctx, batch)
	defer func() { err = errors.Join(err, results.Close()) }()

	for range batch.Len() - 1 {
		if _, err := results.Exec(); err != nil {
			return false, err
		}
	}
	tag, err := results.Exec()
	return err == nil && tag.String() == "COMMIT", err
}
