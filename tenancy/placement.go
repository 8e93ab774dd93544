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
	// is not known. It is believed: whoever migrates the schema sees to it that it is told.
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

// Refresher is a [Placer] that keeps what it has looked up, and can look anew where a
// placement has turned out to be wrong: the tenant's tables are not there, say, because it was
// moved and this process has not heard of it yet.
//
// Refresh returns what Place does, with errors likewise, but not from what was read before
// somebody found it wrong. Where that was a moment ago it need not look again: callers may call
// it at each request of a tenant whose tables are nowhere, and the implementation bounds what
// that costs, to a look in a second for a tenant say.
type Refresher interface {
	Placer
	Refresh(ctx context.Context, orgID uuid.UUID) (Placement, error)
}
