package provision

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgidem/pgidem/internal/signature"
	"github.com/pgidem/pgidem/tenancy"
	"github.com/pgidem/pgidem/tenancy/registry"
)

// A run may be held up anywhere, for as long as it takes others to drop the tenant and to
// register it anew, and goes on then. In the registry each change names the generation that it
// is for. In the tenant's database the schema's comment does: nothing is granted on a schema or
// dropped in it, but in a transaction that has read there, under the schema's lock, that the
// schema is of this run's generation.

// errAnother is that of a step on a schema that another generation has taken.
var errAnother = fmt.Errorf("%w: the schema has been dropped or taken over by another run meanwhile, or its comment was changed; look how the tenant is, and run again if need be", ErrState)

// commentOn returns the comment on a schema, and whether there is one of that name.
func commentOn(ctx context.Context, tx pgx.Tx, schema tenancy.Schema) (comment string, exists bool, err error) {
	err = tx.QueryRow(ctx, `SELECT coalesce(pg_catalog.obj_description(oid, 'pg_namespace'), '') FROM pg_catalog.pg_namespace WHERE nspname = $1`, schema.String()).Scan(&comment)
	if errors.Is(err, pgx.ErrNoRows) {
		return "", false, nil
	}
	return comment, err == nil, err
}

// take signs the schema for a generation, where it is there already or is to be made; from then
// on it is that generation's until a later one takes it. It reports whether it made the schema.
//
// What another has signed is signed anew only if that was seen before the registry said that
// this generation is the tenant's: so the other came before it, and a schema never goes back.
func (p *Provisioner) take(ctx context.Context, pool *pgxpool.Pool, g registry.Generation, schema tenancy.Schema, create bool) (made bool, err error) {
	var before *string // what it may be signed by
	for range p.tries {
		var by string
		err := p.locked(ctx, pool, schema, func(tx pgx.Tx) error {
			made = false
			comment, exists, err := commentOn(ctx, tx, schema)
			if err != nil {
				return err
			}
			by = signature.Of(comment)
			switch {
			case !exists && !create:
				by = g.String()
				return nil
			case !exists:
				made = true
				if _, err := tx.Exec(ctx, `CREATE SCHEMA `+schema.Quoted()); err != nil {
					return err
				}
			case by == g.String(), before == nil || *before != by:
				return nil
			}
			by = g.String()
			return sign(ctx, tx, schema, signature.Sign(comment, g.String()))
		})
		if err != nil || by == g.String() {
			return made, err
		}
		if _, err := g.Tenant(ctx); err != nil {
			return false, err
		}
		before = &by
	}
	return false, errAnother
}

func sign(ctx context.Context, tx pgx.Tx, schema tenancy.Schema, comment string) error {
	var sql string // COMMENT takes no parameters
	if err := tx.QueryRow(ctx, `SELECT pg_catalog.format('COMMENT ON SCHEMA %I IS %L', $1::text, $2::text)`, schema.String(), comment).Scan(&sql); err != nil {
		return err
	}
	_, err := tx.Exec(ctx, sql)
	return err
}

// as runs fn, under the schema's lock, if the schema is of the generation. Where there is none
// fn is run if absent says so.
func (p *Provisioner) as(ctx context.Context, pool *pgxpool.Pool, g registry.Generation, schema tenancy.Schema, absent bool, fn func(pgx.Tx) error) error {
	return p.locked(ctx, pool, schema, func(tx pgx.Tx) error {
		comment, exists, err := commentOn(ctx, tx, schema)
		switch {
		case err != nil:
			return err
		case !exists && absent:
		case signature.Of(comment) != g.String(): // nor is one that is missing
			return errAnother
		}
		return fn(tx)
	})
}

// locked runs fn in a transaction that has the schema to itself, among the runs of this package,
// and waits for no lock for long. It tries again while others are in the way.
func (p *Provisioner) locked(ctx context.Context, pool *pgxpool.Pool, schema tenancy.Schema, fn func(pgx.Tx) error) error {
	for try := 1; ; try++ {
		// Each statement has to see what others have committed while it waited for the lock,
		// whatever the database's default is.
		err := pgx.BeginTxFunc(ctx, pool, pgx.TxOptions{IsoLevel: pgx.ReadCommitted, AccessMode: pgx.ReadWrite}, func(tx pgx.Tx) error {
			if _, err := tx.Exec(ctx, fmt.Sprintf(`SET LOCAL lock_timeout = %d`, p.lockTimeout.Milliseconds())); err != nil {
				return err
			}
			if _, err := tx.Exec(ctx, `SELECT pg_catalog.pg_advisory_xact_lock($1)`, signature.LockID(schema.String())); err != nil {
				return err
			}
			return fn(tx)
		})
		if !inTheWay(err) {
			return err
		}
		if try == p.tries {
			return fmt.Errorf("%w: try again later: %w", ErrBusy, err)
		}
		if ended := p.rest(ctx); ended != nil {
			return errors.Join(err, ended)
		}
	}
}

// inTheWay tells whether others were, who may be gone when it is tried again.
func inTheWay(err error) bool {
	var pgErr *pgconn.PgError
	if !errors.As(err, &pgErr) {
		return false
	}
	switch pgErr.Code {
	case "55P03", "40P01", "42P06": // lock_not_available, deadlock_detected, duplicate_schema
		return true
	case "23505": // unique_violation: migrations made the schema at the same moment
		return pgErr.SchemaName == "pg_catalog"
	}
	return false
}
