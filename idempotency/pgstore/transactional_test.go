package pgstore_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgidem/pgidem/idempotency"
	"github.com/pgidem/pgidem/idempotency/pgstore"
	"github.com/pgidem/pgidem/internal/pgtest"
	"github.com/pgidem/pgidem/internal/storetest"
)

// bank is a service of one tenant whose handlers run in transactions.
type bank struct {
	pool   *pgxpool.Pool
	org    uuid.UUID
	schema string
	url    string
	client *http.Client

	mu     sync.Mutex
	events []idempotency.Event
}

// newBank serves handle, under a transactional store over the pool, with a table of
// payments in the tenant's schema.
func newBank(t *testing.T, pool *pgxpool.Pool, handle http.HandlerFunc, txOpts []pgstore.TxOption, opts ...idempotency.Option) *bank {
	t.Helper()
	b := &bank{pool: pool, org: storetest.NewTenant(t, pool)}
	b.schema = storetest.SchemaOf(t, b.org).Quoted()
	b.exec(t, `CREATE TABLE %s.payments (key text NOT NULL, attempt int NOT NULL)`)
	b.exec(t, `CREATE TABLE %s.balance (id int PRIMARY KEY, amount int NOT NULL)`)
	b.exec(t, `INSERT INTO %s.balance SELECT n, 0 FROM generate_series(1, 2) AS n`)
	b.serve(t, storetest.NewStore(t, pool).Transactional(txOpts...), handle, opts...)
	return b
}

func (b *bank) serve(t *testing.T, store idempotency.Store, handle http.HandlerFunc, opts ...idempotency.Option) {
	opts = append(opts, idempotency.WithObserver(func(_ context.Context, e idempotency.Event) {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.events = append(b.events, e)
	}))
	server := httptest.NewServer(withOrg(b.org, idempotency.Require(store, opts...)(handle)))
	t.Cleanup(server.Close)
	b.url, b.client = server.URL, server.Client()
}

func (b *bank) exec(t *testing.T, sql string) {
	t.Helper()
	if _, err := b.pool.Exec(t.Context(), fmt.Sprintf(sql, b.schema)); err != nil {
		t.Fatal(err)
	}
}

func (b *bank) send(t *testing.T, key string) (status int, body string) {
	t.Helper()
	status, body, err := post(t.Context(), b.client, b.url, key)
	if err != nil {
		t.Fatal(err)
	}
	return status, body
}

func (b *bank) want(t *testing.T, key string, status int, body string) {
	t.Helper()
	if s, text := b.send(t, key); s != status || !strings.Contains(text, body) {
		t.Fatalf("key %s: %d %s, want %d and %q", key, s, text, status, body)
	}
}

// wantPayments checks how many payments are committed for a key, and that there is a
// record exactly when there is one.
func (b *bank) wantPayments(t *testing.T, key string, want int) {
	t.Helper()
	var payments, records int
	sql := fmt.Sprintf(`SELECT (SELECT count(*) FROM %[1]s.payments WHERE key = $1), (SELECT count(*) FROM %[1]s.idempotency_records WHERE key = $1)`, b.schema)
	if err := b.pool.QueryRow(t.Context(), sql, key).Scan(&payments, &records); err != nil {
		t.Fatal(err)
	}
	if payments != want || records != min(want, 1) {
		t.Fatalf("key %s: %d payments and %d records, want %d payments", key, payments, records, want)
	}
}

func (b *bank) decisions() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	var got []string
	for _, e := range b.events {
		got = append(got, string(e.Decision))
	}
	return strings.Join(got, " ")
}

// pay writes one payment for the request's key, in the transaction.
func pay(t *testing.T, w http.ResponseWriter, r *http.Request) pgx.Tx {
	tx, ok := pgstore.Tx(r.Context())
	if !ok {
		t.Error("no transaction in the handler's context")
		return nil
	}
	key, _ := idempotency.Key(r.Context())
	attempt, _ := idempotency.Attempt(r.Context())
	if _, err := tx.Exec(r.Context(), `INSERT INTO payments (key, attempt) VALUES ($1, $2)`, key, attempt); err != nil { // unqualified
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return nil
	}
	return tx
}

