package pgstore_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgidem/pgidem/idempotency"
	"github.com/pgidem/pgidem/idempotency/pgstore"
	"github.com/pgidem/pgidem/internal/pgtest"
	"github.com/pgidem/pgidem/internal/storetest"
)

func newRouted(t *testing.T, router pgstore.Router, opts ...pgstore.Option) *pgstore.Store {
	t.Helper()
	store, err := pgstore.NewRouted(router, storetest.PerOrg, opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(store.Close)
	return store
}

func TestNewPoolsRefusesNonsense(t *testing.T) {
	t.Parallel()
	config := pgtest.NewPool(t).Config()
	config.MaxConns = 4
	for name, c := range map[string]struct {
		config *pgxpool.Config
		n      int
	}{
		"no configuration":       {nil, 1},
		"no pool":                {config, 0},
		"more than connections":  {config, 5},
		"fewer pools than zero":  {config, -1},
		"no configuration at 0":  {nil, 0},
		"far more than there is": {config, 1 << 30},
	} {
		if pools, err := pgstore.NewPools(t.Context(), c.config, c.n); err == nil || !strings.Contains(err.Error(), "give 1 pool") && !strings.Contains(err.Error(), "is nil") {
			t.Errorf("%s: %v, %v", name, pools, err)
		}
	}
	var none *pgstore.Pools
	for name, router := range map[string]pgstore.Router{
		"nil": nil, "no cluster": pgstore.Clusters{}, "a cluster without pools": pgstore.Clusters{"a": nil},
		"no pools": none, "a nil pool": pgstore.SinglePool(nil),
	} {
		if _, err := pgstore.NewRouted(router, storetest.PerOrg); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	if _, err := pgstore.NewRouted(storetest.NewPools(t, pgtest.NewPool(t), 1, 1), nil); err == nil || !strings.Contains(err.Error(), "directory") {
		t.Errorf("no directory: %v", err)
	}
}

// TestPoolsShareTheConfiguration: what it says of connections is of all pools together, and
// it is left as it was.
func TestPoolsShareTheConfiguration(t *testing.T) {
	t.Parallel()
	config := pgtest.NewPool(t).Config()
	config.MaxConns, config.MinConns, config.ConnConfig.StatementCacheCapacity = 11, 0, 512
	pools, err := pgstore.NewPools(t.Context(), config, 4)
	if err != nil {
		t.Fatal(err)
	}
	var sum int32
	for _, pool := range pools.All() {
		c := pool.Config()
		sum += c.MaxConns
		if c.MaxConns < 2 || c.MaxConns > 3 || c.ConnConfig.StatementCacheCapacity != pgstore.DefaultStatementCache || c.MaxConnLifetimeJitter == 0 {
			t.Errorf("a pool of %d connections with %d statements, jitter %v", c.MaxConns, c.ConnConfig.StatementCacheCapacity, c.MaxConnLifetimeJitter)
		}
	}
	if sum != 11 || config.MaxConns != 11 || config.ConnConfig.StatementCacheCapacity != 512 || config.MaxConnLifetimeJitter != 0 {
		t.Errorf("%d connections in all; the configuration has become %d, %d", sum, config.MaxConns, config.ConnConfig.StatementCacheCapacity)
	}
	pools.Close()
	if err := pools.All()[0].Ping(t.Context()); err == nil {
		t.Error("a pool is open after Close")
	}
	own := pgtest.NewPool(t)
	pgstore.SinglePool(own).Close()
	if err := own.Ping(t.Context()); err != nil {
		t.Errorf("the caller's pool: %v", err)
	}
}

// tenantsWithHomes makes tenants, one for each pool at least, by home.
func tenantsWithHomes(t *testing.T, pool *pgxpool.Pool, pools *pgstore.Pools) map[*pgxpool.Pool]uuid.UUID {
	t.Helper()
	orgs := make(map[*pgxpool.Pool]uuid.UUID)
	for len(orgs) < len(pools.All()) {
		org := uuid.New()
		if home := pools.Pool(storetest.SchemaOf(t, org)); orgs[home] == uuid.Nil {
			orgs[home] = storetest.NewTenantOf(t, pool, org)
		}
	}
	return orgs
}

// TestTenantsStayAtHome: requests that come one after another are all made over the home of
// their tenant, and round trips are as few as over a plain pool.
func TestTenantsStayAtHome(t *testing.T) {
	t.Parallel()
	pool := pgtest.NewPool(t)
	trips := &tripCounter{}
	config := pool.Config()
	config.MaxConns = 4
	config.ConnConfig.DialFunc = trips.dial(config.ConnConfig.DialFunc)
	pools, err := pgstore.NewPools(t.Context(), config, 4)
	if err != nil {
		t.Fatal(err)
	}
	defer pools.Close()
	store := newRouted(t, pools)
	for home, org := range tenantsWithHomes(t, pool, pools) {
		acquired := func() (n int64) {
			for _, p := range pools.All() {
				if p != home {
					n += p.Stat().AcquireCount()
				}
			}
			return n
		}
		request := func(key string) int64 {
			turns := trips.turns.Load()
			req := claimRequest(org, key)
			mustClaim(t, store, req, idempotency.OutcomeClaimed)
			mustComplete(t, store, req.Claim)
			mustClaim(t, store, claimRequest(org, key), idempotency.OutcomeCompleted)
			return trips.turns.Load() - turns
		}
		request("warm")
		before := acquired()
		if n := request("counted"); n != 3 {
			t.Errorf("claim, completion and replay took %d round trips, want 3", n)
		}
		if n := acquired() - before; n != 0 {
			t.Errorf("%d connections of other pools were used", n)
		}
	}
}

// TestBlockedTenantBlocksNoOtherOverPools: while one tenant's table is locked, others go on,
// of its home and of all others, though its requests are more than there are connections.
func TestBlockedTenantBlocksNoOtherOverPools(t *testing.T) {
	t.Parallel()
	for _, shape := range []struct{ n, conns int }{{4, 4}, {4, 8}} {
		t.Run(fmt.Sprint(shape.n, " pools of ", shape.conns), func(t *testing.T) {
			t.Parallel()
			pool := pgtest.NewPool(t)
			pools := storetest.NewPools(t, pool, shape.n, shape.conns)
			store := newRouted(t, pools)
			locked := storetest.NewTenant(t, pool)
			home := pools.Pool(storetest.SchemaOf(t, locked))
			free := tenantsWithHomes(t, pool, pools)
			release := lockTable(t, pool, locked)
			blocked, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			var others, wg sync.WaitGroup
			for i := range 3 * shape.conns {
				others.Go(func() {
					if _, err := store.Claim(blocked, claimRequest(locked, fmt.Sprint("key-", i))); blocked.Err() == nil || err == nil {
						t.Errorf("of the locked tenant: %v", err)
					}
				})
			}
			waitForLock(t, pool)
			for at, org := range free {
				for i := range 20 {
					wg.Go(func() {
						req := claimRequest(org, fmt.Sprint("key-", i))
						if result, err := store.Claim(blocked, req); err != nil || result.Outcome != idempotency.OutcomeClaimed {
							t.Errorf("of a free tenant (same home: %t): %+v, %v", at == home, result, err)
							return
						}
						if err := store.Complete(blocked, req.Claim, &idempotency.Record{ResponseStatus: 201}); err != nil {
							t.Errorf("of a free tenant (same home: %t): %v", at == home, err)
						}
					})
				}
			}
			wg.Wait()
			cancel()
			others.Wait()
			release()
			mustClaim(t, store, claimRequest(locked, "afterwards"), idempotency.OutcomeClaimed)
		})
	}
}

// TestTransactionsUseAllPools: as many transactions of one tenant run at once as there are
// connections in all pools, and one more is told that there is none.
func TestTransactionsUseAllPools(t *testing.T) {
	t.Parallel()
	pool := pgtest.NewPool(t)
	pools := storetest.NewPools(t, pool, 4, 8)
	org := storetest.NewTenant(t, pool)
	store := newRouted(t, pools).Transactional().(idempotency.LeaseStore)
	var claims []idempotency.Claim
	var mu sync.Mutex
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			req := claimRequest(org, fmt.Sprint("key-", i))
			result, err := store.Claim(ctx, req)
			if err != nil || result.Outcome != idempotency.OutcomeClaimed {
				t.Errorf("claim %d: %+v, %v", i, result, err)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			claims = append(claims, req.Claim)
		})
	}
	wg.Wait()
	for _, key := range []string{"one more", "one more", "key-0"} { // unknown once
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		defer cancel()
		if _, err := store.Claim(ctx, claimRequest(org, key)); !errors.Is(err, idempotency.ErrStoreRefused) {
			t.Errorf("%s: %v; want an error that wraps ErrStoreRefused", key, err)
		}
	}
	for _, c := range claims {
		if err := store.Complete(t.Context(), c, &idempotency.Record{ResponseStatus: 201}); err != nil {
			t.Error(err)
		}
	}
	for _, p := range pools.All() {
		if n := p.Stat().AcquiredConns(); n != 0 {
			t.Errorf("%d connections are not given back", n)
		}
	}
}

