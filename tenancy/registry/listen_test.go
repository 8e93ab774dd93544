package registry_test

import (
	"context"
	"errors"
	"net"
	"strings"
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

// nowhere returns a configuration with which no connection comes to be.
func nowhere(pool *pgxpool.Pool) *pgx.ConnConfig {
	config := pool.Config().ConnConfig.Copy()
	config.DialFunc = func(context.Context, string, string) (net.Conn, error) { return nil, errors.New("unplugged") }
	return config
}

// silentConn can fall silent, as a network does that swallows packets.
type silentConn struct {
	net.Conn
	silent *atomic.Bool
}

func (c silentConn) Write(p []byte) (int, error) {
	if c.silent.Load() {
		return len(p), nil
	}
	return c.Conn.Write(p)
}

// listening returns the server's processes that listen for changes in the database.
func listening(t testing.TB, pool *pgxpool.Pool) []int32 {
	t.Helper()
	rows, err := pool.Query(t.Context(), `
		SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid() AND query LIKE 'LISTEN "pgidem_tenants_%'`)
	if err != nil {
		t.Fatal(err)
	}
	pids, err := pgx.CollectRows(rows, pgx.RowTo[int32])
	if err != nil {
		t.Fatal(err)
	}
	return pids
}

// TestChangesAreSeen: two processes see each other's changes, while the connections over
// which they hear of them are cut.
func TestChangesAreSeen(t *testing.T) {
	t.Parallel()
	pool := newPool(t)
	one, other := newRegistry(t, pool, registry.WithTTL(time.Hour)), newRegistry(t, pool, registry.WithTTL(time.Hour))
	both := []*registry.Registry{one, other}
	tenant := add(t, one, registry.Provisioning)
	ctx := t.Context()
	var slowest time.Duration
	seen := func(what string) {
		t.Helper()
		began := time.Now()
		for _, r := range both {
			eventually(t, what, func() bool { return isPlaced(t, r, tenant) })
		}
		slowest = max(slowest, time.Since(began))
	}
	seen("the tenant")
	var cut int
	for round := range 40 {
		r := both[round%2]
		if round%4 == 1 {
			cut += cutListening(t, pool)
		}
		if round%8 == 7 {
			listens(t, one)
			listens(t, other)
		}
		must := func(_ any, err error) {
			t.Helper()
			if err != nil {
				t.Fatal(err)
			}
		}
		must(r.SetState(ctx, tenant.OrgID, registry.Active))
		tenant.State = registry.Active
		seen("active")
		from := tenant.Placement()
		tenant.Cluster = []string{"b", "c"}[round%2]
		must(nil, r.Move(ctx, tenant.OrgID, from, tenant.Placement()))
		seen("moved")
		must(r.SetState(ctx, tenant.OrgID, registry.Suspended, registry.Active))
		tenant.State = registry.Suspended
		seen("suspended")
		must(nil, r.SetVersion(ctx, tenant.OrgID, at(tenant, int64(round+1))))
		tenant.Version = int64(round + 1)
		seen("migrated")
		must(nil, r.Remove(ctx, tenant.OrgID, registry.Suspended))
		tenant = registry.Tenant{OrgID: tenant.OrgID, Schema: tenant.Schema}
		seen("removed")
		if round%3 == 0 { // by hand
			must(pool.Exec(ctx, `INSERT INTO pgidem.tenants (org_id, schema_name, state) VALUES ($1, $2, 'deleting')`, tenant.OrgID, tenant.Schema.String()))
			tenant.State = registry.Deleting
			seen("inserted by hand")
			must(pool.Exec(ctx, `TRUNCATE pgidem.tenants`))
			tenant.State = ""
			seen("truncated")
		}
		must(r.Add(ctx, registry.Tenant{OrgID: tenant.OrgID, Schema: tenant.Schema}))
		tenant.State = registry.Provisioning
		seen("added")
	}
	if cut == 0 {
		t.Error("no connection was cut")
	}
	t.Logf("the slowest change was seen after %v; %d connections were cut", slowest, cut)
}

// TestChangesWhileNobodyListened are seen when listening begins again.
func TestChangesWhileNobodyListened(t *testing.T) {
	t.Parallel()
	pool := newPool(t)
	manager := newRegistry(t, pool)
	tenant := add(t, manager, registry.Active)
	var unplugged atomic.Bool
	config := pool.Config().ConnConfig.Copy()
	dial := config.DialFunc
	config.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
		if unplugged.Load() {
			return nil, errors.New("unplugged")
		}
		return dial(ctx, network, addr)
	}
	r := newRegistry(t, pool, registry.WithTTL(time.Hour), registry.WithListenConfig(config))
	if err := r.Listening(); err == nil {
		t.Error("listens before the first lookup")
	}
	isPlaced(t, r, tenant)
	for round := range 4 {
		listens(t, r)
		if !isPlaced(t, r, tenant) {
			t.Fatal("not placed")
		}
		unplugged.Store(true)
		cutListening(t, pool)
		eventually(t, "the loss", func() bool { return r.Listening() != nil })
		tenant.State = map[registry.State]registry.State{registry.Active: registry.Suspended, registry.Suspended: registry.Active}[tenant.State]
		if _, err := manager.SetState(t.Context(), tenant.OrgID, tenant.State); err != nil {
			t.Fatal(err)
		}
		if round%2 == 1 {
			eventually(t, "the change, without being told", func() bool { return isPlaced(t, r, tenant) })
		}
		unplugged.Store(false)
		listens(t, r)
		if !isPlaced(t, r, tenant) {
			t.Error("what was read before counts although a change may have been missed")
		}
	}
}

