package pgstore

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgidem/pgidem/internal/db"
	"github.com/pgidem/pgidem/internal/moved"
	"github.com/pgidem/pgidem/tenancy"
)

// Querier is what [Purge] and its companions run on: a pool, a connection or a
// transaction of pgx.
type Querier interface {
	Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error)
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}

// DefaultPurgeBatch is how many records [Purge] deletes in one statement unless it
// is told otherwise.
const DefaultPurgeBatch = 2000

// purgeWindow is how many pages of the table (of 8 KiB) one statement of a purge
// reads, so that none takes long however few of the records have expired.
const purgeWindow = 128

// maxPurgeConflicts bounds how often in a row a statement of a purge is repeated
// because of others beside it.
const maxPurgeConflicts = 16

// PurgeOptions are the terms of a [Purge]. The zero value is usable.
type PurgeOptions struct {
	// Batch is how many records one statement deletes at most. Defaults to
	// [DefaultPurgeBatch].
	Batch int
	// Pause is how long to rest after each statement that deleted something.
	// Defaults to no rest.
	Pause time.Duration
	// Progress, if set, is called after each statement with the records deleted so
	// far.
	Progress func(deleted int64)
}

// Purge deletes the expired records of one schema in small transactions, and
// returns how many it deleted, also along with an error. Then it deletes the steps and
// the kept requests ([idempotency.WithRecoverable]) that expired more than an hour ago, and
// requests that were left behind when their records ended, and does not count them. It
// walks the tables from their beginning to their end and needs no index on the expiry; those
// that have never held a row it leaves alone, which costs one small statement. The
// role needs SELECT, UPDATE (to lock what it looks at) and DELETE on the three tables:
// idempotency_records, idempotency_steps and idempotency_requests.
//
// It may run beside anything, other purges included: a record that is claimed
// again at that moment is never deleted, and no claim waits for longer than one
// statement takes. When ctx ends, Purge stops after the statement under way and
// returns ctx's error. A schema without the table of records gives an error that wraps
// [tenancy.ErrUnknownTenant]. One with the name that package move gives to those that it
// copies is refused: the copy is compared with what was copied.
func Purge(ctx context.Context, q Querier, schema tenancy.Schema, opts PurgeOptions) (deleted int64, err error) {
	if opts.Batch < 0 || opts.Batch > 1_000_000 {
		return 0, fmt.Errorf("pgstore: purge: a batch of %d records; give 1 to 1000000", opts.Batch)
	}
	if moved.IsFence(schema.String()) {
		return 0, fmt.Errorf("pgstore: purge: schema %s is that of a tenant on its way to another cluster; purge it when it has arrived", schema)
	}
	if opts.Batch == 0 {
		opts.Batch = DefaultPurgeBatch
	}
	var texts db.Texts
	queries := db.New(texts.Bind(q, schema.Quoted()))
	filled, err := db.New(q).FilledTables(ctx, db.FilledTablesParams{
		Records: schema.Quoted() + ".idempotency_records", Steps: schema.Quoted() + ".idempotency_steps", Requests: schema.Quoted() + ".idempotency_requests",
	})
	if err != nil {
		return 0, translateSchema("purge", schema, err)
	}
	deleted, err = purgeTable(ctx, filled.Records, schema, opts, func(ctx context.Context, window db.PurgeBatchParams) (db.PurgeBatchRow, error) {
		return queries.PurgeBatch(ctx, window)
	})
	if err != nil {
		return deleted, err
	}
	opts.Progress = nil // which is told of records
	_, err = purgeTable(ctx, filled.Steps, schema, opts, func(ctx context.Context, window db.PurgeBatchParams) (db.PurgeBatchRow, error) {
		row, err := queries.PurgeStepsBatch(ctx, db.PurgeStepsBatchParams(window))
		return db.PurgeBatchRow(row), asOutdated(err)
	})
	if err != nil {
		return deleted, err
	}
	_, err = purgeTable(ctx, filled.Requests, schema, opts, func(ctx context.Context, window db.PurgeBatchParams) (db.PurgeBatchRow, error) {
		row, err := queries.PurgeRequestsBatch(ctx, db.PurgeRequestsBatchParams(window))
		return db.PurgeBatchRow(row), asOutdated(err)
	})
	return deleted, err
}

// purgeTable walks one table, window by window, if it may hold rows: to plan a DELETE costs
// much more than to know that it does not.
func purgeTable(ctx context.Context, filled bool, schema tenancy.Schema, opts PurgeOptions, purge func(context.Context, db.PurgeBatchParams) (db.PurgeBatchRow, error)) (deleted int64, err error) {
	if !filled {
		return 0, nil
	}
	for page, conflicts := int64(0), 0; ; {
		if err := ctx.Err(); err != nil {
			return deleted, err
		}
		row, err := purge(ctx, db.PurgeBatchParams{
			FirstPage: page, EndPage: page + purgeWindow, BatchRows: int32(opts.Batch),
		})
		if isSerializationFailure(err) && conflicts < maxPurgeConflicts {
			conflicts++ // under a strict isolation level; the next snapshot sees what came in between
			continue
		}
		if err != nil {
			return deleted, translateSchema("purge", schema, err)
		}
		conflicts = 0
		deleted += row.Deleted
		if opts.Progress != nil {
			opts.Progress(deleted)
		}
		switch windowDone := row.Deleted < int64(opts.Batch); {
		case windowDone && row.NextPage < 0:
			return deleted, nil
		case windowDone:
			page = row.NextPage
		}
		if row.Deleted > 0 && opts.Pause > 0 {
			rest := time.NewTimer(opts.Pause)
			select {
			case <-ctx.Done():
				rest.Stop()
				return deleted, ctx.Err()
			case <-rest.C:
			}
		}
	}
}

// CountExpired returns how many records of a schema a [Purge] would delete now. It
// reads the whole table.
func CountExpired(ctx context.Context, q Querier, schema tenancy.Schema) (int64, error) {
	var texts db.Texts
	n, err := db.New(texts.Bind(q, schema.Quoted())).CountExpired(ctx)
	if err != nil {
		return 0, translateSchema("count expired", schema, err)
	}
	return n, nil
}

// Schemas returns the schemas of a database that hold a table of records, by name, but for
// those of tenants that are being moved to another cluster.
// A schema that cannot be a tenant's, by the rules of [tenancy.ParseSchema], is
// returned in the error, beside the others.
func Schemas(ctx context.Context, q Querier) (schemas []tenancy.Schema, err error) {
	names, err := db.New(q).TenantSchemas(ctx)
	if err != nil {
		return nil, fmt.Errorf("pgstore: list tenant schemas: %w", err)
	}
	var unfit []error
	for _, name := range names {
		if moved.IsFence(name) {
			continue
		}
		schema, err := tenancy.ParseSchema(name)
		if err != nil {
			unfit = append(unfit, fmt.Errorf("pgstore: a table of records lies where no tenant can be: %w", err))
			continue
		}
		schemas = append(schemas, schema)
	}
	return schemas, errors.Join(unfit...)
}
