package registry_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgidem/pgidem/internal/pgtest"
	"github.com/pgidem/pgidem/tenancy"
	"github.com/pgidem/pgidem/tenancy/registry"
)

func TestNewRefusesNonsense(t *testing.T) {
	t.Parallel()
	if _, err := registry.New(nil); err == nil {
		t.Error("a nil pool was accepted")
	}
	pool := newPool(t)
	if _, err := registry.New(pool, registry.WithSchema(tenancy.Schema{})); err == nil {
		t.Error("the zero Schema was accepted")
	}
}

func TestATenantsLife(t *testing.T) {
	t.Parallel()
	pool := newPool(t)
	r, ctx := newRegistry(t, pool), t.Context()
	org := uuid.New()
	if _, err := r.Tenant(ctx, org); !errors.Is(err, tenancy.ErrUnknownTenant) {
		t.Errorf("before it is registered: %v", err)
	}
	want := registry.Tenant{OrgID: org, Schema: perOrg(t, org), Cluster: "eu-1", State: registry.Provisioning, Version: 4}
	added, err := r.Add(ctx, registry.Tenant{OrgID: org, Schema: want.Schema, Cluster: want.Cluster, Version: want.Version})
	if err != nil {
		t.Fatal(err)
	}
	if age := time.Since(added.CreatedAt); age < -time.Hour || age > time.Hour || !added.CreatedAt.Equal(added.UpdatedAt) {
		t.Errorf("created at %v, updated at %v", added.CreatedAt, added.UpdatedAt)
	}
	same := func(got registry.Tenant) {
		t.Helper()
		want.CreatedAt, want.UpdatedAt = added.CreatedAt, got.UpdatedAt
		if got.CreatedAt = added.CreatedAt; got != want {
			t.Errorf("got %+v, want %+v", got, want)
		}
		if now, err := r.Tenant(ctx, org); err != nil || now.State != want.State || now.Placement() != want.Placement() || !now.UpdatedAt.Equal(got.UpdatedAt) {
			t.Errorf("looked up: %+v, %v; want %+v", now, err, want)
		}
	}
	same(added)

	got, err := r.SetState(ctx, org, registry.Active, registry.Suspended, registry.Deleting)
	if !errors.Is(err, registry.ErrState) || !strings.Contains(err.Error(), "it is provisioning") {
		t.Errorf("set to active from states that it is not in: %v", err)
	}
	same(got)
	if got, err = r.SetState(ctx, org, registry.Active, registry.Suspended, registry.Provisioning); err != nil {
		t.Fatal(err)
	}
	want.State = registry.Active
	same(got)
	if !got.UpdatedAt.After(added.UpdatedAt) {
		t.Errorf("updated at %v after %v", got.UpdatedAt, added.UpdatedAt)
	}
	if got, err = r.Add(ctx, registry.Tenant{OrgID: org, Schema: want.Schema, Cluster: want.Cluster}); err != nil {
		t.Errorf("registered again: %v", err)
	}
	same(got)

	for i, version := range []int64{5, 5, 4, 0} { // only the first changes anything: a version is not taken back
		if err := r.SetVersion(ctx, org, at(want, version)); err != nil {
			t.Fatal(err)
		}
		got, err := r.Tenant(ctx, org)
		if want.Version = 5; err != nil || got.Version != 5 {
			t.Errorf("version %d, %v", got.Version, err)
		}
		if i == 0 {
			want.UpdatedAt = got.UpdatedAt
		}
	}
	if got, err := r.Tenant(ctx, org); err != nil || !got.UpdatedAt.Equal(want.UpdatedAt) {
		t.Errorf("the same version was noted as a change: %v, %v", got.UpdatedAt, err)
	}

	from := want.Placement()
	to := tenancy.Placement{Schema: parse(t, "elsewhere"), Cluster: "eu-2"}
	if err := r.Move(ctx, org, to, from); err != nil {
		t.Errorf("moved to where it is: %v", err)
	}
	for range 2 { // the second time changes nothing
		if err := r.Move(ctx, org, from, to); err != nil {
			t.Fatal(err)
		}
	}
	want.Schema, want.Cluster = to.Schema, to.Cluster
	if got, err = r.Tenant(ctx, org); err != nil {
		t.Fatal(err)
	}
	same(got)
	// A migration that ends where the tenant was says nothing of where it is.
	from.Version = 8
	if err := r.SetVersion(ctx, org, from); !errors.Is(err, registry.ErrConflict) || !strings.Contains(err.Error(), `cluster "eu-2"`) {
		t.Errorf("a version of where it is not: %v", err)
	}
	if got, err := r.Tenant(ctx, org); err != nil || got.Version != 5 {
		t.Errorf("version %d, %v", got.Version, err)
	}
	if err := r.Move(ctx, org, from, tenancy.Placement{Schema: parse(t, "third")}); !errors.Is(err, registry.ErrConflict) {
		t.Errorf("moved from where it is not: %v", err)
	}
	to.Version = 9
	if err := r.Move(ctx, org, to, tenancy.Placement{Schema: parse(t, "third"), Version: 9}); err != nil {
		t.Error(err)
	}
	if got, err := r.Tenant(ctx, org); err != nil || got.Placement() != (tenancy.Placement{Schema: parse(t, "third"), Version: 9}) {
		t.Errorf("placement %+v, %v", got.Placement(), err)
	}

	if err := r.Remove(ctx, org, registry.Suspended, registry.Deleting); !errors.Is(err, registry.ErrState) {
		t.Errorf("removed while active: %v", err)
	}
	if err := r.Remove(ctx, org, registry.Active); err != nil {
		t.Error(err)
	}
	_, err = r.SetState(ctx, org, registry.Active)
	for step, err := range map[string]error{
		"look up": func() error { _, err := r.Tenant(ctx, org); return err }(),
		"remove":  r.Remove(ctx, org), "version": r.SetVersion(ctx, org, to), "move": r.Move(ctx, org, from, to), "state": err,
	} {
		if !errors.Is(err, tenancy.ErrUnknownTenant) || !strings.Contains(err.Error(), org.String()) {
			t.Errorf("%s after it was removed: %v", step, err)
		}
	}
}

