package registry_test

import (
	"context"
	"errors"
	"net"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgidem/pgidem/internal/pgtest"
	"github.com/pgidem/pgidem/tenancy/registry"
)

// That a change is seen by all processes within a second is tested in parts, none of which a
// slow machine can fail: each has a clock that stands still until it is moved on.
type clock struct{ at atomic.Int64 }

func (c *clock) now() time.Duration    { return time.Duration(c.at.Load()) }
func (c *clock) pass(d time.Duration)  { c.at.Add(int64(d)) }
func (c *clock) hand() registry.Option { return registry.WithClock(c.now) }

// patient keeps a lookup from failing on a slow machine, after which what was known would do.
var patient = registry.WithLookupTimeout(time.Minute)

// deafLife is what the documentation promises, 0.9 seconds.
const deafLife = 900 * time.Millisecond

// TestBoundsAddUp: what nobody told is too old soon enough for it to be looked up within the
// second, also where a query has just failed; and a connection that fell silent is found out in
// the 7 seconds of the documentation.
func TestBoundsAddUp(t *testing.T) {
	t.Parallel()
	if sum := registry.DeafLife + registry.FailingPause; sum > time.Second || registry.DeafLife != deafLife {
		t.Errorf("an entry counts for %v, and the next query may wait for %v", registry.DeafLife, registry.FailingPause)
	}
	if registry.UnknownLife > time.Second {
		t.Errorf("an org_id counts as unknown for %v", registry.UnknownLife)
	}
	if sum := registry.DefaultPulse + registry.PulseTimeout; sum > 7*time.Second {
		t.Errorf("a silent connection is found out after %v", sum)
	}
}

// TestNothingOldCountsWithoutListening: where nobody tells of changes, what was read 0.9
// seconds ago is not served, whatever WithTTL and WithStale say.
func TestNothingOldCountsWithoutListening(t *testing.T) {
	t.Parallel()
	pool := newPool(t)
	manager := newRegistry(t, pool)
	var c clock
	r := newRegistry(t, pool, registry.WithTTL(time.Hour), registry.WithStale(time.Hour), registry.WithListenConfig(nowhere(pool)), patient, c.hand())
	tenant, unknown := add(t, manager, registry.Active), uuid.New()
	for _, state := range []registry.State{registry.Suspended, registry.Active, registry.Deleting} {
		if !isPlaced(t, r, tenant) || !isPlaced(t, r, registry.Tenant{OrgID: unknown}) {
			t.Fatal("not placed as it is, before the change")
		}
		var err error
		if tenant, err = manager.SetState(t.Context(), tenant.OrgID, state); err != nil {
			t.Fatal(err)
		}
		signedUp, err := manager.Add(t.Context(), registry.Tenant{OrgID: unknown, Schema: perOrg(t, unknown), State: registry.Active})
		if err != nil {
			t.Fatal(err)
		}
		c.pass(deafLife)
		if !isPlaced(t, r, tenant) {
			t.Errorf("it is served as it was %v ago, and is %s", deafLife, state)
		}
		if !isPlaced(t, r, signedUp) {
			t.Errorf("it is unknown as it was %v ago", deafLife)
		}
		unknown = uuid.New()
	}
}

// TestNothingOldCountsOnceListeningEnds: what was known for long because changes are told
// does not count from the moment when the connection is lost.
func TestNothingOldCountsOnceListeningEnds(t *testing.T) {
	t.Parallel()
	direct := newPool(t)
	pool, counted := traced(t, direct)
	manager := newRegistry(t, direct)
	var unplugged atomic.Bool
	config := pool.Config().ConnConfig.Copy()
	dial := config.DialFunc
	config.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
		if unplugged.Load() {
			return nil, errors.New("unplugged")
		}
		return dial(ctx, network, addr)
	}
	var c clock
	r := newRegistry(t, pool, registry.WithTTL(time.Hour), registry.WithStale(time.Hour), registry.WithListenConfig(config), patient, c.hand())
	tenant := add(t, manager, registry.Active)
	isPlaced(t, r, tenant)
	listens(t, r)
	if !isPlaced(t, r, tenant) {
		t.Fatal("not placed")
	}
	c.pass(10 * time.Second)
	before := counted.n.Load()
	if !isPlaced(t, r, tenant) || counted.n.Load() != before {
		t.Fatal("it is looked up although nothing was told")
	}
	unplugged.Store(true)
	cutListening(t, direct)
	eventually(t, "the loss", func() bool { return r.Listening() != nil })
	if _, err := manager.SetState(t.Context(), tenant.OrgID, registry.Suspended); err != nil {
		t.Fatal(err)
	}
	tenant.State = registry.Suspended
	if !isPlaced(t, r, tenant) {
		t.Error("it is served as it was 10 seconds ago, though nobody would have told of a change")
	}
}

