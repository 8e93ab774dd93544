package migrations_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/pgidem/pgidem/internal/pgtest"
	"github.com/pgidem/pgidem/migrations"
	"github.com/pgidem/pgidem/tenancy"
)

// TestStatusTellsDrift changes one thing at a time by hand.
func TestStatusTellsDrift(t *testing.T) {
	t.Parallel()
	pool := pgtest.NewPool(t)
	other := uuid.NewString()
	changes := []struct{ sql, want string }{
		{`ALTER TABLE idempotency_records ADD COLUMN note text`, `table idempotency_records: column note is not of this library`},
		{`ALTER TABLE idempotency_records DROP COLUMN awaited`, `table idempotency_records: column awaited is missing`},
		{`ALTER TABLE idempotency_records ALTER COLUMN awaited DROP DEFAULT`, `column awaited is`},
		{`ALTER TABLE idempotency_records ALTER COLUMN awaited DROP NOT NULL`, `column awaited is`},
		{`ALTER TABLE idempotency_records ALTER COLUMN response_body SET COMPRESSION pglz`, `column response_body is`},
		{`ALTER TABLE idempotency_records ALTER COLUMN response_body SET STORAGE EXTERNAL`, `column response_body is`},
		{`ALTER TABLE idempotency_steps ALTER COLUMN name TYPE text COLLATE "POSIX"`, `column name is`},
		{`ALTER TABLE idempotency_requests ALTER COLUMN attempts TYPE bigint`, `column attempts is`},
		{`ALTER TABLE idempotency_requests ALTER COLUMN attempts SET (n_distinct = 5)`, `column attempts is`},
		{`ALTER TABLE idempotency_db_version ALTER COLUMN id DROP IDENTITY`, `table idempotency_db_version: column id is`},
		{`ALTER TABLE idempotency_records RESET (fillfactor)`, `table idempotency_records: table is`},
		{`ALTER TABLE idempotency_records ENABLE ROW LEVEL SECURITY`, `table idempotency_records: table is`},
		{`ALTER TABLE idempotency_records SET UNLOGGED`, `table idempotency_records: table is`},
		{`COMMENT ON TABLE idempotency_records IS 'mine'`, `table idempotency_records: table is`},
		{`COMMENT ON COLUMN idempotency_records.key IS NULL`, `column key is`},
		{`ALTER TABLE idempotency_records DROP CONSTRAINT idempotency_records_completed_check`, `constraint idempotency_records_completed_check is missing`},
		{`ALTER TABLE idempotency_records DROP CONSTRAINT idempotency_records_tenant_check`, `constraint idempotency_records_tenant_check is missing`},
		{`ALTER TABLE idempotency_steps DROP CONSTRAINT idempotency_steps_tenant_check,
			ADD CONSTRAINT idempotency_steps_tenant_check CHECK (org_id = '` + other + `')`, `constraint idempotency_steps_tenant_check is "CHECK ((org_id = '` + other},
		{`ALTER TABLE idempotency_steps DROP CONSTRAINT idempotency_steps_tenant_check;
			ALTER TABLE idempotency_steps ADD CONSTRAINT idempotency_steps_tenant_check CHECK (org_id = '<org>') NOT VALID`, `NOT VALID`},
		{`ALTER TABLE idempotency_records DROP CONSTRAINT idempotency_records_pkey`, `constraint idempotency_records_pkey is missing`},
		{`CREATE INDEX mine ON idempotency_records (expires_at)`, `index mine is not of this library`},
		{`CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'; CREATE TRIGGER mine BEFORE INSERT ON idempotency_records EXECUTE FUNCTION f()`, `trigger mine is not of this library`},
		{`CREATE POLICY mine ON idempotency_steps USING (true)`, `policy mine is not of this library`},
		{`CREATE RULE mine AS ON DELETE TO idempotency_steps DO NOTHING`, `rule mine is not of this library`},
		{`DROP TABLE idempotency_requests`, `table idempotency_requests is missing`},
		{`ALTER TABLE idempotency_requests RENAME TO requests`, `table idempotency_requests is missing`},
		{`INSERT INTO idempotency_db_version (version_id, is_applied) VALUES (5, true)`, `migrations applied are [0 1 2 3 4 5 5]`},
	}
	schemas := tenants(t, len(changes)+2)
	all(t, pool, schemas[:len(schemas)-1])
	all(t, pool, schemas[len(schemas)-1:], migrations.WithFS(upTo(t, 3)))
	for i, change := range changes {
		target, err := uuid.Parse(strings.TrimPrefix(schemas[i].String(), "tenant_"))
		if err != nil {
			t.Fatal(err)
		}
		run(t, pool, `BEGIN; SET LOCAL search_path = `+schemas[i].Quoted()+`; `+strings.ReplaceAll(change.sql, "<org>", target.String())+`; COMMIT`)
	}
	list, err := migrations.Status(t.Context(), pool.Config().ConnString(), migrations.Schemas(schemas...))
	if err != nil {
		t.Fatal(err)
	}
	for i, change := range changes {
		if list[i].Schema != schemas[i] || !slices.ContainsFunc(list[i].Drift, func(line string) bool { return strings.Contains(line, change.want) }) {
			t.Errorf("after %s:\n%s\nwant %s", change.sql, strings.Join(list[i].Drift, "\n"), change.want)
		}
		if strings.Contains(strings.Join(list[i].Drift, "\n"), schemas[i].String()) {
			t.Errorf("the drift names the schema: %s", list[i].Drift)
		}
	}
	for i, standing := range []migrations.Standing{migrations.UpToDate, migrations.Behind} {
		if s := list[len(changes)+i]; s.Drift != nil || s.Standing != standing {
			t.Errorf("untouched: %+v, want %s without drift", s, standing)
		}
	}
	quick, err := migrations.Status(t.Context(), pool.Config().ConnString(), migrations.Schemas(schemas...), migrations.WithVersionsOnly())
	if err != nil || len(quick) != len(list) || quick[0].Drift != nil || quick[0].Version != latest || quick[len(changes)+1].Version != 3 {
		t.Errorf("versions only: %+v, %v", quick, err)
	}
}

