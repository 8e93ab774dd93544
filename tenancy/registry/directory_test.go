package registry_test

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

	"github.com/pgidem/pgidem/internal/pgtest"
	"github.com/pgidem/pgidem/migrations"
	"github.com/pgidem/pgidem/tenancy"
	"github.com/pgidem/pgidem/tenancy/registry"
)

// statements counts the statements of a pool about tenants, and holds those up that have
// been answered, before their results are used, while hold is set.
type statements struct {
	n    atomic.Int64
	hold atomic.Pointer[chan struct{}]
	held chan struct{}
}

type aboutTenants struct{}

func (s *statements) TraceQueryStart(ctx context.Context, _ *pgx.Conn, data pgx.TraceQueryStartData) context.Context {
	if !strings.Contains(data.SQL, ".tenants ") {
		return ctx // of the connection that listens
	}
	s.n.Add(1)
	return context.WithValue(ctx, aboutTenants{}, true)
}

func (s *statements) TraceQueryEnd(ctx context.Context, _ *pgx.Conn, _ pgx.TraceQueryEndData) {
	if hold := s.hold.Load(); hold != nil && ctx.Value(aboutTenants{}) != nil {
		s.held <- struct{}{}
		<-*hold
	}
}

// traced returns another pool to the same database, and what counts its statements.
func traced(t testing.TB, pool *pgxpool.Pool) (*pgxpool.Pool, *statements) {
	t.Helper()
	counted := &statements{held: make(chan struct{}, 100)}
	config := pool.Config()
	config.ConnConfig.Tracer = counted
	other, err := pgxpool.NewWithConfig(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(other.Close)
	return other, counted
}

// eventually waits until a condition holds. The deadline is far beyond what is promised, so
// that a slow machine fails no test.
func eventually(t testing.TB, what string, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !holds(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("never came: %s", what)
		}
	}
}

func listens(t testing.TB, r *registry.Registry) {
	t.Helper()
	eventually(t, "listening", func() bool { return r.Listening() == nil })
}

// isPlaced reports whether the registry has the tenant in that state and place.
func isPlaced(t testing.TB, r *registry.Registry, want registry.Tenant) bool {
	t.Helper()
	place, err := r.Place(context.Background(), want.OrgID)
	schema, schemaErr := r.Schema(context.Background(), want.OrgID)
	switch {
	case (err == nil) != (schemaErr == nil) || err == nil && schema != place.Schema || err != nil && !schema.IsZero():
		// A change came between the two.
		return false
	case want.State == registry.Active:
		return err == nil && place == want.Placement()
	case want.State == "":
		return errors.Is(err, tenancy.ErrUnknownTenant) && place == tenancy.Placement{}
	default:
		return errors.Is(err, tenancy.ErrSuspendedTenant) && !errors.Is(err, tenancy.ErrUnknownTenant) && place == want.Placement()
	}
}

func TestPlace(t *testing.T) {
	t.Parallel()
	direct := newPool(t)
	for _, mode := range []pgx.QueryExecMode{pgx.QueryExecModeCacheStatement, pgx.QueryExecModeExec, pgx.QueryExecModeCacheDescribe, pgx.QueryExecModeSimpleProtocol} {
		config := direct.Config()
		config.ConnConfig.DefaultQueryExecMode = mode
		pool, err := pgxpool.NewWithConfig(t.Context(), config)
		if err != nil {
			t.Fatal(err)
		}
		defer pool.Close()
		r := newRegistry(t, pool)
		for _, state := range []registry.State{registry.Provisioning, registry.Active, registry.Suspended, registry.Deleting} {
			org := uuid.New()
			tenant, err := r.Add(t.Context(), registry.Tenant{OrgID: org, Schema: perOrg(t, org), Cluster: "b", State: state, Version: 7})
			if err != nil {
				t.Fatal(err)
			}
			for range 3 {
				if !isPlaced(t, r, tenant) {
					place, err := r.Place(t.Context(), org)
					t.Errorf("%v, %s: %+v, %v", mode, state, place, err)
				}
			}
		}
		for range 2 {
			org := uuid.New()
			for range 2 {
				if !isPlaced(t, r, registry.Tenant{OrgID: org}) {
					t.Error("an org_id that is not registered has a place")
				}
			}
			if !isPlaced(t, r, registry.Tenant{}) {
				t.Error("the nil UUID has a place")
			}
		}
	}
}