// TestPoolsGiveConnectionsBack: whatever becomes of statements and their callers.
func TestPoolsGiveConnectionsBack(t *testing.T) {
	t.Parallel()
	pool := pgtest.NewPool(t)
	pools := storetest.NewPools(t, pool, 3, 3)
	org := storetest.NewTenant(t, pool)
	store := newRouted(t, pools)
	var wg sync.WaitGroup
	for i := range 40 {
		wg.Go(func() {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			req := claimRequest(org, fmt.Sprint("key-", i))
			if i%3 == 0 {
				req.OrgID = uuid.New() // never provisioned
			}
			if i%3 == 1 {
				time.AfterFunc(time.Duration(i)*100*time.Microsecond, cancel)
			}
			if _, err := store.Claim(ctx, req); err == nil && i%3 == 0 {
				t.Error("a tenant that is not there has claimed a key")
			}
			_ = store.Extend(ctx, req.Claim, time.Hour)
			_, _ = store.Get(ctx, req.OrgID, req.Key)
			_, _ = store.SaveStep(ctx, req.Claim, "step", []byte(`1`))
			_ = store.Release(ctx, req.Claim)
		})
	}
	wg.Wait()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		var out int32
		for _, p := range pools.All() {
			out += p.Stat().AcquiredConns()
		}
		if out == 0 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d connections are not given back", out)
		}
	}
	mustClaim(t, store, claimRequest(org, "afterwards"), idempotency.OutcomeClaimed)
}