// TestUnknownOrgsSignUp: they are known as soon as that is told, and soon if it is not.
func TestUnknownOrgsSignUp(t *testing.T) {
	t.Parallel()
	pool := newPool(t)
	manager := newRegistry(t, pool)
	known := add(t, manager, registry.Active)
	r := newRegistry(t, pool, registry.WithTTL(time.Hour))
	isPlaced(t, r, known)
	listens(t, r)
	for range 5 {
		org := uuid.New()
		if !isPlaced(t, r, known) || !isPlaced(t, r, registry.Tenant{OrgID: org}) {
			t.Fatal("not placed as it is, before the change")
		}
		tenant, err := manager.Add(t.Context(), registry.Tenant{OrgID: org, Schema: perOrg(t, org), State: registry.Active})
		if err != nil {
			t.Fatal(err)
		}
		// A change that is told after it: when that was heard, the first was.
		if err := manager.SetVersion(t.Context(), known.OrgID, at(known, known.Version+1)); err != nil {
			t.Fatal(err)
		}
		known.Version++
		eventually(t, "the notification", func() bool { return isPlaced(t, r, known) })
		if !isPlaced(t, r, tenant) {
			t.Error("it is unknown after its registration was told")
		}
	}
	org := uuid.New()
	if !isPlaced(t, r, registry.Tenant{OrgID: org}) {
		t.Fatal("an org_id that is not registered has a place")
	}
	_, err := pool.Exec(t.Context(), `BEGIN; SET LOCAL session_replication_role = replica; -- no trigger tells of it
		INSERT INTO pgidem.tenants (org_id, schema_name) VALUES ('`+org.String()+`', 'untold'); COMMIT`)
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "the tenant", func() bool {
		return isPlaced(t, r, registry.Tenant{OrgID: org, Schema: parse(t, "untold"), State: registry.Provisioning})
	})
}

// TestSilentConnection: one that is lost without a word is found out.
func TestSilentConnection(t *testing.T) {
	t.Parallel()
	pool := newPool(t)
	manager := newRegistry(t, pool)
	tenant := add(t, manager, registry.Active)
	var conns atomic.Int64
	silent := make([]atomic.Bool, 100)
	config := pgtest.Dialing(pool.Config().ConnConfig, func(conn net.Conn) net.Conn { return silentConn{conn, &silent[conns.Add(1)]} })
	r := newRegistry(t, pool, registry.WithTTL(time.Hour), registry.WithListenConfig(config), registry.WithPulse(20*time.Millisecond))
	isPlaced(t, r, tenant)
	listens(t, r)
	n := conns.Load()
	silent[n].Store(true)
	eventually(t, "another connection", func() bool { return conns.Load() > n })
	listens(t, r)
	if _, err := manager.SetState(t.Context(), tenant.OrgID, registry.Suspended); err != nil {
		t.Fatal(err)
	}
	tenant.State = registry.Suspended
	eventually(t, "the change", func() bool { return isPlaced(t, r, tenant) })
}