func TestAddConflicts(t *testing.T) {
	t.Parallel()
	r, ctx := newRegistry(t, newPool(t)), t.Context()
	one, other := uuid.New(), uuid.New()
	shared := parse(t, "shared")
	if _, err := r.Add(ctx, registry.Tenant{OrgID: one, Schema: shared}); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		tenant registry.Tenant
		says   string
	}{
		"another org in the schema": {registry.Tenant{OrgID: other, Schema: shared}, one.String()},
		"another schema":            {registry.Tenant{OrgID: one, Schema: parse(t, "other")}, "shared"},
		"another cluster":           {registry.Tenant{OrgID: one, Schema: shared, Cluster: "b"}, `"b"`},
	} {
		if _, err := r.Add(ctx, c.tenant); !errors.Is(err, registry.ErrConflict) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v; want ErrConflict that says %s", name, err, c.says)
		}
	}
	if _, err := r.Add(ctx, registry.Tenant{OrgID: other, Schema: shared, Cluster: "b"}); err != nil {
		t.Errorf("a schema of that name in another cluster: %v", err)
	}
	if err := r.Move(ctx, other, tenancy.Placement{Schema: shared, Cluster: "b"}, tenancy.Placement{Schema: shared}); !errors.Is(err, registry.ErrConflict) {
		t.Errorf("moved into another tenant's schema: %v", err)
	}
	if _, err := r.Add(ctx, registry.Tenant{OrgID: other, Schema: shared}); !errors.Is(err, registry.ErrConflict) || !strings.Contains(err.Error(), `of cluster "b"`) {
		t.Errorf("registered elsewhere, where another is: %v; want to be told of its own place", err)
	}
}

// TestNonsenseIsRefused: what must not be in the table the database itself refuses, whoever
// writes it.
func TestNonsenseIsRefused(t *testing.T) {
	t.Parallel()
	pool := newPool(t)
	r, ctx := newRegistry(t, pool), t.Context()
	org := uuid.New()
	for name, tenant := range map[string]registry.Tenant{
		"nil UUID":               {Schema: parse(t, "a")},
		"zero Schema":            {OrgID: org},
		"the digits of another":  {OrgID: org, Schema: perOrg(t, uuid.New())},
		"the control schema":     {OrgID: org, Schema: parse(t, registry.DefaultSchema)},
		"a state that is none":   {OrgID: org, Schema: parse(t, "a"), State: "retired"},
		"a negative version":     {OrgID: org, Schema: parse(t, "a"), Version: -1},
		"a cluster in two words": {OrgID: org, Schema: parse(t, "a"), Cluster: "eu 1"},
		"a cluster too long":     {OrgID: org, Schema: parse(t, "a"), Cluster: strings.Repeat("x", 64)},
	} {
		if _, err := r.Add(ctx, tenant); !errors.Is(err, registry.ErrInvalid) {
			t.Errorf("%s: %v; want ErrInvalid", name, err)
		}
	}
	good := add(t, r, registry.Active)
	if _, err := r.SetState(ctx, good.OrgID, "retired"); !errors.Is(err, registry.ErrInvalid) {
		t.Errorf("a state that is none: %v", err)
	}
	for _, to := range []tenancy.Placement{{}, {Schema: perOrg(t, org)}, {Schema: parse(t, "a"), Cluster: "A"}} {
		if err := r.Move(ctx, good.OrgID, good.Placement(), to); !errors.Is(err, registry.ErrInvalid) {
			t.Errorf("moved to %v: %v; want ErrInvalid", to, err)
		}
	}
	for _, name := range []string{"", "public", "pg_x", "information_schema", "Big", "a.b", "a\nb", "a\n", "1a", strings.Repeat("x", 64), `a"b`, "ä"} {
		_, err := pool.Exec(ctx, `INSERT INTO pgidem.tenants (org_id, schema_name) VALUES ($1, $2)`, org, name)
		if err == nil || !strings.Contains(err.Error(), "tenants_schema_name_check") {
			t.Errorf("schema %q by hand: %v; want the check to refuse it", name, err)
		}
	}
	if tenants := collect(t, r, registry.Filter{}); len(tenants) != 1 {
		t.Errorf("%d tenants; want one", len(tenants))
	}
}