// TestWhatStandsBesideIsNoDrift: tables of the service's own, privileges and owners.
func TestWhatStandsBesideIsNoDrift(t *testing.T) {
	t.Parallel()
	pool := pgtest.NewPool(t)
	schemas := append(tenants(t, 1), parse(t, "select"), parse(t, "d"))
	all(t, pool, schemas)
	for _, schema := range schemas {
		run(t, pool, `BEGIN; SET LOCAL search_path = `+schema.Quoted()+`;
			CREATE TABLE payments (id integer PRIMARY KEY, org uuid, key text, FOREIGN KEY (org, key) REFERENCES idempotency_records);
			CREATE TABLE goose_db_version (id integer); CREATE SEQUENCE numbers;
			CREATE VIEW open AS SELECT key FROM idempotency_records WHERE completed_at IS NULL;
			CREATE FUNCTION f() RETURNS integer LANGUAGE sql AS 'SELECT 1'; CREATE TYPE colour AS ENUM ('red');
			GRANT SELECT ON idempotency_records TO PUBLIC; COMMENT ON SCHEMA `+schema.Quoted()+` IS 'mine'; COMMIT`)
	}
	intact(t, pool, schemas, latest)
	described, err := describe(t, pool, migrations.Target{Schema: schemas[0]}, migrations.Target{Schema: schemas[1]}, migrations.Target{Schema: parse(t, "absent")})
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := described[parse(t, "absent")]; ok || len(described) != 2 || described[schemas[0]].Objects["table payments"] == nil || described[schemas[0]].Version() != latest {
		t.Errorf("described %v", described)
	}
	// What a tenant lacks that another has shows when the two are compared.
	lines := migrations.Compare(described[schemas[0]], described[schemas[1]])
	if !slices.ContainsFunc(lines, func(line string) bool { return strings.Contains(line, "idempotency_records_tenant_check is missing") }) {
		t.Errorf("pinned against shared:\n%s", strings.Join(lines, "\n"))
	}
}

