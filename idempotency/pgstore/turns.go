package pgstore

import (
	"context"
	"sync"
	"time"
)

// turns bounds how many connections of a home are held by what is run by itself there and
// may be waiting for a lock on a tenant's table. Nobody can tell of a statement whether it
// will, so only what has a turn may take as long as it takes: a schema has some of the turns
// of its home, and all schemas together leave connections for others. What finds no turn
// free goes with others ([coalescer]) or is run all the same, but has the server end it when
// it takes long; only then it waits for a turn, and with it all that is of its kind.
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

// triesShare is which part of a connection's time, at most, those who wait take to try whether
// they still have to.
const triesShare = 4

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

// hasTurn reports whether there is a free turn for a schema.
func (t *turns) hasTurn(schema string) bool {
	t.all.mu.Lock()
	defer t.all.mu.Unlock()
	return t.hasFree(schema)
}

// hasFree is hasTurn when the lock is held, as in what follows.
func (t *turns) hasFree(schema string) bool {
	return t.all.held < t.all.most && t.held < t.most && t.of[schema] < t.each
}

// take takes a turn if one is free.
func (t *turns) take(k kind) bool {
	if !t.hasFree(k.schema) {
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
