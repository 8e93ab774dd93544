package faults_test

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgidem/pgidem/chaos/faults"
	"github.com/pgidem/pgidem/internal/pgtest"
)

// TestProxy: each fault does what it says, at its moment, to a statement that was prepared
// before as to any other.
func TestProxy(t *testing.T) {
	t.Parallel()
	pool := pgtest.NewPool(t)
	if _, err := pool.Exec(t.Context(), `CREATE SCHEMA s; CREATE TABLE s.marks (mark text)`); err != nil {
		t.Fatal(err)
	}
	const insert = `INSERT INTO s.marks VALUES ($1)`
	for _, c := range []struct {
		kind     faults.Kind
		moment   faults.Moment
		length   time.Duration
		arrives  bool // at the server, before it is healed
		answered bool // the client hears of it, before it is healed
		late     bool // it arrives when it is healed
	}{
		{faults.Watch, faults.Before, 0, true, true, false},
		{faults.Cut, faults.Before, 0, false, false, false},
		{faults.Cut, faults.Answered, 0, true, false, false},
		{faults.Reset, faults.Before, 0, false, false, false},
		{faults.Reset, faults.Answered, 0, true, false, false},
		{faults.HalfClose, faults.Before, 0, false, false, false},
		{faults.HalfClose, faults.Answered, 0, true, false, false},
		{faults.Delay, faults.Before, 50 * time.Millisecond, true, true, false},
		{faults.Delay, faults.Answered, 50 * time.Millisecond, true, true, false},
		{faults.Delay, faults.Sent, 50 * time.Millisecond, true, true, false},
		{faults.BlackHole, faults.Before, 0, false, false, true},
		{faults.BlackHole, faults.Sent, 0, true, false, false},
		{faults.BlackHole, faults.Answered, 0, true, false, false},
		{faults.BlackHoleRequests, faults.Before, 0, false, false, true},
		{faults.BlackHoleRequests, faults.Sent, 0, true, true, false},
		{faults.BlackHoleAnswers, faults.Before, 0, true, false, false},
		{faults.BlackHoleAnswers, faults.Answered, 0, true, false, false},
	} {
		mark := fmt.Sprint(c.kind, " ", c.moment)
		t.Run(mark, func(t *testing.T) {
			t.Parallel()
			proxy, err := faults.NewProxy(pool.Config())
			if err != nil {
				t.Fatal(err)
			}
			defer proxy.Close()
			conn, err := pgx.ConnectConfig(t.Context(), proxy.Through(pool.Config()).ConnConfig)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := conn.Exec(t.Context(), insert, "before "+mark); err != nil { // prepares it
				t.Fatal(err)
			}
			arrived := func() bool {
				var n int
				if err := pool.QueryRow(t.Context(), `SELECT count(*) FROM s.marks WHERE mark = $1`, mark).Scan(&n); err != nil {
					t.Fatal(err)
				}
				return n == 1
			}
			var done atomic.Int64
			strike := proxy.Inject(faults.Fault{Statement: faults.Text("insert into s.marks"), Moment: c.moment, Kind: c.kind, For: c.length, Do: func() { done.Add(1) }})
			limit := patience // which a client has that is to be answered
			if c.kind >= faults.BlackHole && !c.answered {
				limit = 300 * time.Millisecond
			}
			ctx, cancel := context.WithTimeout(t.Context(), limit)
			defer cancel()
			began := time.Now()
			_, err = conn.Exec(ctx, insert, mark)
			if (err == nil) != c.answered {
				t.Errorf("the client: %v", err)
			}
			if c.length > 0 && time.Since(began) < c.length {
				t.Error("it was not held up")
			}
			if c.arrives {
				eventually(t, "the statement to arrive", arrived)
			} else if arrived() {
				t.Error("it arrived")
			}
			eventually(t, "the fault to strike", func() bool { return strike.Count() == 1 && done.Load() == 1 })
			if tags := fmt.Sprint(strike.Tags()); c.moment == faults.Answered && tags != "[INSERT 0 1]" {
				t.Errorf("the server had answered %s", tags)
			}
			proxy.Heal()
			if c.late {
				eventually(t, "the statement to arrive late", arrived)
			}
			closing, cancelClosing := context.WithTimeout(context.Background(), patience)
			defer cancelClosing()
			_ = conn.Close(closing)
			<-conn.PgConn().CleanupDone()
		})
	}
}

// newProxy starts a proxy to the database of the pool, and returns it with what makes a
// connection through it.
func newProxy(t *testing.T, pool *pgxpool.Pool) (proxy *faults.Proxy, connect func() *pgx.Conn) {
	t.Helper()
	proxy, err := faults.NewProxy(pool.Config())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(proxy.Close)
	return proxy, func() *pgx.Conn {
		conn, err := pgx.ConnectConfig(t.Context(), proxy.Through(pool.Config()).ConnConfig)
		if err != nil {
			t.Fatal(err)
		}
		return conn
	}
}

