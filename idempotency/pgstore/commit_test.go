package pgstore_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgidem/pgidem/idempotency"
	"github.com/pgidem/pgidem/internal/pgtest"
	"github.com/pgidem/pgidem/internal/storetest"
)

// cutter breaks connections at the moment in which a COMMIT is sent.
type cutter struct {
	forward bool         // the COMMIT reaches the server, and its answer does not arrive
	cuts    atomic.Int64 // how many more connections to break
	down    atomic.Bool  // nobody gets through any more
}

func (c *cutter) dial(real func(context.Context, string, string) (net.Conn, error)) func(context.Context, string, string) (net.Conn, error) {
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		if c.down.Load() {
			return nil, fmt.Errorf("cut off on purpose")
		}
		conn, err := real(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		return &cutConn{Conn: conn, cutter: c}, nil
	}
}

type cutConn struct {
	net.Conn
	cutter *cutter
	cut    atomic.Bool
}

// cancelRequest is the code of PostgreSQL's CancelRequest message.
const cancelRequest = 80877102

func (c *cutConn) Write(p []byte) (int, error) {
	// In the extended protocol COMMIT is a Parse or the Bind of a statement that was
	// parsed before; the tests' pool sends the text each time.
	if len(p) == 16 && binary.BigEndian.Uint32(p[4:]) == cancelRequest {
		return 0, io.ErrClosedPipe // by this pgx would end a commit that is still happening
	}
	if bytes.Contains(p, []byte("COMMIT")) && c.cutter.cuts.Add(-1) >= 0 {
		c.cut.Store(true)
		if !c.cutter.forward {
			c.Close()
			return len(p), nil
		}
		n, err := c.Conn.Write(p)
		return n, err
	}
	return c.Conn.Write(p)
}

func (c *cutConn) Read(p []byte) (int, error) {
	if c.cut.Load() {
		c.Close()
		return 0, io.ErrUnexpectedEOF
	}
	return c.Conn.Read(p)
}

// cutPool returns a pool over connections that the cutter breaks.
func cutPool(t *testing.T, pool *pgxpool.Pool, c *cutter) *pgxpool.Pool {
	t.Helper()
	config := pool.Config()
	config.ConnConfig.DialFunc = c.dial(config.ConnConfig.DialFunc)
	config.ConnConfig.StatementCacheCapacity = 0
	config.ConnConfig.DefaultQueryExecMode = pgx.QueryExecModeExec // which sends the text each time
	cut, err := pgxpool.NewWithConfig(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cut.Close)
	return cut
}

// TestCommitWhoseAnswerWasLost: what became of it is found out, and never guessed.
func TestCommitWhoseAnswerWasLost(t *testing.T) {
	t.Parallel()
	pool := pgtest.NewPool(t)
	handle := func(w http.ResponseWriter, r *http.Request) {
		if pay(t, w, r) != nil {
			w.WriteHeader(http.StatusCreated)
			fmt.Fprint(w, "paid")
		}
	}
	for name, c := range map[string]struct {
		forward bool
		slow    bool // the server is still at it when it is asked
		status  int
		body    string
		want    string // decisions
	}{
		"it happened":        {true, false, http.StatusCreated, "paid", "executed replayed"},
		"it is happening":    {true, true, http.StatusCreated, "paid", "executed replayed"},
		"it did not arrive":  {false, false, http.StatusServiceUnavailable, "not_committed", "rolled_back executed"},
		"it was not to come": {false, true, http.StatusServiceUnavailable, "not_committed", "rolled_back executed"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cutter := &cutter{forward: c.forward}
			b := newBank(t, pool, handle, nil)
			if c.slow {
				b.exec(t, `CREATE FUNCTION %[1]s.slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(0.5); RETURN NULL; END $$`)
				b.exec(t, `CREATE CONSTRAINT TRIGGER slow AFTER INSERT ON %[1]s.payments DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION %[1]s.slow()`)
			}
			b.serve(t, storetest.NewStore(t, cutPool(t, pool, cutter)).Transactional(), handle)
			cutter.cuts.Store(1)
			b.want(t, "k", c.status, c.body)
			if cutter.cuts.Load() > 0 {
				t.Fatal("no connection was cut")
			}
			b.want(t, "k", http.StatusCreated, "paid")
			b.wantPayments(t, "k", 1)
			if got := b.decisions(); got != c.want {
				t.Errorf("decisions %s, want %s", got, c.want)
			}
		})
	}
}

// TestCommitThatCannotBeFoundOut: nobody is told of a payment that may not have been
// made; the retry is told the truth.
func TestCommitThatCannotBeFoundOut(t *testing.T) {
	t.Parallel()
	pool := pgtest.NewPool(t)
	cutter := &cutter{forward: true}
	handle := func(w http.ResponseWriter, r *http.Request) {
		if pay(t, w, r) != nil {
			cutter.down.Store(true)
			w.WriteHeader(http.StatusCreated)
			fmt.Fprint(w, "paid")
		}
	}
	b := newBank(t, pool, handle, nil)
	b.serve(t, storetest.NewStore(t, cutPool(t, pool, cutter)).Transactional(), handle, idempotency.WithStoreTimeout(600*time.Millisecond))
	cutter.cuts.Store(1)
	b.want(t, "k", http.StatusServiceUnavailable, "not_committed")
	cutter.down.Store(false)
	b.want(t, "k", http.StatusCreated, "paid")
	b.wantPayments(t, "k", 1)
	if got := b.decisions(); got != "complete_failed replayed" {
		t.Errorf("decisions %s", got)
	}
}
