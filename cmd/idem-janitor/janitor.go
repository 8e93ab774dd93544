package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgidem/pgidem/idempotency/pgstore"
	"github.com/pgidem/pgidem/internal/cli"
	"github.com/pgidem/pgidem/tenancy"
)

// errMaxDuration is the cause of a context that --max-duration ended.
var errMaxDuration = errors.New("--max-duration")

// errLost is the cause of a context that ended because the database went away.
type errLost struct{ err error }

func (e errLost) Error() string { return "the database went away: " + e.err.Error() }
func (e errLost) Unwrap() error { return e.err }

// state is how far a round came with a tenant.
type state int

const (
	left    state = iota // not reached, or not finished
	done                 // all that had expired is deleted
	failed               // outcome.err says why
	dropped              // its schema is gone
)

// outcome is what a round did to a tenant. The records are those that were deleted
// or, in a dry run, would have been, whatever the state.
type outcome struct {
	schema  tenancy.Schema
	state   state
	records int64
	err     error
}

// round is what one went through all tenants did.
type round struct {
	started  time.Time
	duration time.Duration
	tenants  []outcome // in the order they were visited
	unfit    error     // schemas with a table of records that cannot be a tenant's
	stopped  error     // why tenants were left: errMaxDuration, or the end of the caller's context
	err      error     // why there was no connection, or no list of tenants
}

func (r round) count(s state) (n int) {
	for _, o := range r.tenants {
		if o.state == s {
			n++
		}
	}
	return n
}

func (r round) records() (n int64) {
	for _, o := range r.tenants {
		n += o.records
	}
	return n
}

func (r round) exitCode() int {
	code, bySignal := cli.ExitOf(r.stopped)
	switch {
	case r.err != nil:
		return cli.ExitUnreachable
	case r.count(failed) > 0:
		return cli.ExitFailed
	case bySignal:
		return code
	case r.stopped != nil:
		return cli.ExitUnfinished
	}
	return cli.ExitOK
}

// janitor runs rounds, one after the other.
type janitor struct {
	cfg    config
	report reporter
	left   map[tenancy.Schema]bool // by the last round
}

// round visits all tenants once and reports what came of it.
func (j *janitor) round(ctx context.Context) round {
	r := round{started: time.Now()}
	j.sweep(ctx, &r)
	r.duration = time.Since(r.started)

	j.left = make(map[tenancy.Schema]bool)
	for _, o := range r.tenants {
		if o.state == left {
			j.left[o.schema] = true
		}
	}
	j.report.end(r)
	return r
}

func (j *janitor) sweep(ctx context.Context, r *round) {
	ctx, giveUp := context.WithCancelCause(ctx)
	defer giveUp(nil)
	if j.cfg.maxDuration > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, j.cfg.maxDuration, errMaxDuration)
		defer cancel()
	}

	// The pool lives for a round: there is no connection to go stale in between.
	cfg := j.cfg.pool.Copy()
	cfg.AfterRelease = isFresh
	pool, err := pgxpool.NewWithConfig(ctx, cfg)
	if err != nil {
		r.err = err
		return
	}
	defer cli.ClosePool(pool)
	schemas, err := j.tenants(ctx, pool, r)
	if err != nil {
		if cause := context.Cause(ctx); cause != nil && !errors.Is(cause, errMaxDuration) {
			r.stopped = cause
			return
		}
		r.err = err
		return
	}

	v := &visit{cfg: j.cfg, report: j.report, pool: pool, giveUp: giveUp}
	j.report.begin(len(schemas))
	r.tenants = v.all(ctx, schemas)
	if r.count(left) > 0 {
		r.stopped = context.Cause(ctx)
	}
	if lost, ok := errors.AsType[errLost](r.stopped); ok {
		r.err, r.stopped = lost, nil
	}
}

// maxUses is how many statements a connection is for. A server process keeps what it has
// read of each table, and PostgreSQL 15 and 16 look through some of that from its beginning
// for each table more that is deleted from: over thousands of tenants most of a round's time
// went there.
const maxUses = 500

// isFresh reports whether a connection that is given back may be used further.
func isFresh(conn *pgx.Conn) bool {
	const uses = "idem-janitor uses"
	data := conn.PgConn().CustomData()
	n, _ := data[uses].(int)
	data[uses] = n + 1
	return n+1 < maxUses
}

