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
	tenant
	state   state
	records int64
	err     error
}

// tenant is a schema of a cluster.
type tenant struct {
	cluster string // "" of --database-url
	schema  tenancy.Schema
}

func (t tenant) String() string { return t.schema.String() + in(t.cluster) }

// round is what one went through all tenants did.
type round struct {
	started  time.Time
	duration time.Duration
	tenants  []outcome // in the order they were visited
	unfit    error     // schemas with a table of records that cannot be a tenant's
	stopped  error     // why tenants were left: errMaxDuration, or the end of the caller's context
	err      error     // why there was no connection to a database, or no list of its tenants
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
	left   map[tenant]bool // by the last round
}

// round visits all tenants once and reports what came of it.
func (j *janitor) round(ctx context.Context) round {
	r := round{started: time.Now()}
	j.sweep(ctx, &r)
	r.duration = time.Since(r.started)

	j.left = make(map[tenant]bool)
	for _, o := range r.tenants {
		if o.state == left {
			j.left[o.tenant] = true
		}
	}
	j.report.end(r)
	return r
}

func (j *janitor) sweep(ctx context.Context, r *round) {
	if j.cfg.maxDuration > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, j.cfg.maxDuration, errMaxDuration)
		defer cancel()
	}
	servers := make([]*server, len(j.cfg.databases))
	var listing sync.WaitGroup
	for i, db := range j.cfg.databases {
		servers[i] = &server{database: db}
		listing.Go(func() { servers[i].open(ctx, j.cfg) })
	}
	listing.Wait()
	defer closeAll(servers)
	tenants, reached := 0, false
	for _, s := range servers {
		r.unfit = errors.Join(r.unfit, s.about(s.unfit))
		if cause := context.Cause(ctx); s.err != nil && cause != nil && !errors.Is(cause, errMaxDuration) {
			r.stopped = cause
			return
		}
		j.order(s.tenants)
		tenants += len(s.tenants)
		reached = reached || s.err == nil
	}
	if reached {
		j.report.begin(tenants)
	}
	// Each with workers of its own: one that does not answer any more keeps nobody else's.
	var visiting sync.WaitGroup
	for _, s := range servers {
		visiting.Go(func() { (&visit{j.cfg, j.report, s}).all() })
	}
	visiting.Wait()
	for _, s := range servers {
		r.tenants = append(r.tenants, s.tenants...)
		if lost, ok := errors.AsType[errLost](context.Cause(s.ctx)); ok && s.err == nil {
			s.err = lost
		}
		r.err = errors.Join(r.err, s.about(s.err))
	}
	if ctx.Err() != nil && r.count(left) > 0 {
		r.stopped = context.Cause(ctx)
	}
}

// server is a database in one round. Its pool lives as long: there is no connection to go stale
// in between.
type server struct {
	database
	pool    *pgxpool.Pool
	ctx     context.Context // ends with the round, and when the database has gone away
	giveUp  context.CancelCauseFunc
	tenants []outcome
	unfit   error
	err     error // why there is no list of tenants
}

// open connects, and lists the tenants to visit: those of the catalog unless they are given.
func (s *server) open(ctx context.Context, cfg config) {
	s.ctx, s.giveUp = context.WithCancelCause(ctx)
	poolConfig := s.config.Copy()
	poolConfig.AfterRelease = isFresh
	if s.pool, s.err = pgxpool.NewWithConfig(s.ctx, poolConfig); s.err != nil {
		return
	}
	ctx, cancel := context.WithTimeout(s.ctx, cfg.patience())
	defer cancel()
	if err := s.pool.Ping(ctx); err != nil {
		s.err = fmt.Errorf("connect: %w", err)
		return
	}
	schemas := cfg.schemas
	if len(schemas) == 0 {
		var err error
		schemas, err = pgstore.Schemas(ctx, s.pool)
		switch {
		case errors.Is(err, tenancy.ErrInvalidSchema):
			s.unfit = err
		case err != nil:
			s.err = err
			return
		}
	}
	for _, schema := range schemas {
		s.tenants = append(s.tenants, outcome{tenant: tenant{s.cluster, schema}})
	}
}