func collect(t *testing.T, r *registry.Registry, filter registry.Filter) []registry.Tenant {
	t.Helper()
	var tenants []registry.Tenant
	for tenant, err := range r.Tenants(t.Context(), filter) {
		if err != nil {
			t.Fatal(err)
		}
		tenants = append(tenants, tenant)
	}
	return tenants
}

func TestTenants(t *testing.T) {
	t.Parallel()
	pool := newPool(t)
	r := newRegistry(t, pool)
	if tenants := collect(t, r, registry.Filter{}); len(tenants) != 0 {
		t.Errorf("%d tenants in an empty registry", len(tenants))
	}
	// Two full pages, and a page that is empty after them.
	_, err := pool.Exec(t.Context(), `
		INSERT INTO pgidem.tenants (org_id, schema_name, cluster, state, version)
		SELECT gen_random_uuid(), 'tenant_' || n, CASE WHEN n % 4 = 0 THEN 'b' ELSE '' END,
			(ARRAY['provisioning', 'active', 'suspended', 'deleting', 'active'])[1 + n % 5], n % 3
		FROM generate_series(1, 2000) n`)
	if err != nil {
		t.Fatal(err)
	}
	all := collect(t, r, registry.Filter{})
	if len(all) != 2000 {
		t.Errorf("%d tenants, want 2000", len(all))
	}
	if !slices.IsSortedFunc(all, func(a, b registry.Tenant) int { return strings.Compare(a.OrgID.String(), b.OrgID.String()) }) {
		t.Error("not in the order of org_ids")
	}
	b, nameless := "b", ""
	for name, c := range map[string]struct {
		filter registry.Filter
		want   func(registry.Tenant) bool
	}{
		"states":   {registry.Filter{States: []registry.State{registry.Active, registry.Deleting}}, func(t registry.Tenant) bool { return t.State == registry.Active || t.State == registry.Deleting }},
		"cluster":  {registry.Filter{Cluster: &b}, func(t registry.Tenant) bool { return t.Cluster == "b" }},
		"nameless": {registry.Filter{Cluster: &nameless}, func(t registry.Tenant) bool { return t.Cluster == "" }},
		"version":  {registry.Filter{OlderThan: 2}, func(t registry.Tenant) bool { return t.Version < 2 }},
		"together": {registry.Filter{States: []registry.State{registry.Suspended}, Cluster: &b, OlderThan: 1}, func(t registry.Tenant) bool {
			return t.State == registry.Suspended && t.Cluster == "b" && t.Version < 1
		}},
	} {
		want := slices.DeleteFunc(slices.Clone(all), func(t registry.Tenant) bool { return !c.want(t) })
		if got := collect(t, r, c.filter); len(want) == 0 || !slices.EqualFunc(got, want, func(a, b registry.Tenant) bool { return a.OrgID == b.OrgID }) {
			t.Errorf("%s: %d tenants, want %d", name, len(got), len(want))
		}
	}
	for range r.Tenants(t.Context(), registry.Filter{}) {
		break // the connection is free again: the pool closes at the end
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	for _, err := range r.Tenants(ended, registry.Filter{}) {
		if !errors.Is(err, context.Canceled) {
			t.Errorf("after ctx ended: %v", err)
		}
	}
}

func TestControlSchemaMissing(t *testing.T) {
	t.Parallel()
	r := newRegistry(t, pgtest.NewPool(t), registry.WithSchema(parse(t, "control_of_old")))
	_, err := r.Tenant(t.Context(), uuid.New())
	if err == nil || errors.Is(err, tenancy.ErrUnknownTenant) || !strings.Contains(err.Error(), "migrations.UpControl") {
		t.Errorf("error %v; want one that says what to do", err)
	}
}

// TestManagingThroughAPooler: the statements need nothing prepared, and nothing of the
// connection's state.
func TestManagingThroughAPooler(t *testing.T) {
	t.Parallel()
	direct := newPool(t)
	for _, mode := range []pgx.QueryExecMode{pgx.QueryExecModeExec, pgx.QueryExecModeCacheDescribe, pgx.QueryExecModeSimpleProtocol} {
		config := direct.Config()
		config.ConnConfig.DefaultQueryExecMode = mode
		pool, err := pgxpool.NewWithConfig(t.Context(), config)
		if err != nil {
			t.Fatal(err)
		}
		defer pool.Close()
		r, ctx := newRegistry(t, pool), t.Context()
		tenant := add(t, r, registry.Provisioning)
		if _, err := r.SetState(ctx, tenant.OrgID, registry.Active, registry.Provisioning); err != nil {
			t.Errorf("%v: %v", mode, err)
		}
		if err := r.SetVersion(ctx, tenant.OrgID, at(tenant, 3)); err != nil {
			t.Errorf("%v: %v", mode, err)
		}
		if err := r.Move(ctx, tenant.OrgID, tenant.Placement(), tenancy.Placement{Schema: tenant.Schema, Cluster: "b"}); err != nil {
			t.Errorf("%v: %v", mode, err)
		}
		if _, err := r.Add(ctx, registry.Tenant{OrgID: tenant.OrgID, Schema: tenant.Schema, Cluster: "b"}); err != nil {
			t.Errorf("%v: %v", mode, err)
		}
		cluster := "b"
		if got := collect(t, r, registry.Filter{States: []registry.State{registry.Active}, Cluster: &cluster, OlderThan: 4}); len(got) != 1 || got[0].OrgID != tenant.OrgID {
			t.Errorf("%v: %v", mode, got)
		}
		if err := r.Remove(ctx, tenant.OrgID, registry.Active); err != nil {
			t.Errorf("%v: %v", mode, err)
		}
	}
}

// TestManagingSideBySide: of those who make a change that only one can make, one does.
func TestManagingSideBySide(t *testing.T) {
	t.Parallel()
	r, ctx := newRegistry(t, newPool(t)), t.Context()
	const n = 8
	each := func(f func(i int) error) []error {
		errs := make([]error, n)
		var wg sync.WaitGroup
		for i := range n {
			wg.Go(func() { errs[i] = f(i) })
		}
		wg.Wait()
		return errs
	}
	won := func(errs []error, lost error) int {
		t.Helper()
		var wins int
		for _, err := range errs {
			switch {
			case err == nil:
				wins++
			case !errors.Is(err, lost):
				t.Errorf("%v; want %v", err, lost)
			}
		}
		return wins
	}
	for round := range 10 {
		org := uuid.New()
		schema := parse(t, fmt.Sprint("contended_", round))
		if wins := won(each(func(int) error { _, err := r.Add(ctx, registry.Tenant{OrgID: org, Schema: perOrg(t, org)}); return err }), nil); wins != n {
			t.Errorf("%d of %d registered the same tenant", wins, n)
		}
		var winner atomic.Value
		if wins := won(each(func(int) error {
			tenant, err := r.Add(ctx, registry.Tenant{OrgID: uuid.New(), Schema: schema})
			if err == nil {
				winner.Store(tenant)
			}
			return err
		}), registry.ErrConflict); wins != 1 {
			t.Errorf("%d tenants got one schema", wins)
		}
		if wins := won(each(func(int) error {
			_, err := r.SetState(ctx, org, registry.Active, registry.Provisioning)
			return err
		}), registry.ErrState); wins != 1 {
			t.Errorf("%d made the tenant active", wins)
		}
		if wins := won(each(func(i int) error {
			return r.Move(ctx, org, tenancy.Placement{Schema: perOrg(t, org)}, tenancy.Placement{Schema: perOrg(t, org), Cluster: fmt.Sprint("c", i)})
		}), registry.ErrConflict); wins != 1 {
			t.Errorf("%d moved the tenant", wins)
		}
		if wins := won(each(func(int) error { return r.Remove(ctx, org, registry.Active) }), tenancy.ErrUnknownTenant); wins != 1 {
			t.Errorf("%d removed the tenant", wins)
		}
		if tenant, ok := winner.Load().(registry.Tenant); !ok || tenant.Schema != schema {
			t.Errorf("who has the schema: %+v", tenant)
		}
	}
}
