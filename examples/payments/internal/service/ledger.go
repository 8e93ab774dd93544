package service

import (
	"context"
	"errors"
	"fmt"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgidem/pgidem/tenancy"
)

// errReferenceTaken is returned for an order whose reference belongs to a payment
// that differs from it.
var errReferenceTaken = errors.New("reference taken")

// ledger keeps the payments of all tenants, each tenant's in its own schema.
//
// Every statement names the schema, which comes from the directory and so from
// the org_id of the verified token. Nothing is set on a connection: it goes back
// to the pool, and the next request that gets it may be another tenant's.
type ledger struct {
	pool    *pgxpool.Pool
	tenants tenancy.Directory
}

const insertPayment = `
	INSERT INTO %[1]s.payments AS p (id, reference, payee, amount, currency, created_by)
	VALUES ($1, $2, $3, $4, $5, $6)
	ON CONFLICT (reference) DO NOTHING
	RETURNING p.id, p.reference, p.payee, p.amount, p.currency, p.created_by, p.created_at`

const findPayment = `
	SELECT p.id, p.reference, p.payee, p.amount, p.currency, p.created_by, p.created_at
	FROM %[1]s.payments AS p
	WHERE p.reference = $1`

const newestPayments = `
	SELECT p.id, p.reference, p.payee, p.amount, p.currency, p.created_by, p.created_at
	FROM %[1]s.payments AS p
	ORDER BY p.id DESC -- a version 7 UUID begins with the time
	LIMIT 100`

// record makes a payment of the order, once. When the same order is recorded
// already, because an earlier run of the same request died before its answer was
// stored, or because its key has expired meanwhile, it returns that payment and
// created is false. The unique reference is what tells: a payment with the same
// reference and other contents gives [errReferenceTaken].
func (l ledger) record(ctx context.Context, orgID uuid.UUID, o order, by string) (p payment, created bool, err error) {
	schema, err := l.tenants.Schema(ctx, orgID)
	if err != nil {
		return payment{}, false, err
	}
	id, err := uuid.NewV7()
	if err != nil {
		return payment{}, false, err
	}
	err = pgx.BeginFunc(ctx, l.pool, func(tx pgx.Tx) error {
		rows, _ := tx.Query(ctx, fmt.Sprintf(insertPayment, schema.Quoted()), id, o.Reference, o.Payee, o.Amount, o.Currency, by)
		p, err = pgx.CollectExactlyOneRow(rows, toPayment)
		created = err == nil
		if !errors.Is(err, pgx.ErrNoRows) {
			return err
		}
		rows, _ = tx.Query(ctx, fmt.Sprintf(findPayment, schema.Quoted()), o.Reference)
		p, err = pgx.CollectExactlyOneRow(rows, toPayment)
		return err
	})
	switch {
	case err != nil:
		return payment{}, false, fmt.Errorf("record payment: %w", err)
	case p.order != o:
		return payment{}, false, errReferenceTaken
	}
	return p, created, nil
}

// newest returns the tenant's newest payments, the newest first.
func (l ledger) newest(ctx context.Context, orgID uuid.UUID) ([]payment, error) {
	schema, err := l.tenants.Schema(ctx, orgID)
	if err != nil {
		return nil, err
	}
	rows, _ := l.pool.Query(ctx, fmt.Sprintf(newestPayments, schema.Quoted()))
	payments, err := pgx.CollectRows(rows, toPayment)
	if err != nil {
		return nil, fmt.Errorf("list payments: %w", err)
	}
	return payments, nil
}

func toPayment(row pgx.CollectableRow) (p payment, err error) {
	err = row.Scan(&p.ID, &p.Reference, &p.Payee, &p.Amount, &p.Currency, &p.CreatedBy, &p.CreatedAt)
	p.CreatedAt = p.CreatedAt.UTC()
	return p, err
}
