package pgstore

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgidem/pgidem/internal/db"
)

// coalescer runs the statements of many requests on few connections: while as many runs
// as are worth having are under way, what comes gathers, and the first run that ends makes
// room for all of that at once, in one round trip and one transaction. What comes when there
// is room goes at once and by itself, so nothing ever waits for company.
//
// A statement that fails, or takes too long, takes the others of its transaction with it;
// they are then run again, each by itself. So is, for a while, all of a schema of which
// none has succeeded since.
type coalescer struct {
	conns   conns
	alone   *turns
	relaxed bool // commits do not wait for the disk

	mu      sync.Mutex
	pace    pace
	runs    []*run // under way, but for those that are stuck
	waiting []*call
	stall   *time.Timer          // while calls wait; fires when no run has ended for long
	aside   map[string]time.Time // schemas that go by themselves, until when
}

const (
	maxCoalesced      = 128     // calls in one transaction
	maxCoalescedBytes = 1 << 20 // of what they send and get, more or less

	// A statement of many calls together may take 20 times as long as the shortest run of
	// late, and as long as this in any case; so may all runs, before others stop waiting
	// for them. All of a transaction may take a second, for slow commits.
	minBound    = 100 * time.Millisecond
	boundRuns   = 20
	maxPatience = time.Second

	asideFor = 10 * time.Second
	maxAside = 1024 // schemas
)

// call is an operation and its way through a coalescer.
type call struct {
	op       db.KeyOp
	bytes    int
	deadline time.Time // zero for none

	ready chan lead // gets what is to be run to who is to run it; nothing to the others, when it has been
	begun bool      // it is out of the line
	left  bool      // nobody waits for it
	alone bool      // it is not known to have had an effect, and is to be run by itself
}

// lead is what falls to the first of those that wait.
type lead struct {
	together []*call
	run      *run
}

// run is one round trip under way.
type run struct {
	began time.Time
	stuck bool // it waits for a lock, or for a dead connection, and others do not wait for it
}

// do does op: by itself, or with others. bytes is about what its arguments and its results
// take.
func (co *coalescer) do(ctx context.Context, op db.KeyOp, bytes int) error {
	c := &call{op: op, bytes: bytes}
	c.deadline, _ = ctx.Deadline()
	switch place, r := co.enter(c); place {
	case placeFree:
		defer co.leave(r)
		err := co.runAlone(ctx, op)
		if err != nil && isOwnFault(err) {
			co.setAside(c)
		}
		return err
	case placeInLine:
		select {
		case l := <-c.ready:
			co.lead(l)
		case <-ctx.Done():
			if co.forget(c) {
				return ctx.Err()
			}
			co.lead(<-c.ready)
		}
		if !c.alone {
			return nil
		}
	}
	if err := co.alone.take(ctx, op.Schema()); err != nil {
		return err
	}
	defer co.alone.give(op.Schema())
	err := co.runAlone(ctx, op)
	if err == nil {
		co.takeBack(op.Schema())
	}
	return err
}

// place is where a call goes.
type place int

const (
	placeFree place = iota
	placeAside
	placeInLine
)

// enter finds a place for the call.
func (co *coalescer) enter(c *call) (place, *run) {
	co.mu.Lock()
	defer co.mu.Unlock()
	switch {
	case len(co.aside) > 0 && co.isAside(c.op.Schema()):
		return placeAside, nil
	case len(co.runs) < co.pace.limit():
		return placeFree, co.begin()
	}
	c.ready = make(chan lead, 1)
	co.waiting = append(co.waiting, c)
	if len(co.waiting) == 1 {
		co.watch()
	}
	return placeInLine, nil
}

// begin begins a run. The lock is held.
func (co *coalescer) begin() *run {
	r := &run{began: time.Now()}
	co.runs = append(co.runs, r)
	return r
}

// leave ends a run and makes room for those who wait.
func (co *coalescer) leave(r *run) {
	now := time.Now()
	co.mu.Lock()
	defer co.mu.Unlock()
	if r.stuck {
		return
	}
	co.runs = slices.DeleteFunc(co.runs, func(o *run) bool { return o == r })
	co.pace.saw(now.Sub(r.began), now, len(co.waiting) > 0)
	if len(co.runs) < co.pace.limit() {
		co.next()
	}
	co.watch()
}

// next begins the run of those who wait, if there are any. The first of them leads. The
// lock is held.
func (co *coalescer) next() {
	var together []*call
	n, size := 0, 0
	for n < len(co.waiting) && len(together) < maxCoalesced {
		c := co.waiting[n]
		if !c.left {
			if size += c.bytes; len(together) > 0 && size > maxCoalescedBytes {
				break
			}
			c.begun, together = true, append(together, c)
		}
		n++
	}
	clear(co.waiting[:n])
	if co.waiting = co.waiting[n:]; len(co.waiting) == 0 {
		co.waiting = nil
	}
	if len(together) > 0 {
		together[0].ready <- lead{together, co.begin()}
	}
}