// tenants returns the schemas to visit, in the order to visit them.
func (j *janitor) tenants(ctx context.Context, pool *pgxpool.Pool, r *round) ([]tenancy.Schema, error) {
	if err := pool.Ping(ctx); err != nil {
		return nil, fmt.Errorf("connect: %w", err)
	}
	schemas := slices.Clone(j.cfg.schemas)
	if len(schemas) == 0 {
		var err error
		schemas, err = pgstore.Schemas(ctx, pool)
		switch {
		case errors.Is(err, tenancy.ErrInvalidSchema):
			r.unfit = err
		case err != nil:
			return nil, err
		}
	}
	rand.Shuffle(len(schemas), func(a, b int) { schemas[a], schemas[b] = schemas[b], schemas[a] })
	slices.SortStableFunc(schemas, func(a, b tenancy.Schema) int {
		switch {
		case j.left[a] == j.left[b]:
			return 0
		case j.left[a]:
			return -1
		}
		return 1
	})
	return schemas, nil
}

// visit is one way through all tenants.
type visit struct {
	cfg    config
	report reporter
	pool   *pgxpool.Pool
	giveUp context.CancelCauseFunc // ends the visit of all tenants
}

// all visits the tenants until ctx ends, several at a time. Its outcomes are in
// the order of the schemas.
func (v *visit) all(ctx context.Context, schemas []tenancy.Schema) []outcome {
	outcomes := make([]outcome, len(schemas))
	for i, schema := range schemas {
		outcomes[i].schema = schema
	}
	var next atomic.Int64
	var workers sync.WaitGroup
	for range min(v.cfg.workers, len(schemas)) {
		workers.Go(func() {
			for ctx.Err() == nil {
				i := int(next.Add(1)) - 1
				if i >= len(outcomes) {
					return
				}
				v.tenant(ctx, &outcomes[i])
				v.report.tenant(outcomes[i])
			}
		})
	}
	workers.Wait()
	return outcomes
}

// tenant purges one tenant. A connection that was lost is no fault of the tenant's:
// there is a second try if the database can be reached, and else none for any.
func (v *visit) tenant(ctx context.Context, o *outcome) {
	for retry := false; ; retry = true {
		records, err := v.purge(ctx, o.schema)
		o.records += records
		switch {
		case err == nil:
			o.state = done
			return
		case ctx.Err() != nil && (cli.IsLost(err) || cli.IsCancelled(err)):
			return // left
		case cli.IsLost(err) && !retry:
			if pingErr := v.ping(ctx); pingErr != nil {
				v.giveUp(errLost{pingErr})
				return // left
			}
		case v.isGone(ctx, o.schema, err):
			o.state = dropped
			return
		default:
			o.state, o.err = failed, err
			return
		}
	}
}

// purge deletes what has expired or, in a dry run, counts it.
func (v *visit) purge(ctx context.Context, schema tenancy.Schema) (int64, error) {
	if v.cfg.dryRun {
		n, err := pgstore.CountExpired(ctx, v.pool, schema)
		v.report.progress(n)
		return n, err
	}
	var told int64
	return pgstore.Purge(ctx, v.pool, schema, pgstore.PurgeOptions{
		Batch: v.cfg.batch,
		Pause: v.cfg.pause,
		Progress: func(deleted int64) {
			v.report.progress(deleted - told)
			told = deleted
		},
	})
}

// ping reports whether a new connection can be made.
func (v *visit) ping(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, v.cfg.pool.ConnConfig.ConnectTimeout)
	defer cancel()
	v.pool.Reset() // the others may be lost too
	return v.pool.Ping(ctx)
}

// isGone reports whether the catalog's schema was dropped since it was listed. A
// schema that was asked for by name has to be there.
func (v *visit) isGone(ctx context.Context, schema tenancy.Schema, err error) bool {
	if len(v.cfg.schemas) > 0 || !errors.Is(err, tenancy.ErrUnknownTenant) {
		return false
	}
	// A trigger of the tenant's that misses a table of its own gives the same
	// error; counting runs no triggers.
	_, err = pgstore.CountExpired(ctx, v.pool, schema)
	return errors.Is(err, tenancy.ErrUnknownTenant)
}
