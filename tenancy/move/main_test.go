package move_test

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgidem/pgidem/internal/moved"
	"github.com/pgidem/pgidem/internal/pgtest"
	"github.com/pgidem/pgidem/internal/storetest"
	"github.com/pgidem/pgidem/migrations"
	"github.com/pgidem/pgidem/tenancy"
	"github.com/pgidem/pgidem/tenancy/move"
	"github.com/pgidem/pgidem/tenancy/registry"
)

// world is a registry and three clusters.
type world struct {
	tenants  *registry.Registry
	urls     map[string]string
	pools    map[string]*pgxpool.Pool
	clusters []string
}

// role has rights on the tenants' tables, in all clusters.
const role = "pgidem_move_service"

// newWorld makes clusters that are three databases of one server, which takes less time than
// servers.
func newWorld(t *testing.T) *world {
	t.Helper()
	return newWorldOf(t, pgtest.NewDatabase)
}

// newWorldOfServers makes clusters that are servers of their own.
func newWorldOfServers(t *testing.T) *world {
	t.Helper()
	return newWorldOf(t, func(t testing.TB) string { return pgtest.NewServer(t).URL() })
}

func newWorldOf(t *testing.T, newDatabase func(testing.TB) string) *world {
	t.Helper()
	w := &world{urls: make(map[string]string), pools: make(map[string]*pgxpool.Pool), clusters: []string{"a", "b", "c"}}
	for _, name := range w.clusters {
		w.urls[name] = newDatabase(t)
		pool, err := pgxpool.New(t.Context(), w.urls[name])
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(pool.Close)
		_, err = pool.Exec(t.Context(), `DO $$ BEGIN CREATE ROLE `+role+`; EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL; END $$`)
		if err != nil {
			t.Fatal(err)
		}
		w.pools[name] = pool
	}
	control, err := tenancy.ParseSchema(registry.DefaultSchema)
	if err != nil {
		t.Fatal(err)
	}
	if err := migrations.UpControl(t.Context(), w.urls["a"], control); err != nil {
		t.Fatal(err)
	}
	if w.tenants, err = registry.New(w.pools["a"]); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.tenants.Close)
	return w
}

// newTenant makes a tenant in a cluster, whose schema has all kinds of things in it.
func (w *world) newTenant(t *testing.T, cluster string) registry.Tenant {
	t.Helper()
	org := uuid.New()
	schema := storetest.SchemaOf(t, org)
	if err := migrations.Up(t.Context(), w.urls[cluster], schema); err != nil {
		t.Fatal(err)
	}
	s := schema.Quoted()
	_, err := w.pools[cluster].Exec(t.Context(), fmt.Sprintf(`
		COMMENT ON SCHEMA %[1]s IS 'the customer''s own';
		CREATE TYPE %[1]s.currency AS ENUM ('EUR', 'CHF');
		CREATE TABLE %[1]s.accounts (id bigserial PRIMARY KEY, name text NOT NULL, data jsonb, blob bytea);
		CREATE TABLE %[1]s.payments (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, account bigint NOT NULL REFERENCES %[1]s.accounts, amount numeric NOT NULL,
			currency %[1]s.currency NOT NULL, at timestamptz NOT NULL DEFAULT now(), doubled numeric GENERATED ALWAYS AS (amount * 2) STORED, rate float8, key text UNIQUE);
		CREATE INDEX payments_at ON %[1]s.payments (at);
		CREATE VIEW %[1]s.totals AS SELECT account, sum(amount) AS total FROM %[1]s.payments GROUP BY account;
		CREATE FUNCTION %[1]s.stamp() RETURNS trigger LANGUAGE plpgsql AS $f$ BEGIN NEW.name := upper(NEW.name); RETURN NEW; END $f$;
		CREATE TRIGGER stamp BEFORE INSERT ON %[1]s.accounts FOR EACH ROW EXECUTE FUNCTION %[1]s.stamp();
		INSERT INTO %[1]s.accounts (name, data, blob) SELECT 'name ' || i, jsonb_build_object('n', i), decode(md5(i::text), 'hex') FROM generate_series(1, 500) AS i;
		INSERT INTO %[1]s.payments (account, amount, currency, rate, key) SELECT i, i * 1.01, 'EUR', 1.0 / i, 'old ' || i FROM generate_series(1, 500) AS i;
		INSERT INTO %[1]s.idempotency_records (created_at, expires_at, lease_until, completed_at, token, org_id, attempt, response_status, response_kept, key, request_hash, response_body)
			SELECT now(), now() + interval '1 day', now(), now(), gen_random_uuid(), '%[2]s', 1, 201, true, 'done ' || i, '\x01', decode(repeat(md5(i::text), 100), 'hex') FROM generate_series(1, 200) AS i;
		GRANT USAGE ON SCHEMA %[1]s TO `+role+`;
		GRANT SELECT, INSERT ON %[1]s.payments TO `+role, s, org))
	if err != nil {
		t.Fatal(err)
	}
	tenant, err := w.tenants.Add(t.Context(), registry.Tenant{OrgID: org, Schema: schema, Cluster: cluster, State: registry.Active})
	if err != nil {
		t.Fatal(err)
	}
	return tenant
}

