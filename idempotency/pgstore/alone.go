package pgstore

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgidem/pgidem/internal/db"
)

// maxPreparing is how long a statement without a turn may take to be prepared, for which the
// server has no bound of its own yet.
const maxPreparing = time.Second / 2

// errStuck says that a statement without a turn has had no effect and is to wait for one.
var errStuck = errors.New("pgstore: a statement takes long; it waits for its turn")

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
	err = db.Run(ctx, newBounded(ctx, conn), slices.Insert(list, 0, db.Bound(t.bound()))...)
	t.all.mu.Lock()
	defer t.all.mu.Unlock()
	switch {
	case err == nil:
		t.unstick(k)
	case ctx.Err() == nil && isCanceled(err):
		t.line(k).stuck = true
		return errStuck
	}
	return err
}

// boundedConn is a connection on which the server is asked to end what is not prepared in
// time, and so not sent. It is good for one batch.
type boundedConn struct {
	*pgxpool.Conn
	late  *time.Timer
	asked chan struct{} // closed when the server has been asked
}

func newBounded(ctx context.Context, conn *pgxpool.Conn) boundedConn {
	asked := make(chan struct{})
	late := time.AfterFunc(maxPreparing, func() {
		defer close(asked)
		ctx, cancel := context.WithTimeout(ctx, cancelPatience)
		defer cancel()
		_ = conn.Conn().PgConn().CancelRequest(ctx) // or else its caller waits as long as it likes
	})
	return boundedConn{conn, late, asked}
}

// SendBatch implements [db.Batcher].
func (c boundedConn) SendBatch(ctx context.Context, b *pgx.Batch) pgx.BatchResults {
	results := c.Conn.SendBatch(ctx, b)
	if !c.late.Stop() {
		<-c.asked // so that it ends nothing that comes later on the connection
	}
	return results
}

// isCanceled reports whether the server has ended a statement, which so had no effect.
func isCanceled(err error) bool {
	const queryCanceled = "57014"
	var pgErr *pgconn.PgError
	return errors.As(err, &pgErr) && pgErr.Code == queryCanceled
}