func TestTransactionCommitsEffectAndRecordTogether(t *testing.T) {
	t.Parallel()
	pool := pgtest.NewPool(t)
	var first sync.Map
	b := newBank(t, pool, func(w http.ResponseWriter, r *http.Request) {
		if pay(t, w, r) == nil {
			return
		}
		key, _ := idempotency.Key(r.Context())
		if _, again := first.LoadOrStore(key, true); !again {
			switch key {
			case "panics":
				panic(http.ErrAbortHandler)
			case "fails":
				http.Error(w, "sorry", http.StatusBadGateway)
				return
			}
		}
		w.WriteHeader(http.StatusCreated)
		fmt.Fprint(w, "paid ", key)
	}, nil)
	b.want(t, "a", http.StatusCreated, "paid a")
	b.wantPayments(t, "a", 1)
	b.want(t, "a", http.StatusCreated, "paid a")
	b.wantPayments(t, "a", 1)

	b.want(t, "fails", http.StatusBadGateway, "sorry")
	b.wantPayments(t, "fails", 0)
	b.want(t, "fails", http.StatusCreated, "paid fails")
	b.wantPayments(t, "fails", 1)

	b.client.Transport.(*http.Transport).DisableKeepAlives = true // Go's client repeats by itself on a kept one
	if _, _, err := post(t.Context(), b.client, b.url, "panics"); err == nil {
		t.Error("a handler that panicked was answered")
	}
	b.want(t, "panics", http.StatusCreated, "paid panics")
	b.wantPayments(t, "panics", 1)
	if got, want := b.decisions(), "executed replayed rolled_back executed panicked executed"; got != want {
		t.Errorf("decisions %s, want %s", got, want)
	}
	if _, ok := pgstore.Tx(t.Context()); ok {
		t.Error("a transaction outside any handler")
	}
}

// TestTransactionTakesTwoRoundTrips: one for the claim and one for the record and the
// commit, beside those of the handler itself.
func TestTransactionTakesTwoRoundTrips(t *testing.T) {
	t.Parallel()
	pool := pgtest.NewPool(t)
	counted, counter := countedPool(t, pool, 1)
	b := newBank(t, pool, func(http.ResponseWriter, *http.Request) {}, nil)
	b.serve(t, storetest.NewStore(t, counted).Transactional(), func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "done") })
	b.want(t, "warm", http.StatusOK, "done") // statements are prepared once
	before := counter.turns.Load()
	b.want(t, "k", http.StatusOK, "done")
	if n := counter.turns.Load() - before; n != 2 {
		t.Errorf("%d round trips, want 2", n)
	}
}

// TestTransactionOfManyDuplicates: one of them pays, and nobody waits for it.
func TestTransactionOfManyDuplicates(t *testing.T) {
	t.Parallel()
	pool := pgtest.NewPool(t)
	b := newBank(t, pool, func(w http.ResponseWriter, r *http.Request) {
		if pay(t, w, r) != nil {
			w.WriteHeader(http.StatusCreated)
		}
	}, nil)
	for round := range 30 {
		key := fmt.Sprint("k", round)
		var wg sync.WaitGroup
		for range 20 {
			wg.Go(func() {
				status, body, err := post(t.Context(), b.client, b.url, key)
				if err != nil || status != http.StatusCreated && !strings.Contains(body, "in_flight") {
					t.Errorf("%d %s, %v", status, body, err)
				}
			})
		}
		wg.Wait()
		b.wantPayments(t, key, 1)
	}
}

