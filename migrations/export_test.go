package migrations

import (
	"io/fs"
	"time"
)

// WithFS has a run work with other migration files than those that are embedded.
func WithFS(files fs.FS) Option {
	return func(c *config) { c.plan = func() (plan, error) { return newPlan(files) } }
}

// WithReconnect sets for how long a run goes on without any connection.
func WithReconnect(d time.Duration) Option { return func(c *config) { c.reconnect = d } }

// LockID is the number of a schema's advisory lock.
var LockID = lockID
