package db

import (
	"context"
	"errors"

	"github.com/jackc/pgx/v5"
)

// Batcher sends statements in one round trip: a pool, a connection or a
// transaction of pgx.
type Batcher interface {
	SendBatch(context.Context, *pgx.Batch) pgx.BatchResults
}

// ClaimInsertSelect runs [Queries.ClaimInsert] and [Queries.ClaimSelect] in one
// round trip. It reports whether the insert claimed the key; if it did not, row
// is the record that was in the way, or found is false when that record went
// between the two statements.
//
// READ COMMITTED gives the second statement a snapshot of its own, so it sees
// the row that the first met. At a stricter isolation level it may not: found is
// then false as well, and the claim is to be tried again.
func (t Tenant) ClaimInsertSelect(ctx context.Context, b Batcher, arg ClaimInsertParams) (claimed bool, row ClaimSelectRow, found bool, err error) {
	return t.insertSelect(ctx, b, claimInsert, ClaimSelectParams{OrgID: arg.OrgID, Key: arg.Key},
		arg.Ttl, arg.Lease, arg.Token, arg.OrgID, arg.Key, arg.RequestHash)
}

// ClaimRecoverableSelect is ClaimInsertSelect with [Queries.ClaimInsertRecoverable].
func (t Tenant) ClaimRecoverableSelect(ctx context.Context, b Batcher, arg ClaimInsertRecoverableParams) (claimed bool, row ClaimSelectRow, found bool, err error) {
	return t.insertSelect(ctx, b, claimInsertRecoverable, ClaimSelectParams{OrgID: arg.OrgID, Key: arg.Key},
		arg.Method, arg.Target, arg.Host, arg.Pattern, arg.PathValues, arg.Headers, arg.Body,
		arg.Ttl, arg.Lease, arg.Token, arg.OrgID, arg.Key, arg.RequestHash)
}

func (t Tenant) insertSelect(ctx context.Context, b Batcher, insert string, sel ClaimSelectParams, args ...any) (claimed bool, row ClaimSelectRow, found bool, err error) {
	insert, err = t.texts.in(t.schema, insert)
	if err != nil {
		return false, row, false, err
	}
	selection, err := t.texts.in(t.schema, claimSelect)
	if err != nil {
		return false, row, false, err
	}

	var batch pgx.Batch
	batch.Queue(insert, args...)
	batch.Queue(selection, sel.OrgID, sel.Key)
	results := b.SendBatch(ctx, &batch)
	defer func() { err = errors.Join(err, results.Close()) }()

	tag, err := results.Exec()
	if err != nil {
		return false, row, false, err
	}
	if tag.RowsAffected() == 1 {
		return true, row, false, nil // unless Close tells that the transaction failed after all
	}
	row, err = scanClaimRow(results.QueryRow())
	if errors.Is(err, pgx.ErrNoRows) {
		return false, row, false, nil
	}
	return false, row, err == nil, err
}

// scanClaimRow reads what [Queries.ClaimSelect] selects.
func scanClaimRow(r pgx.Row) (row ClaimSelectRow, err error) {
	err = r.Scan(
		&row.Token, &row.Attempt, &row.Awaited, &row.RequestHash, &row.CreatedAt, &row.ExpiresAt,
		&row.ResponseStatus, &row.ResponseKept, &row.ResponseHeaders, &row.ResponseBody,
		&row.Completed, &row.Expired, &row.Lapsed,
	)
	return row, err
}