func TestDuplicateOfATransactionIsToldAtOnce(t *testing.T) {
	t.Parallel()
	pool := pgtest.NewPool(t)
	begun, open := make(chan struct{}), make(chan struct{})
	b := newBank(t, pool, func(w http.ResponseWriter, r *http.Request) {
		if pay(t, w, r) == nil {
			return
		}
		close(begun)
		<-open
		w.WriteHeader(http.StatusCreated)
	}, nil)
	first := make(chan int, 1)
	go func() {
		status, _, _ := post(context.Background(), b.client, b.url, "k")
		first <- status
	}()
	<-begun
	b.want(t, "k", http.StatusConflict, "in_flight")
	close(open)
	if status := <-first; status != http.StatusCreated {
		t.Errorf("status %d", status)
	}
	b.wantPayments(t, "k", 1)
}

// TestTransactionsThatMeetRunAgain: two requests that update the same rows, in an order
// that one of them must give way in.
func TestTransactionsThatMeetRunAgain(t *testing.T) {
	t.Parallel()
	pool := pgtest.NewPool(t)
	for name, c := range map[string]struct {
		options []pgstore.TxOption
		handle  func(ctx context.Context, tx pgx.Tx, key string, meet func()) error
	}{
		"serialization failure": {[]pgstore.TxOption{pgstore.WithIsolation(pgx.Serializable)}, func(ctx context.Context, tx pgx.Tx, key string, meet func()) error {
			var n int
			if err := tx.QueryRow(ctx, `SELECT sum(amount) FROM balance`).Scan(&n); err != nil {
				return err
			}
			meet()
			_, err := tx.Exec(ctx, `UPDATE balance SET amount = amount + 1 WHERE id = $1`, map[string]int{"a": 1, "b": 2}[key])
			return err
		}},
		"deadlock": {nil, func(ctx context.Context, tx pgx.Tx, key string, meet func()) error {
			order := map[string][]int{"a": {1, 2}, "b": {2, 1}}[key]
			for i, id := range order {
				if i == 1 {
					meet()
				}
				if _, err := tx.Exec(ctx, `UPDATE balance SET amount = amount + 1 WHERE id = $1`, id); err != nil {
					return err
				}
			}
			return nil
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var runs atomic.Int64
			both := make(chan struct{})
			b := newBank(t, pool, func(w http.ResponseWriter, r *http.Request) {
				tx := pay(t, w, r)
				key, _ := idempotency.Key(r.Context())
				body, _ := io.ReadAll(r.Body)
				meet := func() {
					switch runs.Add(1) {
					case 1: // the first waits for the second, once
						<-both
					case 2:
						close(both)
					}
				}
				if err := c.handle(r.Context(), tx, key, meet); err != nil {
					http.Error(w, err.Error(), http.StatusInternalServerError)
					return
				}
				fmt.Fprintf(w, "done %s %s", key, body)
			}, c.options)
			var wg sync.WaitGroup
			for _, key := range []string{"a", "b"} {
				wg.Go(func() {
					status, body, err := post(t.Context(), b.client, b.url, key)
					if err != nil || status != http.StatusOK || body != "done "+key+` {"amount":1}` {
						t.Errorf("%s: %d %s, %v", key, status, body, err)
					}
				})
			}
			wg.Wait()
			b.wantPayments(t, "a", 1)
			b.wantPayments(t, "b", 1)
			reruns := 0
			for _, e := range b.events {
				reruns += e.Reruns
			}
			if reruns == 0 || runs.Load() < 3 {
				t.Errorf("%d reruns, %d runs; want the one that gave way to have run again", reruns, runs.Load())
			}
		})
	}
}

// TestRerunsAreBounded: a handler that never gets through is given up.
func TestRerunsAreBounded(t *testing.T) {
	t.Parallel()
	pool := pgtest.NewPool(t)
	runs := 0
	b := newBank(t, pool, func(w http.ResponseWriter, r *http.Request) {
		runs++
		tx := pay(t, w, r)
		if _, err := tx.Exec(r.Context(), `DO $$ BEGIN RAISE SQLSTATE '40001'; END $$`); err == nil {
			t.Error("no error")
		}
		w.WriteHeader(http.StatusCreated) // though its transaction has failed
	}, []pgstore.TxOption{pgstore.WithReruns(2)})
	b.want(t, "k", http.StatusServiceUnavailable, "not_committed")
	if runs != 3 {
		t.Errorf("%d runs, want 1 and 2 reruns", runs)
	}
	b.wantPayments(t, "k", 0)
	if got := b.decisions(); got != "rolled_back" {
		t.Errorf("decisions %s", got)
	}
}

