package pgstore_test

import (
	"context"
	"errors"
	"fmt"
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

// TestStepOutlivesItsTransaction: whatever becomes of the handler's transaction, the
// effect of a step that was stored is had once, and its child key is the same.
func TestStepOutlivesItsTransaction(t *testing.T) {
	t.Parallel()
	pool := pgtest.NewPool(t)
	for name, c := range map[string]struct {
		end       func(ctx context.Context, tx pgx.Tx, w http.ResponseWriter)
		decisions string
	}{
		"a status that is not storable": {func(_ context.Context, _ pgx.Tx, w http.ResponseWriter) {
			http.Error(w, "sorry", http.StatusBadGateway)
		}, "rolled_back executed"},
		"a serialization failure": {func(ctx context.Context, tx pgx.Tx, _ http.ResponseWriter) {
			_, _ = tx.Exec(ctx, `DO $$ BEGIN RAISE SQLSTATE '40001'; END $$`)
		}, "executed"},
		"a statement that fails": {func(ctx context.Context, tx pgx.Tx, _ http.ResponseWriter) {
			_, _ = tx.Exec(ctx, `SELECT 1/0`)
		}, "rolled_back executed"},
		"its server process killed": {func(ctx context.Context, tx pgx.Tx, _ http.ResponseWriter) {
			_, _ = tx.Exec(ctx, `SELECT pg_terminate_backend(pg_backend_pid())`)
		}, "rolled_back executed"},
		"a panic": {func(context.Context, pgx.Tx, http.ResponseWriter) {
			panic(http.ErrAbortHandler)
		}, "panicked executed"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var charges, runs atomic.Int64
			var keys sync.Map
			first := 0 // the server process of the first attempt
			b := newBank(t, pool, func(w http.ResponseWriter, r *http.Request) {
				ctx := r.Context()
				tx := pay(t, w, r)
				id, err := idempotency.Step(ctx, "charge", func(ctx context.Context) (string, error) {
					return fmt.Sprint("charge ", charges.Add(1)), nil
				})
				if err != nil {
					t.Errorf("Step: %v", err)
				}
				key, err := idempotency.ChildKey(ctx, "charge")
				if err != nil {
					t.Errorf("ChildKey: %v", err)
				}
				keys.Store(key, true)
				org, _ := idempotency.FromContext(ctx)
				if n := countSteps(t, pool, org, "k"); n != 1 {
					t.Errorf("%d steps committed while the handler runs, want 1", n)
				}
				if runs.Add(1) == 1 {
					if err := tx.QueryRow(ctx, `SELECT pg_backend_pid()`).Scan(&first); err != nil {
						t.Error(err)
					}
					c.end(ctx, tx, w)
				}
				w.WriteHeader(http.StatusCreated)
				fmt.Fprint(w, id)
			}, nil)
			b.client.Transport.(*http.Transport).DisableKeepAlives = true // Go's client repeats by itself on a kept one
			if c.decisions != "executed" {
				if status, body, err := post(t.Context(), b.client, b.url, "k"); err == nil && status < 500 {
					t.Fatalf("the first attempt: %d %s", status, body)
				}
				b.wantPayments(t, "k", 0)
				endOf(t, pool, first)
			}
			b.want(t, "k", http.StatusCreated, "charge 1")
			b.wantPayments(t, "k", 1)
			distinct := 0
			keys.Range(func(any, any) bool { distinct++; return true })
			if charges.Load() != 1 || runs.Load() != 2 || distinct != 1 {
				t.Errorf("%d charges under %d child keys in %d runs; want 1 under 1 in 2", charges.Load(), distinct, runs.Load())
			}
			if got := b.decisions(); got != c.decisions {
				t.Errorf("decisions %s, want %s", got, c.decisions)
			}
		})
	}
}

// endOf waits until a server process has no transaction any more: one that was killed may hold
// its locks a moment longer than its connection lasts, and a retry is told 409 meanwhile.
func endOf(t *testing.T, pool *pgxpool.Pool, pid int) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(time.Millisecond) {
		var held bool
		if err := pool.QueryRow(t.Context(), `SELECT EXISTS (SELECT FROM pg_locks WHERE pid = $1 AND pid <> pg_backend_pid() AND locktype = 'advisory')`, pid).Scan(&held); err != nil {
			t.Fatal(err)
		}
		if !held {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("server process %d still holds its lock", pid)
		}
	}
}

// backendOf returns the server process that holds an advisory lock in the pool's
// database; there must be one.
func backendOf(t *testing.T, pool *pgxpool.Pool) (pid int) {
	t.Helper()
	err := pool.QueryRow(t.Context(), `SELECT l.pid FROM pg_locks AS l JOIN pg_database AS d ON d.oid = l.database
		WHERE l.locktype = 'advisory' AND d.datname = current_database()`).Scan(&pid)
	if err != nil {
		t.Fatal(err)
	}
	return pid
}

