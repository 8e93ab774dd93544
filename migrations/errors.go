package migrations

import (
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgidem/pgidem/internal/moved"
	"github.com/pgidem/pgidem/tenancy"
)

var (
	// ErrBusy is in the error of a tenant that could not be migrated because its tables were
	// locked by others, or because another run held it, each time that it was tried.
	ErrBusy = errors.New("busy")

	// ErrAbsent is in the error of a tenant whose schema is missing, or empty, under
	// [WithExistingOnly], missing under [WithExistingSchema], or is so when its turn comes though it was there when the run began:
	// the tenant was dropped in between, and its schema is not made anew.
	ErrAbsent = errors.New("the schema is missing or empty")

	// ErrMoved is in the error of a tenant that is not in this database any more: package move has
	// taken it to another cluster, which the error names, and has left a schema of its name that
	// holds nothing. Migrate it there: the registry says where it is. Where no registry knows it
	// any more, drop that schema by hand, to make a new tenant of the name.
	ErrMoved = errors.New("the tenant was moved")

	// ErrMoving is in the error of a tenant that is on its way to another cluster, or has come
	// there and left something behind, each time that it was tried: beside the empty schema of its
	// name there is its fenced one, of a name of moving_ and the org_id. Run again after the move,
	// which may end with the tenant here or there; one that was cut off is to be finished or
	// cancelled first. Nothing is wrong with the tenant.
	ErrMoving = errors.New("the tenant is being moved")

	// ErrNotPinned is in the error of a tenant with a Target.OrgID that a migration would leave
	// with tables that take rows of other tenants as well, and was rolled back for.
	ErrNotPinned = errors.New("tables are not pinned to the tenant")

	// ErrFailed is returned by [All] if it came to the end and a tenant failed.
	ErrFailed = errors.New("not all tenants were migrated")
)

// ifMoved returns the error of a schema with that comment, if it is one that a move has left.
// Fenced tells whether what was in it is still beside it.
func ifMoved(schema tenancy.Schema, comment string, fenced bool) error {
	tombstone, ok := moved.Parse(comment)
	switch {
	case !ok:
		return nil
	case fenced:
		return fmt.Errorf("%w: org %s is on its way to cluster %q, or has come there, and schema %s is still here: run again after the move; if none is under way, ask the registry where it is or goes, and move it there again, or cancel if it is still being moved",
			ErrMoving, tombstone.OrgID, tombstone.Cluster, moved.Fence(tombstone.OrgID))
	}
	return fmt.Errorf("%w: org %s went to cluster %q, and is to be migrated there: ask the registry where it is; if no registry knows it, drop the schema %s by hand",
		ErrMoved, tombstone.OrgID, tombstone.Cluster, schema)
}

// errHeld is how a worker finds a schema that another run has in its hands.
var errHeld = errors.New("another run holds the schema")

// lostError is that of a connection that broke, so that nobody knows how its last statement
// ended.
type lostError struct{ error }

func (e lostError) Unwrap() error { return e.error }

func lost(err error) bool {
	var e lostError
	return errors.As(err, &e)
}

// passing reports whether an error may be gone when the tenant is tried again.
func passing(err error) bool {
	var pgErr *pgconn.PgError
	if errors.Is(err, errHeld) || errors.Is(err, ErrMoving) || lost(err) {
		return true
	}
	if !errors.As(err, &pgErr) {
		return false
	}
	switch pgErr.Code {
	case "55P03", // lock_not_available: the lock timeout
		"55006", // object_in_use
		"40001", // serialization_failure
		"40P01", // deadlock_detected
		"42P06", // duplicate_schema: somebody made it at the same moment
		"53300", // too_many_connections
		"57P01", // admin_shutdown
		"57P02", // crash_shutdown
		"57P03": // cannot_connect_now
		return true
	case "23505": // unique_violation: in the catalog likewise, in a table its rows are in the way
		return pgErr.SchemaName == "pg_catalog"
	}
	return strings.HasPrefix(pgErr.Code, "08") // of the connection
}

func sqlState(err error) string {
	var pgErr *pgconn.PgError
	if errors.As(err, &pgErr) {
		return pgErr.Code
	}
	return ""
}
