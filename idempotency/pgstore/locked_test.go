package pgstore_test

import (
	"context"
	"errors"
	"fmt"
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

// TestLockedTenantsLeaveConnections: while the tables of tenants are locked, and calls of
// every kind of theirs under way, far more than there are connections, other tenants are
// served. The locks are held until those have been.
func TestLockedTenantsLeaveConnections(t *testing.T) {
	t.Parallel()
	for name, newStore := range map[string]func(*testing.T, *pgxpool.Pool) *pgstore.Store{
		"a pool of 2":  onOnePool(2),
		"a pool of 4":  onOnePool(4),
		"a pool of 16": onOnePool(16),
		"4 pools of 4": onPools(4, 16),
		"8 pools of 2": onPools(8, 16),
		"4 pools of 1": onPools(4, 4),
		"two clusters": func(t *testing.T, pool *pgxpool.Pool) *pgstore.Store {
			return newRouted(t, pgstore.Clusters{"": storetest.NewPools(t, pool, 4, 8), "other": storetest.NewPools(t, pool, 2, 4)})
		},
	} {
		for _, tenants := range []int{1, 3} {
			t.Run(fmt.Sprintf("%s, %d locked", name, tenants), func(t *testing.T) {
				t.Parallel()
				testLockedTenants(t, tenants, 64/tenants, newStore)
			})
		}
	}
}

func onOnePool(conns int32) func(*testing.T, *pgxpool.Pool) *pgstore.Store {
	return func(t *testing.T, pool *pgxpool.Pool) *pgstore.Store {
		return storetest.NewStore(t, poolLike(t, pool, withConns(conns)))
	}
}

func onPools(n, conns int) func(*testing.T, *pgxpool.Pool) *pgstore.Store {
	return func(t *testing.T, pool *pgxpool.Pool) *pgstore.Store {
		return newRouted(t, storetest.NewPools(t, pool, n, conns))
	}
}

func testLockedTenants(t *testing.T, tenants, callsOfEach int, newStore func(*testing.T, *pgxpool.Pool) *pgstore.Store) {
	pool := pgtest.NewPool(t)
	store := newStore(t, pool)
	free := []uuid.UUID{storetest.NewTenant(t, pool), storetest.NewTenant(t, pool), storetest.NewTenant(t, pool)}
	var calls []func(context.Context) error
	orgs := make([]uuid.UUID, tenants)
	for i := range orgs {
		orgs[i] = storetest.NewTenant(t, pool)
		calls = append(calls, everyCall(t, store, orgs[i], callsOfEach)...)
	}
	var releases []func()
	for _, org := range orgs {
		releases = append(releases, lockTable(t, pool, org))
	}
	var locked sync.WaitGroup
	for _, call := range calls {
		locked.Go(func() {
			if err := call(context.Background()); err != nil { // which ends when the lock does
				t.Errorf("of a locked tenant: %v", err)
			}
		})
	}
	waitForLock(t, pool)

	// A deadline that only a call which waits for the lock reaches.
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var others sync.WaitGroup
	for _, org := range free {
		for i := range 8 {
			others.Go(func() {
				if err := serveOnce(ctx, store, org, fmt.Sprint("key-", i)); err != nil {
					t.Errorf("of a free tenant: %v", err)
				}
			})
		}
	}
	others.Wait()
	for _, release := range releases {
		release()
	}
	locked.Wait()
}

// serveOnce makes the calls of a request that is served, extended and asked for again.
func serveOnce(ctx context.Context, store *pgstore.Store, org uuid.UUID, key string) error {
	req := claimRequest(org, key)
	result, err := store.Claim(ctx, req)
	if err != nil || result.Outcome != idempotency.OutcomeClaimed {
		return fmt.Errorf("claim: outcome %d, %w", result.Outcome, err)
	}
	if err := store.Extend(ctx, req.Claim, time.Minute); err != nil {
		return fmt.Errorf("extend: %w", err)
	}
	if _, err := store.SaveStep(ctx, req.Claim, "step", []byte(`1`)); err != nil {
		return fmt.Errorf("save a step: %w", err)
	}
	if err := store.Complete(ctx, req.Claim, &idempotency.Record{ResponseStatus: 201}); err != nil {
		return fmt.Errorf("complete: %w", err)
	}
	again, err := store.Claim(ctx, claimRequest(org, key))
	if err != nil || again.Outcome != idempotency.OutcomeCompleted {
		return fmt.Errorf("claim again: outcome %d, %w", again.Outcome, err)
	}
	if _, err := store.Get(ctx, org, key); err != nil {
		return fmt.Errorf("get: %w", err)
	}
	return nil
}

// everyCall returns n calls of each kind that there is for a tenant.
func everyCall(t *testing.T, store *pgstore.Store, org uuid.UUID, n int) (calls []func(context.Context) error) {
	t.Helper()
	var mu sync.Mutex
	var claims sync.WaitGroup
	claimed := func(key string, change ...func(*idempotency.ClaimRequest)) idempotency.ClaimRequest {
		req := claimRequest(org, key)
		for _, c := range change {
			c(&req)
		}
		mustClaim(t, store, req, idempotency.OutcomeClaimed)
		return req
	}
	add := func(prepare func(key string) func(context.Context) error) {
		kind := len(calls)
		for i := range n {
			claims.Go(func() {
				call := prepare(fmt.Sprint(kind, "-", i))
				mu.Lock()
				defer mu.Unlock()
				calls = append(calls, call)
			})
		}
		claims.Wait()
	}
	claim := func(req idempotency.ClaimRequest, want idempotency.ClaimOutcome) func(context.Context) error {
		return func(ctx context.Context) error {
			result, err := store.Claim(ctx, req)
			if err != nil || result.Outcome != want {
				return fmt.Errorf("claim: outcome %d, %w; want %d", result.Outcome, err, want)
			}
			return nil
		}
	}
	add(func(key string) func(context.Context) error {
		return claim(claimRequest(org, key), idempotency.OutcomeClaimed)
	})
	add(func(key string) func(context.Context) error { // a take-over
		claimed(key, func(r *idempotency.ClaimRequest) { r.Lease = time.Microsecond })
		return claim(claimRequest(org, key), idempotency.OutcomeClaimed)
	})
	add(func(key string) func(context.Context) error { // one that waits
		claimed(key)
		req := claimRequest(org, key)
		req.Await = true
		return claim(req, idempotency.OutcomeInFlight)
	})
	add(func(key string) func(context.Context) error { // a replay
		mustComplete(t, store, claimed(key).Claim)
		return claim(claimRequest(org, key), idempotency.OutcomeCompleted)
	})
	add(func(key string) func(context.Context) error {
		req := claimed(key)
		return func(ctx context.Context) error {
			return store.Complete(ctx, req.Claim, &idempotency.Record{ResponseStatus: 201})
		}
	})
	add(func(key string) func(context.Context) error {
		req := claimed(key)
		return func(ctx context.Context) error { return store.Extend(ctx, req.Claim, time.Minute) }
	})
	add(func(key string) func(context.Context) error {
		req := claimed(key)
		return func(ctx context.Context) error { return store.Release(ctx, req.Claim) }
	})
	add(func(key string) func(context.Context) error {
		req := claimed(key)
		return func(ctx context.Context) error {
			stored, err := store.SaveStep(ctx, req.Claim, "step", []byte(`1`))
			if err == nil && string(stored) != `1` {
				err = fmt.Errorf("the step is %q", stored)
			}
			return err
		}
	})
	add(func(key string) func(context.Context) error {
		req := claimed(key)
		return func(ctx context.Context) error {
			_, found, err := store.LoadStep(ctx, req.Claim, "step")
			if found {
				return errors.New("a step that nobody stored")
			}
			return err
		}
	})
	add(func(key string) func(context.Context) error {
		return func(ctx context.Context) error {
			if _, err := store.Get(ctx, org, key); !errors.Is(err, idempotency.ErrNotFound) {
				return fmt.Errorf("get: %w", err)
			}
			return nil
		}
	})
	add(func(key string) func(context.Context) error {
		return func(ctx context.Context) error {
			return store.Put(ctx, &idempotency.Record{OrgID: org, Key: key, RequestHash: "hash", ResponseStatus: 201})
		}
	})
	return calls
}

// TestReadersGoOnBesideWriters: a lock that lets readers through, as that of CREATE INDEX,
// stops a tenant's claims and not its replays.
func TestReadersGoOnBesideWriters(t *testing.T) {
	t.Parallel()
	pool := pgtest.NewPool(t)
	org := storetest.NewTenant(t, pool)
	store := storetest.NewStore(t, poolLike(t, pool, withConns(4)))
	const calls = 32
	for i := range calls {
		req := claimRequest(org, fmt.Sprint(i))
		mustClaim(t, store, req, idempotency.OutcomeClaimed)
		mustComplete(t, store, req.Claim)
	}
	tx, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback(context.Background()) }()
	if _, err := tx.Exec(t.Context(), `LOCK TABLE `+storetest.SchemaOf(t, org).Quoted()+`.idempotency_records IN SHARE MODE`); err != nil {
		t.Fatal(err)
	}
	var writers, readers sync.WaitGroup
	for i := range calls {
		writers.Go(func() { mustClaim(t, store, claimRequest(org, fmt.Sprint("new-", i)), idempotency.OutcomeClaimed) })
	}
	waitForLock(t, pool)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for i := range calls {
		readers.Go(func() {
			req := claimRequest(org, fmt.Sprint(i))
			req.Recovery = true // looks in any case; by a key that it does not remember to have met the store tries to write first
			if result, err := store.Claim(ctx, req); err != nil || result.Outcome != idempotency.OutcomeCompleted {
				t.Errorf("a replay: outcome %d, %v", result.Outcome, err)
			}
		})
	}
	readers.Wait()
	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	writers.Wait()
}