// TestNothingUntoldCountsForLong: a change that nobody tells of although the registry listens is
// seen when the time of WithTTL is over, and a tenant that signs up so within a second.
func TestNothingUntoldCountsForLong(t *testing.T) {
	t.Parallel()
	pool := newPool(t)
	manager := newRegistry(t, pool)
	var c clock
	elsewhere := registry.WithListenConfig(pgtest.NewPool(t).Config().ConnConfig)
	r := newRegistry(t, pool, registry.WithTTL(time.Minute), registry.WithStale(time.Hour), elsewhere, patient, c.hand())
	tenant, unknown := add(t, manager, registry.Active), uuid.New()
	isPlaced(t, r, tenant)
	listens(t, r)
	if !isPlaced(t, r, tenant) || !isPlaced(t, r, registry.Tenant{OrgID: unknown}) {
		t.Fatal("not placed as it is, before the change")
	}
	signedUp, err := manager.Add(t.Context(), registry.Tenant{OrgID: unknown, Schema: perOrg(t, unknown), State: registry.Active})
	if err != nil {
		t.Fatal(err)
	}
	c.pass(time.Second)
	if !isPlaced(t, r, signedUp) {
		t.Error("it is unknown as it was a second ago")
	}
	suspended, err := manager.SetState(t.Context(), tenant.OrgID, registry.Suspended)
	if err != nil {
		t.Fatal(err)
	}
	if !isPlaced(t, r, tenant) {
		t.Fatal("it has heard of the change, and the test is for one that nobody told")
	}
	c.pass(time.Minute - time.Second)
	if !isPlaced(t, r, suspended) {
		t.Error("it is served as it was a minute ago")
	}
}

// TestBeingToldIsEnough: while no time passes, so that nothing grows old and nobody asks for a
// sign of life, each change is seen because it was told, and one that was not told is not.
func TestBeingToldIsEnough(t *testing.T) {
	t.Parallel()
	pool := newPool(t)
	manager := newRegistry(t, pool)
	var c clock
	r := newRegistry(t, pool, registry.WithTTL(time.Hour), registry.WithPulse(time.Hour), patient, c.hand())
	tenant, untold := add(t, manager, registry.Active), add(t, manager, registry.Active)
	isPlaced(t, r, tenant)
	listens(t, r)
	if !isPlaced(t, r, tenant) || !isPlaced(t, r, untold) {
		t.Fatal("not placed as it is, before the changes")
	}
	pids := listening(t, pool)
	ctx := t.Context()
	hand := func(sql string) {
		t.Helper()
		if _, err := pool.Exec(ctx, sql); err != nil {
			t.Fatal(err)
		}
	}
	hand(`BEGIN; SET LOCAL session_replication_role = replica; -- no trigger tells of it
		UPDATE pgidem.tenants SET state = 'suspended' WHERE org_id = '` + untold.OrgID.String() + `'; COMMIT`)

	seen := func(what string, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		eventually(t, what, func() bool { return isPlaced(t, r, tenant) })
	}
	tenant.State = registry.Suspended
	_, err := manager.SetState(ctx, tenant.OrgID, registry.Suspended)
	seen("suspended", err)
	from := tenant.Placement()
	tenant.Cluster = "eu-2"
	seen("moved", manager.Move(ctx, tenant.OrgID, from, tenant.Placement()))
	tenant.Version = 7
	seen("migrated", manager.SetVersion(ctx, tenant.OrgID, at(tenant, 7)))
	tenant.State = registry.Active
	hand(`UPDATE pgidem.tenants SET state = 'active' WHERE org_id = '` + tenant.OrgID.String() + `'`)
	seen("resumed by hand", nil)
	removed := tenant
	tenant = registry.Tenant{OrgID: tenant.OrgID}
	seen("removed", manager.Remove(ctx, tenant.OrgID))
	tenant = removed
	_, err = manager.Add(ctx, registry.Tenant{OrgID: removed.OrgID, Schema: removed.Schema, Cluster: removed.Cluster, Version: removed.Version, State: registry.Active})
	seen("registered anew", err)

	if !isPlaced(t, r, untold) {
		t.Error("something else than being told has a change seen, and the test shows nothing")
	}
	tenant, untold = registry.Tenant{OrgID: tenant.OrgID}, registry.Tenant{OrgID: untold.OrgID}
	hand(`TRUNCATE pgidem.tenants`)
	seen("truncated", nil)
	if !isPlaced(t, r, untold) {
		t.Error("of all that went one is still known")
	}
	if now := listening(t, pool); r.Listening() != nil || len(now) != 1 || !slices.Equal(now, pids) {
		t.Errorf("it listens by %v, and by %v before: %v", now, pids, r.Listening())
	}
}

// cutListening ends the connections that listen for changes in the database.
func cutListening(t testing.TB, pool *pgxpool.Pool) (cut int) {
	t.Helper()
	for _, pid := range listening(t, pool) {
		if _, err := pool.Exec(t.Context(), `SELECT pg_terminate_backend($1)`, pid); err != nil {
			t.Fatal(err)
		}
		cut++
	}
	return cut
}
