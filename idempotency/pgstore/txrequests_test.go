package pgstore_test

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
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

// after is [before] at the other end of a statement.
type after struct {
	statement string
	do        func()
}

type afterKey struct{}

func (a *after) TraceQueryStart(ctx context.Context, _ *pgx.Conn, data pgx.TraceQueryStartData) context.Context {
	return context.WithValue(ctx, afterKey{}, strings.Contains(data.SQL, "-- name: "+a.statement+" "))
}

func (a *after) TraceQueryEnd(ctx context.Context, _ *pgx.Conn, _ pgx.TraceQueryEndData) {
	if is, _ := ctx.Value(afterKey{}).(bool); is && a.do != nil {
		do := a.do
		a.do = nil
		do()
	}
}

// tracedTx returns a store with transactions on connections of its own that are traced.
func tracedTx(t *testing.T, pool *pgxpool.Pool, tracer pgx.QueryTracer) idempotency.RequestStore {
	t.Helper()
	config := pool.Config()
	config.ConnConfig.Tracer = tracer
	traced, err := pgxpool.NewWithConfig(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(traced.Close)
	return storetest.NewStore(t, traced).Transactional().(idempotency.RequestStore)
}

// atCommit has transactions that insert into the returned table run some PL/pgSQL as they
// commit.
func atCommit(t *testing.T, pool *pgxpool.Pool, org uuid.UUID, do string) (table string) {
	t.Helper()
	schema := storetest.SchemaOf(t, org).Quoted()
	table = schema + ".deferred"
	if _, err := pool.Exec(t.Context(), `
		CREATE TABLE `+table+` (id integer);
		CREATE FUNCTION `+schema+`.at_commit() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN `+do+` RETURN NULL; END $$;
		CREATE CONSTRAINT TRIGGER at_commit AFTER INSERT ON `+table+`
			DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION `+schema+`.at_commit()`); err != nil {
		t.Fatal(err)
	}
	return table
}

func claimed(t *testing.T, store idempotency.LeaseStore, req idempotency.ClaimRequest, want idempotency.ClaimOutcome) idempotency.ClaimResult {
	t.Helper()
	result, err := store.Claim(t.Context(), req)
	if err != nil || result.Outcome != want {
		t.Errorf("Claim: %+v, %v; want outcome %d", result, err, want)
	}
	return result
}

// insertIn has an attempt's transaction insert into a table.
func insertIn(t *testing.T, result idempotency.ClaimResult, table string) {
	t.Helper()
	if _, err := result.Transaction.(pgx.Tx).Exec(t.Context(), `INSERT INTO `+table+` VALUES (1)`); err != nil {
		t.Fatal(err)
	}
}

// TestKeepingDoesNotWaitForACommit: a duplicate whose request is to be kept is told at once
// that the key is in flight, however long the first one's commit takes.
func TestKeepingDoesNotWaitForACommit(t *testing.T) {
	t.Parallel()
	pool := pgtest.NewPool(t)
	org := storetest.NewTenant(t, pool)
	table := atCommit(t, pool, org, `PERFORM pg_advisory_xact_lock(42);`)
	store := storetest.NewStore(t, pool).Transactional().(idempotency.RequestStore)
	holder, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = holder.Rollback(context.Background()) }()
	if _, err := holder.Exec(t.Context(), `SELECT pg_advisory_xact_lock(42)`); err != nil {
		t.Fatal(err)
	}

	first := keeping(org, "key")
	insertIn(t, claimed(t, store, first, idempotency.OutcomeClaimed), table)
	committed := make(chan error, 1)
	go func() {
		committed <- store.Complete(context.Background(), first.Claim, &idempotency.Record{ResponseStatus: 201})
	}()
	eventually(t, "the commit to wait", func() bool {
		var waits bool
		err := pool.QueryRow(t.Context(), `SELECT EXISTS (SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted)`).Scan(&waits)
		return err == nil && waits
	})
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if result, err := store.Claim(ctx, keeping(org, "key")); err != nil || result.Outcome != idempotency.OutcomeInFlight {
		t.Errorf("beside a commit: %+v, %v; want it in flight", result, err)
	}
	if err := holder.Rollback(t.Context()); err != nil {
		t.Error(err)
	}
	if err := <-committed; err != nil {
		t.Error(err)
	}
	claimed(t, store, keeping(org, "key"), idempotency.OutcomeCompleted)
	wantKept(t, pool, org, 0)
}