func TestOptionsRefuseNonsense(t *testing.T) {
	t.Parallel()
	pool := newPool(t)
	for name, option := range map[string]registry.Option{
		"no cache": registry.WithCacheSize(0), "no time": registry.WithTTL(0), "negative time": registry.WithStale(-1), "no configuration": registry.WithListenConfig(nil),
	} {
		if _, err := registry.New(pool, option); err == nil || !strings.HasPrefix(err.Error(), "registry: With") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestNoQueryPerRequest: requests of known tenants ask the database nothing.
func TestNoQueryPerRequest(t *testing.T) {
	t.Parallel()
	pool, counted := traced(t, newPool(t))
	r := newRegistry(t, pool, registry.WithTTL(time.Hour))
	var tenants []registry.Tenant
	for i := range 20 {
		tenants = append(tenants, add(t, r, []registry.State{registry.Active, registry.Suspended}[i%2]))
	}
	if _, err := r.Place(t.Context(), tenants[0].OrgID); err != nil {
		t.Fatal(err)
	}
	listens(t, r)
	before := counted.n.Load()
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for i := range 5000 {
				if tenant := tenants[i%len(tenants)]; !isPlaced(t, r, tenant) {
					t.Errorf("tenant %s, which is %s, is not placed so", tenant.OrgID, tenant.State)
					return
				}
			}
		})
	}
	wg.Wait()
	if n := counted.n.Load() - before; n < 1 || n > int64(len(tenants)) {
		t.Errorf("%d queries for 40,000 requests of %d tenants; want one a tenant at most", n, len(tenants))
	}
}

// TestLateMissIsNoQuery: who finds a tenant not cached, and comes to ask for it only when others
// have had it looked up, gets what they got.
func TestLateMissIsNoQuery(t *testing.T) {
	t.Parallel()
	pool, counted := traced(t, newPool(t))
	r := newDeafRegistry(t, pool)
	tenants := []registry.Tenant{add(t, r, registry.Active), add(t, r, registry.Suspended)}
	isPlaced(t, r, tenants[0])
	listens(t, r)
	for _, tenant := range tenants {
		want, wantErr := r.Place(t.Context(), tenant.OrgID)
		before := counted.n.Load()
		for range 3 {
			if place, err := r.PlaceLate(t.Context(), tenant.OrgID); place != want || !errors.Is(err, wantErr) {
				t.Errorf("%+v, %v; want %+v, %v", place, err, want, wantErr)
			}
		}
		if n := counted.n.Load() - before; n != 0 {
			t.Errorf("%s: %d queries for what others had looked up", tenant.State, n)
		}
	}
}

// TestMissesOfOneOrgAreOneQuery, which is nobody's: who leaves leaves alone.
func TestMissesOfOneOrgAreOneQuery(t *testing.T) {
	t.Parallel()
	direct := newPool(t)
	pool, counted := traced(t, direct)
	r := newRegistry(t, pool, registry.WithLookupTimeout(time.Minute))
	tenant := add(t, r, registry.Active)
	before := counted.n.Load()
	tx, err := direct.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback(context.Background())
	if _, err := tx.Exec(t.Context(), `LOCK TABLE pgidem.tenants IN ACCESS EXCLUSIVE MODE`); err != nil {
		t.Fatal(err)
	}
	leaving, leave := context.WithCancel(t.Context())
	first := make(chan error, 1)
	go func() { _, err := r.Place(leaving, tenant.OrgID); first <- err }()
	eventually(t, "the query", func() bool { return counted.n.Load() > before })
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			if !isPlaced(t, r, tenant) {
				t.Error("a waiting request was not given the tenant")
			}
		})
	}
	// Others wait for the query after it, which is one for all of them.
	orgs := []uuid.UUID{uuid.New(), uuid.New(), uuid.New()}
	for _, org := range orgs {
		wg.Go(func() {
			if !isPlaced(t, r, registry.Tenant{OrgID: org}) {
				t.Errorf("org %s is placed", org)
			}
		})
	}
	leave()
	if err := <-first; !errors.Is(err, context.Canceled) || errors.Is(err, tenancy.ErrUnknownTenant) {
		t.Errorf("who left was told %v", err)
	}
	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	wg.Wait()
	// Where a goroutine begins late, or listening begins in between, some are asked for again.
	if n := counted.n.Load() - before; n > 8 {
		t.Errorf("%d queries for 53 requests", n)
	}
}

