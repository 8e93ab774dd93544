package migrations

import (
	"context"
	"io/fs"
	"time"

	"github.com/pgidem/pgidem/tenancy"
)

// WithFS has a run work with other migration files than those that are embedded.
func WithFS(files fs.FS) Option {
	return func(c *config) { c.plan = func() (plan, error) { return newPlan(files) } }
}

// WithReconnect sets for how long a run goes on without any connection.
func WithReconnect(d time.Duration) Option { return func(c *config) { c.reconnect = d } }

// ConnConfig is how all that take a URL connect.
var ConnConfig = connConfig

// UpWithin is Up, with a bound of its own for connecting.
func UpWithin(ctx context.Context, databaseURL string, patience time.Duration, schemas ...tenancy.Schema) error {
	return upEach(ctx, databaseURL, patience, schemas)
}

// UpControlWithin is UpControl likewise.
func UpControlWithin(ctx context.Context, databaseURL string, patience time.Duration, schema tenancy.Schema) error {
	return upControl(ctx, databaseURL, patience, schema)
}

// LockID is the number of a schema's advisory lock.
var LockID = lockID
