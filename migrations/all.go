package migrations

import (
	"context"
	"fmt"
	"iter"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgidem/pgidem/tenancy"
)

// Report is what became of the tenants of a run. In a dry run it is what would become of
// them.
type Report struct {
	Total    int // schemas in the list, each counted once
	Created  int
	Migrated int
	Current  int
	Newer    int
	Failed   int
	// Unreached is how many were not looked at, or not to the end, because the run ended
	// before: by its context, or for want of a server.
	Unreached int
	Failures  []Result // of the Failed, in the order in which they failed
	// Refused is how often a worker got no connection, and RefusedErr why it did not the last
	// time. That is no tenant's failure: the other workers went on.
	Refused    int
	RefusedErr error
	Duration   time.Duration
}

// Progress is how far a run is.
type Progress struct {
	Total   int // schemas in the list
	Done    int // of these, those that have ended, the following two among them
	Failed  int
	Skipped int // nothing to do: up to date, or newer than this program
	Waiting int // not ended: found busy, or being moved, and to be tried again
	Elapsed time.Duration
	// Rate is how many tenants have been made, migrated or have failed for each second since
	// the work on them began. Those skipped cost next to nothing and are not in it.
	Rate float64
	// Left estimates the time that the rest will take at this rate, 0 if that is not known.
	Left time.Duration
}

// All makes the schemas that are missing and migrates those that are behind. It is for
// deployments with many tenants: a few queries tell which have nothing to be done, the
// others are worked off by several workers over connections that are used again.
//
// The list is read to its end first, and if that fails nothing is done. See [Schemas], and
// the package documentation for what happens to a tenant that is busy, newer, or broken.
// One tenant's failure does not stop the rest: it is in the Report, and the error wraps
// [ErrFailed]. All may be run again, also after it was killed, and continues with those that
// are not through. Two runs at a time share the work.
//
// All ends early if ctx does, or if no worker can get a connection for half a minute; the error
// says so and the Report how many were not reached. A worker that cannot while others can, since
// the server has no more to give, say, tries again now and then. Each try waits for an answer for
// half a minute at most, or for the connect_timeout of the URL if that is shorter. A server that
// is cut off in the middle is taken for lost after about a minute; see the package documentation.
// When All returns the server has ended what it was doing for the run; where it does not answer, All
// waits for 5 seconds.
//
// The role needs CREATE on the database to make schemas, and must own the tables of those that
// are there.
//
// All notes no version in a registry of tenants; the function of [WithResult] can.
func All(ctx context.Context, databaseURL string, targets iter.Seq2[Target, error], opts ...Option) (Report, error) {
	c, err := newConfig(opts)
	if err != nil {
		return Report{}, err
	}
	pgxConfig, err := connConfig(databaseURL, c.reconnect)
	if err != nil {
		return Report{}, err
	}
	p, err := c.plan()
	if err != nil {
		return Report{}, fmt.Errorf("migrations: %w", err)
	}
	list, err := collect(targets)
	if err != nil {
		return Report{}, err
	}
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	f := &fleet{
		runner: runner{config: c, plan: p}, conn: pgxConfig, stop: stop,
		start: time.Now(), report: Report{Total: len(list)},
	}
	err = f.run(ctx, list)
	f.report.Duration = time.Since(f.start)
	f.report.Unreached = len(list) - f.ended()
	switch {
	case err != nil:
		return f.report, fmt.Errorf("migrations: %d of %d schemas not reached: %w", f.report.Unreached, len(list), err)
	case f.report.Failed > 0:
		one := f.report.Failures[0]
		return f.report, fmt.Errorf("migrations: %w: %d of %d failed, the first was schema %s: %w", ErrFailed, f.report.Failed, len(list), one.Schema, one.Err)
	}
	return f.report, nil
}

// fleet is one run of All.
type fleet struct {
	runner
	conn  *pgx.ConnConfig
	stop  context.CancelCauseFunc
	queue *queue

	mu      sync.Mutex
	report  Report
	start   time.Time
	working time.Time // from when on workers have been at it
	open    int       // connections of workers
	without time.Time // from when on there has been none
}