// TestStepIsFencedByTheLock: an attempt whose connection is gone has lost its key,
// whether or not another holds it by now, and though its process does not know.
func TestStepIsFencedByTheLock(t *testing.T) {
	t.Parallel()
	pool := pgtest.NewPool(t)
	org := storetest.NewTenant(t, pool)
	newStore := func() idempotency.StepStore { // as two processes have
		own, err := pgxpool.NewWithConfig(t.Context(), pool.Config())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(own.Close)
		return storetest.NewStore(t, own).Transactional().(idempotency.StepStore)
	}
	cut, other := newStore(), newStore()
	claim := func(s idempotency.StepStore) idempotency.Claim {
		t.Helper()
		req := claimRequest(org, "k")
		result, err := s.Claim(t.Context(), req)
		if err != nil || result.Outcome != idempotency.OutcomeClaimed {
			t.Fatalf("%+v, %v", result, err)
		}
		t.Cleanup(func() { _ = s.Release(context.Background(), req.Claim) }) // where the test ends before it does
		return req.Claim
	}
	first := claim(cut)
	mustSave(t, cut, first, "reserve", `1`, `1`)
	pid := backendOf(t, pool)
	if _, err := pool.Exec(t.Context(), `SELECT pg_terminate_backend($1)`, pid); err != nil {
		t.Fatal(err)
	}
	for deadline, gone := time.Now().Add(20*time.Second), false; !gone; time.Sleep(5 * time.Millisecond) {
		if err := pool.QueryRow(t.Context(), `SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE pid = $1)`, pid).Scan(&gone); err != nil || time.Now().After(deadline) {
			t.Fatal("the connection did not end: ", err)
		}
	}
	wantFenced(t, cut, first)
	second := claim(other)
	wantFenced(t, cut, first)
	mustLoad(t, other, second, "charge", "")
	mustLoad(t, other, second, "reserve", `1`)
	mustSave(t, other, second, "charge", `2`, `2`)
	wantFenced(t, cut, first)
	wantFenced(t, cut, second) // which is not of this process
	if err := cut.Complete(t.Context(), first, &idempotency.Record{ResponseStatus: 201}); err == nil {
		t.Error("an attempt without its connection was completed")
	}
	if err := other.Complete(t.Context(), second, &idempotency.Record{ResponseStatus: 201}); err != nil {
		t.Error(err)
	}
	wantFenced(t, other, second)
}

// TestStepIsFencedByItsOwnLock: to hold some lock is not to hold the key's, which
// PostgreSQL let go of when the handler ended its transaction.
func TestStepIsFencedByItsOwnLock(t *testing.T) {
	t.Parallel()
	pool := pgtest.NewPool(t)
	org := storetest.NewTenant(t, pool)
	store := storetest.NewStore(t, pool).Transactional().(idempotency.StepStore)
	req := claimRequest(org, "k")
	result, err := store.Claim(t.Context(), req)
	if err != nil || result.Outcome != idempotency.OutcomeClaimed {
		t.Fatalf("%+v, %v", result, err)
	}
	t.Cleanup(func() { _ = store.Release(context.Background(), req.Claim) })
	tx := result.Transaction.(pgx.Tx)
	if _, err := tx.Exec(t.Context(), `SELECT pg_advisory_lock(42)`); err != nil { // the session's
		t.Fatal(err)
	}
	if result, found, err := store.LoadStep(t.Context(), req.Claim, "charge"); err != nil || found {
		t.Errorf("%q, %v; want none yet", result, err)
	}
	_, _ = tx.Exec(t.Context(), `ROLLBACK`) // as no handler should
	backendOf(t, pool)                      // has the session's lock still
	wantFenced(t, store, req.Claim)
}