// TestSlowStatementsComeToAnEnd: statements that take long by nature, more of them at once
// than may, are ended, take their turns and take effect once.
func TestSlowStatementsComeToAnEnd(t *testing.T) {
	t.Parallel()
	for _, mode := range []pgx.QueryExecMode{pgx.QueryExecModeCacheStatement, pgx.QueryExecModeExec, pgx.QueryExecModeSimpleProtocol} {
		t.Run(mode.String(), func(t *testing.T) {
			t.Parallel()
			pool := pgtest.NewPool(t)
			org := storetest.NewTenant(t, pool)
			records := storetest.SchemaOf(t, org).Quoted() + ".idempotency_records"
			for _, sql := range []string{
				`CREATE FUNCTION public.slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(0.15); RETURN coalesce(NEW, OLD); END $$`,
				`CREATE TRIGGER slow BEFORE INSERT OR UPDATE OR DELETE ON ` + records + ` FOR EACH ROW EXECUTE FUNCTION public.slow()`,
			} {
				if _, err := pool.Exec(t.Context(), sql); err != nil {
					t.Fatal(err)
				}
			}
			store := storetest.NewStore(t, poolLike(t, pool, func(c *pgxpool.Config) {
				c.MaxConns, c.ConnConfig.DefaultQueryExecMode = 4, mode
			}))
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			var calls sync.WaitGroup
			for i := range 6 {
				calls.Go(func() {
					req := claimRequest(org, fmt.Sprint("key-", i))
					if result, err := store.Claim(ctx, req); err != nil || result.Outcome != idempotency.OutcomeClaimed {
						t.Errorf("claim: outcome %d, %v", result.Outcome, err)
					}
					if err := store.Extend(ctx, req.Claim, time.Hour); err != nil {
						t.Errorf("extend: %v", err)
					}
					if err := store.Release(ctx, req.Claim); err != nil { // a second one would find nothing
						t.Errorf("release: %v", err)
					}
				})
			}
			calls.Wait()
			var n int
			if err := pool.QueryRow(t.Context(), `SELECT count(*) FROM `+records).Scan(&n); err != nil || n != 0 {
				t.Errorf("%d records, %v", n, err)
			}
		})
	}
}
