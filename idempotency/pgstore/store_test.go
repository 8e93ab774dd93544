package pgstore_test

import (
	"context"
	"errors"
	"fmt"
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
	"github.com/pgidem/pgidem/tenancy"
)

func mustClaim(t testing.TB, store *pgstore.Store, req idempotency.ClaimRequest, want idempotency.ClaimOutcome) idempotency.ClaimResult {
	t.Helper()
	result, err := store.Claim(context.Background(), req)
	if err != nil || result.Outcome != want {
		t.Fatalf("Claim: outcome %d, %v; want %d", result.Outcome, err, want)
	}
	return result
}

func mustComplete(t testing.TB, store *pgstore.Store, c idempotency.Claim) {
	t.Helper()
	rec := &idempotency.Record{ResponseStatus: 201, ResponseBody: []byte("made"), ResponseHeaders: map[string][]string{"X-A": {"a"}}}
	if err := store.Complete(context.Background(), c, rec); err != nil {
		t.Fatalf("Complete: %v", err)
	}
}

func TestNewRefusesNonsense(t *testing.T) {
	t.Parallel()
	pool := pgtest.NewPool(t)
	if _, err := pgstore.New(nil, storetest.PerOrg); err == nil || !strings.Contains(err.Error(), "pool") {
		t.Errorf("no pool: %v", err)
	}
	if _, err := pgstore.New(pool, nil); err == nil || !strings.Contains(err.Error(), "directory") {
		t.Errorf("no directory: %v", err)
	}
}

// TestRoundTrips counts what goes over the wire: one round trip to claim or to
// replay, and one to complete.
func TestRoundTrips(t *testing.T) {
	t.Parallel()
	pool := pgtest.NewPool(t)
	org := storetest.NewTenant(t, pool)
	counted, trips := countedPool(t, pool, 1)
	store := storetest.NewStore(t, counted)
	steps := []struct {
		name string
		do   func(req idempotency.ClaimRequest)
	}{
		{"claim", func(req idempotency.ClaimRequest) { mustClaim(t, store, req, idempotency.OutcomeClaimed) }},
		{"complete", func(req idempotency.ClaimRequest) { mustComplete(t, store, req.Claim) }},
		{"replay", func(req idempotency.ClaimRequest) { mustClaim(t, store, req, idempotency.OutcomeCompleted) }},
	}
	warm, req := claimRequest(org, "warm"), claimRequest(org, "counted")
	for _, step := range steps { // prepares the statements
		step.do(warm)
	}
	for _, step := range steps {
		before := trips.turns.Load()
		step.do(req)
		if n := trips.turns.Load() - before; n != 1 {
			t.Errorf("%s: %d round trips, want 1", step.name, n)
		}
	}
}

func TestCompletionIsAHotUpdate(t *testing.T) {
	t.Parallel()
	pool := pgtest.NewPool(t)
	org := storetest.NewTenant(t, pool)
	store := storetest.NewStore(t, pool)
	const n = 200
	for i := range n {
		req := claimRequest(org, fmt.Sprint(i))
		mustClaim(t, store, req, idempotency.OutcomeClaimed)
		mustComplete(t, store, req.Claim)
	}
	var updates, hot int64
	for deadline := time.Now().Add(20 * time.Second); updates < n; time.Sleep(10 * time.Millisecond) {
		err := pool.QueryRow(t.Context(), `SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_all_tables WHERE relid = $1::regclass`,
			storetest.SchemaOf(t, org).Quoted()+".idempotency_records").Scan(&updates, &hot)
		if err != nil {
			t.Fatal(err)
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d of %d updates counted", updates, n)
		}
	}
	if hot < n*9/10 {
		t.Errorf("%d of %d completions were HOT updates", hot, updates)
	}
}

func TestUnknownTenants(t *testing.T) {
	t.Parallel()
	pool := pgtest.NewPool(t)
	store := storetest.NewStore(t, pool)
	for name, org := range map[string]uuid.UUID{"never provisioned": uuid.New(), "nil": uuid.Nil} {
		req := claimRequest(org, "key")
		rec := &idempotency.Record{OrgID: org, Key: "key", ResponseStatus: 200}
		_, claimErr := store.Claim(t.Context(), req)
		_, getErr := store.Get(t.Context(), org, "key")
		for step, err := range map[string]error{
			"Claim": claimErr, "Get": getErr,
			"Put":      store.Put(t.Context(), rec),
			"Complete": store.Complete(t.Context(), req.Claim, rec),
			"Release":  store.Release(t.Context(), req.Claim),
			"Extend":   store.Extend(t.Context(), req.Claim, time.Minute),
		} {
			if !errors.Is(err, tenancy.ErrUnknownTenant) {
				t.Errorf("%s, %s: %v; want an error that wraps ErrUnknownTenant", name, step, err)
			}
		}
	}
}

// lostDirectory leads every tenant to the same tenant's schema.
type lostDirectory struct{ tenancy.Directory }

// TestMisroutedWriteFails: even if a directory were wrong, no tenant's record can
// get into another's schema.
func TestMisroutedWriteFails(t *testing.T) {
	t.Parallel()
	pool := pgtest.NewPool(t)
	owner := storetest.NewTenant(t, pool)
	store, err := pgstore.New(pool, lostDirectory{tenancy.Fixed(storetest.SchemaOf(t, owner))})
	if err != nil {
		t.Fatal(err)
	}
	stranger := uuid.New()
	if _, err := store.Claim(t.Context(), claimRequest(stranger, "key")); err == nil || !strings.Contains(err.Error(), "idempotency_records_tenant_check") {
		t.Errorf("Claim: %v; want the tenant check to refuse it", err)
	}
	if err := store.Put(t.Context(), &idempotency.Record{OrgID: stranger, Key: "key", ResponseStatus: 200}); err == nil || !strings.Contains(err.Error(), "idempotency_records_tenant_check") {
		t.Errorf("Put: %v; want the tenant check to refuse it", err)
	}
	mustClaim(t, store, claimRequest(owner, "key"), idempotency.OutcomeClaimed)
}

