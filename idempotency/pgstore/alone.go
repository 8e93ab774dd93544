package pgstore

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgidem/pgidem/internal/db"
)

// turns bounds how many connections of a home are held by what is run by itself there and
// may be waiting for a lock on a tenant's table. Nobody can tell of a statement whether it
// will, so only what has a turn may take as long as it takes: a schema has some of the turns
// of its home, and all schemas together leave connections for others. What finds no turn
// free is run all the same, at once, but has the server end it when it takes long; only
// then it waits for a turn, and with it all that is of its kind.
type turns struct {
	all   *allTurns
	conns conns
	most  int                  // of the home
	each  int                  // of a schema
	bound func() time.Duration // that a statement may take without a turn

	// Under the lock of all:
	held  int
	of    map[string]int // by schema
	kinds map[kind]int   // by kind
	lines map[kind]*line
}

// allTurns are those of a server: what finds no connection at its home goes to other pools.
type allTurns struct {
	most int

	mu      sync.Mutex
	held    int
	waiting int           // who wait for news
	news    chan struct{} // closed when a turn is given back, or a line is stuck no longer
	trying  bool          // one of those who wait is run without a turn
	tryNext time.Time     // when another one may be
}

// kind is what probably waits for a lock when another of it does: it has a line of its own.
// A lock may let readers through and stop writers.
type kind struct {
	schema string
	what   string
}

// What is run by itself.
const (
	ofLooks  = "look"
	ofKeys   = "key" // claims and completions
	ofOthers = "other"
)

// line is where those of a kind wait for a turn.
type line struct {
	users int
	stuck bool          // the last that was run without a turn has taken too long
	first chan struct{} // has the one who is the first
}

const (
	// maxPreparing is how long a statement without a turn may take to be prepared, for which
	// the server has no bound yet.
	maxPreparing = time.Second / 2
	// triesShare is which part of a connection's time, at most, those who wait take to try
	// whether they still have to.
	triesShare = 4
)

// errStuck says that a statement without a turn has had no effect and is to wait for one.
var errStuck = errors.New("pgstore: a statement takes long; it waits for its turn")

// newAllTurns returns the turns of a server of so many connections.
func newAllTurns(conns int) *allTurns {
	return &allTurns{most: leaving(conns), news: make(chan struct{})}
}

// newTurns returns the turns of a home of so many connections.
func newTurns(all *allTurns, on conns, conns int) *turns {
	return &turns{
		all: all, conns: on, most: leaving(conns), each: min(leaving(conns), max(1, conns/2)),
		of: make(map[string]int), kinds: make(map[kind]int), lines: make(map[kind]*line),
	}
}

// leaving leaves a quarter of the connections to others, and one at least where there is
// more than one.
func leaving(conns int) int { return max(1, conns-max(1, conns/4)) }

// statementsOf makes the statements of a run: they are good for one.
type statementsOf func() ([]db.Statement, error)

// run runs statements by themselves, and has them wait for a turn if they must.
func (t *turns) run(ctx context.Context, k kind, statements statementsOf) error {
	err := t.runAtOnce(ctx, k, statements)
	if errors.Is(err, errStuck) {
		err = t.runInTurn(ctx, k, statements)
	}
	return err
}

// runAtOnce runs statements, with a turn or without. It returns errStuck if they are to wait
// for one, which [turns.runInTurn] does.
func (t *turns) runAtOnce(ctx context.Context, k kind, statements statementsOf) error {
	t.all.mu.Lock()
	stuck := t.isStuck(k)
	has := !stuck && t.take(k)
	t.all.mu.Unlock()
	switch {
	case stuck:
		return errStuck
	case has:
		return t.runWithTurn(ctx, k, statements)
	}
	return t.runWithout(ctx, k, false, statements)
}

// runInTurn runs statements as soon as they get a turn, or it is found out that they need
// none.
func (t *turns) runInTurn(ctx context.Context, k kind, statements statementsOf) error {
	l := t.join(k)
	defer t.leave(k, l)
	for {
		select {
		case l.first <- struct{}{}:
		case <-ctx.Done():
			return ctx.Err()
		}
		has, tries, err := t.await(ctx, k, l)
		switch {
		case err != nil:
			<-l.first
			return err
		case has:
			<-l.first
			return t.runWithTurn(ctx, k, statements)
		}
		began := time.Now()
		err = t.runWithout(ctx, k, true, statements)
		if tries {
			t.all.tried(began)
		}
		<-l.first // which is the next one's then: it may be this one's statement alone that takes long
		if !errors.Is(err, errStuck) {
			return err
		}
	}
}

// begin waits for a turn, which is to be given back.
func (t *turns) begin(ctx context.Context, k kind) error {
	for {
		t.all.mu.Lock()
		if t.take(k) {
			t.all.mu.Unlock()
			return nil
		}
		err := t.all.waitForNews(ctx)
		t.all.mu.Unlock()
		if err != nil {
			return err
		}
	}
}

// await waits until the first of a line has a turn, or is to be run without one.
func (t *turns) await(ctx context.Context, k kind, l *line) (has, tries bool, err error) {
	t.all.mu.Lock()
	defer t.all.mu.Unlock()
	for {
		switch {
		case t.take(k):
			return true, false, nil
		case !l.stuck:
			return false, false, nil
		}
		// While others of the kind have turns it is theirs to find out.
		alone := t.kinds[k] == 0
		if alone && !t.all.trying && time.Now().After(t.all.tryNext) {
			t.all.trying = true
			return false, true, nil
		}
		if err := t.all.waitForNews(ctx); err != nil {
			return false, false, err
		}
	}
}

