package tenancy

import "errors"

var (
	// ErrInvalidSchema is returned by [ParseSchema] and [PerOrg] for a name
	// that cannot be the schema of a tenant.
	ErrInvalidSchema = errors.New("tenancy: invalid schema name")

	// ErrUnknownTenant is returned by a [Directory] for an org_id that has no
	// schema, and by stores when the schema that the directory named has not
	// been provisioned. It is a fact about the tenant, not a passing fault:
	// retrying does not help, provisioning the tenant does.
	ErrUnknownTenant = errors.New("tenancy: unknown tenant")

	// ErrSuspendedTenant is returned by a [Directory] for a tenant that is known and not
	// served at present: suspended, about to be deleted, or not wholly provisioned yet.
	// Retrying helps once it is served again.
	ErrSuspendedTenant = errors.New("tenancy: suspended tenant")
)
