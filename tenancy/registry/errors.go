package registry

import (
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5/pgconn"
)

var (
	// ErrConflict is returned where a tenant is registered with another schema or cluster
	// than the one given, and where another tenant has that schema.
	ErrConflict = errors.New("registry: conflict")

	// ErrState is returned for a tenant that is in none of the states that the change is for.
	ErrState = errors.New("registry: wrong state")

	// ErrReplaced is returned by a [Generation] that is over: the org_id has been removed and
	// registered again since.
	ErrReplaced = errors.New("registry: the tenant was registered anew")

	// ErrInvalid is returned for a tenant that cannot be: without an org_id or a schema, say,
	// or in a schema whose name ends in the digits of another org_id.
	ErrInvalid = errors.New("registry: invalid tenant")
)

// SQLSTATE codes, PostgreSQL documentation appendix A.
const (
	codeUniqueViolation   = "23505"
	codeCheckViolation    = "23514"
	codeInvalidSchemaName = "3F000"
	codeUndefinedTable    = "42P01"
)

// translate is where errors of the driver become errors of this package. About is whom or
// what the step is about.
func (r *Registry) translate(step string, about any, err error) error {
	if err == nil {
		return nil
	}
	var pgErr *pgconn.PgError
	if errors.As(err, &pgErr) {
		switch pgErr.Code {
		case codeUniqueViolation:
			return fmt.Errorf("%w: %s %v: another tenant has the schema: %w", ErrConflict, step, about, err)
		case codeCheckViolation:
			if pgErr.ConstraintName == "tenants_moving_check" {
				return fmt.Errorf("%w: %s %v: it is being moved to another cluster; finish or cancel that first: %w", ErrState, step, about, err)
			}
			return fmt.Errorf("%w: %s %v: %w", ErrInvalid, step, about, err)
		case codeUndefinedTable, codeInvalidSchemaName:
			return fmt.Errorf("registry: %s %v: schema %s holds no registry; run migrations.UpControl: %w", step, about, r.schema, err)
		}
	}
	return fmt.Errorf("registry: %s %v: %w", step, about, err)
}