// TestUnknownOrgsTakeNoRoom: they neither grow memory nor push tenants out.
func TestUnknownOrgsTakeNoRoom(t *testing.T) {
	t.Parallel()
	pool, counted := traced(t, newPool(t))
	r := newRegistry(t, pool, registry.WithTTL(time.Hour), registry.WithCacheSize(10))
	var tenants []registry.Tenant
	for range 10 {
		tenants = append(tenants, add(t, r, registry.Active))
	}
	if _, err := r.Place(t.Context(), tenants[0].OrgID); err != nil {
		t.Fatal(err)
	}
	listens(t, r)
	for _, tenant := range tenants {
		if !isPlaced(t, r, tenant) {
			t.Fatal("a tenant is not placed")
		}
	}
	const flood = 3 * registry.UnknownSize
	before := counted.n.Load()
	var wg sync.WaitGroup
	for range 64 {
		wg.Go(func() {
			for range flood / 64 {
				if _, err := r.Place(context.Background(), uuid.New()); !errors.Is(err, tenancy.ErrUnknownTenant) {
					t.Errorf("%v", err)
				}
			}
		})
	}
	wg.Wait()
	t.Logf("%d queries for %d unknown org_ids", counted.n.Load()-before, flood)
	if known, unknown := r.Cached(); known != 10 || unknown > registry.UnknownSize {
		t.Errorf("%d tenants and %d unknown org_ids are cached", known, unknown)
	}
	before = counted.n.Load()
	for _, tenant := range tenants {
		if !isPlaced(t, r, tenant) {
			t.Error("a tenant is not placed")
		}
	}
	if n := counted.n.Load() - before; n != 0 {
		t.Errorf("%d queries for tenants that were cached", n)
	}
}

// TestMoreTenantsThanTheCacheHolds: all are served, and those in use stay.
func TestMoreTenantsThanTheCacheHolds(t *testing.T) {
	t.Parallel()
	pool, counted := traced(t, newPool(t))
	r := newRegistry(t, pool, registry.WithTTL(time.Hour), registry.WithCacheSize(8))
	var tenants []registry.Tenant
	for range 40 {
		tenants = append(tenants, add(t, r, registry.Active))
	}
	if _, err := r.Place(t.Context(), tenants[0].OrgID); err != nil {
		t.Fatal(err)
	}
	listens(t, r)
	busy := tenants[0]
	isPlaced(t, r, busy)
	var missed int64
	for round := range 5 {
		for _, tenant := range tenants[1:] {
			// Once: those that are used again before the hand of the clock is there stay as well.
			if place, err := r.Place(t.Context(), tenant.OrgID); err != nil || place != tenant.Placement() {
				t.Errorf("a tenant is placed at %v, %v", place, err)
			}
			before := counted.n.Load()
			if !isPlaced(t, r, busy) {
				t.Error("the busy tenant is not placed")
			}
			missed += counted.n.Load() - before
		}
		if known, _ := r.Cached(); known > 8 {
			t.Fatalf("round %d: %d tenants are cached; want 8 at most", round, known)
		}
	}
	if missed > 0 {
		t.Errorf("the busy tenant was evicted %d times", missed)
	}
}

// TestNotificationOvertakesALookup: what was read before a change and comes after it is told
// is not kept.
func TestNotificationOvertakesALookup(t *testing.T) {
	t.Parallel()
	direct := newPool(t)
	pool, traces := traced(t, direct)
	r := newRegistry(t, pool, registry.WithTTL(time.Hour), registry.WithLookupTimeout(time.Minute))
	manager := newRegistry(t, direct)
	later, known := add(t, manager, registry.Active), add(t, manager, registry.Active)
	for range 10 {
		tenant := add(t, manager, registry.Active)
		isPlaced(t, r, known)
		listens(t, r)
		isPlaced(t, r, known)

		hold := make(chan struct{})
		traces.hold.Store(&hold)
		first := make(chan error, 1)
		go func() { _, err := r.Place(context.Background(), tenant.OrgID); first <- err }()
		<-traces.held // the row is read
		if _, err := manager.SetState(t.Context(), tenant.OrgID, registry.Suspended); err != nil {
			t.Fatal(err)
		}
		// A change that is told after it: when that was heard, the first was.
		if err := manager.SetVersion(t.Context(), known.OrgID, at(known, known.Version+1)); err != nil {
			t.Fatal(err)
		}
		known.Version++
		eventually(t, "the notification", func() bool {
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Millisecond)
			defer cancel()
			_, err := r.Place(ctx, known.OrgID)
			return errors.Is(err, context.DeadlineExceeded)
		})
		second := make(chan error, 1)
		go func() { _, err := r.Place(context.Background(), tenant.OrgID); second <- err }()
		traces.hold.Store(nil)
		close(hold)
		if err := <-first; err != nil {
			t.Errorf("who asked before the change: %v", err)
		}
		if err := <-second; !errors.Is(err, tenancy.ErrSuspendedTenant) {
			t.Errorf("who asked after the change: %v", err)
		}
		if tenant.State = registry.Suspended; !isPlaced(t, r, tenant) {
			t.Error("what was read before the change was kept")
		}
	}
	if !isPlaced(t, r, later) {
		t.Error("another tenant is not placed")
	}
}

