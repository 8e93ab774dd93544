package migrations

import "io/fs"

// WithFS has a run work with other migration files than those that are embedded.
func WithFS(files fs.FS) Option {
	return func(c *config) { c.plan = func() (plan, error) { return newPlan(files) } }
}

// LockID is the number of a schema's advisory lock.
var LockID = lockID