// TestStatusKnowsWhoseASchemaIs: one that should be pinned and is not, or to another.
func TestStatusKnowsWhoseASchemaIs(t *testing.T) {
	t.Parallel()
	pool := pgtest.NewPool(t)
	org := uuid.New()
	pinned, loose := migrations.Target{Schema: parse(t, "pinned"), OrgID: org}, migrations.Target{Schema: parse(t, "loose"), OrgID: org}
	list := func(targets ...migrations.Target) func(func(migrations.Target, error) bool) {
		return func(yield func(migrations.Target, error) bool) {
			for _, target := range targets {
				if !yield(target, nil) {
					return
				}
			}
		}
	}
	if _, err := migrations.All(t.Context(), pool.Config().ConnString(), list(pinned, migrations.Target{Schema: loose.Schema})); err != nil {
		t.Fatal(err)
	}
	stranger := migrations.Target{Schema: pinned.Schema, OrgID: uuid.New()}
	for name, try := range map[string]struct {
		target migrations.Target
		want   string
	}{
		"pinned":            {pinned, ""},
		"pinned, not asked": {migrations.Target{Schema: pinned.Schema}, ""},
		"shared":            {migrations.Target{Schema: loose.Schema}, ""},
		"not pinned":        {loose, "idempotency_steps_tenant_check is missing"},
		"another's":         {stranger, "want \"CHECK ((org_id = '<org>'::uuid))\""},
	} {
		found, err := migrations.Status(t.Context(), pool.Config().ConnString(), list(try.target))
		if err != nil {
			t.Fatal(err)
		}
		if drift := strings.Join(found[0].Drift, "\n"); !strings.Contains(drift, try.want) || (drift == "") != (try.want == "") {
			t.Errorf("%s: drift %q, want %q", name, drift, try.want)
		}
	}
}

// TestStatusLeavesNothing: nor needs what it makes to be there for others.
func TestStatusLeavesNothing(t *testing.T) {
	t.Parallel()
	pool := pgtest.NewPool(t)
	schemas := tenants(t, 3)
	all(t, pool, schemas)
	if _, err := migrations.Status(t.Context(), pool.Config().ConnString(), migrations.Schemas(schemas...)); err != nil {
		t.Fatal(err)
	}
	var n int
	if err := pool.QueryRow(t.Context(), `SELECT count(*) FROM pg_namespace WHERE nspname LIKE 'pgidem%'`).Scan(&n); err != nil || n != 0 {
		t.Errorf("%d schemas left, %v", n, err)
	}
	if _, err := migrations.Status(t.Context(), pool.Config().ConnString(), migrations.Schemas(tenancy.Schema{})); err == nil {
		t.Error("the zero Schema gave no error")
	}
}

// TestStatusBesideARun takes no schema for changed by hand that is migrated at that moment.
func TestStatusBesideARun(t *testing.T) {
	t.Parallel()
	pool := pgtest.NewPool(t)
	schemas := tenants(t, 40)
	all(t, pool, schemas)
	more := []string{another}
	for i := range 6 {
		more = append(more, `ALTER TABLE idempotency_requests ADD COLUMN more_`+string(rune('a'+i))+` text;`)
	}
	next := migrations.WithFS(upTo(t, latest, more...))
	done := make(chan struct{})
	go func() {
		defer close(done)
		if _, err := migrations.All(t.Context(), pool.Config().ConnString(), migrations.Schemas(schemas...), next, migrations.WithTries(100, time.Millisecond)); err != nil {
			t.Error(err)
		}
	}()
	for running := true; running; {
		select {
		case <-done:
			running = false
		default:
		}
		list, err := migrations.Status(t.Context(), pool.Config().ConnString(), migrations.Schemas(schemas...), next, migrations.WithLockTimeout(10*time.Second))
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range list {
			if s.Drift != nil || s.Err != nil {
				t.Errorf("%s is %s at %d, %v: %v", s.Schema, s.Standing, s.Version, s.Err, s.Drift)
			}
		}
	}
	intact(t, pool, schemas, latest+7, next)
}
