package pgstore_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgidem/pgidem/idempotency"
	"github.com/pgidem/pgidem/idempotency/idempotencytest"
	"github.com/pgidem/pgidem/idempotency/pgstore"
	"github.com/pgidem/pgidem/internal/pgtest"
	"github.com/pgidem/pgidem/internal/storetest"
	"github.com/pgidem/pgidem/tenancy"
)

// TestConformanceCoalesced: the same contract, with one transaction at a time for all.
func TestConformanceCoalesced(t *testing.T) {
	t.Parallel()
	newStore, opts := storetest.Suite(pgtest.NewPool(t), pgstore.WithCoalescing(1))
	idempotencytest.TestStore(t, newStore, opts...)
}

// poolLike returns a pool of its own that leads where another does.
func poolLike(t *testing.T, pool *pgxpool.Pool, change func(*pgxpool.Config)) *pgxpool.Pool {
	t.Helper()
	cfg := pool.Config()
	change(cfg)
	p, err := pgxpool.NewWithConfig(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	return p
}

// withMode sets a query mode.
func withMode(mode pgx.QueryExecMode) func(*pgxpool.Config) {
	return func(cfg *pgxpool.Config) { cfg.ConnConfig.DefaultQueryExecMode = mode }
}

// withConns sets how many connections there may be.
func withConns(n int32) func(*pgxpool.Config) { return func(cfg *pgxpool.Config) { cfg.MaxConns = n } }

// countedPool is poolLike with a count of its round trips.
func countedPool(t *testing.T, pool *pgxpool.Pool, conns int32) (*pgxpool.Pool, *tripCounter) {
	t.Helper()
	trips := &tripCounter{}
	return poolLike(t, pool, func(cfg *pgxpool.Config) {
		cfg.MaxConns = conns
		cfg.ConnConfig.DialFunc = trips.dial(cfg.ConnConfig.DialFunc)
	}), trips
}

// TestManyAtOnce: many requests of several tenants, each sent three times at once, are
// claimed once, and give what was stored of each ever after.
func TestManyAtOnce(t *testing.T) {
	t.Parallel()
	pool := pgtest.NewPool(t)
	orgs := []uuid.UUID{storetest.NewTenant(t, pool), storetest.NewTenant(t, pool), storetest.NewTenant(t, pool)}
	for _, mode := range []pgx.QueryExecMode{
		pgx.QueryExecModeCacheStatement, pgx.QueryExecModeCacheDescribe, pgx.QueryExecModeDescribeExec,
		pgx.QueryExecModeExec, pgx.QueryExecModeSimpleProtocol,
	} {
		t.Run(mode.String(), func(t *testing.T) {
			t.Parallel()
			store := storetest.NewStore(t, poolLike(t, pool, withMode(mode)), pgstore.WithCoalescing(1))
			const keys = 60
			var claimed [keys]atomic.Int32
			all := func(do func(i int, req idempotency.ClaimRequest)) {
				var wg sync.WaitGroup
				for i := range keys {
					for range 3 {
						wg.Go(func() { do(i, claimRequest(orgs[i%len(orgs)], fmt.Sprint(mode, i))) })
					}
				}
				wg.Wait()
			}
			body := func(i int) []byte { return bytes.Repeat([]byte{byte(i)}, i) } // empty for the first
			all(func(i int, req idempotency.ClaimRequest) {
				result, err := store.Claim(t.Context(), req)
				switch {
				case err != nil:
					t.Errorf("Claim: %v", err)
				case result.Outcome == idempotency.OutcomeClaimed:
					claimed[i].Add(1)
					rec := &idempotency.Record{ResponseStatus: 200 + i, ResponseBody: body(i), Tombstone: i%7 == 0}
					if i%2 == 0 {
						rec.ResponseHeaders = map[string][]string{"X-I": {fmt.Sprint(i)}}
					}
					if err := store.Complete(t.Context(), req.Claim, rec); err != nil {
						t.Errorf("Complete: %v", err)
					}
				case result.Outcome != idempotency.OutcomeInFlight && result.Outcome != idempotency.OutcomeCompleted:
					t.Errorf("Claim: outcome %d", result.Outcome)
				}
			})
			all(func(i int, req idempotency.ClaimRequest) {
				result, err := store.Claim(t.Context(), req)
				if err != nil || result.Outcome != idempotency.OutcomeCompleted {
					t.Errorf("key %d again: %+v, %v", i, result, err)
					return
				}
				rec := result.Record
				if rec.ResponseStatus != 200+i || !bytes.Equal(rec.ResponseBody, body(i)) || rec.Tombstone != (i%7 == 0) ||
					(i%2 == 0) != (len(rec.ResponseHeaders["X-I"]) == 1) || rec.RequestHash != req.RequestHash {
					t.Errorf("key %d again: %+v", i, rec)
				}
			})
			for i := range keys {
				if n := claimed[i].Load(); n != 1 {
					t.Errorf("key %d was claimed %d times", i, n)
				}
			}
		})
	}
}

// TestCoalescingTakesFewTransactions: what gathers goes together.
func TestCoalescingTakesFewTransactions(t *testing.T) {
	t.Parallel()
	pool := pgtest.NewPool(t)
	org := storetest.NewTenant(t, pool)
	counted, trips := countedPool(t, pool, 2)
	store := storetest.NewStore(t, counted, pgstore.WithCoalescing(1))
	warm := claimRequest(org, "warm")
	mustClaim(t, store, warm, idempotency.OutcomeClaimed)
	mustComplete(t, store, warm.Claim)

	// The first waits for a lock, and all others for the first.
	release := lockTable(t, pool, org)
	before := trips.turns.Load()
	var wg sync.WaitGroup
	for i := range 100 {
		wg.Go(func() {
			req := claimRequest(org, fmt.Sprint("key-", i))
			mustClaim(t, store, req, idempotency.OutcomeClaimed)
		})
	}
	waitForLock(t, pool)
	release()
	wg.Wait()
	if n := trips.turns.Load() - before; n > 50 { // a few, for what has gathered by then; each by itself would make 100
		t.Errorf("100 claims took %d round trips", n)
	}
}

// lockTable locks a tenant's table of records against every use, until release is called.
func lockTable(t *testing.T, pool *pgxpool.Pool, org uuid.UUID) (release func()) {
	t.Helper()
	tx, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var once sync.Once
	release = func() { once.Do(func() { _ = tx.Rollback(context.Background()) }) }
	t.Cleanup(release)
	if _, err := tx.Exec(t.Context(), `LOCK TABLE `+storetest.SchemaOf(t, org).Quoted()+`.idempotency_records`); err != nil {
		t.Fatal(err)
	}
	return release
}

// TestFailuresAreTheirOwn: what fails of one tenant's requests fails no other's, and no other
// of its own, however they come together.
func TestFailuresAreTheirOwn(t *testing.T) {
	t.Parallel()
	for _, mode := range []pgx.QueryExecMode{pgx.QueryExecModeCacheStatement, pgx.QueryExecModeExec, pgx.QueryExecModeSimpleProtocol} {
		t.Run(mode.String(), func(t *testing.T) {
			t.Parallel()
			pool := pgtest.NewPool(t)
			well, refusing, gone := storetest.NewTenant(t, pool), storetest.NewTenant(t, pool), uuid.New()
			records := storetest.SchemaOf(t, refusing).Quoted() + ".idempotency_records"
			for _, sql := range []string{
				`CREATE FUNCTION public.refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'no' USING ERRCODE = 'check_violation'; END $$`,
				`CREATE TRIGGER refuse_claim BEFORE INSERT ON ` + records + ` FOR EACH ROW WHEN (NEW.key LIKE 'bad%') EXECUTE FUNCTION public.refuse()`,
				`CREATE TRIGGER refuse_completion BEFORE UPDATE ON ` + records + ` FOR EACH ROW WHEN (NEW.key LIKE 'worse%') EXECUTE FUNCTION public.refuse()`,
			} {
				if _, err := pool.Exec(t.Context(), sql); err != nil {
					t.Fatal(err)
				}
			}
			conns := poolLike(t, pool, withMode(mode))
			const keys = 30
			newStore := func() *pgstore.Store { // that goes together with whatever has failed in others
				return storetest.NewStore(t, conns, pgstore.WithCoalescing(1))
			}
			t.Run("claims, and completions beside them", func(t *testing.T) {
				store := newStore()
				allAtOnce(keys, func(i int, together func(func())) {
					for _, c := range []struct {
						org  uuid.UUID
						key  string
						want error
					}{
						{well, "key-", nil},
						{refusing, "key-", nil},
						{refusing, "bad-", idempotency.ErrStoreRefused},
						{refusing, "\x00", idempotency.ErrStoreRefused},
						{gone, "key-", tenancy.ErrUnknownTenant},
					} {
						together(func() {
							req := claimRequest(c.org, fmt.Sprint(c.key, i))
							result, err := store.Claim(t.Context(), req)
							if !errors.Is(err, c.want) || err == nil && result.Outcome != idempotency.OutcomeClaimed {
								t.Errorf("key %s: outcome %d, %v; want %v", req.Key, result.Outcome, err, c.want)
							}
							if err != nil {
								return
							}
							if err := store.Complete(t.Context(), req.Claim, &idempotency.Record{ResponseStatus: 201}); err != nil {
								t.Errorf("key %s: Complete: %v", req.Key, err)
							}
						})
					}
				})
			})
			t.Run("completions", func(t *testing.T) {
				claimed, store := newStore(), newStore()
				var reqs [keys][3]idempotency.ClaimRequest
				for i := range reqs {
					reqs[i] = [...]idempotency.ClaimRequest{
						claimRequest(well, fmt.Sprint("worse-", i)), claimRequest(refusing, fmt.Sprint("well-", i)), claimRequest(refusing, fmt.Sprint("worse-", i)),
					}
					for _, req := range reqs[i] {
						mustClaim(t, claimed, req, idempotency.OutcomeClaimed)
					}
				}
				allAtOnce(keys, func(i int, together func(func())) {
					for j, want := range []error{nil, nil, idempotency.ErrStoreRefused} {
						together(func() {
							req := reqs[i][j]
							if err := store.Complete(t.Context(), req.Claim, &idempotency.Record{ResponseStatus: 201}); !errors.Is(err, want) {
								t.Errorf("key %s: %v, want %v", req.Key, err, want)
							}
						})
					}
				})
				for i := range reqs {
					mustClaim(t, claimed, reqs[i][0], idempotency.OutcomeCompleted)
					mustClaim(t, claimed, reqs[i][1], idempotency.OutcomeCompleted)
					if rec, err := claimed.Get(t.Context(), refusing, reqs[i][2].Key); !errors.Is(err, idempotency.ErrNotFound) {
						t.Errorf("key %s, whose completion was refused: %+v, %v", reqs[i][2].Key, rec, err)
					}
				}
			})
			t.Run("looks", func(t *testing.T) {
				for name, in := range modes {
					dropped := storetest.NewTenant(t, pool)
					store := in(newStore()).(idempotency.LeaseStore)
					for i := range keys {
						for _, org := range []uuid.UUID{well, dropped} {
							req := claimRequest(org, fmt.Sprint(name, i))
							result, err := store.Claim(t.Context(), req)
							if err == nil {
								err = store.Complete(t.Context(), req.Claim, &idempotency.Record{ResponseStatus: 200 + i})
							}
							if err != nil {
								t.Fatalf("key %s: outcome %d, %v", req.Key, result.Outcome, err)
							}
						}
					}
					dropTables(t, pool, dropped)
					allAtOnce(keys, func(i int, together func(func())) {
						together(func() {
							result, err := store.Claim(t.Context(), claimRequest(well, fmt.Sprint(name, i)))
							if err != nil || result.Outcome != idempotency.OutcomeCompleted || result.Record.ResponseStatus != 200+i {
								t.Errorf("%s %d: %+v, %v", name, i, result, err)
							}
						})
						together(func() {
							if result, err := store.Claim(t.Context(), claimRequest(dropped, fmt.Sprint(name, i))); !errors.Is(err, tenancy.ErrUnknownTenant) {
								t.Errorf("%s %d, whose table was dropped: %+v, %v", name, i, result, err)
							}
						})
					})
				}
			})
		})
	}
}

// allAtOnce calls do for each of n, and then all that it asks for together.
func allAtOnce(n int, do func(i int, together func(func()))) {
	start := make(chan struct{})
	var wg sync.WaitGroup
	for i := range n {
		do(i, func(f func()) {
			wg.Go(func() {
				<-start
				f()
			})
		})
	}
	close(start)
	wg.Wait()
}

// TestBlockedTenantBlocksNoOther: while one tenant's table is locked, by a migration say,
// the requests of others go on.
func TestBlockedTenantBlocksNoOther(t *testing.T) {
	t.Parallel()
	pool := pgtest.NewPool(t)
	free, locked := storetest.NewTenant(t, pool), storetest.NewTenant(t, pool)
	store := storetest.NewStore(t, poolLike(t, pool, withConns(16)), pgstore.WithCoalescing(1))
	release := lockTable(t, pool, locked)
	blocked, cancel := context.WithTimeout(t.Context(), 6*time.Second)
	defer cancel()
	var others, wg sync.WaitGroup
	for i := range 8 { // fewer than the pool has connections: each ends up with one
		others.Go(func() {
			if _, err := store.Claim(blocked, claimRequest(locked, fmt.Sprint("key-", i))); blocked.Err() == nil || err == nil {
				t.Errorf("of the locked tenant: %v", err)
			}
		})
	}
	waitForLock(t, pool)
	for i := range 50 {
		wg.Go(func() {
			req := claimRequest(free, fmt.Sprint("key-", i))
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			if result, err := store.Claim(ctx, req); err != nil || result.Outcome != idempotency.OutcomeClaimed {
				t.Errorf("of the free tenant: %+v, %v", result, err)
			}
		})
	}
	wg.Wait()
	if blocked.Err() != nil {
		t.Error("the free tenant has waited until the locked one gave up")
	}
	cancel()
	others.Wait()
	release()
	mustClaim(t, store, claimRequest(locked, "afterwards"), idempotency.OutcomeClaimed)
}

// TestCallersThatLeave: who waits in line and gives up takes nothing along.
func TestCallersThatLeave(t *testing.T) {
	t.Parallel()
	pool := pgtest.NewPool(t)
	org := storetest.NewTenant(t, pool)
	store := storetest.NewStore(t, pool, pgstore.WithCoalescing(2))
	for round := range 20 {
		var wg sync.WaitGroup
		for i := range 40 {
			wg.Go(func() {
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				if i%2 == 0 {
					time.AfterFunc(rand.N(3*time.Millisecond), cancel)
				}
				req := claimRequest(org, fmt.Sprint("key-", round, "-", i))
				result, err := store.Claim(ctx, req)
				switch {
				case err != nil && i%2 != 0:
					t.Errorf("one that stayed: %v", err)
				case err != nil: // left, and the claim may stand: the same token finds out
					mustClaim(t, store, req, idempotency.OutcomeClaimed)
				case result.Outcome != idempotency.OutcomeClaimed:
					t.Errorf("outcome %d", result.Outcome)
				}
			})
		}
		wg.Wait()
	}
	var n int
	if err := pool.QueryRow(t.Context(), `SELECT count(*) FROM `+storetest.SchemaOf(t, org).Quoted()+`.idempotency_records`).Scan(&n); err != nil || n != 800 {
		t.Errorf("%d records, %v; want 800", n, err)
	}
}

// TestNoDeadlocks: processes that claim and complete the same keys in all orders never wait
// for each other in a circle.
func TestNoDeadlocks(t *testing.T) {
	t.Parallel()
	pool := pgtest.NewPool(t)
	orgs := []uuid.UUID{storetest.NewTenant(t, pool), storetest.NewTenant(t, pool)}
	stores := []*pgstore.Store{
		storetest.NewStore(t, pool, pgstore.WithCoalescing(2)), storetest.NewStore(t, pool, pgstore.WithCoalescing(2)),
	}
	const keys = 40
	var claimed atomic.Int32
	for range 10 {
		var wg sync.WaitGroup
		for _, store := range stores {
			for _, i := range rand.Perm(keys) {
				wg.Go(func() {
					req := claimRequest(orgs[i%2], fmt.Sprint("key-", i))
					result, err := store.Claim(t.Context(), req)
					if err == nil && result.Outcome == idempotency.OutcomeClaimed {
						claimed.Add(1)
						err = store.Complete(t.Context(), req.Claim, &idempotency.Record{ResponseStatus: 201})
					}
					if err != nil {
						t.Error(err)
					}
				})
			}
		}
		wg.Wait()
		for _, org := range orgs {
			if err := stores[0].Clear(t.Context(), org); err != nil {
				t.Fatal(err)
			}
		}
	}
	var deadlocks int
	if err := pool.QueryRow(t.Context(), `SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()`).Scan(&deadlocks); err != nil || deadlocks > 0 {
		t.Errorf("%d deadlocks, %v", deadlocks, err)
	}
	if n := claimed.Load(); n != 10*keys {
		t.Errorf("%d claims, want %d", n, 10*keys)
	}
}

// TestCompletionsAmongOthers: while records are extended, marked by those who wait, taken
// over and cleared, every completion of many that go together is told what has become of it.
func TestCompletionsAmongOthers(t *testing.T) {
	t.Parallel()
	pool := pgtest.NewPool(t)
	kept, lost := storetest.NewTenant(t, pool), storetest.NewTenant(t, pool)
	store := storetest.NewStore(t, pool, pgstore.WithCoalescing(1))
	other := storetest.NewStore(t, pool)
	const keys = 60
	for round := range 5 {
		reqs := make([]idempotency.ClaimRequest, 2*keys)
		for i := range reqs {
			org := kept
			if i%2 != 0 {
				org = lost
			}
			reqs[i] = claimRequest(org, fmt.Sprint(round, "-", i))
			mustClaim(t, store, reqs[i], idempotency.OutcomeClaimed)
		}
		errs := make([]error, len(reqs))
		var wg sync.WaitGroup
		for i, req := range reqs {
			wg.Go(func() { errs[i] = store.Complete(t.Context(), req.Claim, &idempotency.Record{ResponseStatus: 200 + i}) })
			wg.Go(func() {
				switch waits := req; {
				case req.OrgID == kept && i%4 == 0: // one that waits marks the record
					waits.Token, waits.Await = idempotency.NewToken(), true
					if _, err := other.Claim(t.Context(), waits); err != nil {
						t.Error(err)
					}
				case req.OrgID == kept:
					if err := other.Extend(t.Context(), req.Claim, time.Hour); err != nil && !errors.Is(err, idempotency.ErrLeaseLost) {
						t.Error(err)
					}
				case i%3 == 0: // as one that takes it over
					if _, err := pool.Exec(t.Context(), `UPDATE `+storetest.SchemaOf(t, lost).Quoted()+`.idempotency_records AS r
						SET token = $1, attempt = 2 WHERE r.key = $2 AND r.completed_at IS NULL`, uuid.New(), req.Key); err != nil {
						t.Error(err)
					}
				case i%(keys/2) == 1:
					if err := other.Clear(t.Context(), lost); err != nil {
						t.Error(err)
					}
				}
			})
		}
		wg.Wait()
		for i, req := range reqs {
			switch err := errs[i]; {
			case req.OrgID == kept && err != nil:
				t.Errorf("key %s, which nobody took: %v", req.Key, err)
			case err != nil && !errors.Is(err, idempotency.ErrLeaseLost):
				t.Errorf("key %s: %v", req.Key, err)
			}
			rec, err := store.Get(t.Context(), req.OrgID, req.Key)
			switch {
			case errors.Is(err, idempotency.ErrNotFound):
				if req.OrgID == kept {
					t.Errorf("key %s is not there", req.Key)
				}
			case err != nil:
				t.Error(err)
			case errs[i] != nil || rec.ResponseStatus != 200+i:
				t.Errorf("key %s: the completion was told %v, and stored is %+v", req.Key, errs[i], rec)
			}
		}
	}
}

// TestCompletionThatMetAnother: a completion among others whose record another changes at
// this moment is stored all the same, and one whose record is taken is told so.
func TestCompletionThatMetAnother(t *testing.T) {
	t.Parallel()
	pool := pgtest.NewPool(t)
	for what, c := range map[string]struct {
		change string
		want   error
	}{
		"extended": {"lease_until = now() + interval '1 hour'", nil},
		"taken":    {"token = gen_random_uuid(), attempt = 2", idempotency.ErrLeaseLost},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			org := storetest.NewTenant(t, pool)
			store := storetest.NewStore(t, poolLike(t, pool, withConns(8)), pgstore.WithCoalescing(1))
			const keys = 30
			reqs := make([]idempotency.ClaimRequest, keys)
			for i := range reqs {
				reqs[i] = claimRequest(org, fmt.Sprint(i))
				mustClaim(t, store, reqs[i], idempotency.OutcomeClaimed)
			}
			hold, err := pool.Begin(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = hold.Rollback(context.Background()) }()
			if _, err := hold.Exec(t.Context(), `UPDATE `+storetest.SchemaOf(t, org).Quoted()+`.idempotency_records SET `+c.change+` WHERE key = '7'`); err != nil {
				t.Fatal(err)
			}
			var wg sync.WaitGroup
			for i, req := range reqs {
				wg.Go(func() {
					want := error(nil)
					if i == 7 {
						want = c.want
					}
					if err := store.Complete(t.Context(), req.Claim, &idempotency.Record{ResponseStatus: 200 + i}); !errors.Is(err, want) {
						t.Errorf("key %d: %v, want %v", i, err, want)
					}
				})
			}
			waitForLock(t, pool)
			if err := hold.Commit(t.Context()); err != nil {
				t.Fatal(err)
			}
			wg.Wait()
			for i, req := range reqs {
				rec, err := store.Get(t.Context(), org, req.Key)
				switch {
				case i == 7 && c.want != nil:
					if !errors.Is(err, idempotency.ErrNotFound) {
						t.Errorf("key %d, which was taken: %+v, %v", i, rec, err)
					}
				case err != nil || rec.ResponseStatus != 200+i:
					t.Errorf("key %d: %+v, %v", i, rec, err)
				}
			}
		})
	}
}

