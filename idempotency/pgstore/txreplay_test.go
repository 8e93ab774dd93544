package pgstore_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgidem/pgidem/idempotency"
	"github.com/pgidem/pgidem/idempotency/pgstore"
	"github.com/pgidem/pgidem/internal/pgtest"
	"github.com/pgidem/pgidem/internal/storetest"
	"github.com/pgidem/pgidem/tenancy"
)

// TestReplaysInTransactions: of a key that the process knows a replay is one round trip, and
// of another it is two, once. What is not to be replayed is claimed as ever.
func TestReplaysInTransactions(t *testing.T) {
	t.Parallel()
	pool := pgtest.NewPool(t)
	for name, c := range map[string]struct {
		pools int
		opts  []pgstore.TxOption
	}{
		"one pool":             {},
		"several pools":        {pools: 2},
		"as the tenant's role": {opts: []pgstore.TxOption{pgstore.WithTenantRole()}},
		"serializable":         {opts: []pgstore.TxOption{pgstore.WithIsolation(pgx.Serializable)}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			org := storetest.NewTenant(t, pool)
			newRole(t, pool, org)
			trips := &tripCounter{}
			newStore := overCounted(t, pool, c.pools, trips)
			here, elsewhere, leases := newStore(), newStore(), newStore()
			first, second := here.Transactional(c.opts...), elsewhere.Transactional(c.opts...)
			third := leases.Transactional(c.opts...)
			var took string
			for _, key := range []string{"warm", "counted"} { // statements are prepared once
				took = ""
				claim := func(what string, store idempotency.Store, want idempotency.ClaimOutcome, hash string) idempotency.Claim {
					t.Helper()
					req := claimRequest(org, key)
					req.RequestHash = hash
					before := trips.turns.Load()
					result, err := store.(idempotency.LeaseStore).Claim(t.Context(), req)
					if err != nil || result.Outcome != want {
						t.Fatalf("%s: %+v, %v; want outcome %d", what, result, err, want)
					}
					if want == idempotency.OutcomeCompleted && string(result.Record.ResponseBody) != key {
						t.Errorf("%s: %+v", what, result.Record)
					}
					took += fmt.Sprint(what, " ", trips.turns.Load()-before, ", ")
					return req.Claim
				}
				complete := func(store idempotency.Store, c idempotency.Claim) {
					t.Helper()
					if err := store.(idempotency.LeaseStore).Complete(t.Context(), c, &idempotency.Record{ResponseStatus: 201, ResponseBody: []byte(key)}); err != nil {
						t.Fatal(err)
					}
				}
				release := func(store idempotency.Store, c idempotency.Claim) {
					t.Helper()
					if err := store.(idempotency.LeaseStore).Release(t.Context(), c); err != nil {
						t.Fatal(err)
					}
				}
				release(first, claim("claim", first, idempotency.OutcomeClaimed, "hash"))
				complete(first, claim("claim after a release", first, idempotency.OutcomeClaimed, "hash"))
				claim("replay", first, idempotency.OutcomeCompleted, "hash")
				claim("mismatch", first, idempotency.OutcomeMismatch, "other")
				claim("replay elsewhere", second, idempotency.OutcomeCompleted, "hash")
				claim("once more", second, idempotency.OutcomeCompleted, "hash")
				storetest.Advance(t, pool, org, 2*time.Hour)
				taken := claimRequest(org, key)
				mustClaim(t, leases, taken, idempotency.OutcomeClaimed)
				complete(leases, taken.Claim)
				claim("replay of a lease", third, idempotency.OutcomeCompleted, "hash")
				storetest.Advance(t, pool, org, 2*time.Hour)
				release(first, claim("claim when it has expired", first, idempotency.OutcomeClaimed, "hash"))
			}
			want := "claim 1, claim after a release 2, replay 1, mismatch 1, replay elsewhere 2, once more 1, " +
				"replay of a lease 1, claim when it has expired 2, "
			if took != want {
				t.Errorf("round trips:\n%s, want\n%s", took, want)
			}
		})
	}
}

