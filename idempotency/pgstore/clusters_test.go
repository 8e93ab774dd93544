package pgstore_test

import (
	"context"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgidem/pgidem/idempotency"
	"github.com/pgidem/pgidem/idempotency/idempotencytest"
	"github.com/pgidem/pgidem/idempotency/pgstore"
	"github.com/pgidem/pgidem/internal/pgtest"
	"github.com/pgidem/pgidem/internal/storetest"
	"github.com/pgidem/pgidem/tenancy"
)

// threeServers are that of all tests, and two more.
type threeServers [2]*pgtest.Server

// databases returns a pool to a new database on each of the servers.
func (s threeServers) databases(t *testing.T) []*pgxpool.Pool {
	t.Helper()
	pools := []*pgxpool.Pool{pgtest.NewPool(t)}
	for _, server := range s {
		url, _, err := server.CreateDatabase(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		pool, err := pgxpool.New(t.Context(), url)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(pool.Close)
		pools = append(pools, pool)
	}
	return pools
}

func TestClusters(t *testing.T) {
	t.Parallel()
	servers := threeServers{pgtest.NewServer(t), pgtest.NewServer(t)}
	for name, test := range map[string]func(*testing.T, []*pgxpool.Pool){
		"conformance": testConformanceOverClusters,
		"told":        testOtherProcessesAreTold,
		"completer":   testCompleterOverClusters,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(t, servers.databases(t))
		})
	}
}

// testConformanceOverClusters is that over pools as well: each server has four.
func testConformanceOverClusters(t *testing.T, databases []*pgxpool.Pool) {
	spread := storetest.NewSpread(t, databases...)
	t.Run("store", func(t *testing.T) {
		t.Parallel()
		newStore, opts := spread.Suite()
		idempotencytest.TestStore(t, newStore, opts...)
	})
	t.Run("middleware", func(t *testing.T) {
		t.Parallel()
		newStore, opts := spread.Suite(pgstore.WithRelaxedClaims())
		idempotencytest.TestMiddleware(t, newStore, opts...)
	})
	t.Run("transactions", func(t *testing.T) {
		t.Parallel()
		newStore, opts := spread.TransactionSuite()
		idempotencytest.TestMiddleware(t, newStore, opts...)
	})
}

// testOtherProcessesAreTold: of an end on each of the servers.
func testOtherProcessesAreTold(t *testing.T, databases []*pgxpool.Pool) {
	spread := storetest.NewSpread(t, databases...)
	here, there := spread.NewStore(t), spread.NewStore(t)
	for range 3 {
		org, _ := spread.NewTenant(t)
		req := claimRequest(org, "key")
		mustClaim(t, here, req, idempotency.OutcomeClaimed)
		ended, stop, err := there.Watch(org, "key")
		if err != nil {
			t.Fatal(err)
		}
		waiter := claimRequest(org, "key")
		waiter.Await = true
		mustClaim(t, there, waiter, idempotency.OutcomeInFlight)
		select {
		case <-ended: // it listens, from now on
		case <-time.After(20 * time.Second):
			t.Fatal("listening has not begun")
		}
		mustComplete(t, here, req.Claim)
		select {
		case <-ended:
		case <-time.After(20 * time.Second):
			t.Fatal("the end was not told")
		}
		stop()
	}
}

// TestClusterWithoutPools: a tenant on a server that the store has no pools for is refused,
// by an error that names it; so is one of a named cluster by a store of one pool.
func TestClusterWithoutPools(t *testing.T) {
	t.Parallel()
	pool := pgtest.NewPool(t)
	org := storetest.NewTenant(t, pool)
	var placements storetest.Placements
	placements.Set(org, tenancy.Placement{Schema: storetest.SchemaOf(t, org), Cluster: "eu-9"})
	several, err := pgstore.NewRouted(pgstore.Clusters{"eu-1": pgstore.SinglePool(pool), "eu-2": pgstore.SinglePool(pool)}, &placements)
	if err != nil {
		t.Fatal(err)
	}
	one, err := pgstore.New(pool, &placements)
	if err != nil {
		t.Fatal(err)
	}
	for name, store := range map[string]*pgstore.Store{`"eu-1", "eu-2"`: several, `""`: one} {
		_, err := store.Claim(t.Context(), claimRequest(org, "key"))
		if !errors.Is(err, idempotency.ErrStoreRefused) || !strings.Contains(err.Error(), `"eu-9"`) || !strings.Contains(err.Error(), name) {
			t.Errorf("Claim: %v; want a refusal that names eu-9 and %s", err, name)
		}
	}
	if _, err := pgstore.NewRouted(pgstore.Clusters{"a": pgstore.SinglePool(pool), "b": pgstore.SinglePool(pool)}, &placements,
		pgstore.WithListenConfig(pool.Config().ConnConfig)); err == nil || !strings.Contains(err.Error(), "WithClusterListenConfig") {
		t.Errorf("WithListenConfig for two clusters: %v", err)
	}
	if _, err := pgstore.NewRouted(pgstore.Clusters{"a": pgstore.SinglePool(pool)}, &placements,
		pgstore.WithClusterListenConfig("b", pool.Config().ConnConfig)); err == nil || !strings.Contains(err.Error(), `"b"`) {
		t.Errorf("WithClusterListenConfig for a cluster that is not there: %v", err)
	}
}