// TestProxyToAll: what happens to all connections alike.
func TestProxyToAll(t *testing.T) {
	t.Parallel()
	pool := pgtest.NewPool(t)
	proxy, connect := newProxy(t, pool)

	conn := connect()
	began := time.Now()
	proxy.DelayAll(50 * time.Millisecond)
	if _, err := conn.Exec(t.Context(), `SELECT 1`); err != nil || time.Since(began) < 100*time.Millisecond {
		t.Errorf("delayed both ways: %v after %s", err, time.Since(began))
	}
	proxy.DelayAll(0)

	proxy.HoldAll(0)
	held := make(chan error, 1)
	go func() {
		_, err := conn.Exec(t.Context(), `SELECT 1`)
		held <- err
	}()
	short, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := pgx.ConnectConfig(short, proxy.Through(pool.Config()).ConnConfig); err == nil {
		t.Error("a connection through a black hole")
	}
	select {
	case err := <-held:
		t.Errorf("an answer through a black hole: %v", err)
	default:
	}
	proxy.Heal()
	if err := <-held; err != nil {
		t.Errorf("after it was healed: %v", err)
	}

	// A request to cancel reaches the server, unless it is dropped.
	for _, drop := range []bool{true, false} {
		proxy.DropCancels(drop)
		sleeper := connect()
		pid := sleeper.PgConn().PID()
		short, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		if _, err := sleeper.Exec(short, `SELECT pg_sleep(20)`); err == nil {
			t.Error("no timeout")
		}
		sleeps := func() bool {
			var n int
			if err := pool.QueryRow(t.Context(), `SELECT count(*) FROM pg_stat_activity WHERE pid = $1 AND state = 'active'`, pid).Scan(&n); err != nil {
				t.Fatal(err)
			}
			return n == 1
		}
		eventually(t, "the request to cancel", func() bool { return proxy.Stats().Cancels > 0 && (proxy.Stats().CancelsDropped > 0) })
		if drop {
			if !sleeps() {
				t.Error("cancelled by a request that was dropped")
			}
			if _, err := pool.Exec(t.Context(), `SELECT pg_terminate_backend($1)`, int32(pid)); err != nil {
				t.Fatal(err)
			}
		}
		eventually(t, "the statement to end", func() bool { return !sleeps() })
		<-sleeper.PgConn().CleanupDone()
	}
	if stats := proxy.Stats(); stats.Cancels != 2 || stats.CancelsDropped != 1 {
		t.Errorf("%+v", stats)
	}

	proxy.CutAll()
	if _, err := conn.Exec(t.Context(), `SELECT 1`); err == nil {
		t.Error("an answer over a connection that was cut")
	}
	<-conn.PgConn().CleanupDone()
	conn = connect()
	if _, err := conn.Exec(t.Context(), `SELECT 1`); err != nil {
		t.Errorf("a new connection: %v", err)
	}
	_ = conn.Close(context.Background())
}

// TestStrikeIsNotLost: a fault whose connection comes to its end before it strikes, or which
// would strike together with another, strikes at a later statement.
func TestStrikeIsNotLost(t *testing.T) {
	t.Parallel()
	pool := pgtest.NewPool(t)
	proxy, connect := newProxy(t, pool)
	fault := faults.Fault{Statement: faults.Text("SELECT pg_sleep"), Moment: faults.Answered, Kind: faults.Cut}
	one := proxy.Inject(fault)
	conn := connect()
	pid := conn.PgConn().PID()
	ended := make(chan error, 1)
	go func() {
		_, err := conn.Exec(context.Background(), `SELECT pg_sleep(60)`)
		ended <- err
	}()
	eventually(t, "the statement to run", func() bool {
		var n int
		if err := pool.QueryRow(t.Context(), `SELECT count(*) FROM pg_stat_activity WHERE pid = $1 AND state = 'active' AND query LIKE '%sleep%'`, pid).Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n == 1
	})
	proxy.CutAll()
	if err := <-ended; err == nil {
		t.Error("an answer over a connection that was cut")
	}
	if one.Count() != 0 {
		t.Errorf("it struck %d times before there was an answer", one.Count())
	}
	if _, err := pool.Exec(t.Context(), `SELECT pg_terminate_backend($1)`, int32(pid)); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the fault to wait for another statement", func() bool {
		_, err := connect().Exec(context.Background(), `SELECT pg_sleep(0)`)
		return err != nil
	})

	two, three := proxy.Inject(fault), proxy.Inject(fault)
	for range 2 {
		if err := connect().PgConn().Exec(context.Background(), `SELECT pg_sleep(0)`).Close(); err == nil {
			t.Error("an answer before which the connection was to be cut")
		}
	}
	if one.Count() != 1 || two.Count() != 1 || three.Count() != 1 {
		t.Errorf("they struck %d, %d and %d times", one.Count(), two.Count(), three.Count())
	}
	two, three = proxy.Inject(fault), proxy.Inject(fault)
	for range 2 {
		batch := new(pgx.Batch)
		batch.Queue(`SELECT pg_sleep(0), 1`)
		batch.Queue(`SELECT pg_sleep(0), 2`)
		if err := connect().SendBatch(context.Background(), batch).Close(); err == nil {
			t.Error("an answer before which the connection was to be cut")
		}
	}
	if two.Count() != 1 || three.Count() != 1 {
		t.Errorf("in one round trip they struck %d and %d times", two.Count(), three.Count())
	}
}