// overCounted makes stores over one pool, or several, of connections whose round trips are
// counted.
func overCounted(t *testing.T, pool *pgxpool.Pool, n int, trips *tripCounter) func() *pgstore.Store {
	t.Helper()
	config := pool.Config()
	config.MaxConns = int32(max(n, 1))
	config.ConnConfig.DialFunc = trips.dial(config.ConnConfig.DialFunc)
	config.ShouldPing = func(context.Context, pgxpool.ShouldPingParams) bool { return false } // which a pause would have it do
	if n > 0 {
		pools, err := pgstore.NewPools(t.Context(), config, n)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(pools.Close)
		return func() *pgstore.Store { return newRouted(t, pools) }
	}
	counted, err := pgxpool.NewWithConfig(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(counted.Close)
	return func() *pgstore.Store { return storetest.NewStore(t, counted) }
}

// TestKnownKeysInTransactions: whatever there is of a key, a claim that looks first comes to
// the same as one that does not.
func TestKnownKeysInTransactions(t *testing.T) {
	t.Parallel()
	pool := pgtest.NewPool(t)
	const hour = time.Hour // which records live
	for name, c := range map[string]struct {
		claimed, completed bool
		passed             time.Duration
	}{
		"nothing":     {},
		"in progress": {claimed: true},
		"lapsed":      {claimed: true, passed: hour / 2},
		"abandoned":   {claimed: true, passed: 2 * hour},
		"completed":   {claimed: true, completed: true, passed: hour / 2},
		"expired":     {claimed: true, completed: true, passed: 2 * hour},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			org := storetest.NewTenant(t, pool)
			before := storetest.NewStore(t, pool)
			if c.claimed {
				req := claimRequest(org, "key")
				mustClaim(t, before, req, idempotency.OutcomeClaimed)
				if c.completed {
					mustComplete(t, before, req.Claim)
				}
			}
			storetest.Advance(t, pool, org, c.passed)
			for _, terms := range []idempotency.ClaimRequest{
				{RequestHash: "hash"},
				{RequestHash: "hash", Interrupted: idempotency.Refuse},
				{RequestHash: "hash", Await: true},
				{RequestHash: "other"},
				{RequestHash: "other", Interrupted: idempotency.Refuse},
			} {
				store := storetest.NewStore(t, pool).Transactional().(idempotency.LeaseStore)
				var results [2]string // of a key that is not known, and is
				for i := range results {
					req := terms
					req.Claim, req.Lease, req.TTL = claimRequest(org, "key").Claim, time.Minute, hour
					result, err := store.Claim(t.Context(), req)
					if err != nil {
						t.Fatal(err)
					}
					results[i] = fmt.Sprintf("outcome %d, attempt %d, record %+v", result.Outcome, result.Attempt, result.Record)
					if result.Outcome == idempotency.OutcomeClaimed {
						if err := store.Release(t.Context(), req.Claim); err != nil {
							t.Fatal(err)
						}
					}
				}
				if results[0] != results[1] {
					t.Errorf("fingerprint %s, interrupted %d, await %t:\nunknown: %s\nknown:   %s", terms.RequestHash, terms.Interrupted, terms.Await, results[0], results[1])
				}
			}
		})
	}
}