// TestBesideARewrite: a statement that rewrites the table, which leaves rows that a strict
// isolation level does not see, takes no lease away.
func TestBesideARewrite(t *testing.T) {
	t.Parallel()
	direct := pgtest.NewPool(t)
	for _, level := range []string{"read committed", "repeatable read"} {
		for name, call := range map[string]func(*pgstore.Store, idempotency.Claim) error{
			"extend": func(store *pgstore.Store, c idempotency.Claim) error {
				return store.Extend(context.Background(), c, time.Hour)
			},
			"complete": func(store *pgstore.Store, c idempotency.Claim) error {
				return store.Complete(context.Background(), c, &idempotency.Record{ResponseStatus: 201})
			},
		} {
			t.Run(level+", "+name, func(t *testing.T) {
				t.Parallel()
				org := storetest.NewTenant(t, direct)
				store := storetest.NewStore(t, poolLike(t, direct, func(c *pgxpool.Config) {
					c.MaxConns = 1
					c.ConnConfig.RuntimeParams["default_transaction_isolation"] = level
				}))
				claimed := func(key string) idempotency.Claim {
					req := claimRequest(org, key)
					mustClaim(t, store, req, idempotency.OutcomeClaimed)
					return req.Claim
				}
				for i := range 8 { // until its statement is prepared and planned
					if err := call(store, claimed(fmt.Sprint(i))); err != nil {
						t.Fatal(err)
					}
				}
				claims := make([]idempotency.Claim, 12)
				for i := range claims {
					claims[i] = claimed(fmt.Sprint("key-", i))
				}
				rewrite, err := direct.Begin(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				defer func() { _ = rewrite.Rollback(context.Background()) }()
				if _, err := rewrite.Exec(t.Context(), `ALTER TABLE `+storetest.SchemaOf(t, org).Quoted()+`.idempotency_records ADD COLUMN audit uuid DEFAULT gen_random_uuid()`); err != nil {
					t.Fatal(err)
				}
				var wg sync.WaitGroup
				for _, c := range claims {
					wg.Go(func() {
						if err := call(store, c); err != nil {
							t.Error(err)
						}
					})
				}
				waitForLock(t, direct)
				if err := rewrite.Commit(t.Context()); err != nil {
					t.Fatal(err)
				}
				wg.Wait()
				for _, c := range claims {
					if _, err := store.Get(t.Context(), org, c.Key); name == "complete" && err != nil {
						t.Errorf("key %s: %v", c.Key, err)
					}
				}
			})
		}
	}
}

// TestRelaxedClaims: a claim's transaction alone commits without waiting for the disk.
func TestRelaxedClaims(t *testing.T) {
	t.Parallel()
	pool := pgtest.NewPool(t)
	org := storetest.NewTenant(t, pool)
	for _, sql := range []string{
		`CREATE TABLE public.commits (op text, key text, setting text)`,
		`CREATE FUNCTION public.note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
			INSERT INTO public.commits VALUES (TG_OP, NEW.key, current_setting('synchronous_commit')); RETURN NULL; END $$`,
		`CREATE TRIGGER note AFTER INSERT OR UPDATE ON ` + storetest.SchemaOf(t, org).Quoted() + `.idempotency_records FOR EACH ROW EXECUTE FUNCTION public.note()`,
	} {
		if _, err := pool.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	run := func(name string, opts ...pgstore.Option) {
		store := storetest.NewStore(t, pool, append(opts, pgstore.WithCoalescing(1))...)
		var wg sync.WaitGroup
		for i := range 20 { // by themselves, and together
			wg.Go(func() {
				req := claimRequest(org, fmt.Sprint(name, i))
				mustClaim(t, store, req, idempotency.OutcomeClaimed)
				mustComplete(t, store, req.Claim)
			})
		}
		wg.Wait()
	}
	run("strict")
	run("relaxed", pgstore.WithRelaxedClaims())
	rows, _ := pool.Query(t.Context(), `SELECT DISTINCT translate(key, '0123456789', '') || ' ' || op || ' ' || setting FROM public.commits ORDER BY 1`)
	got, err := pgx.CollectRows(rows, pgx.RowTo[string])
	want := []string{"relaxed INSERT off", "relaxed UPDATE on", "strict INSERT on", "strict UPDATE on"}
	if err != nil || fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("%q, %v; want %q", got, err, want)
	}
}

// TestReplaysElsewhere: a process that has not seen the first request needs a second round
// trip for the first retry that it meets, and one for those that follow.
func TestReplaysElsewhere(t *testing.T) {
	t.Parallel()
	pool := pgtest.NewPool(t)
	org := storetest.NewTenant(t, pool)
	first := storetest.NewStore(t, pool)
	for i := range 10 {
		req := claimRequest(org, fmt.Sprint("key-", i))
		mustClaim(t, first, req, idempotency.OutcomeClaimed)
		mustComplete(t, first, req.Claim)
	}
	counted, trips := countedPool(t, pool, 1)
	second := storetest.NewStore(t, counted)
	var took []int64
	for i := range 10 {
		before := trips.turns.Load()
		mustClaim(t, second, claimRequest(org, fmt.Sprint("key-", i)), idempotency.OutcomeCompleted)
		took = append(took, trips.turns.Load()-before)
	}
	for _, n := range took[2:] { // statements are prepared before
		if n != 1 {
			t.Errorf("round trips of each replay: %d", took)
		}
	}
}

// TestBodiesAreCompressed by lz4, where the server has it.
func TestBodiesAreCompressed(t *testing.T) {
	t.Parallel()
	pool := pgtest.NewPool(t)
	var offered bool
	if err := pool.QueryRow(t.Context(), `SELECT 'lz4' = ANY (enumvals) FROM pg_settings WHERE name = 'default_toast_compression'`).Scan(&offered); err != nil && !errors.Is(err, pgx.ErrNoRows) {
		t.Fatal(err)
	}
	org := storetest.NewTenant(t, pool)
	store := storetest.NewStore(t, pool)
	req := claimRequest(org, "key")
	mustClaim(t, store, req, idempotency.OutcomeClaimed)
	body := []byte(strings.Repeat(`{"id":12345,"amount":1200},`, 2500))
	if err := store.Complete(t.Context(), req.Claim, &idempotency.Record{ResponseStatus: 201, ResponseBody: body}); err != nil {
		t.Fatal(err)
	}
	if rec := mustClaim(t, store, claimRequest(org, "key"), idempotency.OutcomeCompleted).Record; !bytes.Equal(rec.ResponseBody, body) {
		t.Error("the body has changed")
	}
	if !offered {
		return
	}
	var method *string
	if err := pool.QueryRow(t.Context(), `SELECT pg_column_compression(response_body) FROM `+storetest.SchemaOf(t, org).Quoted()+`.idempotency_records`).Scan(&method); err != nil || method == nil || *method != "lz4" {
		t.Errorf("compressed by %v, %v", method, err)
	}
}

// TestCoalescingOptions: what cannot work is found when the service is wired.
func TestCoalescingOptions(t *testing.T) {
	t.Parallel()
	if _, err := pgstore.New(pgtest.NewPool(t), storetest.PerOrg, pgstore.WithCoalescing(0)); err == nil || !strings.Contains(err.Error(), "WithCoalescing") {
		t.Errorf("%v", err)
	}
}

// TestShortDeadlinesBesideBlocked: one tenant's blocked statement, whose caller has time,
// does not use up the time of another's.
func TestShortDeadlinesBesideBlocked(t *testing.T) {
	t.Parallel()
	pool := pgtest.NewPool(t)
	free, locked := storetest.NewTenant(t, pool), storetest.NewTenant(t, pool)
	store := storetest.NewStore(t, poolLike(t, pool, withConns(16)), pgstore.WithCoalescing(1))
	lockTable(t, pool, locked)
	blocked, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var others, wg sync.WaitGroup
	for i := range 4 { // the first by itself, the others in line with those of the free tenant
		others.Go(func() { _, _ = store.Claim(blocked, claimRequest(locked, fmt.Sprint("key-", i))) })
	}
	waitForLock(t, pool)
	for i := range 20 {
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second) // half of it, were that of the blocked ones taken, is not enough
			defer cancel()
			if _, err := store.Claim(ctx, claimRequest(free, fmt.Sprint("key-", i))); err != nil {
				t.Errorf("of the free tenant: %v", err)
			}
		})
	}
	wg.Wait()
	cancel()
	others.Wait()
}