func (w *world) mover(t *testing.T, opts ...move.Option) *move.Mover {
	t.Helper()
	m, err := move.New(w.tenants, w.urls, slices.Concat([]move.Option{move.WithSettle(10 * time.Millisecond)}, opts)...)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// is checks that the tenant is whole, in the given state, in one cluster alone, and that
// moves have left nothing behind but tombstones.
func (w *world) is(t *testing.T, tenant registry.Tenant, cluster string, state registry.State) {
	t.Helper()
	got, err := w.tenants.Tenant(t.Context(), tenant.OrgID)
	if err != nil || got.Cluster != cluster || got.State != state || got.Moving {
		t.Errorf("%+v, %v; want it %s in %s", got, err, state, cluster)
	}
	s := tenant.Schema.String()
	for _, name := range w.clusters {
		var schemas []string
		err := w.pools[name].QueryRow(t.Context(), `SELECT coalesce(array_agg(nspname::text ORDER BY nspname), '{}') FROM pg_namespace WHERE nspname IN ($1, $2)
			AND coalesce(obj_description(oid, 'pg_namespace'), '') NOT LIKE 'pgidem: org ' || $3::text || ' was moved to cluster %'`,
			s, moved.Fence(tenant.OrgID), tenant.OrgID.String()).Scan(&schemas)
		want := []string{}
		if name == cluster {
			want = append(want, s)
		}
		if err != nil || !slices.Equal(schemas, want) {
			t.Errorf("cluster %s has the schemas %v, %v; want %v", name, schemas, err, want)
		}
	}
	type facts struct {
		Records, Accounts, Payments int
		Total                       string
		Comment                     string
		Rights                      bool
		Trigger, Indexes            int
	}
	var f facts
	err = w.pools[cluster].QueryRow(t.Context(), fmt.Sprintf(`SELECT
		(SELECT count(*) FROM %[1]s.idempotency_records WHERE key LIKE 'done %%' AND octet_length(response_body) = 1600), (SELECT count(*) FROM %[1]s.accounts), (SELECT count(*) FROM %[1]s.payments WHERE key LIKE 'old %%'),
		(SELECT sum(total)::text FROM %[1]s.totals), obj_description('%[1]s'::regnamespace, 'pg_namespace'),
		has_table_privilege('`+role+`', '%[1]s.payments', 'INSERT') AND has_schema_privilege('`+role+`', '%[1]s', 'USAGE'),
		(SELECT count(*) FROM pg_trigger WHERE tgname = 'stamp' AND tgrelid = '%[1]s.accounts'::regclass),
		(SELECT count(*) FROM pg_indexes WHERE schemaname = '%[1]s' AND tablename = 'payments')`, s)).
		Scan(&f.Records, &f.Accounts, &f.Payments, &f.Total, &f.Comment, &f.Rights, &f.Trigger, &f.Indexes)
	if want := (facts{200, 500, 500, "126502.50", "the customer's own", true, 1, 3}); err != nil || f != want {
		t.Errorf("%+v, %v; want %+v", f, err, want)
	}
}

// exec runs a statement in a cluster.
func (w *world) exec(t *testing.T, cluster, sql string, args ...any) {
	t.Helper()
	if _, err := w.pools[cluster].Exec(context.WithoutCancel(t.Context()), sql, args...); err != nil {
		t.Fatal(err)
	}
}
