package faults_test

import (
	"context"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgidem/pgidem/chaos/faults"
	"github.com/pgidem/pgidem/idempotency"
	"github.com/pgidem/pgidem/internal/pgtest"
)

// impatient is a store timeout after which a test need not wait long.
const impatient = 900 * time.Millisecond

// leave sends the request of a client that leaves when the fault has struck.
func (w *world) leave(t *testing.T, struck *faults.Strike) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, w.server.URL, strings.NewReader(`{}`))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set(idempotency.HeaderKey, "key")
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		if resp, err := w.server.Client().Do(r); err == nil {
			resp.Body.Close()
		}
	}()
	select {
	case <-struck.First():
	case <-gone:
		t.Fatal("answered before the fault struck")
	}
	cancel()
	<-gone
}

// TestBlackHoleUnderTheHandler: a handler's statement goes into a black hole and its client
// leaves. The key is in flight until the server notices, and then a retry runs.
func TestBlackHoleUnderTheHandler(t *testing.T) {
	t.Parallel()
	for _, noticed := range []string{"the network heals", "the server loses patience"} {
		t.Run(noticed, func(t *testing.T) {
			t.Parallel()
			pool, heals := pgtest.NewPool(t), noticed == "the network heals"
			if !heals {
				setForDatabase(t, pool, "idle_in_transaction_session_timeout", "500ms")
			}
			w := newWorld(t, pool, transactions, behaviour{limit: patience})
			struck := w.proxy.Inject(faults.Fault{Statement: faults.Text("INSERT INTO payments"), Moment: faults.Before, Kind: faults.BlackHole})
			w.leave(t, struck)
			eventually(t, "the handler to give up", func() bool {
				return w.decided(idempotency.DecisionRolledBack, idempotency.DecisionNoOutcome, idempotency.DecisionClientLeft) == 1
			})
			if heals {
				if a := w.send(t); a.code != "in_flight" {
					t.Errorf("while the server has not noticed: %s; %s", a, w.story())
				}
				w.heal()
			}
			final := w.sendUntilDone(t)
			w.wantReplay(t, final)
			w.awaitQuiet(t)
			w.check(t, final)
		})
	}
}

// setForDatabase sets a parameter for new connections to the pool's database.
func setForDatabase(t *testing.T, pool *pgxpool.Pool, parameter, value string) {
	t.Helper()
	name := pgx.Identifier{pool.Config().ConnConfig.Database}.Sanitize()
	if _, err := pool.Exec(t.Context(), `ALTER DATABASE `+name+` SET `+parameter+` = '`+value+`'`); err != nil {
		t.Fatal(err)
	}
}

// TestPoolRecovers: after a black hole the pool serves again, whether what was in it comes
// out or only new connections get through.
func TestPoolRecovers(t *testing.T) {
	t.Parallel()
	pool := pgtest.NewPool(t)
	for _, mode := range []string{leases, transactions} {
		t.Run(mode+"/all of it heals", func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, pool, mode, behaviour{limit: impatient}, idempotency.WithStoreTimeout(impatient), idempotency.WithLease(2*time.Second))
			w.proxy.HoldAll(0)
			var wg sync.WaitGroup
			for range 20 { // more than the pool has connections
				wg.Go(func() {
					if a := w.send(t); a.code != "store_unavailable" {
						t.Errorf("through a black hole: %s", a)
					}
				})
			}
			wg.Wait()
			w.heal()
			began := time.Now()
			final := w.sendUntilDone(t)
			t.Logf("served again after %s", time.Since(began).Round(time.Millisecond))
			w.wantReplay(t, final)
			w.awaitQuiet(t)
			w.check(t, final)
		})
		t.Run(mode+"/new connections get through", func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, pool, mode, behaviour{limit: impatient}, idempotency.WithStoreTimeout(impatient), idempotency.WithLease(2*time.Second))
			statement := faults.Named("ClaimInsert")
			if mode == transactions {
				statement = faults.Named("EnterTenant")
			}
			// Every connection that the pool can have, and none of them is ever heard of again.
			struck := w.proxy.Inject(faults.Fault{Statement: statement, Moment: faults.Before, Kind: faults.BlackHole, Times: int(w.pool.Config().MaxConns)})
			var wg sync.WaitGroup
			for range 20 {
				wg.Go(func() { w.send(t) })
			}
			wg.Wait()
			began := time.Now()
			final := w.sendUntilDone(t)
			t.Logf("%d connections lost; served again after %s", struck.Count(), time.Since(began).Round(time.Millisecond))
			w.wantReplay(t, final)
			w.awaitQuiet(t)
			w.check(t, final)
		})
	}
}