// TestTransactionThatCannotBeCommitted: whatever the handler answered, nothing is sent
// that was not committed.
func TestTransactionThatCannotBeCommitted(t *testing.T) {
	t.Parallel()
	pool := pgtest.NewPool(t)
	for name, breakIt := range map[string]func(ctx context.Context, tx pgx.Tx){
		"an error that was ignored": func(ctx context.Context, tx pgx.Tx) { _, _ = tx.Exec(ctx, `SELECT 1/0`) },
		"its connection terminated": func(ctx context.Context, tx pgx.Tx) {
			_, _ = tx.Exec(ctx, `SELECT pg_terminate_backend(pg_backend_pid())`)
		},
		"rows that were left open":    func(ctx context.Context, tx pgx.Tx) { _, _ = tx.Query(ctx, `SELECT generate_series(1, 100000)`) },
		"a deferred constraint":       func(ctx context.Context, tx pgx.Tx) { _, _ = tx.Exec(ctx, `INSERT INTO deferred VALUES (1), (1)`) },
		"a ROLLBACK of the handler's": func(ctx context.Context, tx pgx.Tx) { _, _ = tx.Exec(ctx, `ROLLBACK`) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			broken := false
			b := newBank(t, pool, func(w http.ResponseWriter, r *http.Request) {
				tx := pay(t, w, r)
				if !broken {
					broken = true
					breakIt(r.Context(), tx)
				}
				w.WriteHeader(http.StatusCreated)
				fmt.Fprint(w, "paid")
			}, nil)
			b.exec(t, `CREATE TABLE %s.deferred (id int UNIQUE DEFERRABLE INITIALLY DEFERRED)`)
			b.want(t, "k", http.StatusServiceUnavailable, "not_committed")
			b.wantPayments(t, "k", 0)
			eventually(t, "the server to be done with it", func() bool {
				status, body := b.send(t, "k")
				return status == http.StatusCreated && body == "paid"
			})
			b.wantPayments(t, "k", 1)
		})
	}
}