// TestSmallCacheIsReported: by Check, and once in the log, when there are more tenants than
// a connection keeps statements for.
func TestSmallCacheIsReported(t *testing.T) {
	t.Parallel()
	pool := pgtest.NewPool(t)
	small := poolLike(t, pool, func(c *pgxpool.Config) { c.ConnConfig.StatementCacheCapacity = 60 })
	var log bytes.Buffer
	store := storetest.NewStore(t, small, pgstore.WithLogger(slog.New(slog.NewTextHandler(&log, nil))))
	met := func(n int) {
		for range n {
			if _, err := store.Get(t.Context(), uuid.New(), "key"); err == nil {
				t.Error("a record of nobody")
			}
		}
	}
	met(8)
	if err := store.Check(t.Context()); err != nil {
		t.Errorf("8 tenants, and room for 10: %v", err)
	}
	met(200)
	if err := store.Check(t.Context()); !errors.Is(err, pgstore.ErrSmallCache) {
		t.Errorf("208 tenants, and room for 10: %v; want ErrSmallCache", err)
	}
	if n := strings.Count(log.String(), "NewPools"); n != 1 {
		t.Errorf("the log says so %d times, want once: %s", n, &log)
	}
}

func TestCheck(t *testing.T) {
	t.Parallel()
	pool := pgtest.NewPool(t)
	if err := newRouted(t, storetest.NewPools(t, pool, 4, 8)).Check(t.Context()); err != nil {
		t.Error(err)
	}
	if err := newRouted(t, storetest.NewPools(t, pool, 4, 100_000)).Check(t.Context()); !errors.Is(err, pgstore.ErrTooManyConns) {
		t.Errorf("100,000 connections: %v; want ErrTooManyConns", err)
	}
	dead := poolLike(t, pool, func(c *pgxpool.Config) {
		c.ConnConfig.Host, c.ConnConfig.Port, c.ConnConfig.Fallbacks = "127.0.0.1", 1, nil
	})
	if err := storetest.NewStore(t, dead).Check(t.Context()); err == nil {
		t.Error("no error where there is no server")
	}
}

// TestMixedUpStatementsAreExplained: as behind a pooler in transaction mode, a statement that
// the connection has prepared is not there any more.
func TestMixedUpStatementsAreExplained(t *testing.T) {
	t.Parallel()
	pool := pgtest.NewPool(t)
	org := storetest.NewTenant(t, pool)
	one := poolLike(t, pool, withConns(1))
	store := storetest.NewStore(t, one)
	mustClaim(t, store, claimRequest(org, "warm"), idempotency.OutcomeClaimed)
	if _, err := one.Exec(t.Context(), "DEALLOCATE ALL"); err != nil {
		t.Fatal(err)
	}
	_, err := store.Claim(t.Context(), claimRequest(org, "key"))
	if !errors.Is(err, idempotency.ErrStoreRefused) || !errors.Is(err, pgstore.ErrPoolerMode) {
		t.Errorf("Claim: %v; want an error that wraps ErrStoreRefused and ErrPoolerMode", err)
	}
}