// TestStepsOfTransactionsBelongToOneRequest: another fingerprint, tenant, key or life does
// not see them, and either kind of store does.
func TestStepsOfTransactionsBelongToOneRequest(t *testing.T) {
	t.Parallel()
	pool := pgtest.NewPool(t)
	org, neighbour := storetest.NewTenant(t, pool), storetest.NewTenant(t, pool)
	lease := storetest.NewStore(t, pool)
	tx := lease.Transactional().(idempotency.StepStore)
	attempt := func(s idempotency.StepStore, org uuid.UUID, key, hash, want, save string) {
		t.Helper()
		req := claimRequest(org, key)
		req.RequestHash = hash
		result, err := s.Claim(t.Context(), req)
		if err != nil || result.Outcome != idempotency.OutcomeClaimed {
			t.Fatalf("%+v, %v", result, err)
		}
		mustLoad(t, s, req.Claim, "charge", want)
		if save != "" {
			mustSave(t, s, req.Claim, "charge", save, save)
			mustSave(t, s, req.Claim, "charge", `0`, save)
		}
		if err := s.Release(t.Context(), req.Claim); err != nil {
			t.Fatal(err)
		}
	}
	attempt(tx, org, "k", "hash", "", `1`)
	attempt(tx, org, "k", "hash", `1`, "")
	attempt(tx, org, "k", "another", "", "")
	attempt(tx, org, "k", "another", "", `2`)
	attempt(tx, org, "k", "hash", `1`, "")
	attempt(tx, neighbour, "k", "hash", "", "")
	attempt(tx, org, "K", "hash", "", "")
	storetest.Advance(t, pool, org, 59*time.Minute) // of the hour that records are kept
	attempt(tx, org, "k", "hash", `1`, "")
	storetest.Advance(t, pool, org, 2*time.Minute)
	attempt(tx, org, "k", "hash", "", `3`) // in the place of the one before
	attempt(tx, org, "k", "hash", `3`, "")

	attempt(lease, org, "k", "hash", `3`, "") // which keeps its record for the steps
	attempt(lease, org, "k", "hash", `3`, "")
	attempt(lease, org, "l", "hash", "", `4`)
	attempt(tx, org, "l", "hash", `4`, "")
	storetest.Advance(t, pool, org, 2*time.Hour)
	attempt(lease, org, "k", "hash", "", "")
	attempt(tx, org, "l", "hash", "", "")

	// A record that was completed is no exception.
	req := claimRequest(org, "m")
	if _, err := tx.Claim(t.Context(), req); err != nil {
		t.Fatal(err)
	}
	mustSave(t, tx, req.Claim, "charge", `5`, `5`)
	if err := tx.Complete(t.Context(), req.Claim, &idempotency.Record{ResponseStatus: 201}); err != nil {
		t.Fatal(err)
	}
	var same bool // the step goes when the record does, and not after it
	if err := pool.QueryRow(t.Context(), strings.ReplaceAll(`SELECT s.expires_at = r.expires_at
		FROM %.idempotency_steps AS s JOIN %.idempotency_records AS r ON r.key = s.key WHERE s.key = 'm'`, "%", storetest.SchemaOf(t, org).Quoted())).Scan(&same); err != nil || !same {
		t.Errorf("the step does not expire with its record (%v)", err)
	}
}

// TestStepsOfTransactionsRaceToSave: the first is stored, and the others get it.
func TestStepsOfTransactionsRaceToSave(t *testing.T) {
	t.Parallel()
	pool := pgtest.NewPool(t)
	org := storetest.NewTenant(t, pool)
	tx := storetest.NewStore(t, pool).Transactional().(idempotency.StepStore)
	req := claimRequest(org, "k")
	if _, err := tx.Claim(t.Context(), req); err != nil {
		t.Fatal(err)
	}
	for round := range 20 {
		name := fmt.Sprint("step ", round)
		var wg sync.WaitGroup
		stored := make([]string, 8)
		for i := range stored {
			wg.Go(func() {
				result, err := tx.SaveStep(t.Context(), req.Claim, name, fmt.Append(nil, i))
				if err != nil {
					t.Error(err)
				}
				stored[i] = string(result)
			})
		}
		wg.Wait()
		for _, result := range stored {
			mustLoad(t, tx, req.Claim, name, result)
		}
	}
	if err := tx.Release(t.Context(), req.Claim); err != nil {
		t.Error(err)
	}
}

// TestStepsBesideTheTransaction: they run side by side, also while the transaction is at
// work. When one of its statements has failed, PostgreSQL has let go of its locks, and
// another attempt may have begun: no step begins any more.
func TestStepsBesideTheTransaction(t *testing.T) {
	t.Parallel()
	pool := pgtest.NewPool(t)
	b := newBank(t, pool, func(w http.ResponseWriter, r *http.Request) {
		ctx := r.Context()
		tx := pay(t, w, r)
		var wg sync.WaitGroup
		var met sync.WaitGroup
		met.Add(4)
		for i := range 4 {
			wg.Go(func() {
				got, err := idempotency.Step(ctx, fmt.Sprint("step ", i), func(context.Context) (int, error) {
					met.Done()
					met.Wait()
					return i, nil
				})
				if err != nil || got != i {
					t.Errorf("step %d: %d, %v", i, got, err)
				}
			})
		}
		for range 20 {
			if _, err := tx.Exec(ctx, `UPDATE balance SET amount = amount + 1`); err != nil {
				t.Error(err)
			}
		}
		wg.Wait()
		if key, _ := idempotency.Key(ctx); key == "savepoint" {
			if err := pgx.BeginFunc(ctx, tx, func(tx pgx.Tx) error {
				_, err := tx.Exec(ctx, `SELECT 1/0`)
				return err
			}); err == nil {
				t.Error("no error")
			}
			if _, err := idempotency.Step(ctx, "after it", func(context.Context) (int, error) { return 1, nil }); err != nil {
				t.Error(err)
			}
		} else {
			_, _ = tx.Exec(ctx, `SELECT 1/0`) // which aborts the transaction, and lets go of nothing
			if _, err := idempotency.Step(ctx, "after it", func(context.Context) (int, error) { return 1, nil }); err != nil {
				t.Error(err)
			}
		}
		w.WriteHeader(http.StatusBadGateway)
	}, nil)
	for key, want := range map[string]int{"savepoint": 5, "none": 5} {
		b.want(t, key, http.StatusBadGateway, "")
		if n := countSteps(t, pool, b.org, key); n != want {
			t.Errorf("%s: %d steps, want %d", key, n, want)
		}
		b.wantPayments(t, key, 0)
	}
}