// bound is how long a statement may take that others depend on, and a run that others wait
// for. The lock is held.
func (co *coalescer) bound() time.Duration { return max(minBound, boundRuns*co.pace.quickest()) }

// watch watches, while calls wait, that runs come to an end. The lock is held.
func (co *coalescer) watch() {
	switch {
	case len(co.waiting) == 0 && co.stall != nil:
		co.stall.Stop()
	case len(co.waiting) > 0 && co.stall == nil:
		co.stall = time.AfterFunc(co.bound(), co.unstall)
	case len(co.waiting) > 0:
		co.stall.Reset(co.bound())
	}
}

// unstall has those who wait do so no longer for runs that do not end.
func (co *coalescer) unstall() {
	co.mu.Lock()
	defer co.mu.Unlock()
	if len(co.waiting) == 0 {
		return
	}
	for _, r := range co.runs {
		r.stuck = true
	}
	co.runs = nil
	co.next()
	co.watch()
}

// forget takes a call out of the line that nobody has begun to run.
func (co *coalescer) forget(c *call) bool {
	co.mu.Lock()
	defer co.mu.Unlock()
	if c.begun {
		return false
	}
	c.left = true
	return true
}

// lead runs calls together, if there are any.
func (co *coalescer) lead(l lead) {
	if l.run == nil {
		return
	}
	defer co.leave(l.run)
	for _, c := range l.together {
		c.alone = true // until it has been run
	}
	defer func() {
		for _, c := range l.together[1:] { // the first leads
			c.ready <- lead{}
		}
	}()
	if co.runTogether(l.together) != nil {
		co.setAside(l.together...)
		return
	}
	for _, c := range l.together {
		c.alone = !c.op.Settled()
	}
}

// runTogether runs the calls in one transaction, which belongs to no single one of their
// requests. It may take a second, or half of the time that the least patient of them has
// left if that is less, the rest being for each by itself; but 0.2 s in any case, so that one
// with next to none left, as under a load that is too much, does not take that of all
// others. Each statement may take half of that at most, so that it is the server that ends
// what takes too long, and says that nothing has happened.
func (co *coalescer) runTogether(together []*call) error {
	patience := maxPatience
	ops := make([]db.KeyOp, len(together))
	for i, c := range together {
		ops[i] = c.op
		if !c.deadline.IsZero() {
			patience = min(patience, time.Until(c.deadline)/2)
		}
	}
	patience = max(patience, 2*minBound)
	co.mu.Lock()
	bound := min(co.bound(), patience/2)
	co.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	statements, err := db.Together(ops, bound)
	if err != nil {
		return err
	}
	return co.run(ctx, statements)
}

func (co *coalescer) runAlone(ctx context.Context, op db.KeyOp) error {
	statements, err := op.Statements()
	if err != nil {
		return err
	}
	return co.run(ctx, statements)
}

func (co *coalescer) run(ctx context.Context, statements []db.Statement) error {
	if co.relaxed {
		statements = slices.Insert(statements, 0, db.RelaxCommit())
	}
	return db.Run(ctx, co.conns, statements...)
}

// isOwnFault reports whether the server has refused a statement for what it is, or for the
// tenant that it is of.
func isOwnFault(err error) bool {
	const classOperatorIntervention = "57" // a timeout, or a shutdown
	var pgErr *pgconn.PgError
	return errors.As(err, &pgErr) && !isSerializationFailure(err) && !strings.HasPrefix(pgErr.Code, classOperatorIntervention)
}

func (co *coalescer) isAside(schema string) bool {
	until, ok := co.aside[schema]
	if ok && time.Now().After(until) {
		delete(co.aside, schema)
		return false
	}
	return ok
}

// setAside has all of the schemas of the calls go by itself until one has succeeded.
func (co *coalescer) setAside(calls ...*call) {
	co.mu.Lock()
	defer co.mu.Unlock()
	if co.aside == nil {
		co.aside = make(map[string]time.Time)
	}
	until := time.Now().Add(asideFor)
	for _, c := range calls {
		if len(co.aside) >= maxAside {
			clear(co.aside)
		}
		co.aside[c.op.Schema()] = until
	}
}

// takeBack has those of a schema go with others again.
func (co *coalescer) takeBack(schema string) {
	co.mu.Lock()
	defer co.mu.Unlock()
	delete(co.aside, schema)
}