// TestSuspendedTenants: what has begun is brought to its end, and nothing begins.
func TestSuspendedTenants(t *testing.T) {
	t.Parallel()
	pool := pgtest.NewPool(t)
	for name, mode := range modes {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			spread := storetest.NewSpread(t, pool)
			org, _ := spread.NewTenant(t)
			store := mode(spread.NewStore(t)).(interface {
				idempotency.LeaseStore
				idempotency.StepStore
			})
			claim := func(key string) idempotency.Claim {
				t.Helper()
				req := claimRequest(org, key)
				if result, err := store.Claim(t.Context(), req); err != nil || result.Outcome != idempotency.OutcomeClaimed {
					t.Fatalf("%+v, %v", result, err)
				}
				return req.Claim
			}
			paid, given := claim("paid"), claim("given up")
			spread.Suspend(org, true)
			if err := store.Extend(t.Context(), paid, time.Hour); err != nil {
				t.Errorf("Extend: %v", err)
			}
			if _, err := store.SaveStep(t.Context(), paid, "charge", []byte(`1`)); err != nil {
				t.Errorf("SaveStep: %v", err)
			}
			if got, found, err := store.LoadStep(t.Context(), paid, "charge"); err != nil || !found || string(got) != `1` {
				t.Errorf("LoadStep: %q, %t, %v", got, found, err)
			}
			if err := store.Complete(t.Context(), paid, &idempotency.Record{ResponseStatus: 201}); err != nil {
				t.Errorf("Complete: %v", err)
			}
			if err := store.Release(t.Context(), given); err != nil {
				t.Errorf("Release: %v", err)
			}
			for _, key := range []string{"paid", "another"} {
				if _, err := store.Claim(t.Context(), claimRequest(org, key)); !errors.Is(err, tenancy.ErrSuspendedTenant) {
					t.Errorf("Claim of key %q: %v; want ErrSuspendedTenant", key, err)
				}
			}
			spread.Suspend(org, false)
			if result, err := store.Claim(t.Context(), claimRequest(org, "paid")); err != nil || result.Outcome != idempotency.OutcomeCompleted {
				t.Errorf("afterwards: %+v, %v; want the completed record", result, err)
			}
			if err := store.Release(t.Context(), claim("given up")); err != nil {
				t.Errorf("what was given up is claimed again: %v", err)
			}
		})
	}
}

// TestLostCommitOfSuspendedTenant: what became of a commit is found out though the tenant
// was suspended meanwhile.
func TestLostCommitOfSuspendedTenant(t *testing.T) {
	t.Parallel()
	pool := pgtest.NewPool(t)
	spread := storetest.NewSpread(t, pool)
	org, _ := spread.NewTenant(t)
	store := spread.NewStore(t).Transactional().(idempotency.LeaseStore)
	req := claimRequest(org, "key")
	if _, err := store.Claim(t.Context(), req); err != nil {
		t.Fatal(err)
	}
	spread.Suspend(org, true)
	if err := store.Complete(t.Context(), req.Claim, &idempotency.Record{ResponseStatus: 201}); err != nil {
		t.Fatal(err)
	}
	if err := store.Complete(t.Context(), req.Claim, &idempotency.Record{ResponseStatus: 201}); err != nil {
		t.Errorf("asked again, as after an answer that was lost: %v", err)
	}
	if err := store.Complete(t.Context(), claimRequest(org, "other").Claim, &idempotency.Record{ResponseStatus: 201}); !errors.Is(err, idempotency.ErrRolledBack) {
		t.Errorf("of an attempt that never was: %v", err)
	}
}