// waitForNews waits until something has changed, or for a moment. The lock is held, before
// and after it.
func (a *allTurns) waitForNews(ctx context.Context) error {
	news := a.news
	a.waiting++
	a.mu.Unlock()
	moment := time.NewTimer(minBound)
	defer moment.Stop()
	select {
	case <-news:
	case <-moment.C:
	case <-ctx.Done():
	}
	a.mu.Lock()
	a.waiting--
	return ctx.Err()
}

// tried ends a try of one who waits.
func (a *allTurns) tried(began time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.trying, a.tryNext = false, time.Now().Add((triesShare-1)*time.Since(began))
}

// runWithTurn runs statements for as long as they take, and gives the turn back.
func (t *turns) runWithTurn(ctx context.Context, k kind, statements statementsOf) (err error) {
	defer func() { t.give(k, err == nil) }()
	list, err := statements()
	if err != nil {
		return err
	}
	return db.Run(ctx, t.conns, list...)
}

// runWithout runs statements without a turn: the server ends them when they take long. While
// others have found out that they would, it does not begin, unless it is to try that.
func (t *turns) runWithout(ctx context.Context, k kind, tries bool, statements statementsOf) error {
	list, err := statements()
	if err != nil {
		return err
	}
	conn, err := t.conns.Acquire(ctx)
	if err != nil {
		return err
	}
	defer conn.Release()
	if !tries && t.stuck(k) {
		return errStuck
	}
	running, cancel := context.WithCancel(ctx)
	defer cancel()
	preparing := time.AfterFunc(maxPreparing, cancel)
	defer preparing.Stop()
	err = db.Run(running, preparingConn{conn, preparing}, slices.Insert(list, 0, db.Bound(t.bound()))...)
	t.all.mu.Lock()
	defer t.all.mu.Unlock()
	switch {
	case err == nil:
		t.unstick(k)
	case ctx.Err() == nil && tookTooLong(err, running.Err() != nil):
		t.line(k).stuck = true
		return errStuck
	}
	return err
}

// preparingConn is a connection on which the time is up when a batch could not be prepared
// by then.
type preparingConn struct {
	*pgxpool.Conn
	preparing *time.Timer
}

// SendBatch implements [db.Batcher].
func (c preparingConn) SendBatch(ctx context.Context, b *pgx.Batch) pgx.BatchResults {
	defer c.preparing.Stop()
	return c.Conn.SendBatch(ctx, b)
}

// tookTooLong reports whether statements have had no effect because the server ended one,
// or because they could not be prepared in time.
func tookTooLong(err error, givenUp bool) bool {
	const queryCanceled = "57014"
	var pgErr *pgconn.PgError
	var unprepared pgx.ErrPreprocessingBatch
	return errors.As(err, &pgErr) && pgErr.Code == queryCanceled || givenUp && errors.As(err, &unprepared)
}

// take takes a turn if one is free. The lock is held, as in what follows.
func (t *turns) take(k kind) bool {
	if t.all.held >= t.all.most || t.held >= t.most || t.of[k.schema] >= t.each {
		return false
	}
	t.all.held++
	t.held++
	t.of[k.schema]++
	t.kinds[k]++
	return true
}

func (t *turns) isStuck(k kind) bool {
	l := t.lines[k]
	return l != nil && l.stuck
}

// unstick has what comes of a kind wait no longer.
func (t *turns) unstick(k kind) {
	if l := t.lines[k]; l != nil && l.stuck {
		l.stuck = false
		t.all.tell()
	}
}

// line returns the line of a kind.
func (t *turns) line(k kind) *line {
	l := t.lines[k]
	if l == nil {
		l = &line{first: make(chan struct{}, 1)}
		t.lines[k] = l
	}
	return l
}

// tell tells those who wait that something has changed.
func (a *allTurns) tell() {
	if a.waiting > 0 {
		close(a.news)
		a.news = make(chan struct{})
	}
}

func (t *turns) stuck(k kind) bool {
	t.all.mu.Lock()
	defer t.all.mu.Unlock()
	return t.isStuck(k)
}

// give gives a turn back, after a success or not.
func (t *turns) give(k kind, succeeded bool) {
	t.all.mu.Lock()
	defer t.all.mu.Unlock()
	t.all.held--
	t.held--
	decrease(t.of, k.schema)
	decrease(t.kinds, k)
	if succeeded {
		t.unstick(k)
	}
	t.all.tell()
}

func decrease[K comparable](counts map[K]int, key K) {
	if counts[key]--; counts[key] == 0 {
		delete(counts, key)
	}
}

func (t *turns) join(k kind) *line {
	t.all.mu.Lock()
	defer t.all.mu.Unlock()
	l := t.line(k)
	l.users++
	return l
}

func (t *turns) leave(k kind, l *line) {
	t.all.mu.Lock()
	defer t.all.mu.Unlock()
	if l.users--; l.users == 0 && t.lines[k] == l {
		delete(t.lines, k)
	}
}
