package migrations

import (
	"errors"
	"fmt"
	"time"
)

// Option changes how [All], [One] and [Status] work.
type Option func(*config)

type config struct {
	plan             func() (plan, error)
	workers          int
	tries            int
	pause            time.Duration
	lockTimeout      time.Duration
	statementTimeout time.Duration
	reconnect        time.Duration
	dryRun           bool
	existingOnly     bool
	existingSchema   bool
	versionsOnly     bool
	onResult         func(Result)
	onProgress       func(Progress)
}

const (
	maxPause = 5 * time.Second

	// chunk is how many schemas one query of the catalog asks for. It locks the version
	// table of each and its index, so it stays far below what PostgreSQL's lock table
	// holds by default (6,400).
	chunk = 250

	// perConnection is how many tenants one connection sees. A server process keeps what it
	// has learnt of each table for as long as it lives.
	perConnection = 1000
)

func newConfig(opts []Option) (config, error) {
	c := config{
		plan: embedded, workers: 4, tries: 10, pause: 250 * time.Millisecond,
		lockTimeout: 1500 * time.Millisecond, statementTimeout: time.Minute, reconnect: connectTimeout,
	}
	for _, opt := range opts {
		opt(&c)
	}
	switch {
	case c.workers < 1:
		return c, fmt.Errorf("migrations: %d workers; at least one is needed", c.workers)
	case c.tries < 1:
		return c, fmt.Errorf("migrations: %d tries; at least one is needed", c.tries)
	case c.pause <= 0:
		return c, errors.New("migrations: the pause between tries must be more than nothing")
	case c.lockTimeout < time.Millisecond:
		return c, errors.New("migrations: the lock timeout must be a millisecond at least: without one a migration queues all requests of a tenant behind itself")
	case c.statementTimeout < 0 || c.statementTimeout > 0 && c.statementTimeout < time.Millisecond:
		return c, errors.New("migrations: the statement timeout must be a millisecond at least, or 0 for none")
	}
	return c, nil
}

// WithWorkers sets how many tenants are migrated at a time, each over a connection of its
// own. Defaults to 4.
func WithWorkers(n int) Option { return func(c *config) { c.workers = n } }

// WithLockTimeout bounds how long a migration waits for a lock on a table of the tenant. An
// ALTER TABLE that waits for a long transaction has every later request for that table wait
// behind itself, so this is how long one lock holds them up at most. It is no bound for the
// tenant: a migration of several tables keeps what it has locked while it waits for the next
// lock, which may take it as long again. After it the tenant is put back.
//
// Defaults to 1.5 seconds, which is more than the server's deadlock_timeout, 1 second unless it
// is set: an autovacuum of the table gives way to who has waited for that long, and never to
// one that gives up before.
func WithLockTimeout(d time.Duration) Option { return func(c *config) { c.lockTimeout = d } }

// WithStatementTimeout bounds how long a statement of a migration runs. A tenant that takes
// longer fails and is not tried again in the same run: give it a run of its own with a
// longer time. 0 stands for no bound. Defaults to 1 minute.
func WithStatementTimeout(d time.Duration) Option {
	return func(c *config) { c.statementTimeout = d }
}

// WithTries sets how often a tenant is tried that is busy or being moved, and how long it is left
// alone after the first time; the pause doubles, up to 5 seconds. Defaults to 10 tries and 250
// ms, which comes to half a minute.
func WithTries(n int, pause time.Duration) Option {
	return func(c *config) { c.tries, c.pause = n, pause }
}

// WithDryRun reports what would be done, and does nothing. Tenants are neither locked nor
// waited for.
func WithDryRun() Option { return func(c *config) { c.dryRun = true } }

// IsDryRun reports whether WithDryRun is among the options, for whoever hands on those of
// others and cannot do without what they make.
func IsDryRun(opts ...Option) bool {
	var c config
	for _, opt := range opts {
		opt(&c)
	}
	return c.dryRun
}

// WithExistingOnly has a schema that is missing, or empty, fail with [ErrAbsent] instead of being
// made. It is for tenants that are known to have one: an empty schema in the place of one
// that was lost would run requests again that had been answered.
func WithExistingOnly() Option { return func(c *config) { c.existingOnly = true } }

// WithExistingSchema has a schema that is missing fail with [ErrAbsent] instead of being made,
// while one that is empty is filled. It is for whoever has made the schema: it was dropped in
// between if it is missing.
func WithExistingSchema() Option { return func(c *config) { c.existingSchema = true } }

// WithResult has fn called as each tenant ends, one at a time, so that a caller can write
// down its version. The workers wait for it. Where there is a registry (package registry) the
// caller must, by Registry.SetVersion, but for a dry run: a store believes the version that is
// noted there.
func WithResult(fn func(Result)) Option { return func(c *config) { c.onResult = fn } }

// WithProgress has fn called after each tenant, and after each few hundred that had nothing
// to be done, one at a time. The workers wait for it.
func WithProgress(fn func(Progress)) Option { return func(c *config) { c.onProgress = fn } }

// WithVersionsOnly has [Status] leave out the comparison of schemas, which takes most of its
// time and needs the right to make a schema.
func WithVersionsOnly() Option { return func(c *config) { c.versionsOnly = true } }