func TestFixedSchemaKeepsTenantsApart(t *testing.T) {
	t.Parallel()
	pool := pgtest.NewPool(t)
	schema := storetest.NewSchema(t, pool, "service")
	store, err := pgstore.New(pool, tenancy.Fixed(schema))
	if err != nil {
		t.Fatal(err)
	}
	a, b := claimRequest(uuid.New(), "key"), claimRequest(uuid.New(), "key")
	mustClaim(t, store, a, idempotency.OutcomeClaimed)
	mustClaim(t, store, b, idempotency.OutcomeClaimed)
	mustComplete(t, store, a.Claim)
	if _, err := store.Get(t.Context(), b.OrgID, "key"); !errors.Is(err, idempotency.ErrNotFound) {
		t.Errorf("Get of the other tenant's key: %v", err)
	}
}

// TestStrictIsolation: a database whose default isolation level is stricter than
// READ COMMITTED gives the same answers.
func TestStrictIsolation(t *testing.T) {
	t.Parallel()
	for _, level := range []string{"repeatable read", "serializable"} {
		t.Run(level, func(t *testing.T) {
			t.Parallel()
			pool := pgtest.NewPool(t)
			org := storetest.NewTenant(t, pool)
			cfg := pool.Config()
			cfg.ConnConfig.RuntimeParams["default_transaction_isolation"] = level
			strict, err := pgxpool.NewWithConfig(t.Context(), cfg)
			if err != nil {
				t.Fatal(err)
			}
			defer strict.Close()
			store := storetest.NewStore(t, strict)
			for round := range 30 {
				var wins atomic.Int32
				var wg sync.WaitGroup
				for range 16 {
					wg.Go(func() {
						result, err := store.Claim(t.Context(), claimRequest(org, fmt.Sprint("key-", round)))
						switch {
						case err != nil:
							t.Errorf("Claim: %v", err)
						case result.Outcome == idempotency.OutcomeClaimed:
							wins.Add(1)
						case result.Outcome != idempotency.OutcomeInFlight:
							t.Errorf("Claim: outcome %d", result.Outcome)
						}
					})
				}
				wg.Wait()
				if wins.Load() != 1 {
					t.Fatalf("round %d: %d winners, want 1", round, wins.Load())
				}
			}
		})
	}
}

// TestQueryModes: whatever mode the caller's pool is set to, the store works with
// it; exec and simple protocol are what a pooler in transaction mode asks for.
func TestQueryModes(t *testing.T) {
	t.Parallel()
	pool := pgtest.NewPool(t)
	org := storetest.NewTenant(t, pool)
	for _, mode := range []pgx.QueryExecMode{
		pgx.QueryExecModeCacheStatement, pgx.QueryExecModeCacheDescribe, pgx.QueryExecModeDescribeExec,
		pgx.QueryExecModeExec, pgx.QueryExecModeSimpleProtocol,
	} {
		t.Run(mode.String(), func(t *testing.T) {
			t.Parallel()
			p := poolLike(t, pool, withMode(mode))
			store := storetest.NewStore(t, p)
			req := claimRequest(org, mode.String())
			mustClaim(t, store, req, idempotency.OutcomeClaimed)
			if err := store.Extend(t.Context(), req.Claim, time.Hour); err != nil {
				t.Fatal(err)
			}
			mustComplete(t, store, req.Claim)
			rec := mustClaim(t, store, claimRequest(org, mode.String()), idempotency.OutcomeCompleted).Record
			if string(rec.ResponseBody) != "made" || rec.ResponseHeaders["X-A"][0] != "a" || rec.ExpiresAt.Sub(rec.CreatedAt) != time.Hour {
				t.Errorf("record %+v", rec)
			}
			if _, err := pgstore.Purge(t.Context(), p, storetest.SchemaOf(t, org), pgstore.PurgeOptions{}); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestServerRestart: the server is killed and comes back; the store recovers, and
// what was committed is there.
func TestServerRestart(t *testing.T) {
	t.Parallel()
	server := pgtest.NewServer(t, pgtest.WithDurable())
	url, _, err := server.CreateDatabase(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	pool, err := pgxpool.New(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	org := storetest.NewTenant(t, pool)
	store := storetest.NewStore(t, pool)
	done, running := claimRequest(org, "done"), claimRequest(org, "running")
	mustClaim(t, store, done, idempotency.OutcomeClaimed)
	mustComplete(t, store, done.Claim)
	mustClaim(t, store, running, idempotency.OutcomeClaimed)

	if err := server.Kill(); err != nil {
		t.Fatal(err)
	}
	if _, err := store.Claim(t.Context(), claimRequest(org, "down")); err == nil || errors.Is(err, tenancy.ErrUnknownTenant) {
		t.Errorf("Claim while the server is down: %v", err)
	}
	if err := server.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	var result idempotency.ClaimResult
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		result, err = store.Claim(t.Context(), claimRequest(org, "done"))
		if err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("Claim after the restart: %v", err)
		}
	}
	if result.Outcome != idempotency.OutcomeCompleted {
		t.Errorf("outcome %d after the restart, want the completed record", result.Outcome)
	}
	mustClaim(t, store, claimRequest(org, "running"), idempotency.OutcomeInFlight)
	mustComplete(t, store, running.Claim)
}
