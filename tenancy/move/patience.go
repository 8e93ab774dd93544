package move

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// SQLSTATE codes, PostgreSQL documentation appendix A.
const (
	codeLockNotAvailable      = "55P03"
	codeDeadlockDetected      = "40P01"
	codeDependentObjectsExist = "2BP01"
)

// inTheWay tells whether an error is that of a lock that somebody else held for too long.
func inTheWay(err error) bool {
	var pgErr *pgconn.PgError
	return errors.As(err, &pgErr) && (pgErr.Code == codeLockNotAvailable || pgErr.Code == codeDeadlockDetected)
}

// patiently repeats try while others are in its way, for as long as what is in progress has to
// end. The error wraps ErrBusy then, and says by whom what is held.
func (t *transfer) patiently(ctx context.Context, by string, try func() error) error {
	for deadline := time.Now().Add(t.drainTimeout); ; {
		err := try()
		switch {
		case !inTheWay(err):
			return err
		case time.Now().After(deadline):
			return fmt.Errorf("%w: %s and do not end; try again, or give it longer: %w", ErrBusy, by, err)
		}
		if err := sleep(ctx, drainPause); err != nil {
			return err
		}
	}
}

// briefly runs fn in a transaction that waits for no lock for long, and sees in each statement
// what had been committed by then, whatever the database's defaults are.
func (t *transfer) briefly(ctx context.Context, conn *pgx.Conn, fn func(pgx.Tx) error) error {
	return pgx.BeginTxFunc(ctx, conn, pgx.TxOptions{IsoLevel: pgx.ReadCommitted, AccessMode: pgx.ReadWrite}, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `SELECT set_config('lock_timeout', $1, true)`, t.lockMillis()); err != nil {
			return err
		}
		return fn(tx)
	})
}

// lockMillis is the time for one try, in milliseconds, of which none would be no end.
func (t *transfer) lockMillis() string {
	return strconv.FormatInt(max(1, t.lockTimeout.Milliseconds()), 10)
}
