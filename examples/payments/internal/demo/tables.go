package demo

import (
	"context"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/pgidem/pgidem/tenancy"
)

// The statements of this file look straight into the tables, past the service and
// the library.

// record is a row of a tenant's idempotency_records.
type record struct {
	key, state string
	status     int           // 0 while in progress
	expires    time.Duration // from now
	leased     time.Duration // from now
}

const selectRecords = `
	SELECT r.key,
	       CASE WHEN r.completed_at IS NULL THEN 'in progress' ELSE 'completed' END,
	       coalesce(r.response_status, 0),
	       r.expires_at - now(),
	       r.lease_until - now()
	FROM %s.idempotency_records AS r
	ORDER BY r.key`

func schemaOf(orgID uuid.UUID) (tenancy.Schema, error) {
	tenants, err := tenancy.PerOrg("")
	if err != nil {
		return tenancy.Schema{}, err
	}
	return tenants.Schema(context.Background(), orgID)
}

// records returns the records of a tenant.
func (s *script) records(ctx context.Context, t tenant) ([]record, error) {
	schema, err := schemaOf(t.orgID)
	if err != nil {
		return nil, err
	}
	rows, _ := s.db.Query(ctx, fmt.Sprintf(selectRecords, schema.Quoted()))
	return pgx.CollectRows(rows, func(row pgx.CollectableRow) (r record, err error) {
		err = row.Scan(&r.key, &r.state, &r.status, &r.expires, &r.leased)
		return r, err
	})
}

// payments counts the payments of a tenant with the reference, or all of them when
// it is empty.
func (s *script) payments(ctx context.Context, t tenant, reference string) (n int, err error) {
	schema, err := schemaOf(t.orgID)
	if err != nil {
		return 0, err
	}
	err = s.db.QueryRow(ctx, "SELECT count(*) FROM "+schema.Quoted()+".payments AS p WHERE $1 IN ('', p.reference)", reference).Scan(&n)
	return n, err
}

// lockPayments keeps everybody from writing payments of a tenant until the lock is
// released.
func (s *script) lockPayments(ctx context.Context, t tenant) (release func(), err error) {
	schema, err := schemaOf(t.orgID)
	if err != nil {
		return nil, err
	}
	tx, err := s.db.Begin(ctx)
	if err != nil {
		return nil, err
	}
	release = func() { _ = tx.Rollback(context.WithoutCancel(ctx)) }
	if _, err := tx.Exec(ctx, "LOCK TABLE "+schema.Quoted()+".payments IN SHARE MODE"); err != nil {
		release()
		return nil, err
	}
	return release, nil
}

// awaitBlocked waits until a session waits for the lock of lockPayments.
func (s *script) awaitBlocked(ctx context.Context) error {
	const waiting = `
		SELECT EXISTS (
			SELECT FROM pg_catalog.pg_locks AS l
			JOIN pg_catalog.pg_database AS d ON d.oid = l.database
			WHERE NOT l.granted AND l.locktype = 'relation' AND d.datname = current_database()
		)`
	ctx, cancel := context.WithTimeoutCause(ctx, 10*time.Second, errNotBlocked)
	defer cancel()
	for {
		var blocked bool
		if err := s.db.QueryRow(ctx, waiting).Scan(&blocked); err != nil || blocked {
			return err
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// age moves all times of a tenant's records back, as if they had been made that
// long ago.
func (s *script) age(ctx context.Context, t tenant, by time.Duration) (n int, err error) {
	schema, err := schemaOf(t.orgID)
	if err != nil {
		return 0, err
	}
	tag, err := s.db.Exec(ctx, `UPDATE `+schema.Quoted()+`.idempotency_records
		SET created_at = created_at - $1::interval, expires_at = expires_at - $1::interval,
		    lease_until = lease_until - $1::interval, completed_at = completed_at - $1::interval`, by)
	return int(tag.RowsAffected()), err
}
