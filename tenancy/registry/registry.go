package registry

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgidem/pgidem/internal/listen"
	"github.com/pgidem/pgidem/tenancy"
)

// DefaultSchema is the control schema when no other is given.
const DefaultSchema = "pgidem"

const (
	defaultCacheSize = 20_000
	defaultTTL       = 30 * time.Second
	defaultStale     = 5 * time.Minute
	defaultPulse     = 5 * time.Second
)

// Registry is a directory of tenants in PostgreSQL. Make one with [New]. It is safe for
// concurrent use.
type Registry struct {
	pool      *pgxpool.Pool
	schema    tenancy.Schema
	lookupSQL string
	size      int
	ttl       time.Duration
	stale     time.Duration
	timeout   time.Duration // of a lookup
	pulse     time.Duration // after which a silent connection is asked for a sign of life
	connect   func(context.Context) (*pgx.Conn, error)

	clock     func() time.Duration // the time since the registry was made; it never goes back
	known     *cache
	unknown   *cache
	life      atomic.Int64 // for how long after it was read an entry counts
	freshFrom atomic.Int64 // what was read before does not count
	failedAt  atomic.Int64 // when the last query failed; 0 if it did not

	mu            sync.Mutex // of what follows, and of changes to the caches
	lookups       map[uuid.UUID]*lookup
	queue         []*lookup     // those that are not in a query yet
	looking       chan struct{} // closed when the goroutine that looks up has ended; nil while there is none
	listening     chan struct{} // closed when the goroutine that listens has ended; nil before there is one
	stopListening context.CancelFunc
	silent        error // why it does not listen
	closed        bool
}

// Option changes how a [Registry] works.
type Option func(*Registry) error

// WithSchema has the registry keep its tenants in the control schema s, which
// migrations.UpControl made. Defaults to [DefaultSchema].
func WithSchema(s tenancy.Schema) Option {
	return func(r *Registry) error {
		if s.IsZero() {
			return errors.New("WithSchema: the zero Schema names none; make one with tenancy.ParseSchema")
		}
		r.schema = s
		return nil
	}
}

// WithCacheSize has up to n tenants cached, each in some 300 bytes. Where more are in use, a
// request of one that is not cached waits for a query. Defaults to 20,000.
func WithCacheSize(n int) Option {
	return func(r *Registry) error {
		if n < 1 {
			return fmt.Errorf("WithCacheSize: %d tenants; give 1 or more", n)
		}
		r.size = n
		return nil
	}
}

// WithTTL sets for how long a tenant is cached while the registry listens: the safety net
// for a change that it was not told of. While it does not listen, it is a second at most.
// Defaults to 30 seconds.
func WithTTL(d time.Duration) Option {
	return func(r *Registry) error {
		if d <= 0 {
			return fmt.Errorf("WithTTL: %v; give a positive duration", d)
		}
		r.ttl = d
		return nil
	}
}

// WithStale sets for how long after it was read a tenant is served as it was, while the
// database cannot be asked: also one that has been suspended or moved meanwhile, which the
// process has no way to know. With 0 its requests get errors instead. Defaults to 5 minutes.
func WithStale(d time.Duration) Option {
	return func(r *Registry) error {
		if d < 0 {
			return fmt.Errorf("WithStale: %v is negative", d)
		}
		r.stale = d
		return nil
	}
}

// WithListenConfig has the registry listen for changes over a connection with this
// configuration, of which it takes a copy, instead of one like those of the pool. It is
// needed where a pooler in transaction mode stands in between.
func WithListenConfig(config *pgx.ConnConfig) Option {
	return func(r *Registry) error {
		if config == nil {
			return errors.New("WithListenConfig: the configuration is nil")
		}
		r.connect = listen.ConnectorTo(config)
		return nil
	}
}

// New returns a Registry over the caller's pool, which leads to the primary server: a
// standby may not know yet what a change was told of. It opens no connection.
func New(pool *pgxpool.Pool, opts ...Option) (*Registry, error) {
	if pool == nil {
		return nil, errors.New("registry: the pool is nil")
	}
	schema, err := tenancy.ParseSchema(DefaultSchema)
	if err != nil {
		return nil, err
	}
	r := &Registry{
		pool: pool, schema: schema, connect: listen.Connector(pool),
		size: defaultCacheSize, ttl: defaultTTL, stale: defaultStale, timeout: lookupTimeout, pulse: defaultPulse,
		clock: stopwatch(), lookups: make(map[uuid.UUID]*lookup), silent: errNotListening,
	}
	for _, opt := range opts {
		if err := opt(r); err != nil {
			return nil, fmt.Errorf("registry: %w", err)
		}
	}
	r.known, r.unknown = newCache(r.size), newCache(unknownSize)
	r.lookupSQL = r.statement(`SELECT ` + columns + ` FROM /*control.*/tenants t WHERE t.org_id = ANY ($1::text[]::uuid[])`)
	r.deaf()
	return r, nil
}

// stopwatch returns a function that tells the time since now.
func stopwatch() func() time.Duration {
	began := time.Now()
	return func() time.Duration { return time.Since(began) }
}

// Close stops listening and waits for the lookups under way. It leaves the pool alone; call
// it before that is closed. The registry may be used further, and then asks about each
// tenant once a second.
func (r *Registry) Close() {
	r.mu.Lock()
	r.closed, r.silent = true, errClosed
	looking, listening := r.looking, r.listening
	r.mu.Unlock()
	if listening != nil {
		r.stopListening()
		<-listening
	}
	if looking != nil {
		<-looking
	}
}

// marker stands before each table name in statements, as it does in package internal/db.
const marker = "/*control.*/"

// statement returns sql in the control schema.
func (r *Registry) statement(sql string) string {
	return strings.ReplaceAll(sql, marker, r.schema.Quoted()+".")
}