// TestOldSchemasAreRefused: by the version that the directory has, without a statement; one
// that is newer, or not known, is served.
func TestOldSchemasAreRefused(t *testing.T) {
	t.Parallel()
	pool := pgtest.NewPool(t)
	org := storetest.NewTenant(t, pool)
	var placements storetest.Placements
	store, err := pgstore.New(pool, &placements)
	if err != nil {
		t.Fatal(err)
	}
	for version, refused := range map[int64]bool{0: false, 1: true, pgstore.NeededVersion - 1: true, pgstore.NeededVersion: false, 99: false} {
		placements.Set(org, tenancy.Placement{Schema: storetest.SchemaOf(t, org), Version: version})
		_, err := store.Claim(t.Context(), claimRequest(org, "key "+strconv.FormatInt(version, 10)))
		if errors.Is(err, idempotency.ErrStoreRefused) != refused {
			t.Errorf("version %d: %v", version, err)
		}
		for _, advice := range []string{"idem-tenants migrate", "Registry.SetVersion"} { // to migrate alone is not enough
			if refused && err != nil && !strings.Contains(err.Error(), advice) {
				t.Errorf("version %d: %v; it does not say %s", version, err, advice)
			}
		}
	}
}

// TestNeededVersion: the store knows of the newest migration. One that it does not need, as
// it only drops what this version has left alone, is to be left out here by its number.
func TestNeededVersion(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("../../migrations/tenant/*.sql")
	if err != nil || len(files) == 0 {
		t.Fatal(err)
	}
	newest, _, _ := strings.Cut(filepath.Base(files[len(files)-1]), "_")
	if n, err := strconv.ParseInt(newest, 10, 64); err != nil || n != pgstore.NeededVersion {
		t.Errorf("the newest migration is %s, and the store needs %d (%v)", newest, pgstore.NeededVersion, err)
	}
	if _, err := os.Stat(files[0]); err != nil {
		t.Error(err)
	}
}

// testCompleterOverClusters: it finds the interrupted requests on all servers, leaves those of
// suspended tenants for later, and reports a copy on a server that the tenant is not on.
func testCompleterOverClusters(t *testing.T, databases []*pgxpool.Pool) {
	spread := storetest.NewSpread(t, databases...)
	store := spread.NewStore(t)
	ran := make(map[uuid.UUID]int)
	handler := idempotency.Require(store, idempotency.WithRecoverable())(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		org, _ := tenancy.OrgID(r.Context())
		ran[org]++ // one at a time: see WithConcurrency
		w.WriteHeader(http.StatusCreated)
	}))
	completer, err := pgstore.NewCompleter(store, handler, pgstore.WithConcurrency(1))
	if err != nil {
		t.Fatal(err)
	}
	interrupt := func(org uuid.UUID) {
		t.Helper()
		r := newPayment(org, "k")
		died := errors.New("died")
		func() {
			defer func() { _ = recover() }()
			h := idempotency.Require(&deadStore{Store: store}, idempotency.WithRecoverable())(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic(died) }))
			h.ServeHTTP(discard{}, r)
		}()
		spread.Advance(t, org, time.Minute)
	}
	var orgs []uuid.UUID
	for range 4 {
		org, _ := spread.NewTenant(t)
		interrupt(org)
		orgs = append(orgs, org)
	}
	spread.Suspend(orgs[3], true)
	result, err := completer.Pass(t.Context())
	if err != nil || result.Completed != 3 {
		t.Errorf("%+v, %v; want 3 completed", result, err)
	}
	spread.Suspend(orgs[3], false)
	if result, err := completer.Pass(t.Context()); err != nil || result.Completed != 1 {
		t.Errorf("%+v, %v; want the one that was suspended", result, err)
	}
	for _, org := range orgs {
		if ran[org] != 1 {
			t.Errorf("the request of org %s ran %d times, want once", org, ran[org])
		}
	}
	left, _ := spread.NewTenant(t)
	interrupt(left)
	place, err := spread.Place(t.Context(), left)
	if err != nil {
		t.Fatal(err)
	}
	moved := place
	moved.Cluster = map[string]string{"cluster-0": "cluster-1", "cluster-1": "cluster-2", "cluster-2": "cluster-0"}[place.Cluster]
	spread.Set(left, moved)
	if result, err := completer.Pass(t.Context()); err == nil || !strings.Contains(err.Error(), place.Cluster) || !strings.Contains(err.Error(), moved.Cluster) || result.Completed != 0 {
		t.Errorf("%+v, %v; want an error that names both clusters", result, err)
	}
}

// deadStore is that of a process that dies in its handler: it releases nothing.
type deadStore struct{ *pgstore.Store }

func (deadStore) Release(context.Context, idempotency.Claim) error { return nil }

type discard struct{}

func (discard) Header() http.Header         { return http.Header{} }
func (discard) Write(p []byte) (int, error) { return len(p), nil }
func (discard) WriteHeader(int)             {}
