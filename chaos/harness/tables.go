package harness

import (
	"context"
	"fmt"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/pgidem/pgidem/chaos/history"
	"github.com/pgidem/pgidem/tenancy"
)

// readTables returns what the database holds of a tenant.
func readTables(ctx context.Context, conn *pgx.Conn, org uuid.UUID, schema tenancy.Schema) (t history.Tables, err error) {
	in := func(format string) string { return fmt.Sprintf(format, schema.Quoted()) }
	rows, _ := conn.Query(ctx, in(`
		SELECT r.key, r.completed_at IS NOT NULL, COALESCE(r.response_status, 0), COALESCE(convert_from(r.response_body, 'UTF8'), '')
		FROM %s.idempotency_records AS r`))
	t.Records, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (r history.Record, err error) {
		r.Org = org.String()
		return r, row.Scan(&r.Key, &r.Completed, &r.Status, &r.Body)
	})
	if err != nil {
		return t, err
	}
	rows, _ = conn.Query(ctx, in(`
		SELECT p.key, p.id::text, p.amount, p.reservation, p.charge, p.execution
		FROM %s.payments AS p`))
	t.Payments, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (p history.Payment, err error) {
		p.Org = org.String()
		return p, row.Scan(&p.Key, &p.ID, &p.Amount, &p.Reservation, &p.Charge, &p.Execution)
	})
	if err != nil {
		return t, err
	}
	rows, _ = conn.Query(ctx, in(`SELECT p.payment::text, p.account, p.amount FROM %s.postings AS p`))
	t.Postings, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (p history.Posting, err error) {
		p.Org = org.String()
		return p, row.Scan(&p.Payment, &p.Account, &p.Amount)
	})
	return t, err
}
