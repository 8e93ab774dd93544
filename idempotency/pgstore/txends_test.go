package pgstore_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgidem/pgidem/idempotency"
	"github.com/pgidem/pgidem/internal/pgtest"
	"github.com/pgidem/pgidem/internal/storetest"
)

// payments counts what is committed for a key, whether or not there is a record of it.
func (b *bank) payments(t *testing.T, key string) (n int) {
	t.Helper()
	if err := b.pool.QueryRow(t.Context(), `SELECT count(*) FROM `+b.schema+`.payments WHERE key = $1`, key).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

// lastEvent waits for the event of the n-th request, which comes after its answer.
func (b *bank) lastEvent(t *testing.T, n int) (last idempotency.Event) {
	t.Helper()
	eventually(t, "the event", func() bool {
		b.mu.Lock()
		defer b.mu.Unlock()
		if len(b.events) >= n {
			last = b.events[n-1]
		}
		return len(b.events) >= n
	})
	return last
}

// TestHandlerThatEndsItsTransaction: what a handler has committed by itself stands without
// a record. Whatever the handler answers, it is not run again, and the operator is told.
func TestHandlerThatEndsItsTransaction(t *testing.T) {
	t.Parallel()
	server := pgtest.NewServer(t, pgtest.WithParameter("max_prepared_transactions", "50"))
	url, _, err := server.CreateDatabase(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	pool, err := pgxpool.New(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	const conflict = `DO $$ BEGIN RAISE SQLSTATE '40001'; END $$`
	for _, c := range []struct {
		statements string
		left       int  // payments, after the request
		held       bool // and its key is
	}{
		{`COMMIT`, 1, false},
		{`COMMIT AND CHAIN`, 1, false},
		{`COMMIT | BEGIN`, 1, false},
		{`COMMIT AND CHAIN | ` + conflict, 1, false},
		{`COMMIT AND CHAIN | SELECT 1/0`, 1, false},
		{`ROLLBACK`, 0, false},
		{`ROLLBACK AND CHAIN`, 0, false},
		{`SAVEPOINT own | RELEASE own | COMMIT AND CHAIN | SAVEPOINT own`, 1, false},
		{`PREPARE TRANSACTION`, 0, true},
	} {
		for _, answer := range []string{"201", "409", "502", "panic"} {
			t.Run(c.statements+" and "+answer, func(t *testing.T) {
				t.Parallel()
				prepared := "'of the handler that answers " + answer + "'" // their names are the server's
				var runs atomic.Int64
				b := newBank(t, pool, func(w http.ResponseWriter, r *http.Request) {
					tx := pay(t, w, r)
					if runs.Add(1) > 1 {
						w.WriteHeader(http.StatusCreated)
						return
					}
					for sql := range strings.SplitSeq(c.statements, " | ") {
						if sql == "PREPARE TRANSACTION" {
							sql += " " + prepared
						}
						var pgErr *pgconn.PgError
						if _, err := tx.Exec(r.Context(), sql); errors.As(err, &pgErr) && pgErr.Code != "40001" && pgErr.Code != "22012" {
							t.Errorf("%s: %v", sql, err)
						}
					}
					switch answer {
					case "201":
						w.WriteHeader(http.StatusCreated)
					case "409":
						w.WriteHeader(http.StatusConflict)
					case "502":
						w.WriteHeader(http.StatusBadGateway)
					case "panic":
						panic(http.ErrAbortHandler)
					}
				}, nil)
				b.client.Transport.(*http.Transport).DisableKeepAlives = true // Go's client repeats by itself on a kept one
				status, body, err := post(t.Context(), b.client, b.url, "k")
				switch {
				case answer == "panic" && err != nil, answer == "502" && status == http.StatusBadGateway:
				case status == http.StatusServiceUnavailable && strings.Contains(body, "not_committed"):
				default:
					t.Errorf("%d %s, %v", status, body, err)
				}
				if n := b.payments(t, "k"); n != c.left || runs.Load() != 1 {
					t.Errorf("%d payments by %d runs, want %d by 1", n, runs.Load(), c.left)
				}
				if e := b.lastEvent(t, 1); e.Decision != idempotency.DecisionCompleteFailed || !errors.Is(e.Err, idempotency.ErrHandlerEnded) {
					t.Errorf("event %+v", e)
				}
				if c.held {
					b.want(t, "k", http.StatusConflict, "in_flight")
					if _, err := pool.Exec(t.Context(), "ROLLBACK PREPARED "+prepared); err != nil {
						t.Error(err)
					}
				}
				b.want(t, "k", http.StatusCreated, "")
				if n := b.payments(t, "k"); n != c.left+1 {
					t.Errorf("%d payments after the retry, want %d", n, c.left+1)
				}
			})
		}
	}
}

// TestSavepointsOfTheHandler: they are its own affair, however it leaves them.
func TestSavepointsOfTheHandler(t *testing.T) {
	t.Parallel()
	pool := pgtest.NewPool(t)
	b := newBank(t, pool, func(w http.ResponseWriter, r *http.Request) {
		ctx, tx := r.Context(), pay(t, w, r)
		key, _ := idempotency.Key(ctx)
		for sql := range strings.SplitSeq(key, "; ") {
			if _, err := tx.Exec(ctx, sql); err != nil && !strings.Contains(sql, "1/0") {
				t.Errorf("%s: %v", sql, err)
			}
		}
		if key == "SELECT 1" {
			if _, err := tx.Begin(ctx); err != nil { // left open
				t.Error(err)
			}
		}
		w.WriteHeader(http.StatusCreated)
	}, nil)
	for _, key := range []string{
		"SELECT 1",
		"SAVEPOINT a",
		"SAVEPOINT a; SAVEPOINT b; RELEASE a",
		"SAVEPOINT a; SELECT 1/0; ROLLBACK TO a",
		"SAVEPOINT a; SAVEPOINT a; ROLLBACK TO a; RELEASE a",
	} {
		b.want(t, key, http.StatusCreated, "")
		b.wantPayments(t, key, 1)
	}
	b.want(t, "SAVEPOINT a; SELECT 1/0", http.StatusServiceUnavailable, "not_committed")
	b.wantPayments(t, "SAVEPOINT a; SELECT 1/0", 0)
}

// TestConnectionThatWasLent: what a handler can keep beyond its end, past the lock, leads
// to nobody else's transaction.
func TestConnectionThatWasLent(t *testing.T) {
	t.Parallel()
	pool := pgtest.NewPool(t)
	config := pool.Config()
	config.MaxConns = 1 // so that the next request would get the same one
	small, err := pgxpool.NewWithConfig(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(small.Close)
	var tx pgx.Tx
	var conn *pgx.Conn
	var objects *pgx.LargeObjects
	pids := map[string]uint32{}
	handle := func(w http.ResponseWriter, r *http.Request) {
		ctx := r.Context()
		tx = pay(t, w, r)
		key, _ := idempotency.Key(ctx)
		switch key {
		case "conn":
			conn = tx.Conn()
		case "rows":
			rows, err := tx.Query(ctx, `SELECT 1`)
			if err != nil {
				t.Error(err)
			}
			rows.Close()
			conn = rows.Conn()
		case "large objects":
			o := tx.LargeObjects()
			objects = &o
		case "batch":
			var batch pgx.Batch
			batch.BeginTx(pgx.TxOptions{})
			results := tx.SendBatch(ctx, &batch)
			if err := results.Tx().Commit(ctx); !errors.Is(err, pgx.ErrTxClosed) {
				t.Errorf("Commit of a batch's transaction within the transaction: %v", err)
			}
			results.Close()
		}
		var pid uint32
		if err := tx.QueryRow(ctx, `SELECT pg_catalog.pg_backend_pid()`).Scan(&pid); err != nil {
			t.Error(err)
		}
		pids[key] = pid
	}
	b := newBank(t, pool, handle, nil)
	b.serve(t, storetest.NewStore(t, small).Transactional(), handle)
	ctx := t.Context()
	last := ""
	for _, key := range []string{"plain", "batch", "conn", "rows", "large objects"} {
		conn, objects = nil, nil
		b.want(t, key, http.StatusOK, "")
		b.wantPayments(t, key, 1)
		if conn != nil && !conn.IsClosed() {
			t.Errorf("%s: the connection is open", key)
		}
		if objects != nil {
			if _, err := objects.Create(ctx, 0); err == nil {
				t.Errorf("%s: they serve after the handler's end", key)
			}
		}
		if c := tx.Conn(); c != nil {
			t.Errorf("%s: Conn after the handler's end", key)
		}
		o := tx.LargeObjects()
		if _, err := o.Create(ctx, 0); !errors.Is(err, pgx.ErrTxClosed) {
			t.Errorf("%s: LargeObjects after the handler's end: %v", key, err)
		}
		if lent := last == "conn" || last == "rows" || last == "large objects"; last != "" && (pids[key] != pids[last]) != lent {
			t.Errorf("%s after %s: server processes %d and %d", key, last, pids[key], pids[last])
		}
		last = key
	}
}

// TestPanicAfterAConflict: a handler that panics at whatever fails is not run again, also
// where it met others; the panic goes on, and a retry runs it.
func TestPanicAfterAConflict(t *testing.T) {
	t.Parallel()
	pool := pgtest.NewPool(t)
	runs := 0
	b := newBank(t, pool, func(w http.ResponseWriter, r *http.Request) {
		tx := pay(t, w, r)
		if runs++; runs == 1 {
			if _, err := tx.Exec(r.Context(), `DO $$ BEGIN RAISE SQLSTATE '40001'; END $$`); err != nil {
				panic(http.ErrAbortHandler) // which net/http does not log
			}
		}
		w.WriteHeader(http.StatusCreated)
	}, nil)
	b.client.Transport.(*http.Transport).DisableKeepAlives = true // Go's client repeats by itself on a kept one
	if status, _, err := post(t.Context(), b.client, b.url, "k"); err == nil {
		t.Errorf("a handler that panicked was answered with %d", status)
	}
	b.wantPayments(t, "k", 0)
	b.want(t, "k", http.StatusCreated, "")
	b.wantPayments(t, "k", 1)
	if got := b.decisions(); runs != 2 || got != "panicked executed" {
		t.Errorf("%d runs, decisions %s", runs, got)
	}
}

// TestTenantsWithTypesOfTheirOwn: a statement that one tenant has prepared is not another's
// where what its names mean differs; where nothing is cached there is nothing to confuse.
func TestTenantsWithTypesOfTheirOwn(t *testing.T) {
	t.Parallel()
	pool := pgtest.NewPool(t)
	handle := func(w http.ResponseWriter, r *http.Request) {
		ctx, tx := r.Context(), pay(t, w, r)
		var state, note string
		err := tx.QueryRow(ctx, `INSERT INTO orders (state) VALUES ($1) RETURNING state`, "paid").Scan(&state)
		if err == nil {
			err = tx.QueryRow(ctx, `SELECT * FROM notes`).Scan(&note)
		}
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		fmt.Fprint(w, state, " ", note)
	}
	for name, c := range map[string]struct {
		mode pgx.QueryExecMode
		fine bool
	}{
		"statements cached":   {pgx.QueryExecModeCacheStatement, false},
		"descriptions cached": {pgx.QueryExecModeCacheDescribe, false},
		"described each time": {pgx.QueryExecModeDescribeExec, true},
		"exec":                {pgx.QueryExecModeExec, true},
		"simple protocol":     {pgx.QueryExecModeSimpleProtocol, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			config := pool.Config()
			config.MaxConns = 1
			config.ConnConfig.DefaultQueryExecMode = c.mode
			own, err := pgxpool.NewWithConfig(t.Context(), config)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(own.Close)
			refused := 0
			for tenant, column := range []string{"text", "varchar(50)"} {
				b := newBank(t, pool, handle, nil)
				b.exec(t, `CREATE TYPE %s.order_state AS ENUM ('new', 'paid')`)
				b.exec(t, `CREATE TABLE %[1]s.orders (state %[1]s.order_state NOT NULL)`)
				b.exec(t, `CREATE TABLE %s.notes (note `+column+`)`)
				b.exec(t, `INSERT INTO %s.notes VALUES ('thanks')`)
				b.serve(t, storetest.NewStore(t, own).Transactional(), handle)
				status, body := b.send(t, "k")
				switch {
				case status == http.StatusOK && body == "paid thanks":
				case status == http.StatusInternalServerError && tenant == 1:
					t.Log(body)
					refused++
				default:
					t.Errorf("tenant %d: %d %s", tenant, status, body)
				}
			}
			if fine := refused == 0; fine != c.fine {
				t.Errorf("fine: %t, and the documentation says the opposite", fine)
			}
		})
	}
}

// TestSlowCommit: a commit may take longer than a try of anything else.
func TestSlowCommit(t *testing.T) {
	t.Parallel()
	pool := pgtest.NewPool(t)
	const storeTimeout = 6 * time.Second
	handle := func(w http.ResponseWriter, r *http.Request) {
		if pay(t, w, r) != nil {
			w.WriteHeader(http.StatusCreated)
		}
	}
	for name, c := range map[string]struct {
		takes     time.Duration
		decisions string
		status    int
	}{
		"but in time": {storeTimeout * 4 / 9, "executed", http.StatusCreated},
		// Or complete_failed, where a busy server takes long to say so.
		"and not to wait on": {time.Minute, "rolled_back complete_failed", http.StatusServiceUnavailable},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBank(t, pool, handle, nil, idempotency.WithStoreTimeout(storeTimeout))
			b.exec(t, fmt.Sprintf(`CREATE FUNCTION %%[1]s.slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_catalog.pg_sleep(%f); RETURN NULL; END $$`, c.takes.Seconds()))
			b.exec(t, `CREATE CONSTRAINT TRIGGER slow AFTER INSERT ON %[1]s.payments DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION %[1]s.slow()`)
			b.want(t, "k", c.status, "")
			if got := b.decisions(); !slices.Contains(strings.Fields(c.decisions), got) {
				t.Errorf("decisions %s, want %s", got, c.decisions)
			}
			if c.status == http.StatusCreated {
				b.wantPayments(t, "k", 1)
			} else {
				b.wantPayments(t, "k", 0)
			}
		})
	}
}

// TestNestedTransactionsOnAPoolOfOne: the inner one is refused and does not hang; the
// outer one goes on.
func TestNestedTransactionsOnAPoolOfOne(t *testing.T) {
	t.Parallel()
	pool := pgtest.NewPool(t)
	config := pool.Config()
	config.MaxConns = 1
	small, err := pgxpool.NewWithConfig(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(small.Close)
	store := storetest.NewStore(t, small).Transactional()
	const storeTimeout = 400 * time.Millisecond
	var inner error
	handle := func(w http.ResponseWriter, r *http.Request) {
		ctx := r.Context()
		pay(t, w, r)
		org, _ := idempotency.FromContext(ctx)
		_, _, inner = idempotency.Do(ctx, store, org, "inner", "", func(context.Context) (int, error) {
			t.Error("it ran without a connection")
			return 0, nil
		}, idempotency.WithStoreTimeout(storeTimeout), idempotency.WithFailOpen())
		w.WriteHeader(http.StatusCreated)
	}
	b := newBank(t, pool, handle, nil)
	b.serve(t, store, handle, idempotency.WithStoreTimeout(storeTimeout))
	b.want(t, "outer", http.StatusCreated, "")
	b.wantPayments(t, "outer", 1)
	if !errors.Is(inner, idempotency.ErrStoreUnavailable) || !strings.Contains(fmt.Sprint(errors.Unwrap(inner), inner), "connections of the pool") {
		t.Errorf("the inner one: %v", inner)
	}
}