// TestPulseLeavesTheConnection: one that is well stays, however often it is asked.
func TestPulseLeavesTheConnection(t *testing.T) {
	t.Parallel()
	pool := newPool(t)
	manager := newRegistry(t, pool)
	r := newRegistry(t, pool, registry.WithTTL(time.Hour), registry.WithPulse(time.Millisecond))
	tenant := add(t, manager, registry.Active)
	isPlaced(t, r, tenant)
	listens(t, r)
	var pids []int32
	eventually(t, "one that listens", func() bool {
		rows, err := pool.Query(t.Context(), `SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND query LIKE '-- ping%'`)
		if err != nil {
			t.Fatal(err)
		}
		pids, err = pgx.CollectRows(rows, pgx.RowTo[int32])
		if err != nil {
			t.Fatal(err)
		}
		return len(pids) == 1
	})
	for version := range int64(200) {
		if err := manager.SetVersion(t.Context(), tenant.OrgID, at(tenant, version+1)); err != nil {
			t.Fatal(err)
		}
		tenant.Version = version + 1
		eventually(t, "the change", func() bool { return isPlaced(t, r, tenant) })
		if err := r.Listening(); err != nil {
			t.Fatal(err)
		}
	}
	var still bool
	if err := pool.QueryRow(t.Context(), `SELECT EXISTS (SELECT FROM pg_stat_activity WHERE pid = $1)`, pids[0]).Scan(&still); err != nil || !still {
		t.Errorf("the connection was given up: %v", err)
	}
}

// TestNotListening: where it cannot, changes are seen all the same.
func TestNotListening(t *testing.T) {
	t.Parallel()
	pool := newPool(t)
	manager := newRegistry(t, pool)
	for name, c := range map[string]struct {
		config *pgx.ConnConfig
		want   string
	}{
		"nowhere": {nowhere(pool), "unplugged"},
		"pooler":  {pgtest.BehindPooler(pool.Config().ConnConfig), "WithListenConfig"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRegistry(t, pool, registry.WithTTL(time.Hour), registry.WithListenConfig(c.config))
			tenant := add(t, manager, registry.Active)
			isPlaced(t, r, tenant)
			eventually(t, "an error that says why", func() bool {
				err := r.Listening()
				return err != nil && strings.Contains(err.Error(), c.want)
			})
			for _, state := range []registry.State{registry.Suspended, registry.Active} {
				if _, err := manager.SetState(t.Context(), tenant.OrgID, state); err != nil {
					t.Fatal(err)
				}
				tenant.State = state
				eventually(t, "the change", func() bool { return isPlaced(t, r, tenant) })
			}
			if n := listening(t, pool); len(n) != 0 {
				t.Errorf("%d connections listen", len(n))
			}
		})
	}
}

// TestClose ends the connection that listens, and nothing else.
func TestClose(t *testing.T) {
	t.Parallel()
	pool := newPool(t)
	unused := newRegistry(t, pool)
	unused.Close()
	unused.Close()
	r := newRegistry(t, pool)
	tenant := add(t, r, registry.Active)
	isPlaced(t, r, tenant)
	listens(t, r)
	r.Close()
	eventually(t, "the end of the connection", func() bool { return len(listening(t, pool)) == 0 })
	for _, r := range []*registry.Registry{r, unused} {
		for _, state := range []registry.State{registry.Suspended, registry.Active} {
			if _, err := r.SetState(t.Context(), tenant.OrgID, state); err != nil {
				t.Fatal(err)
			}
			tenant.State = state
			eventually(t, "the change", func() bool { return isPlaced(t, r, tenant) })
		}
		if err := r.Listening(); err == nil {
			t.Error("it listens after it was closed")
		}
		r.Close()
	}
}

// TestRegistriesOfOneDatabase: each control schema has tenants of its own.
func TestRegistriesOfOneDatabase(t *testing.T) {
	t.Parallel()
	pool := newPool(t)
	var registries []*registry.Registry
	for _, name := range []string{"control_a", "control_b", "c" + strings.Repeat("x", 62)} {
		schema := parse(t, name)
		if err := migrations.UpControl(t.Context(), pool.Config().ConnString(), schema); err != nil {
			t.Fatal(err)
		}
		registries = append(registries, newRegistry(t, pool, registry.WithSchema(schema), registry.WithTTL(time.Hour)))
	}
	org := uuid.New()
	for i, r := range registries {
		if !isPlaced(t, r, registry.Tenant{OrgID: org}) {
			t.Fatal("another registry's tenant is placed")
		}
		listens(t, r)
		tenant, err := r.Add(t.Context(), registry.Tenant{OrgID: org, Schema: parse(t, "tenant_"+string(rune('a'+i))), State: registry.Active})
		if err != nil {
			t.Fatal(err)
		}
		eventually(t, "the tenant", func() bool { return isPlaced(t, r, tenant) })
	}
	if err := registries[0].Remove(t.Context(), org); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the removal", func() bool { return isPlaced(t, registries[0], registry.Tenant{OrgID: org}) })
	if _, err := registries[1].Schema(t.Context(), org); errors.Is(err, tenancy.ErrUnknownTenant) {
		t.Error("one registry's removal is another's")
	}
}