// TestHandlerTx: what a handler may do with its transaction.
func TestHandlerTx(t *testing.T) {
	t.Parallel()
	pool := pgtest.NewPool(t)
	var kept pgx.Tx
	b := newBank(t, pool, func(w http.ResponseWriter, r *http.Request) {
		ctx := r.Context()
		tx := pay(t, w, r)
		kept = tx
		if err := errors.Join(tx.Commit(ctx), tx.Rollback(ctx)); err == nil || !strings.Contains(err.Error(), "store commits") {
			t.Errorf("Commit and Rollback: %v", err)
		}
		undone := errors.New("undone on purpose")
		if err := pgx.BeginFunc(ctx, tx, func(tx pgx.Tx) error {
			if _, err := tx.Exec(ctx, `INSERT INTO payments VALUES ('undone', 1)`); err != nil {
				return err
			}
			return undone
		}); !errors.Is(err, undone) {
			t.Errorf("savepoint: %v", err)
		}
		if err := pgx.BeginFunc(ctx, tx, func(tx pgx.Tx) error {
			_, err := tx.CopyFrom(ctx, pgx.Identifier{"payments"}, []string{"key", "attempt"}, pgx.CopyFromRows([][]any{{"copied", 1}}))
			return err
		}); err != nil {
			t.Errorf("CopyFrom: %v", err)
		}
		var batch pgx.Batch
		batch.Queue(`INSERT INTO payments VALUES ('batched', 1)`)
		batch.Queue(`SELECT key FROM payments ORDER BY key`)
		results := tx.SendBatch(ctx, &batch)
		if _, err := results.Exec(); err != nil {
			t.Error(err)
		}
		rows, _ := results.Query()
		keys, err := pgx.CollectRows(rows, pgx.RowTo[string])
		if err != nil || fmt.Sprint(keys) != "[batched copied k]" {
			t.Errorf("keys %v, %v", keys, err)
		}
		if err := results.Close(); err != nil {
			t.Error(err)
		}
		var path string
		if err := tx.QueryRow(ctx, `SHOW search_path`).Scan(&path); err != nil || !strings.HasSuffix(path, orgDigits(r)+`"`) && !strings.HasSuffix(path, orgDigits(r)) {
			t.Errorf("search_path %s, %v", path, err)
		}
		objects := tx.LargeObjects()
		if _, err := objects.Create(ctx, 0); err != nil {
			t.Errorf("large object: %v", err)
		}
		fmt.Fprint(w, "done")
	}, nil)
	b.want(t, "k", http.StatusOK, "done")
	b.wantPayments(t, "k", 1)
	ctx := t.Context()
	if _, err := kept.Exec(ctx, `SELECT 1`); !errors.Is(err, pgx.ErrTxClosed) {
		t.Errorf("Exec after the handler returned: %v", err)
	}
	if rows, err := kept.Query(ctx, `SELECT 1`); !errors.Is(err, pgx.ErrTxClosed) || rows.Next() || !errors.Is(rows.Err(), pgx.ErrTxClosed) {
		t.Errorf("Query after the handler returned: %v", err)
	}
	if err := kept.QueryRow(ctx, `SELECT 1`).Scan(); !errors.Is(err, pgx.ErrTxClosed) {
		t.Errorf("QueryRow after the handler returned: %v", err)
	}
	if err := kept.SendBatch(ctx, &pgx.Batch{}).Close(); !errors.Is(err, pgx.ErrTxClosed) {
		t.Errorf("SendBatch after the handler returned: %v", err)
	}
	if _, err := kept.Begin(ctx); !errors.Is(err, pgx.ErrTxClosed) {
		t.Errorf("Begin after the handler returned: %v", err)
	}
	if err := kept.Rollback(ctx); !errors.Is(err, pgx.ErrTxClosed) {
		t.Errorf("Rollback after the handler returned: %v", err)
	}
	if _, err := kept.Prepare(ctx, "x", `SELECT 1`); !errors.Is(err, pgx.ErrTxClosed) {
		t.Errorf("Prepare after the handler returned: %v", err)
	}
	if _, err := kept.CopyFrom(ctx, pgx.Identifier{"payments"}, nil, pgx.CopyFromRows(nil)); !errors.Is(err, pgx.ErrTxClosed) {
		t.Errorf("CopyFrom after the handler returned: %v", err)
	}
}

func orgDigits(r *http.Request) string {
	org, _ := idempotency.FromContext(r.Context())
	return strings.ReplaceAll(org.String(), "-", "")
}

// TestHandlersInATransactionDoNotStream: they are told so, before anything was sent.
func TestHandlersInATransactionDoNotStream(t *testing.T) {
	t.Parallel()
	pool := pgtest.NewPool(t)
	b := newBank(t, pool, func(w http.ResponseWriter, r *http.Request) {
		if pay(t, w, r) == nil {
			return
		}
		io.WriteString(w, "held")
		key, _ := idempotency.Key(r.Context())
		c := http.NewResponseController(w)
		switch key {
		case "flushes":
			w.(http.Flusher).Flush() // which cannot tell it
		case "asks":
			if err := c.Flush(); !errors.Is(err, idempotency.ErrNoStreaming) {
				t.Errorf("Flush: %v", err)
			}
			if _, _, err := c.Hijack(); !errors.Is(err, idempotency.ErrNoStreaming) {
				t.Errorf("Hijack: %v", err)
			}
		case "large":
			io.WriteString(w, strings.Repeat("x", 2000))
		}
	}, nil, idempotency.WithMaxResponseBytes(1000))
	b.want(t, "flushes", http.StatusInternalServerError, "no_streaming")
	b.wantPayments(t, "flushes", 0)
	b.want(t, "asks", http.StatusOK, "held")
	b.wantPayments(t, "asks", 1)
	b.want(t, "large", http.StatusOK, "held"+strings.Repeat("x", 2000))
	b.wantPayments(t, "large", 1)
	b.want(t, "large", http.StatusConflict, "response_not_kept")
}