// TestRequestIsKeptOfTheNextAttempt: one attempt ends without an outcome, and takes its
// request along, just as the next one is about to begin, which must be kept all the same.
func TestRequestIsKeptOfTheNextAttempt(t *testing.T) {
	t.Parallel()
	pool := pgtest.NewPool(t)
	t.Run("released", func(t *testing.T) {
		t.Parallel()
		org := storetest.NewTenant(t, pool)
		plain := storetest.NewStore(t, pool).Transactional().(idempotency.RequestStore)
		first, second := keeping(org, "key"), keeping(org, "key")
		claimed(t, plain, first, idempotency.OutcomeClaimed)
		store := tracedTx(t, pool, &after{statement: "KeepRequest", do: func() {
			if err := plain.Release(t.Context(), first.Claim); err != nil {
				t.Error(err)
			}
		}})
		claimed(t, store, second, idempotency.OutcomeClaimed)
		wantKept(t, pool, org, 1)
		if err := store.Release(t.Context(), second.Claim); err != nil {
			t.Error(err)
		}
		wantKept(t, pool, org, 0)
	})
	for name, fingerprint := range map[string]string{
		"kept by the next one, and released":   keeping(uuid.Nil, "key").RequestHash,
		"kept in its place by another request": "another",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			org := storetest.NewTenant(t, pool)
			plain := storetest.NewStore(t, pool).Transactional().(idempotency.RequestStore)
			first, second := keeping(org, "key"), keeping(org, "key")
			first.RequestHash = fingerprint
			store := tracedTx(t, pool, &after{statement: "KeepRequest", do: func() {
				claimed(t, plain, first, idempotency.OutcomeClaimed)
				if err := plain.Release(t.Context(), first.Claim); err != nil {
					t.Error(err)
				}
			}})
			claimed(t, store, second, idempotency.OutcomeClaimed)
			wantKept(t, pool, org, 1)
			if err := store.Release(t.Context(), second.Claim); err != nil {
				t.Error(err)
			}
			wantKept(t, pool, org, 0)
		})
	}
	t.Run("not committed", func(t *testing.T) {
		t.Parallel()
		org := storetest.NewTenant(t, pool)
		table := atCommit(t, pool, org, `RAISE EXCEPTION 'no' USING ERRCODE = '23514';`)
		plain := storetest.NewStore(t, pool).Transactional().(idempotency.RequestStore)
		first, second := keeping(org, "key"), keeping(org, "key")
		store := tracedTx(t, pool, &before{statement: "ForgetAttempt", do: func() {
			claimed(t, plain, second, idempotency.OutcomeClaimed)
		}})
		insertIn(t, claimed(t, store, first, idempotency.OutcomeClaimed), table)
		if err := store.Complete(t.Context(), first.Claim, &idempotency.Record{ResponseStatus: 201}); err == nil {
			t.Error("it was committed")
		}
		wantKept(t, pool, org, 1)
		if err := plain.Complete(t.Context(), second.Claim, &idempotency.Record{ResponseStatus: 201}); err != nil {
			t.Error(err)
		}
		wantKept(t, pool, org, 0)
	})
}

// TestInterruptedClientIsKeptAnew: an attempt of a client's that dies is given its full
// time and all attempts, whatever an earlier one has left of them.
func TestInterruptedClientIsKeptAnew(t *testing.T) {
	t.Parallel()
	inEachMode(t, func(t *testing.T, mode func(*pgstore.Store) idempotency.Store) {
		pool := pgtest.NewPool(t)
		org := storetest.NewTenant(t, pool)
		c := newClinic(t, pool, mode, func(http.ResponseWriter, *http.Request) {})
		c.interrupt(t, org, "key")
		c.exec(t, `UPDATE `+storetest.SchemaOf(t, org).Quoted()+`.idempotency_requests SET attempts = 4, next_at = now() + interval '1 day'`)
		c.interrupt(t, org, "key")
		if n := attempts(t, pool, org); n != 0 {
			t.Errorf("%d attempts are counted, want 0", n)
		}
		wantPass(t, c.completer(t), pgstore.CompleterResult{Completed: 1})
	})
}