func (f *fleet) run(ctx context.Context, list []Target) error {
	if len(list) == 0 {
		return nil
	}
	todo, err := f.sift(ctx, list)
	if err != nil {
		return err
	}
	// Who waits for a connection does so for as long as there is something to do.
	busy, over := context.WithCancel(ctx)
	defer over()
	f.queue = newQueue(todo, over)
	f.working = time.Now()
	f.without = f.working
	var workers sync.WaitGroup
	for range min(f.workers, len(todo)) {
		workers.Go(func() { f.work(ctx, busy) })
	}
	workers.Wait()
	return context.Cause(ctx)
}

// sift ends the tenants that have nothing to be done, and returns the others.
func (f *fleet) sift(ctx context.Context, list []Target) (todo []Result, err error) {
	conn, err := pgx.ConnectConfig(ctx, f.conn) // if this fails, it does at once
	if err != nil {
		return nil, err
	}
	defer hangUp(ctx, conn)
	for rest := list; len(rest) > 0; {
		part := rest[:min(chunk, len(rest))]
		rest = rest[len(part):]
		states, err := f.states(ctx, conn, schemasOf(part))
		if err != nil {
			return nil, err
		}
		var idle []Result
		for i, target := range part {
			v := states[i].version()
			if outcome, ok := f.idle(states[i]); ok {
				idle = append(idle, Result{Target: target, Outcome: outcome, From: v, To: v})
				continue
			}
			todo = append(todo, Result{Target: target, From: v, To: v, before: states[i]})
		}
		f.end(idle...)
	}
	return todo, nil
}

func schemasOf(targets []Target) []tenancy.Schema {
	list := make([]tenancy.Schema, len(targets))
	for i, target := range targets {
		list[i] = target.Schema
	}
	return list
}

// idle reports whether there is nothing to do for a schema.
func (r *runner) idle(s state) (Outcome, bool) {
	switch lacking, err := r.plan.since(s.applied); {
	case s.unknown || !s.table:
		return "", false
	case s.version() > r.plan.latest():
		return Newer, true
	default:
		return Current, err == nil && len(lacking) == 0
	}
}

// work takes tenants until none is left.
func (f *fleet) work(ctx, busy context.Context) {
	var conn *pgx.Conn
	defer func() { f.disconnect(ctx, conn) }()
	for seen := 0; ; seen++ {
		if conn != nil && (conn.IsClosed() || seen%perConnection == 0) {
			f.disconnect(ctx, conn)
			conn = nil
		}
		if conn == nil { // before it has a tenant, which would have to wait for it
			if conn = f.connect(busy); conn == nil {
				return
			}
		}
		result, ok := f.queue.take(ctx)
		if !ok {
			return
		}
		err := f.try(ctx, conn, &result)
		switch {
		case err == nil:
			f.end(result)
		case ctx.Err() != nil:
			return // it may have come to its end all the same; the next run sees
		case f.again(&result, err):
			f.queue.putBack(result, f.wait(result.Tries))
			continue
		default:
			f.end(result)
		}
		f.queue.done()
	}
}

// end counts tenants that are through and tells the caller of them.
func (f *fleet) end(results ...Result) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, result := range results {
		switch result.Outcome {
		case Created:
			f.report.Created++
		case Migrated:
			f.report.Migrated++
		case Current:
			f.report.Current++
		case Newer:
			f.report.Newer++
		case Failed:
			f.report.Failed++
			f.report.Failures = append(f.report.Failures, result)
		}
		if f.onResult != nil {
			f.onResult(result)
		}
	}
	if f.onProgress != nil && len(results) > 0 {
		f.onProgress(f.progress())
	}
}

func (f *fleet) ended() int {
	r := f.report
	return r.Created + r.Migrated + r.Current + r.Newer + r.Failed
}

func (f *fleet) progress() Progress {
	p := Progress{
		Total: f.report.Total, Done: f.ended(), Failed: f.report.Failed, Skipped: f.report.Current + f.report.Newer,
		Elapsed: time.Since(f.start),
	}
	if f.queue == nil {
		return p // still sifting
	}
	p.Waiting = f.queue.waiting()
	if worked := p.Done - p.Skipped; worked > 0 {
		p.Rate = float64(worked) / time.Since(f.working).Seconds()
		p.Left = time.Duration(float64(p.Total-p.Done) / p.Rate * float64(time.Second))
	}
	return p
}
