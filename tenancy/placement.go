package tenancy

import (
	"context"

	"github.com/google/uuid"
)

// Placement says where the records of a tenant are.
type Placement struct {
	Schema Schema
	// Cluster names the PostgreSQL server, or group of servers, that holds the schema. It is
	// empty where there is one alone.
	Cluster string
	// Version is the number of the newest migration that the schema has had, or 0 where that
	// is not known.
	Version int64
}

// Placer is a [Directory] that knows more of a tenant than its schema.
//
// Place returns what Schema does, with errors likewise, but for this: beside an error that
// wraps [ErrSuspendedTenant] the placement is that of the tenant all the same. So whatever
// had begun before the tenant was suspended can be brought to its end.
type Placer interface {
	Directory
	Place(ctx context.Context, orgID uuid.UUID) (Placement, error)
}