// TestReplaysInTransactionsGoTogether: many at once share round trips, and each gets the
// response that is its own.
func TestReplaysInTransactionsGoTogether(t *testing.T) {
	t.Parallel()
	pool := pgtest.NewPool(t)
	org := storetest.NewTenant(t, pool)
	counted, trips := countedPool(t, pool, 2)
	store := storetest.NewStore(t, counted, pgstore.WithCoalescing(1)).Transactional().(idempotency.LeaseStore)
	const keys = 100
	for i := range keys {
		req := claimRequest(org, fmt.Sprint(i))
		if result, err := store.Claim(t.Context(), req); err != nil || result.Outcome != idempotency.OutcomeClaimed {
			t.Fatalf("%+v, %v", result, err)
		}
		if err := store.Complete(t.Context(), req.Claim, &idempotency.Record{ResponseStatus: 200 + i}); err != nil {
			t.Fatal(err)
		}
	}
	before := trips.turns.Load()
	allAtOnce(keys, func(i int, together func(func())) {
		together(func() {
			result, err := store.Claim(t.Context(), claimRequest(org, fmt.Sprint(i)))
			if err != nil || result.Outcome != idempotency.OutcomeCompleted || result.Record.ResponseStatus != 200+i {
				t.Errorf("key %d: %+v, %v", i, result, err)
			}
		})
	})
	if n := trips.turns.Load() - before; n >= keys {
		t.Errorf("%d replays took %d round trips", keys, n)
	}
}

// TestDuplicatesWithoutAConnection: while attempts in flight have all connections, a duplicate
// of one of them is refused, however it was to find out: nobody runs beside it.
func TestDuplicatesWithoutAConnection(t *testing.T) {
	t.Parallel()
	pool := pgtest.NewPool(t)
	org := storetest.NewTenant(t, pool)
	store := storetest.NewStore(t, poolLike(t, pool, withConns(1))).Transactional().(idempotency.LeaseStore)
	claim := func(key string) (idempotency.Claim, error) {
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		defer cancel()
		req := claimRequest(org, key)
		_, err := store.Claim(ctx, req)
		return req.Claim, err
	}
	running := claimRequest(org, "running")
	if result, err := store.Claim(t.Context(), running); err != nil || result.Outcome != idempotency.OutcomeClaimed {
		t.Fatalf("%+v, %v", result, err)
	}
	for _, key := range []string{"running", "unknown", "unknown"} { // which it is once
		if _, err := claim(key); !errors.Is(err, idempotency.ErrStoreRefused) {
			t.Errorf("key %s: %v; want an error that wraps ErrStoreRefused", key, err)
		}
	}
	if err := store.Complete(t.Context(), running.Claim, &idempotency.Record{ResponseStatus: 201}); err != nil {
		t.Fatal(err)
	}
	if result, err := store.Claim(t.Context(), claimRequest(org, "running")); err != nil || result.Outcome != idempotency.OutcomeCompleted {
		t.Errorf("afterwards: %+v, %v", result, err)
	}
}

// TestReplayInTransactionsOfNoTenant: a known key of a tenant whose tables are gone is one of
// an unknown tenant.
func TestReplayInTransactionsOfNoTenant(t *testing.T) {
	t.Parallel()
	pool := pgtest.NewPool(t)
	org := storetest.NewTenant(t, pool)
	store := storetest.NewStore(t, pool).Transactional().(idempotency.LeaseStore)
	req := claimRequest(org, "key")
	if _, err := store.Claim(t.Context(), req); err != nil {
		t.Fatal(err)
	}
	if err := store.Complete(t.Context(), req.Claim, &idempotency.Record{ResponseStatus: 201}); err != nil {
		t.Fatal(err)
	}
	dropTables(t, pool, org)
	if result, err := store.Claim(t.Context(), claimRequest(org, "key")); !errors.Is(err, tenancy.ErrUnknownTenant) {
		t.Errorf("%+v, %v; want an error that wraps ErrUnknownTenant", result, err)
	}
}

// dropTables drops a tenant's table of records.
func dropTables(t *testing.T, pool *pgxpool.Pool, org uuid.UUID) {
	t.Helper()
	if _, err := pool.Exec(t.Context(), `DROP TABLE `+storetest.SchemaOf(t, org).Quoted()+`.idempotency_records CASCADE`); err != nil {
		t.Fatal(err)
	}
}
