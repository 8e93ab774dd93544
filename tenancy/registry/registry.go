package registry

import (
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgidem/pgidem/tenancy"
)

// DefaultSchema is the control schema when no other is given.
const DefaultSchema = "pgidem"

// Registry is a directory of tenants in PostgreSQL. Make one with [New]. It is safe for
// concurrent use.
type Registry struct {
	pool   *pgxpool.Pool
	schema tenancy.Schema
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

// New returns a Registry over the caller's pool, which leads to a server that can be
// written to, or at least is no standby. It opens no connection.
func New(pool *pgxpool.Pool, opts ...Option) (*Registry, error) {
	if pool == nil {
		return nil, errors.New("registry: the pool is nil")
	}
	schema, err := tenancy.ParseSchema(DefaultSchema)
	if err != nil {
		return nil, err
	}
	r := &Registry{pool: pool, schema: schema}
	for _, opt := range opts {
		if err := opt(r); err != nil {
			return nil, fmt.Errorf("registry: %w", err)
		}
	}
	return r, nil
}

// Close ends what the registry has started by itself. It leaves the pool alone.
func (r *Registry) Close() {}

// marker stands before each table name in statements, as it does in package internal/db.
const marker = "/*control.*/"

// statement returns sql in the control schema.
func (r *Registry) statement(sql string) string {
	return strings.ReplaceAll(sql, marker, r.schema.Quoted()+".")
}