// TestStepNeedsASecondConnection: where the pool has none to give, the step's function
// does not run.
func TestStepNeedsASecondConnection(t *testing.T) {
	t.Parallel()
	pool := pgtest.NewPool(t)
	config := pool.Config()
	config.MaxConns = 1
	small, err := pgxpool.NewWithConfig(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(small.Close)
	var ran atomic.Int64
	handle := func(w http.ResponseWriter, r *http.Request) {
		_, err := idempotency.Step(r.Context(), "charge", func(context.Context) (int64, error) { return ran.Add(1), nil })
		_, keyErr := idempotency.ChildKey(r.Context(), "charge")
		if err != nil || keyErr != nil {
			if !errors.Is(err, context.DeadlineExceeded) || !errors.Is(keyErr, context.DeadlineExceeded) || errors.Is(err, idempotency.ErrStepNotKept) {
				t.Errorf("%v, %v; want that no connection came in time", err, keyErr)
			}
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		w.WriteHeader(http.StatusCreated)
	}
	b := newBank(t, pool, handle, nil)
	b.serve(t, storetest.NewStore(t, small).Transactional(), handle, idempotency.WithStoreTimeout(300*time.Millisecond))
	b.want(t, "k", http.StatusServiceUnavailable, "")
	if n := ran.Load(); n != 0 {
		t.Errorf("the function ran %d times, want none", n)
	}
	b.serve(t, storetest.NewStore(t, pool).Transactional(), handle)
	b.want(t, "k", http.StatusCreated, "")
	if n := ran.Load(); n != 1 {
		t.Errorf("the function ran %d times, want once", n)
	}
}

// TestChildKeyIsOneInBothModes: for every attempt of one life of a key, in whatever
// process, and for nobody else.
func TestChildKeyIsOneInBothModes(t *testing.T) {
	t.Parallel()
	pool := pgtest.NewPool(t)
	orgs := []uuid.UUID{storetest.NewTenant(t, pool), storetest.NewTenant(t, pool)}
	modes := map[string]func(...pgstore.TxOption) idempotency.Store{
		"lease":       func(...pgstore.TxOption) idempotency.Store { return storetest.NewStore(t, pool) },
		"transaction": storetest.NewStore(t, pool).Transactional,
	}
	childKey := func(mode string, org uuid.UUID, key string) (child string) {
		t.Helper()
		h := withOrg(org, idempotency.Require(modes[mode]())(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			var err error
			if child, err = idempotency.ChildKey(r.Context(), "charge"); err != nil {
				t.Errorf("ChildKey: %v", err)
			}
			w.WriteHeader(http.StatusBadGateway)
		})))
		if status := serve(t, h, key); status != http.StatusBadGateway || child == "" {
			t.Fatalf("%s: status %d, child key %q", mode, status, child)
		}
		return child
	}
	for _, first := range []string{"lease", "transaction"} {
		key := "first under " + first
		want := childKey(first, orgs[0], key)
		for _, mode := range []string{"transaction", "lease", "lease", "transaction"} {
			if got := childKey(mode, orgs[0], key); got != want {
				t.Errorf("%s, then %s: %q and %q; want one child key", first, mode, want, got)
			}
		}
		if childKey(first, orgs[1], key) == want {
			t.Error("another tenant has the same child key")
		}
		if childKey(first, orgs[0], key+"!") == want {
			t.Error("another key has the same child key")
		}
		storetest.Advance(t, pool, orgs[0], 25*time.Hour)
		if childKey(first, orgs[0], key) == want {
			t.Error("a new life of the key has the same child key")
		}
	}
}

// serve sends one request with the key straight to the handler.
func serve(t *testing.T, h http.Handler, key string) (status int) {
	t.Helper()
	r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/", strings.NewReader(`{"amount":1}`))
	r.Header.Set(idempotency.HeaderKey, key)
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w.Code
}