// TestDatabaseDown: tenants that were known are served, for as long as WithStale says.
func TestDatabaseDown(t *testing.T) {
	t.Parallel()
	server := pgtest.NewServer(t, pgtest.WithDurable())
	if err := migrations.UpControl(t.Context(), server.URL(), parse(t, registry.DefaultSchema)); err != nil {
		t.Fatal(err)
	}
	pool, err := pgxpool.New(t.Context(), server.URL())
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	patient, strict := newRegistry(t, pool), newRegistry(t, pool, registry.WithStale(0))
	active, suspended, unseen := add(t, patient, registry.Active), add(t, patient, registry.Suspended), add(t, patient, registry.Active)
	for _, r := range []*registry.Registry{patient, strict} {
		isPlaced(t, r, active)
		listens(t, r)
		if !isPlaced(t, r, active) || !isPlaced(t, r, suspended) {
			t.Fatal("not placed while all is well")
		}
	}
	if err := server.Kill(); err != nil {
		t.Fatal(err)
	}
	passing := func(r *registry.Registry, org uuid.UUID) bool {
		_, err := r.Place(t.Context(), org)
		return err != nil && !errors.Is(err, tenancy.ErrUnknownTenant) && !errors.Is(err, tenancy.ErrSuspendedTenant)
	}
	eventually(t, "an error where nothing may be stale", func() bool { return passing(strict, active.OrgID) && passing(strict, suspended.OrgID) })
	for range 10 {
		if !isPlaced(t, patient, active) || !isPlaced(t, patient, suspended) {
			t.Error("not placed as it was known")
		}
		if !passing(patient, unseen.OrgID) {
			t.Error("what was never known is no passing fault")
		}
	}
	if err := server.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	manager := newRegistry(t, pool)
	eventually(t, "the database", func() bool {
		_, err := manager.SetState(t.Context(), active.OrgID, registry.Deleting)
		return err == nil
	})
	active.State = registry.Deleting
	for _, r := range []*registry.Registry{patient, strict} {
		eventually(t, "the change", func() bool { return isPlaced(t, r, active) })
		eventually(t, "what was never known", func() bool { return isPlaced(t, r, unseen) })
		listens(t, r)
	}
}