// TestCommitThatTakesTooLong: a commit that takes longer than its third of the store timeout
// is cancelled, however often it is tried, and goes through when commits are fast again.
func TestCommitThatTakesTooLong(t *testing.T) {
	t.Parallel()
	pool := pgtest.NewPool(t)
	w := newWorld(t, pool, transactions, behaviour{limit: patience}, idempotency.WithStoreTimeout(impatient))
	for _, sql := range []string{
		`CREATE TABLE ` + w.schema + `.slowness (seconds float8)`,
		`INSERT INTO ` + w.schema + `.slowness VALUES (20)`,
		`CREATE FUNCTION ` + w.schema + `.slow() RETURNS trigger LANGUAGE plpgsql AS $$
			BEGIN PERFORM pg_sleep(s.seconds) FROM ` + w.schema + `.slowness AS s; RETURN NULL; END $$`,
		`CREATE CONSTRAINT TRIGGER slow AFTER INSERT ON ` + w.schema + `.payments DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION ` + w.schema + `.slow()`,
	} {
		if _, err := pool.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	for range 3 {
		var a answer
		eventually(t, "the attempt before to be over", func() bool {
			a = w.send(t)
			return a.code != "in_flight"
		})
		if a.status != http.StatusServiceUnavailable {
			t.Errorf("while commits are slow: %s", a)
		}
		if paid := w.payments(t); paid != nil {
			t.Errorf("payments %v of commits that were cancelled", paid)
		}
	}
	if cancels := w.proxy.Stats().Cancels; cancels < 3 {
		t.Errorf("%d commits were cancelled", cancels)
	}
	if _, err := pool.Exec(t.Context(), `UPDATE `+w.schema+`.slowness SET seconds = 0`); err != nil {
		t.Fatal(err)
	}
	final := w.sendUntilDone(t)
	w.wantReplay(t, final)
	w.awaitQuiet(t)
	w.check(t, final)
}

// TestClaimThatArrivesLate: both tries of a claim are lost in a black hole, and arrive when
// their client has long been told to come again. They hold the key for a lease, as that of
// a process that died does, and no longer.
func TestClaimThatArrivesLate(t *testing.T) {
	t.Parallel()
	pool := pgtest.NewPool(t)
	w := newWorld(t, pool, leases, behaviour{}, idempotency.WithStoreTimeout(6*time.Second), idempotency.WithLease(4*time.Second))
	struck := w.proxy.Inject(faults.Fault{Statement: faults.Named("ClaimInsert"), Moment: faults.Before, Kind: faults.BlackHole, Times: 2})
	if a := w.send(t); a.code != "store_unavailable" || struck.Count() != 2 {
		t.Fatalf("%s after %d strikes; %s", a, struck.Count(), w.story())
	}
	w.proxy.Heal()
	eventually(t, "the claim to arrive", func() bool {
		var n int
		if err := pool.QueryRow(t.Context(), `SELECT count(*) FROM `+w.schema+`.idempotency_records`).Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n == 1
	})
	final := w.sendUntilDone(t)
	if w.decided(idempotency.DecisionInFlight) == 0 || w.decided(idempotency.DecisionTakenOver) != 1 {
		t.Errorf("the claim that came late held nobody off; %s", w.story())
	}
	w.wantReplay(t, final)
	w.awaitQuiet(t)
	w.check(t, final)
}

// TestHangingConnectionIsNotTheNext: where one connection hangs at the end of an attempt, its
// outcome is stored, or found out, over another, and the client hears nothing of it.
func TestHangingConnectionIsNotTheNext(t *testing.T) {
	t.Parallel()
	pool := pgtest.NewPool(t)
	for _, c := range []struct {
		mode      string
		statement func(string) bool
		moment    faults.Moment
	}{
		{leases, faults.Named("Complete"), faults.Before},
		{leases, faults.Named("Complete"), faults.Answered},
		{transactions, faults.Text("COMMIT"), faults.Answered},
	} {
		t.Run(c.mode+" "+c.moment.String(), func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, pool, c.mode, behaviour{limit: patience}, idempotency.WithStoreTimeout(9*time.Second))
			struck := w.proxy.Inject(faults.Fault{Statement: c.statement, Moment: c.moment, Kind: faults.BlackHole})
			first := w.send(t)
			if first.String() != "201 run 1" || struck.Count() != 1 || w.decided(idempotency.DecisionExecuted) != 1 {
				t.Errorf("%s after %d strikes; %s", first, struck.Count(), w.story())
			}
			w.wantReplay(t, first)
			w.awaitQuiet(t)
			w.check(t, first)
		})
	}
}