// TestTransactionsMeetLeases: both kinds of store serve one key.
func TestTransactionsMeetLeases(t *testing.T) {
	t.Parallel()
	pool := pgtest.NewPool(t)
	lease := storetest.NewStore(t, pool)
	tx := lease.Transactional().(idempotency.LeaseStore)
	org := storetest.NewTenant(t, pool)
	claim := func(store idempotency.LeaseStore, req idempotency.ClaimRequest, want idempotency.ClaimOutcome) idempotency.ClaimResult {
		t.Helper()
		result, err := store.Claim(t.Context(), req)
		if err != nil || result.Outcome != want {
			t.Fatalf("%+v, %v; want outcome %d", result, err, want)
		}
		return result
	}
	rec := &idempotency.Record{ResponseStatus: 201}

	// What one has completed, the other sees.
	a := claimRequest(org, "a")
	claim(tx, a, idempotency.OutcomeClaimed)
	if err := tx.Complete(t.Context(), a.Claim, rec); err != nil {
		t.Fatal(err)
	}
	claim(lease, claimRequest(org, "a"), idempotency.OutcomeCompleted)
	claim(tx, claimRequest(org, "a"), idempotency.OutcomeCompleted)
	other := claimRequest(org, "a")
	other.RequestHash = "another"
	claim(tx, other, idempotency.OutcomeMismatch)

	// A lease that holds is respected; one that has lapsed is taken over.
	held := claimRequest(org, "b")
	claim(lease, held, idempotency.OutcomeClaimed)
	claim(tx, claimRequest(org, "b"), idempotency.OutcomeInFlight)
	storetest.Advance(t, pool, org, 2*time.Minute)
	refused := claimRequest(org, "b")
	refused.Interrupted = idempotency.Refuse
	claim(tx, refused, idempotency.OutcomeInterrupted)
	b := claimRequest(org, "b")
	if result := claim(tx, b, idempotency.OutcomeClaimed); result.Attempt != 2 {
		t.Errorf("attempt %d, want 2", result.Attempt)
	}
	if err := tx.Complete(t.Context(), b.Claim, rec); err != nil {
		t.Fatal(err)
	}
	if err := lease.Complete(t.Context(), held.Claim, rec); !errors.Is(err, idempotency.ErrLeaseLost) {
		t.Errorf("the late attempt with a lease: %v", err)
	}

	// One that has expired makes room.
	storetest.Advance(t, pool, org, 48*time.Hour)
	b = claimRequest(org, "b")
	if result := claim(tx, b, idempotency.OutcomeClaimed); result.Attempt != 1 {
		t.Errorf("attempt %d, want 1", result.Attempt)
	}
	if err := tx.Complete(t.Context(), b.Claim, rec); err != nil {
		t.Fatal(err)
	}

	// Both at once: the lease has its row first, and the transaction gives way, at its
	// first commit and for good.
	c := claimRequest(org, "c")
	claim(tx, c, idempotency.OutcomeClaimed)
	claim(lease, claimRequest(org, "c"), idempotency.OutcomeClaimed)
	if err := tx.Complete(t.Context(), c.Claim, rec); !errors.Is(err, idempotency.ErrRerun) {
		t.Errorf("the transaction that came late: %v", err)
	}
	claim(tx, c, idempotency.OutcomeInFlight)
}