// TestDatabaseHangs: who can be served as it was known does not wait for each query anew.
func TestDatabaseHangs(t *testing.T) {
	t.Parallel()
	direct := newPool(t)
	pool, _ := traced(t, direct)
	r := newRegistry(t, pool, registry.WithTTL(time.Millisecond), registry.WithLookupTimeout(100*time.Millisecond))
	tenant := add(t, r, registry.Active)
	eventually(t, "service", func() bool { return isPlaced(t, r, tenant) })
	tx, err := direct.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback(context.Background())
	if _, err := tx.Exec(t.Context(), `LOCK TABLE pgidem.tenants IN ACCESS EXCLUSIVE MODE`); err != nil {
		t.Fatal(err)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel() // who would have to wait gets an error at once
	for range 3 {
		eventually(t, "an answer without waiting", func() bool {
			time.Sleep(2 * time.Millisecond) // so that the entry is too old
			place, err := r.Place(ended, tenant.OrgID)
			return err == nil && place == tenant.Placement()
		})
	}
	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := r.SetVersion(t.Context(), tenant.OrgID, at(tenant, 2)); err != nil {
		t.Fatal(err)
	}
	tenant.Version = 2
	eventually(t, "the change", func() bool { return isPlaced(t, r, tenant) })
}

// TestStaleEnds: it is counted from when the tenant was read.
func TestStaleEnds(t *testing.T) {
	t.Parallel()
	pool := newPool(t)
	r := newRegistry(t, pool, registry.WithTTL(time.Millisecond), registry.WithStale(3*time.Second))
	tenant := add(t, r, registry.Active)
	if !isPlaced(t, r, tenant) {
		t.Fatal("not placed")
	}
	if _, err := pool.Exec(t.Context(), `ALTER TABLE pgidem.tenants RENAME TO away`); err != nil {
		t.Fatal(err)
	}
	var served int
	eventually(t, "the end", func() bool {
		_, err := r.Place(t.Context(), tenant.OrgID)
		if err == nil {
			served++
		}
		return err != nil && strings.Contains(err.Error(), "migrations.UpControl")
	})
	if served == 0 {
		t.Error("never served as it was known")
	}
	if _, err := pool.Exec(t.Context(), `ALTER TABLE pgidem.away RENAME TO tenants`); err != nil {
		t.Fatal(err)
	}
	eventually(t, "service", func() bool { return isPlaced(t, r, tenant) })
}

// TestBusyTenantsNeverWait: a tenant in use is read again before it is too old, so that
// none of its requests waits for a query even where each is too old soon.
func TestBusyTenantsNeverWait(t *testing.T) {
	t.Parallel()
	pool, counted := traced(t, newPool(t))
	r := newRegistry(t, pool, registry.WithTTL(time.Minute), registry.WithListenConfig(nowhere(pool)))
	tenant := add(t, r, registry.Active)
	if !isPlaced(t, r, tenant) {
		t.Fatal("not placed")
	}
	before := counted.n.Load()
	ended, cancel := context.WithCancel(t.Context())
	cancel() // who would have to wait gets an error at once
	var waited int
	eventually(t, "four queries", func() bool {
		if _, err := r.Place(ended, tenant.OrgID); err != nil {
			waited++
			_, _ = r.Place(t.Context(), tenant.OrgID)
		}
		return counted.n.Load() >= before+4
	})
	if waited == 4 {
		t.Error("each query was waited for")
	}
	t.Logf("%d of 4 queries were waited for", waited)
}

func TestHitsAllocateNothing(t *testing.T) { // alone: AllocsPerRun counts everybody's
	r := newRegistry(t, newPool(t), registry.WithTTL(time.Hour))
	active, suspended := add(t, r, registry.Active), add(t, r, registry.Suspended)
	isPlaced(t, r, active)
	listens(t, r)
	for _, tenant := range []registry.Tenant{active, suspended} {
		if !isPlaced(t, r, tenant) {
			t.Fatal("not placed")
		}
		ctx := t.Context()
		if n := testing.AllocsPerRun(1000, func() { _, _ = r.Place(ctx, tenant.OrgID) }); n != 0 {
			t.Errorf("%s: %v allocations for a hit", tenant.State, n)
		}
	}
}

func BenchmarkPlace(b *testing.B) {
	for _, n := range []int{1, 10_000} {
		b.Run(fmt.Sprint("tenants=", n), func(b *testing.B) {
			r := newRegistry(b, newPool(b), registry.WithTTL(time.Hour))
			orgs := make([]uuid.UUID, n)
			for i := range orgs {
				orgs[i] = add(b, r, registry.Active).OrgID
			}
			if _, err := r.Place(b.Context(), orgs[0]); err != nil {
				b.Fatal(err)
			}
			listens(b, r)
			var wg sync.WaitGroup
			for i := range 64 {
				wg.Go(func() {
					for j := i; j < n; j += 64 {
						if _, err := r.Place(b.Context(), orgs[j]); err != nil {
							b.Error(err)
						}
					}
				})
			}
			wg.Wait()
			b.ReportAllocs()
			b.ResetTimer()
			var worker atomic.Int64
			b.RunParallel(func(pb *testing.PB) {
				ctx := context.Background()
				for i := int(worker.Add(1)) * 5077; pb.Next(); i++ {
					if _, err := r.Place(ctx, orgs[i%n]); err != nil {
						b.Error(err)
					}
				}
			})
		})
	}
}