// patience is how long a database may take to connect and to list its tenants while others
// wait for that.
func (cfg config) patience() time.Duration {
	const alone, beside = 100 * 365 * 24 * time.Hour, 30 * time.Second
	switch {
	case len(cfg.databases) == 1:
		return alone // --max-duration ends it
	case cfg.maxDuration > 0:
		return min(beside, cfg.maxDuration/4)
	}
	return beside
}

// closeAll closes the pools at once, some of which may take long.
func closeAll(servers []*server) {
	var closing sync.WaitGroup
	for _, s := range servers {
		s.giveUp(nil)
		if s.pool != nil {
			closing.Go(func() { cli.ClosePool(s.pool) })
		}
	}
	closing.Wait()
}

// about names the cluster in an error, which may be nil.
func (s *server) about(err error) error {
	if err == nil || s.cluster == "" {
		return err
	}
	return fmt.Errorf("cluster %s: %w", s.cluster, err)
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

// order puts the tenants into the order in which they are visited: at random, first those that
// the round before did not finish.
func (j *janitor) order(tenants []outcome) {
	rand.Shuffle(len(tenants), func(a, b int) { tenants[a], tenants[b] = tenants[b], tenants[a] })
	slices.SortStableFunc(tenants, func(a, b outcome) int {
		switch {
		case j.left[a.tenant] == j.left[b.tenant]:
			return 0
		case j.left[a.tenant]:
			return -1
		}
		return 1
	})
}

// visit is one way through all tenants of a server.
type visit struct {
	cfg    config
	report reporter
	*server
}

// all visits the tenants until the server's context ends, several at a time, and notes what
// came of each.
func (v *visit) all() {
	var next atomic.Int64
	var workers sync.WaitGroup
	for range min(v.cfg.workers, len(v.tenants)) {
		workers.Go(func() {
			for v.ctx.Err() == nil {
				i := int(next.Add(1)) - 1
				if i >= len(v.tenants) {
					return
				}
				v.tenant(&v.tenants[i])
				v.report.tenant(v.tenants[i])
			}
		})
	}
	workers.Wait()
}

// tenant purges one tenant. A connection that was lost is no fault of the tenant's:
// there is a second try if the database can be reached, and else none for any of it.
func (v *visit) tenant(o *outcome) {
	for retry := false; ; retry = true {
		records, err := v.purge(o.schema)
		o.records += records
		switch {
		case err == nil:
			o.state = done
			return
		case v.ctx.Err() != nil && (cli.IsLost(err) || cli.IsCancelled(err)):
			return // left
		case cli.IsLost(err) && !retry:
			if pingErr := v.ping(); pingErr != nil {
				v.giveUp(errLost{pingErr})
				return // left
			}
		case v.isGone(o.schema, err):
			o.state = dropped
			return
		default:
			o.state, o.err = failed, err
			return
		}
	}
}

// purge deletes what has expired or, in a dry run, counts it.
func (v *visit) purge(schema tenancy.Schema) (int64, error) {
	if v.cfg.dryRun {
		n, err := pgstore.CountExpired(v.ctx, v.pool, schema)
		v.report.progress(n)
		return n, err
	}
	var told int64
	return pgstore.Purge(v.ctx, v.pool, schema, pgstore.PurgeOptions{
		Batch: v.cfg.batch,
		Pause: v.cfg.pause,
		Progress: func(deleted int64) {
			v.report.progress(deleted - told)
			told = deleted
		},
	})
}

// ping reports whether a new connection can be made.
func (s *server) ping() error {
	ctx, cancel := context.WithTimeout(s.ctx, s.config.ConnConfig.ConnectTimeout)
	defer cancel()
	s.pool.Reset() // the others may be lost too
	return s.pool.Ping(ctx)
}

// isGone reports whether the catalog's schema was dropped since it was listed. A
// schema that was asked for by name has to be there.
func (v *visit) isGone(schema tenancy.Schema, err error) bool {
	if len(v.cfg.schemas) > 0 || !errors.Is(err, tenancy.ErrUnknownTenant) {
		return false
	}
	// A trigger of the tenant's that misses a table of its own gives the same
	// error; counting runs no triggers.
	_, err = pgstore.CountExpired(v.ctx, v.pool, schema)
	return errors.Is(err, tenancy.ErrUnknownTenant)
}