// TestTransactionalOptions: what cannot work is found when the service is wired.
func TestTransactionalOptions(t *testing.T) {
	t.Parallel()
	store, err := pgstore.New(pgtest.NewPool(t), storetest.PerOrg)
	if err != nil {
		t.Fatal(err)
	}
	for name, opt := range map[string]pgstore.TxOption{
		"WithIsolation": pgstore.WithIsolation("read whatever"),
		"WithReruns":    pgstore.WithReruns(-1),
	} {
		func() {
			defer func() {
				if p := recover(); p == nil || !strings.Contains(fmt.Sprint(p), name) {
					t.Errorf("%s: panic %v; want one that names the option", name, p)
				}
			}()
			store.Transactional(opt)
		}()
	}
}

// TestFailureThatIsAnOutcome: a handler answers a statement that failed with a conflict. The
// answer is stored, and nothing else; the key is held until then.
func TestFailureThatIsAnOutcome(t *testing.T) {
	t.Parallel()
	pool := pgtest.NewPool(t)
	b := newBank(t, pool, func(w http.ResponseWriter, r *http.Request) {
		tx := pay(t, w, r)
		if _, err := tx.Exec(r.Context(), `INSERT INTO balance VALUES (1, 1)`); err == nil {
			t.Error("no conflict")
		}
		http.Error(w, "exists", http.StatusConflict)
	}, nil)
	b.want(t, "k", http.StatusConflict, "exists")
	b.want(t, "k", http.StatusConflict, "exists")
	if got := b.decisions(); got != "executed replayed" {
		t.Errorf("decisions %s", got)
	}
	var payments int
	if err := pool.QueryRow(t.Context(), `SELECT count(*) FROM `+b.schema+`.payments`).Scan(&payments); err != nil || payments != 0 {
		t.Errorf("%d payments, %v; want none", payments, err)
	}
}

// TestTransactionOfAnotherClaim: a claim with a lease within a handler has no transaction.
func TestTransactionOfAnotherClaim(t *testing.T) {
	t.Parallel()
	pool := pgtest.NewPool(t)
	lease := storetest.NewStore(t, pool)
	b := newBank(t, pool, func(w http.ResponseWriter, r *http.Request) {
		org, _ := idempotency.FromContext(r.Context())
		_, outcome, err := idempotency.Do(r.Context(), lease, org, "inner", "", func(ctx context.Context) (int, error) {
			if _, ok := pgstore.Tx(ctx); ok {
				t.Error("the transaction of the outer claim in the inner one")
			}
			return 1, nil
		})
		if _, ok := pgstore.Tx(idempotency.WithOrgID(r.Context(), uuid.New())); ok {
			t.Error("the transaction of one tenant in the context of another")
		}
		fmt.Fprint(w, outcome, " ", err)
	}, nil)
	b.want(t, "k", http.StatusOK, "executed <nil>")
}

// TestStatementThatOutlivesItsHandler: a goroutine that is still at a statement when the
// handler has returned gets no further, and its connection to nobody else.
func TestStatementThatOutlivesItsHandler(t *testing.T) {
	t.Parallel()
	pool := pgtest.NewPool(t)
	late := make(chan error, 2)
	b := newBank(t, pool, func(w http.ResponseWriter, r *http.Request) {
		tx := pay(t, w, r)
		started := make(chan struct{})
		go func() {
			close(started)
			_, err := tx.Exec(context.Background(), `SELECT pg_sleep(30)`)
			late <- err
			_, err = tx.Exec(context.Background(), `INSERT INTO payments VALUES ('late', 1)`)
			late <- err
		}()
		<-started
		w.WriteHeader(http.StatusServiceUnavailable) // as http.TimeoutHandler does
	}, nil)
	b.want(t, "k", http.StatusServiceUnavailable, "")
	for range 2 {
		if err := <-late; err == nil {
			t.Error("a statement outlived its handler")
		}
	}
	b.wantPayments(t, "k", 0)
	b.wantPayments(t, "late", 0)
}
