package pgstore

import (
	"errors"
	"fmt"
	"strings"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgidem/pgidem/idempotency"
	"github.com/pgidem/pgidem/tenancy"
)

// SQLSTATE codes, PostgreSQL documentation appendix A.
const (
	codeSerializationFailure = "40001"
	codeDeadlockDetected     = "40P01"
	codeInvalidSchemaName    = "3F000"
	codeUndefinedTable       = "42P01"
	codeUndefinedColumn      = "42703"
	classDataException       = "22"
	classIntegrityViolation  = "23"
)

// translate is where errors of the driver become errors of this package.
func translate(step string, orgID uuid.UUID, err error) error {
	if err == nil {
		return nil
	}
	if isOutdated(err) {
		return fmt.Errorf("pgstore: %s for org %s: %w: its schema is older than this version of pgidem; run migrations.Up on it, or idem-tenants migrate where there is a registry: %w",
			step, orgID, idempotency.ErrStoreRefused, err)
	}
	if isMissing(err) {
		return fmt.Errorf("pgstore: %s for org %s: %w: its schema does not hold the tables; run migrations.Up on it: %w",
			step, orgID, tenancy.ErrUnknownTenant, err)
	}
	if isMixedUp(err) {
		return fmt.Errorf("pgstore: %s for org %s: %w", step, orgID, advised(step, err))
	}
	if isRefusal(err) {
		return fmt.Errorf("pgstore: %s for org %s: %w: %w", step, orgID, idempotency.ErrStoreRefused, err)
	}
	return fmt.Errorf("pgstore: %s for org %s: %w", step, orgID, err)
}

// advised says what to do about prepared statements that a pooler mixes up. A claim is
// refused then; what has begun may be tried again.
func advised(step string, err error) error {
	switch {
	case !isMixedUp(err):
		return err
	case step == "claim":
		return fmt.Errorf("%w: %w: %w", idempotency.ErrStoreRefused, ErrPoolerMode, err)
	}
	return fmt.Errorf("%w: %w", ErrPoolerMode, err)
}

// isRefusal reports whether the server understood a statement and would not do it,
// because of its values or of a constraint.
func isRefusal(err error) bool {
	var pgErr *pgconn.PgError
	return errors.As(err, &pgErr) && (strings.HasPrefix(pgErr.Code, classDataException) || strings.HasPrefix(pgErr.Code, classIntegrityViolation))
}

// lostOr translates the error of a compare-and-set on a token: no row means that the
// record is another attempt's, or gone.
func lostOr(step string, orgID uuid.UUID, err error) error {
	if errors.Is(err, pgx.ErrNoRows) {
		return fmt.Errorf("pgstore: %s for org %s: %w", step, orgID, idempotency.ErrLeaseLost)
	}
	return translate(step, orgID, err)
}

// isSerializationFailure reports whether the server rolled a statement back only
// because of others beside it. It does so to a claim when the database's default
// isolation level is stricter than READ COMMITTED.
func isSerializationFailure(err error) bool {
	var pgErr *pgconn.PgError
	return errors.As(err, &pgErr) && (pgErr.Code == codeSerializationFailure || pgErr.Code == codeDeadlockDetected)
}

// repeated runs a statement again that failed only because of others beside it. Each
// round some other one got further, so a few suffice.
func repeated[T any](statement func() (T, error)) (result T, err error) {
	for range maxClaimTries {
		if result, err = statement(); !isSerializationFailure(err) {
			break
		}
	}
	return result, err
}

// translateSchema is translate for what concerns a schema as a whole.
func translateSchema(step string, schema tenancy.Schema, err error) error {
	if errors.Is(err, errOutdated) {
		return fmt.Errorf("pgstore: %s in schema %s: it is older than this version of pgidem; run migrations.Up on it, or idem-tenants migrate where there is a registry: %w", step, schema, err)
	}
	if isMissing(err) {
		return fmt.Errorf("pgstore: %s in schema %s: %w: it has no table of records: %w", step, schema, tenancy.ErrUnknownTenant, err)
	}
	return fmt.Errorf("pgstore: %s in schema %s: %w", step, schema, err)
}

// isOutdated reports whether a statement met a table without a column that a later
// migration adds, or lacked a table that one makes.
func isOutdated(err error) bool {
	var pgErr *pgconn.PgError
	return errors.Is(err, errOutdated) || errors.As(err, &pgErr) && pgErr.Code == codeUndefinedColumn
}

var errOutdated = errors.New("a table is missing")

// asOutdated marks the error of a statement that met no table where one before it had met
// the table of records: what is missing is a table of a later migration.
func asOutdated(err error) error {
	if isMissing(err) {
		return fmt.Errorf("%w: %w", errOutdated, err)
	}
	return err
}

// isMissing reports whether a statement met no schema or no table.
func isMissing(err error) bool {
	var pgErr *pgconn.PgError
	return errors.As(err, &pgErr) && (pgErr.Code == codeUndefinedTable || pgErr.Code == codeInvalidSchemaName)
}