// TestTransactionGivenUpHasEnded: what goes together is ended by the server before those
// who wait give it up, though no request to cancel it arrives. It would come true later
// otherwise, and claim what had been released since.
func TestTransactionGivenUpHasEnded(t *testing.T) {
	t.Parallel()
	for _, mode := range []pgx.QueryExecMode{pgx.QueryExecModeCacheStatement, pgx.QueryExecModeExec, pgx.QueryExecModeSimpleProtocol} {
		t.Run(mode.String(), func(t *testing.T) {
			t.Parallel()
			pool := pgtest.NewPool(t)
			free, locked := storetest.NewTenant(t, pool), storetest.NewTenant(t, pool)
			p := poolLike(t, pool, func(cfg *pgxpool.Config) {
				cfg.MaxConns = 16
				cfg.ConnConfig.DefaultQueryExecMode = mode
				dial := cfg.ConnConfig.DialFunc
				cfg.ConnConfig.DialFunc = func(ctx context.Context, network, address string) (net.Conn, error) {
					conn, err := dial(ctx, network, address)
					return noCancel{conn}, err
				}
			})
			store := storetest.NewStore(t, p, pgstore.WithCoalescing(1))
			release := lockTable(t, pool, locked)
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			defer cancel()
			var others, wg sync.WaitGroup
			for i := range 4 {
				others.Go(func() { _, _ = store.Claim(ctx, claimRequest(locked, fmt.Sprint("key-", i))) })
			}
			waitForLock(t, pool)
			for i := range 20 {
				wg.Go(func() {
					req := claimRequest(free, fmt.Sprint("key-", i))
					mustClaim(t, store, req, idempotency.OutcomeClaimed)
					if err := store.Release(t.Context(), req.Claim); err != nil {
						t.Error(err)
					}
				})
			}
			wg.Wait()
			release() // what still waits in the server goes on now
			others.Wait()
			for range 20 {
				var n int
				if err := pool.QueryRow(t.Context(), `SELECT count(*) FROM `+storetest.SchemaOf(t, free).Quoted()+`.idempotency_records`).Scan(&n); err != nil || n > 0 {
					t.Fatalf("%d released claims have come back, %v", n, err)
				}
			}
		})
	}
}

