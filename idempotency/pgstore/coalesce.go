package pgstore

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgidem/pgidem/internal/db"
)

// coalescer runs the statements of many requests on few connections: while as many runs
// as it allows are under way, what comes gathers, and the first run that ends makes room
// for all of that at once, in one round trip and one transaction. What comes when there is
// room goes at once and by itself, so nothing ever waits for company.
//
// A statement that fails takes the others of its transaction with it; they are then run
// again, each by itself. The schema that it was of goes by itself for a while.
type coalescer struct {
	pool    *pgxpool.Pool
	relaxed bool // commits do not wait for the disk

	mu      sync.Mutex
	pace    pace
	runs    []*run // under way, but for those that are stuck
	waiting []*call
	stall   *time.Timer          // while calls wait; fires when no run has ended for long
	aside   map[string]time.Time // schemas that go by themselves, until when
}

const (
	maxCoalesced      = 128                    // calls in one transaction
	maxCoalescedBytes = 1 << 20                // of their arguments, more or less
	stalled           = 100 * time.Millisecond // without the end of a run, while calls wait
	asideFor          = 10 * time.Second       // after a failure
	maxAside          = 1024                   // schemas
	maxPatience       = time.Second            // with many together
)

// call is an operation and its way through a coalescer.
type call struct {
	op       db.KeyOp
	schema   string
	bytes    int
	deadline time.Time // zero for none

	ready chan lead // gets what is to be run to who is to run it; nothing to the others, when it has been
	alone bool      // it has had no effect, and is to be run by itself
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

// do does op: by itself, or with others. bytes is about what its arguments take.
func (co *coalescer) do(ctx context.Context, schema string, op db.KeyOp, bytes int) error {
	c := &call{op: op, schema: schema, bytes: bytes}
	c.deadline, _ = ctx.Deadline()
	switch place, r := co.enter(c); place {
	case placeFree:
		defer co.leave(r)
		return co.runAlone(ctx, c)
	case placeAside:
		return co.run(ctx, op.Statements)
	}
	select {
	case l := <-c.ready:
		co.lead(ctx, l)
	case <-ctx.Done():
		if co.forget(c) {
			return ctx.Err()
		}
		co.lead(ctx, <-c.ready)
	}
	if c.alone {
		return co.runAlone(ctx, c)
	}
	return nil
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
	case len(co.aside) > 0 && co.isAside(c.schema):
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
	if len(co.waiting) == 0 {
		return
	}
	n, size := 0, 0
	for n < min(len(co.waiting), maxCoalesced) && (n == 0 || size+co.waiting[n].bytes <= maxCoalescedBytes) {
		size += co.waiting[n].bytes
		n++
	}
	together := slices.Clone(co.waiting[:n])
	co.waiting = slices.Delete(co.waiting, 0, n)
	together[0].ready <- lead{together, co.begin()}
}

// watch watches, while calls wait, that runs come to an end. The lock is held.
func (co *coalescer) watch() {
	switch {
	case len(co.waiting) == 0 && co.stall != nil:
		co.stall.Stop()
	case len(co.waiting) > 0 && co.stall == nil:
		co.stall = time.AfterFunc(stalled, co.unstall)
	case len(co.waiting) > 0:
		co.stall.Reset(stalled)
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

// forget takes a call that nobody has begun to run out of the line.
func (co *coalescer) forget(c *call) bool {
	co.mu.Lock()
	defer co.mu.Unlock()
	i := slices.Index(co.waiting, c)
	if i < 0 {
		return false
	}
	co.waiting = slices.Delete(co.waiting, i, i+1)
	return true
}

// lead runs calls together, if there are any.
func (co *coalescer) lead(ctx context.Context, l lead) {
	if l.run == nil {
		return
	}
	together := l.together
	defer co.leave(l.run)
	for _, c := range together {
		c.alone = true // until it has been run
	}
	defer func() {
		for _, c := range together[1:] { // the first leads
			c.ready <- lead{}
		}
	}()
	if co.runTogether(ctx, together) != nil {
		return
	}
	for _, c := range together {
		c.alone = false
	}
}

// runTogether runs the calls in one transaction. It is not bound to the request of which it
// is called. It may take half of the time that any of them has left, and a second at most:
// the rest is for each by itself, should one of them hold up the others.
func (co *coalescer) runTogether(ctx context.Context, together []*call) error {
	var patience time.Duration
	for _, c := range together {
		if c.deadline.IsZero() {
			patience = maxPatience
			break
		}
		patience = max(patience, min(time.Until(c.deadline)/2, maxPatience))
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), patience)
	defer cancel()
	ops := make([]db.KeyOp, len(together))
	for i, c := range together {
		ops[i] = c.op
	}
	return co.run(ctx, func() ([]db.Statement, error) { return db.Together(ops) })
}

// runAlone runs a call by itself. If that fails, so may others of its schema.
func (co *coalescer) runAlone(ctx context.Context, c *call) error {
	err := co.run(ctx, c.op.Statements)
	if err != nil {
		co.setAside(c)
	}
	return err
}

func (co *coalescer) run(ctx context.Context, of func() ([]db.Statement, error)) error {
	statements, err := of()
	if err != nil {
		return err
	}
	if co.relaxed {
		statements = slices.Insert(statements, 0, db.RelaxCommit())
	}
	return db.Run(ctx, co.pool, statements...)
}

func (co *coalescer) isAside(schema string) bool {
	until, ok := co.aside[schema]
	if ok && time.Now().After(until) {
		delete(co.aside, schema)
		return false
	}
	return ok
}

func (co *coalescer) setAside(c *call) {
	co.mu.Lock()
	defer co.mu.Unlock()
	if len(co.aside) >= maxAside {
		clear(co.aside)
	}
	if co.aside == nil {
		co.aside = make(map[string]time.Time)
	}
	co.aside[c.schema] = time.Now().Add(asideFor)
}