// TestCompletedRequestIsNotRunAgain: what was kept as its key completed, by a process that
// died before it had found that out, is not run when the record has expired.
func TestCompletedRequestIsNotRunAgain(t *testing.T) {
	t.Parallel()
	pool := pgtest.NewPool(t)
	org := storetest.NewTenant(t, pool)
	c := newClinic(t, pool, modes["transaction"], func(http.ResponseWriter, *http.Request) {})
	c.interrupt(t, org, "key")
	schema := storetest.SchemaOf(t, org).Quoted()
	c.exec(t, `CREATE TABLE `+schema+`.late AS SELECT * FROM `+schema+`.idempotency_requests`)
	wantPass(t, c.completer(t), pgstore.CompleterResult{Completed: 1})
	c.exec(t, `UPDATE `+schema+`.late SET expires_at = now() + interval '2 days', next_at = now()`)
	c.exec(t, `INSERT INTO `+schema+`.idempotency_requests SELECT * FROM `+schema+`.late`)

	wantPass(t, c.completer(t), pgstore.CompleterResult{})
	storetest.Advance(t, pool, org, 25*time.Hour)
	wantPass(t, c.completer(t), pgstore.CompleterResult{})
	c.wantRuns(t, org, "key", 1)
}

// TestKeepingHasOneWinner: of many at a time one gets the key and the others are told that
// it is in flight, at every isolation level; and the one's outcome is stored at its first
// try, because no other has touched what is kept of it meanwhile.
func TestKeepingHasOneWinner(t *testing.T) {
	t.Parallel()
	for _, level := range []string{"read committed", "repeatable read", "serializable"} {
		t.Run(level, func(t *testing.T) {
			t.Parallel()
			pool := pgtest.NewPool(t)
			org := storetest.NewTenant(t, pool)
			config := pool.Config()
			config.MaxConns = 12
			config.ConnConfig.RuntimeParams["default_transaction_isolation"] = level
			strict, err := pgxpool.NewWithConfig(t.Context(), config)
			if err != nil {
				t.Fatal(err)
			}
			defer strict.Close()
			store := storetest.NewStore(t, strict).Transactional().(idempotency.RequestStore)
			for round := range 10 {
				key := fmt.Sprint("key ", round)
				winners := make(chan idempotency.Claim, config.MaxConns)
				var racers sync.WaitGroup
				for range config.MaxConns {
					racers.Go(func() {
						req := keeping(org, key)
						result, err := store.Claim(t.Context(), req)
						switch {
						case err == nil && result.Outcome == idempotency.OutcomeClaimed:
							winners <- req.Claim
						case err != nil || result.Outcome != idempotency.OutcomeInFlight:
							t.Errorf("%+v, %v; want it in flight", result, err)
						}
					})
				}
				racers.Wait()
				wantKept(t, pool, org, 1)
				if len(winners) != 1 {
					t.Fatalf("%d have claimed the key, want 1", len(winners))
				}
				if err := store.Complete(t.Context(), <-winners, &idempotency.Record{ResponseStatus: 201}); err != nil {
					t.Error(err)
				}
				wantKept(t, pool, org, 0)
			}
		})
	}
}

// TestTakeOverWithoutKeeping: where an attempt has taken over that does not keep its
// request, as of a version of the service that does not yet, and its client was told that it
// failed, the request of the first one is nobody's any more.
func TestTakeOverWithoutKeeping(t *testing.T) {
	t.Parallel()
	pool := pgtest.NewPool(t)
	org := storetest.NewTenant(t, pool)
	c := newClinic(t, pool, modes["lease"], func(http.ResponseWriter, *http.Request) {})
	c.interrupt(t, org, "key")
	older := idempotency.Require(c.store)(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusInternalServerError)
	}))
	older.ServeHTTP(httptest.NewRecorder(), newPayment(org, "key"))
	wantPass(t, c.completer(t), pgstore.CompleterResult{})
	c.wantRuns(t, org, "key", 0)
	c.wantAnswer(t, org, "key", http.StatusOK, "", "")
}