// noCancel is a connection on which a request to cancel does not get through.
type noCancel struct{ net.Conn }

func (c noCancel) Write(p []byte) (int, error) {
	if len(p) == 16 && binary.BigEndian.Uint32(p[4:]) == 80877102 { // PostgreSQL documentation, section 55.7, CancelRequest
		return 0, errors.New("lost")
	}
	return c.Conn.Write(p)
}

// TestCancellationIsNoFailure: a caller that has left does not make others go by themselves.
func TestCancellationIsNoFailure(t *testing.T) {
	t.Parallel()
	pool := pgtest.NewPool(t)
	org := storetest.NewTenant(t, pool)
	counted, trips := countedPool(t, pool, 2)
	store := storetest.NewStore(t, counted, pgstore.WithCoalescing(1))
	mustClaim(t, store, claimRequest(org, "warm"), idempotency.OutcomeClaimed)
	left, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := store.Claim(left, claimRequest(org, "left")); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	release := lockTable(t, pool, org)
	before := trips.turns.Load()
	var wg sync.WaitGroup
	for i := range 100 {
		wg.Go(func() { mustClaim(t, store, claimRequest(org, fmt.Sprint("key-", i)), idempotency.OutcomeClaimed) })
	}
	waitForLock(t, pool)
	release()
	wg.Wait()
	if n := trips.turns.Load() - before; n > 50 {
		t.Errorf("100 claims took %d round trips", n)
	}
}
