package migrations_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/fstest"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgidem/pgidem/internal/pgtest"
	"github.com/pgidem/pgidem/migrations"
	"github.com/pgidem/pgidem/tenancy"
)

// upTo returns the migrations up to a version, and then more files.
func upTo(t *testing.T, version int, more ...string) fs.FS {
	t.Helper()
	files := fstest.MapFS{}
	names, err := fs.Glob(migrations.FS(), "*.sql")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names[:version] {
		text, err := fs.ReadFile(migrations.FS(), name)
		if err != nil {
			t.Fatal(err)
		}
		files[name] = &fstest.MapFile{Data: text}
	}
	for i, up := range more {
		files[fmt.Sprintf("%05d_more.sql", version+i+1)] = &fstest.MapFile{Data: []byte("-- +goose Up\n" + up + "\n")}
	}
	return files
}

const latest = 5 // of the embedded migrations

// another is a migration as the next release might bring it.
const another = `ALTER TABLE idempotency_records ADD COLUMN note text;
CREATE INDEX idempotency_steps_expires_at ON idempotency_steps (expires_at);`

func tenants(t *testing.T, n int) []tenancy.Schema {
	t.Helper()
	list := make([]tenancy.Schema, n)
	for i := range list {
		list[i] = parse(t, "tenant_"+strings.ReplaceAll(uuid.NewString(), "-", ""))
	}
	return list
}

func all(t *testing.T, pool *pgxpool.Pool, schemas []tenancy.Schema, opts ...migrations.Option) migrations.Report {
	t.Helper()
	report, err := migrations.All(t.Context(), pool.Config().ConnString(), migrations.Schemas(schemas...), opts...)
	if err != nil {
		t.Fatal(err)
	}
	return report
}

// want compares the counts of a report.
func want(t *testing.T, got migrations.Report, want migrations.Report) {
	t.Helper()
	got.Duration, got.Failures = 0, nil
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("report %+v, want %+v", got, want)
	}
}

// intact checks that the schemas are at a version and as they should be.
func intact(t *testing.T, pool *pgxpool.Pool, schemas []tenancy.Schema, version int64, opts ...migrations.Option) {
	t.Helper()
	list, err := migrations.Status(t.Context(), pool.Config().ConnString(), migrations.Schemas(schemas...), opts...)
	if err != nil {
		t.Fatal(err)
	}
	if len(list) != len(schemas) {
		t.Fatalf("%d schemas, want %d", len(list), len(schemas))
	}
	for _, s := range list {
		if s.Standing != migrations.UpToDate || s.Version != version || len(s.Drift) > 0 || s.Err != nil {
			t.Errorf("%s is %s at %d, %v:\n%s", s.Schema, s.Standing, s.Version, s.Err, strings.Join(s.Drift, "\n"))
		}
	}
}

func run(t *testing.T, pool *pgxpool.Pool, sql string) {
	t.Helper()
	if _, err := pool.Exec(t.Context(), sql); err != nil {
		t.Fatal(err)
	}
}

func TestLatest(t *testing.T) {
	t.Parallel()
	files, err := fs.Glob(migrations.FS(), "*.sql")
	if err != nil || migrations.Latest() != int64(len(files)) || migrations.Latest() != latest {
		t.Errorf("Latest is %d, there are %d files, %v", migrations.Latest(), len(files), err)
	}
}

// TestTables: they are all that the migrations make.
func TestTables(t *testing.T) {
	t.Parallel()
	pool := pgtest.NewPool(t)
	schema := parse(t, "tenant_a")
	all(t, pool, []tenancy.Schema{schema})
	described, err := describe(t, pool, migrations.Target{Schema: schema})
	if err != nil {
		t.Fatal(err)
	}
	var made []string
	for _, name := range slices.Sorted(maps.Keys(described[schema].Objects)) {
		made = append(made, strings.TrimPrefix(name, "table "))
	}
	if tables := slices.Sorted(slices.Values(migrations.Tables())); !slices.Equal(made, tables) {
		t.Errorf("the migrations make %v, Tables are %v", made, tables)
	}
}

func TestAllCreatesMigratesAndLeavesAlone(t *testing.T) {
	t.Parallel()
	for _, workers := range []int{1, 8} {
		t.Run(fmt.Sprint(workers, " workers"), func(t *testing.T) {
			t.Parallel()
			pool := pgtest.NewPool(t)
			schemas := append(tenants(t, 40), parse(t, "select"), parse(t, "shared"))
			old, present, absent := schemas[:10], schemas[:20], schemas[20:]
			with := migrations.WithWorkers(workers)
			want(t, all(t, pool, old, with, migrations.WithFS(upTo(t, 2))), migrations.Report{Total: 10, Created: 10})
			want(t, all(t, pool, present[10:], with), migrations.Report{Total: 10, Created: 10})
			run(t, pool, `CREATE SCHEMA `+absent[0].Quoted()) // empty is as good as absent
			intact(t, pool, old, 2, migrations.WithFS(upTo(t, 2)))

			results := make(map[tenancy.Schema]migrations.Result)
			report := all(t, pool, append(schemas, schemas[3]), with, migrations.WithResult(func(r migrations.Result) { results[r.Schema] = r }))
			want(t, report, migrations.Report{Total: 42, Created: 22, Migrated: 10, Current: 10})
			intact(t, pool, schemas, latest)
			for i, schema := range schemas {
				r := results[schema]
				from, outcome := int64(2), migrations.Migrated
				if i >= 10 {
					from, outcome = latest, migrations.Current
				}
				if i >= 20 {
					from, outcome = 0, migrations.Created
				}
				if r.From != from || r.To != latest || r.Outcome != outcome || r.Err != nil || (r.Duration > 0) != (outcome != migrations.Current) {
					t.Errorf("schema %d: %+v", i, r)
				}
			}
			want(t, all(t, pool, schemas, with), migrations.Report{Total: 42, Current: 42})

			next := migrations.WithFS(upTo(t, latest, another))
			want(t, all(t, pool, schemas, with, next), migrations.Report{Total: 42, Migrated: 42})
			intact(t, pool, schemas, latest+1, next)
			// To the release before, they are newer, and none of its business.
			want(t, all(t, pool, schemas, with), migrations.Report{Total: 42, Newer: 42})
			intact(t, pool, schemas, latest+1, next)
			if err := migrations.Up(t.Context(), pool.Config().ConnString(), schemas...); err != nil {
				t.Errorf("Up on schemas of the next release: %v", err)
			}
		})
	}
}

// TestAllIsWhatUpDoes: nobody can tell by which of the two a schema was made or migrated.
func TestAllIsWhatUpDoes(t *testing.T) {
	t.Parallel()
	pool := pgtest.NewPool(t)
	url := pool.Config().ConnString()
	orgs := []uuid.UUID{uuid.New(), uuid.New(), uuid.New(), uuid.New()}
	named := func(org uuid.UUID) tenancy.Schema {
		return parse(t, "tenant_"+strings.ReplaceAll(org.String(), "-", ""))
	}
	pinned := []migrations.Target{
		{Schema: named(orgs[0]), OrgID: orgs[0]}, {Schema: named(orgs[1])}, {Schema: parse(t, "acme"), OrgID: orgs[2]}, {Schema: parse(t, "user"), OrgID: orgs[3]},
	}
	shared := []migrations.Target{{Schema: parse(t, "shared")}, {Schema: parse(t, "stepwise")}, {Schema: parse(t, "select")}}
	if err := migrations.Up(t.Context(), url, pinned[0].Schema, shared[0].Schema); err != nil {
		t.Fatal(err)
	}
	if err := migrations.Up(t.Context(), url, pinned[0].Schema); err != nil {
		t.Fatal(err)
	}
	run(t, pool, `CREATE SCHEMA "user"`) // there already, without anything
	// One comes by its versions one by one, as if with each release.
	for version := 1; version <= latest; version++ {
		want(t, all(t, pool, []tenancy.Schema{shared[1].Schema}, migrations.WithFS(upTo(t, version))),
			map[bool]migrations.Report{true: {Total: 1, Created: 1}, false: {Total: 1, Migrated: 1}}[version == 1])
	}
	targets := func(yield func(migrations.Target, error) bool) {
		for _, target := range slices.Concat(pinned[1:], shared[2:]) {
			if !yield(target, nil) {
				return
			}
		}
	}
	report, err := migrations.All(t.Context(), url, targets)
	if err != nil {
		t.Fatal(err)
	}
	want(t, report, migrations.Report{Total: 4, Created: 4})

	for _, group := range [][]migrations.Target{pinned, shared} {
		described, err := describe(t, pool, group...)
		if err != nil {
			t.Fatal(err)
		}
		model := described[group[0].Schema]
		for _, target := range group {
			if differences := migrations.Compare(model, described[target.Schema]); differences != nil {
				t.Errorf("%s differs from %s:\n%s", target.Schema, group[0].Schema, strings.Join(differences, "\n"))
			}
			if differences := migrations.Compare(described[target.Schema], model); differences != nil {
				t.Errorf("%s has what %s does not:\n%s", target.Schema, group[0].Schema, strings.Join(differences, "\n"))
			}
			if got, want := beyond(t, pool, target.Schema), beyond(t, pool, group[0].Schema); got != want {
				t.Errorf("%s is\n%s\nand %s\n%s", target.Schema, got, group[0].Schema, want)
			}
		}
	}
	for i, target := range pinned { // and by what they do, not only by what they look like
		for j, org := range orgs {
			_, err := pool.Exec(t.Context(), `INSERT INTO `+target.Schema.Quoted()+`.idempotency_steps
				VALUES (now(), now(), gen_random_uuid(), $1, 'key', '\x00', 'name', '\x00')`, org)
			if (err == nil) != (i == j) {
				t.Errorf("a row of tenant %d in the schema of tenant %d: %v", j, i, err)
			}
		}
	}
}

// beyond is what a description leaves out: sequences, owners, privileges, types, oids of
// attributes, row counts of the version table, dependencies on anything outside.
func beyond(t *testing.T, pool *pgxpool.Pool, schema tenancy.Schema) string {
	t.Helper()
	rows, err := pool.Query(t.Context(), `
		SELECT concat_ws(' ', c.relname, c.relkind, c.relowner::regrole, c.relacl::text, c.reltablespace, c.relnatts, c.relchecks, c.relhastriggers, c.relhasrules, c.reltoastrelid > 0)
		FROM pg_class AS c WHERE c.relnamespace = to_regnamespace($1)
		UNION ALL SELECT concat_ws(' ', c.relname, a.attname, a.attnum, a.attacl::text, a.attstattarget, a.attisdropped, a.atthasmissing)
		FROM pg_class AS c JOIN pg_attribute AS a ON a.attrelid = c.oid WHERE c.relnamespace = to_regnamespace($1) AND a.attnum > 0
		UNION ALL SELECT concat_ws(' ', q.relname, s.seqtypid::regtype, s.seqstart, s.seqincrement, s.seqmax, s.seqmin, s.seqcache, s.seqcycle)
		FROM pg_sequence AS s JOIN pg_class AS q ON q.oid = s.seqrelid WHERE q.relnamespace = to_regnamespace($1)
		UNION ALL SELECT concat_ws(' ', 'type', typname, typtype, typcategory) FROM pg_type WHERE typnamespace = to_regnamespace($1)
		UNION ALL SELECT concat_ws(' ', 'schema', nspowner::regrole, nspacl::text, obj_description(oid, 'pg_namespace')) FROM pg_namespace WHERE oid = to_regnamespace($1)
		UNION ALL SELECT concat_ws(' ', 'constraint', conname, contype, convalidated, conislocal, conkey::text) FROM pg_constraint WHERE connamespace = to_regnamespace($1)
		UNION ALL SELECT concat_ws(' ', 'version', id, version_id, is_applied, tstamp::date) FROM `+schema.Quoted()+`.idempotency_db_version
		UNION ALL SELECT concat_ws(' ', 'sequence', last_value, is_called) FROM `+schema.Quoted()+`.idempotency_db_version_id_seq
		ORDER BY 1`, schema.Quoted())
	if err != nil {
		t.Fatal(err)
	}
	lines, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		t.Fatal(err)
	}
	return strings.Join(lines, "\n")
}

func describe(t *testing.T, pool *pgxpool.Pool, targets ...migrations.Target) (map[tenancy.Schema]migrations.Description, error) {
	t.Helper()
	conn, err := pool.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Release()
	return migrations.Describe(t.Context(), conn.Conn(), targets...)
}

// TestAllReportsEachFailure: tenants whose tables were broken by hand fail with the server's
// words, and no other does.
func TestAllReportsEachFailure(t *testing.T) {
	t.Parallel()
	pool := pgtest.NewPool(t)
	schemas := tenants(t, 12)
	all(t, pool, schemas[:10])
	run(t, pool, `ALTER TABLE `+schemas[2].Quoted()+`.idempotency_records ADD COLUMN note text`)
	run(t, pool, `DROP TABLE `+schemas[4].Quoted()+`.idempotency_steps`)
	run(t, pool, `DELETE FROM `+schemas[5].Quoted()+`.idempotency_db_version`)
	run(t, pool, `DELETE FROM `+schemas[6].Quoted()+`.idempotency_db_version WHERE version_id = 2`)
	run(t, pool, `ALTER TABLE `+schemas[7].Quoted()+`.idempotency_db_version RENAME version_id TO v`)
	run(t, pool, `CREATE SCHEMA `+schemas[10].Quoted()+`; CREATE TABLE `+schemas[10].Quoted()+`.idempotency_records ()`)
	next := migrations.WithFS(upTo(t, latest, `ALTER TABLE idempotency_requests ADD COLUMN more text;`, another))
	for round := range 2 {
		report, err := migrations.All(t.Context(), pool.Config().ConnString(), migrations.Schemas(schemas...), next)
		if !errors.Is(err, migrations.ErrFailed) {
			t.Errorf("error %v, want ErrFailed", err)
		}
		migrated := migrations.Report{Total: 12, Failed: 6, Created: 1, Migrated: 5}
		if round > 0 {
			migrated = migrations.Report{Total: 12, Failed: 6, Current: 6}
		}
		want(t, report, migrated)
		failed := make(map[tenancy.Schema]migrations.Result)
		for _, r := range report.Failures {
			failed[r.Schema] = r
		}
		for i, code := range map[int]string{2: "42701", 4: "42P01", 5: "", 6: "", 7: "42703", 10: "42P07"} {
			r := failed[schemas[i]]
			if r.Err == nil || r.SQLState() != code || r.Tries != 1 || r.Outcome != migrations.Failed {
				t.Errorf("schema %d: %+v with state %q, want %q", i, r, r.SQLState(), code)
			}
		}
		// What went well before the failure stays.
		if r := failed[schemas[2]]; r.To != latest+1 || !strings.Contains(r.Err.Error(), "migration 7") || round == 0 && r.From != latest {
			t.Errorf("half migrated: %+v", r)
		}
	}
	list, err := migrations.Status(t.Context(), pool.Config().ConnString(), migrations.Schemas(schemas...), next)
	if err != nil {
		t.Fatal(err)
	}
	for i, standing := range map[int]migrations.Standing{
		0: migrations.UpToDate, 2: migrations.Behind, 4: migrations.Behind, 5: migrations.Broken, 6: migrations.Broken, 7: migrations.Broken, 10: migrations.Absent,
	} {
		if list[i].Standing != standing || (list[i].Err != nil) != (standing == migrations.Broken) {
			t.Errorf("schema %d is %+v, want %s", i, list[i], standing)
		}
	}
	if got := strings.Join(list[2].Drift, "; "); got != "table idempotency_records: column note is not of this library (number 15 text collate \"default\" storage x)" {
		t.Errorf("drift of schema 2: %s", got)
	}
	if got := strings.Join(list[4].Drift, "; "); got != "table idempotency_steps is missing" {
		t.Errorf("drift of schema 4: %s", got)
	}
}

// TestAllWaitsForNoTenant: one whose table a long transaction holds is put back, the others
// go on, requests of that tenant are not held up for long, and once the transaction has
// ended it is migrated after all.
func TestAllWaitsForNoTenant(t *testing.T) {
	t.Parallel()
	pool := pgtest.NewPool(t)
	schemas := tenants(t, 6)
	all(t, pool, schemas)
	tx, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback(context.Background())
	if _, err := tx.Exec(t.Context(), `SELECT FROM `+schemas[0].Quoted()+`.idempotency_records`); err != nil {
		t.Fatal(err)
	}
	var others int
	var busy migrations.Result
	report := all(t, pool, schemas, migrations.WithFS(upTo(t, latest, another)), migrations.WithWorkers(1),
		migrations.WithLockTimeout(20*time.Millisecond), migrations.WithTries(1000, 5*time.Millisecond),
		migrations.WithProgress(func(p migrations.Progress) {
			if p.Done == 5 && p.Waiting != 1 {
				t.Errorf("progress %+v; want one to be waiting", p)
			}
		}),
		migrations.WithResult(func(r migrations.Result) {
			if r.Schema == schemas[0] {
				busy = r
				return
			}
			if others++; others == 5 { // the others did not wait for it
				if err := tx.Commit(context.Background()); err != nil {
					t.Error(err)
				}
			}
		}))
	want(t, report, migrations.Report{Total: 6, Migrated: 6})
	if busy.Tries < 2 || busy.From != latest || busy.To != latest+1 {
		t.Errorf("the busy tenant: %+v", busy)
	}
	intact(t, pool, schemas, latest+1, migrations.WithFS(upTo(t, latest, another)))
}

// TestTenantsDoNotWaitForEachOther, whatever order the planner looks at the catalog in: here
// it reads the constraints of all tenants, one of which has its tables locked as by a migration
// of its own.
func TestTenantsDoNotWaitForEachOther(t *testing.T) {
	t.Parallel()
	pool := pgtest.NewPool(t)
	schemas := tenants(t, 3)
	locked, behind := schemas[0], schemas[1]
	all(t, pool, []tenancy.Schema{locked})
	all(t, pool, []tenancy.Schema{behind}, migrations.WithFS(upTo(t, latest-1)))
	database := pgx.Identifier{pool.Config().ConnConfig.Database}.Sanitize()
	for _, way := range []string{"enable_nestloop", "enable_indexscan", "enable_indexonlyscan", "enable_bitmapscan"} {
		run(t, pool, `ALTER DATABASE `+database+` SET `+way+` = off`)
	}
	tx, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback(context.Background())
	for _, table := range migrations.Tables() {
		if _, err := tx.Exec(t.Context(), `LOCK TABLE `+locked.Quoted()+`.`+table); err != nil {
			t.Fatal(err)
		}
	}
	want(t, all(t, pool, schemas[1:], migrations.WithTries(1, time.Millisecond)), migrations.Report{Total: 2, Migrated: 1, Created: 1})
	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	intact(t, pool, schemas, latest)
}

func TestAllGivesABusyTenantUp(t *testing.T) {
	t.Parallel()
	pool := pgtest.NewPool(t)
	schemas := tenants(t, 3)
	all(t, pool, schemas)
	tx, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback(context.Background())
	// One has its tables locked, another is in the hands of another run.
	if _, err := tx.Exec(t.Context(), `SELECT FROM `+schemas[0].Quoted()+`.idempotency_records`); err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(t.Context(), `SELECT pg_advisory_xact_lock($1)`, migrations.LockID(schemas[1])); err != nil {
		t.Fatal(err)
	}
	report, err := migrations.All(t.Context(), pool.Config().ConnString(), migrations.Schemas(schemas...), migrations.WithFS(upTo(t, latest, another)),
		migrations.WithLockTimeout(5*time.Millisecond), migrations.WithTries(3, time.Millisecond))
	if !errors.Is(err, migrations.ErrFailed) || !errors.Is(err, migrations.ErrBusy) {
		t.Errorf("error %v", err)
	}
	want(t, report, migrations.Report{Total: 3, Migrated: 1, Failed: 2})
	for _, r := range report.Failures {
		if !errors.Is(r.Err, migrations.ErrBusy) || r.Tries != 3 || r.To != latest {
			t.Errorf("%+v; want ErrBusy after 3 tries", r)
		}
		if code := r.SQLState(); (code == "55P03") != (r.Schema == schemas[0]) {
			t.Errorf("%s: state %q", r.Schema, code)
		}
	}
}

func TestAllBoundsEachStatement(t *testing.T) {
	t.Parallel()
	pool := pgtest.NewPool(t)
	schemas := tenants(t, 2)
	all(t, pool, schemas)
	files := upTo(t, latest, `SELECT pg_sleep(60) WHERE current_schema() = '`+schemas[0].String()+`';`)
	report, err := migrations.All(t.Context(), pool.Config().ConnString(), migrations.Schemas(schemas...), migrations.WithFS(files),
		migrations.WithStatementTimeout(50*time.Millisecond))
	want(t, report, migrations.Report{Total: 2, Migrated: 1, Failed: 1})
	if err == nil || report.Failures[0].SQLState() != "57014" || report.Failures[0].Tries != 1 {
		t.Errorf("%+v, %v", report.Failures, err)
	}
}

// TestRunsSideBySideShare: several runs at once, some of them of Up, do each thing once.
func TestRunsSideBySideShare(t *testing.T) {
	t.Parallel()
	pool := pgtest.NewPool(t)
	url := pool.Config().ConnString()
	schemas := tenants(t, 60)
	all(t, pool, schemas[:30], migrations.WithFS(upTo(t, 2)))
	var mu sync.Mutex
	did := make(map[tenancy.Schema]map[migrations.Outcome]int)
	var runs sync.WaitGroup
	for range 3 {
		runs.Go(func() {
			report, err := migrations.All(t.Context(), url, migrations.Schemas(schemas...), migrations.WithTries(100, time.Millisecond),
				migrations.WithResult(func(r migrations.Result) {
					mu.Lock()
					defer mu.Unlock()
					if did[r.Schema] == nil {
						did[r.Schema] = make(map[migrations.Outcome]int)
					}
					did[r.Schema][r.Outcome]++
				}))
			if err != nil || report.Created+report.Migrated+report.Current != 60 {
				t.Errorf("%+v, %v", report, err)
			}
		})
	}
	runs.Go(func() {
		if err := migrations.Up(t.Context(), url, schemas[25:35]...); err != nil {
			t.Error(err)
		}
	})
	runs.Wait()
	intact(t, pool, schemas, latest)
	for i, schema := range schemas {
		outcomes := did[schema]
		if outcomes[migrations.Created] > 1 || i < 25 && outcomes[migrations.Migrated] == 0 || i >= 35 && outcomes[migrations.Created] != 1 {
			t.Errorf("schema %d: %v", i, outcomes)
		}
	}
}

func TestDryRunChangesNothing(t *testing.T) {
	t.Parallel()
	pool := pgtest.NewPool(t)
	schemas := tenants(t, 9)
	all(t, pool, schemas[:3], migrations.WithFS(upTo(t, 2)))
	all(t, pool, schemas[3:6])
	count := func() (n int) {
		if err := pool.QueryRow(t.Context(), `SELECT count(*) FROM pg_class`).Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	before := count()
	var results []migrations.Result
	report := all(t, pool, schemas, migrations.WithDryRun(), migrations.WithResult(func(r migrations.Result) { results = append(results, r) }))
	want(t, report, migrations.Report{Total: 9, Created: 3, Migrated: 3, Current: 3})
	if after := count(); after != before {
		t.Errorf("%d relations, %d before", after, before)
	}
	intact(t, pool, schemas[:3], 2, migrations.WithFS(upTo(t, 2)))
	for _, r := range results {
		if r.To != latest {
			t.Errorf("%+v; want it to come to %d", r, latest)
		}
	}
}

// TestAllSurvivesLostConnections: those of the run are cut over and over.
func TestAllSurvivesLostConnections(t *testing.T) {
	t.Parallel()
	pool := pgtest.NewPool(t)
	schemas := tenants(t, 40)
	ended := 0
	report := all(t, pool, schemas, migrations.WithWorkers(3), migrations.WithTries(100, time.Millisecond), migrations.WithResult(func(migrations.Result) {
		if ended++; ended%5 == 0 {
			if _, err := pool.Exec(t.Context(), `SELECT pg_terminate_backend(pid) FROM pg_stat_activity
				WHERE datname = current_database() AND pid <> pg_backend_pid() AND query LIKE '%idempotency%' AND backend_type = 'client backend'`); err != nil {
				t.Error(err)
			}
		}
	}))
	if report.Created != 40 {
		t.Errorf("%+v", report)
	}
	intact(t, pool, schemas, latest)
}

func TestAllStopsWithItsContext(t *testing.T) {
	t.Parallel()
	pool := pgtest.NewPool(t)
	schemas := tenants(t, 30)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	report, err := migrations.All(ctx, pool.Config().ConnString(), migrations.Schemas(schemas...), migrations.WithWorkers(2),
		migrations.WithResult(func(migrations.Result) { cancel() }))
	if !errors.Is(err, context.Canceled) || errors.Is(err, migrations.ErrFailed) || report.Unreached == 0 || report.Created+report.Unreached != 30 || report.Failed > 0 {
		t.Errorf("%+v, %v", report, err)
	}
	all(t, pool, schemas, migrations.WithTries(100, time.Millisecond))
	intact(t, pool, schemas, latest)
}

func TestExistingOnly(t *testing.T) {
	t.Parallel()
	pool := pgtest.NewPool(t)
	schemas := tenants(t, 4)
	all(t, pool, schemas[:2], migrations.WithFS(upTo(t, 2)))
	run(t, pool, `CREATE SCHEMA `+schemas[2].Quoted())
	report, err := migrations.All(t.Context(), pool.Config().ConnString(), migrations.Schemas(schemas...), migrations.WithExistingOnly())
	want(t, report, migrations.Report{Total: 4, Migrated: 2, Failed: 2})
	for _, r := range report.Failures {
		if !errors.Is(err, migrations.ErrAbsent) || !errors.Is(r.Err, migrations.ErrAbsent) || r.Tries != 1 {
			t.Errorf("%+v, %v", r, err)
		}
	}
}

func TestProgress(t *testing.T) {
	t.Parallel()
	pool := pgtest.NewPool(t)
	schemas := tenants(t, 20)
	all(t, pool, schemas[:5])
	var seen []migrations.Progress
	all(t, pool, schemas, migrations.WithProgress(func(p migrations.Progress) { seen = append(seen, p) }))
	if len(seen) != 16 { // the five at once, then each
		t.Fatalf("%d calls", len(seen))
	}
	if first := seen[0]; first.Total != 20 || first.Done != 5 || first.Skipped != 5 || first.Rate != 0 {
		t.Errorf("first %+v", first)
	}
	if last := seen[15]; last.Done != 20 || last.Skipped != 5 || last.Failed != 0 || last.Rate <= 0 || last.Left != 0 || last.Elapsed <= 0 {
		t.Errorf("last %+v", last)
	}
	if mid := seen[8]; mid.Left <= 0 {
		t.Errorf("in the middle %+v", mid)
	}
}

func TestAllRefusesNonsense(t *testing.T) {
	t.Parallel()
	pool := pgtest.NewPool(t)
	url := pool.Config().ConnString()
	schema, org := parse(t, "acme"), uuid.New()
	broken := errors.New("the list broke off")
	list := func(targets ...migrations.Target) iter.Seq2[migrations.Target, error] {
		return maps.All(map[migrations.Target]error{targets[0]: nil})
	}
	two := func(yield func(migrations.Target, error) bool) {
		_ = yield(migrations.Target{Schema: schema, OrgID: org}, nil) && yield(migrations.Target{Schema: schema, OrgID: uuid.New()}, nil)
	}
	half := func(yield func(migrations.Target, error) bool) {
		_ = yield(migrations.Target{Schema: schema}, nil) && yield(migrations.Target{}, broken)
	}
	good := list(migrations.Target{Schema: schema})
	for name, try := range map[string]struct {
		url     string
		targets iter.Seq2[migrations.Target, error]
		opt     migrations.Option
		want    string
	}{
		"no workers":      {url, good, migrations.WithWorkers(0), "workers"},
		"no tries":        {url, good, migrations.WithTries(0, time.Second), "tries"},
		"no pause":        {url, good, migrations.WithTries(1, 0), "pause"},
		"no lock timeout": {url, good, migrations.WithLockTimeout(0), "lock timeout"},
		"no time":         {url, good, migrations.WithStatementTimeout(-1), "statement timeout"},
		"zero Schema":     {url, list(migrations.Target{}), nil, "zero Schema"},
		"two owners":      {url, two, nil, "two tenants"},
		"another's name":  {url, list(migrations.Target{Schema: tenants(t, 1)[0], OrgID: org}), nil, "cannot be pinned"},
		"a broken list":   {url, half, nil, "broke off"},
		"no URL":          {"postgres://user:sesame@[::1", good, nil, "database URL"},
		"no server":       {"postgres:///no_such_database?host=/nonexistent", good, nil, "not reached"},
		"no transaction":  {url, good, migrations.WithFS(fstest.MapFS{"00001_x.sql": {Data: []byte("-- +goose NO TRANSACTION\n-- +goose Up\nSELECT 1;")}}), "without a transaction"},
	} {
		opts := []migrations.Option{func() migrations.Option {
			if try.opt == nil {
				return migrations.WithWorkers(1)
			}
			return try.opt
		}()}
		if _, err := migrations.All(t.Context(), try.url, try.targets, opts...); err == nil || !strings.Contains(err.Error(), try.want) || strings.Contains(err.Error(), "sesame") {
			t.Errorf("%s: %v; want %q", name, err, try.want)
		}
	}
	if report, err := migrations.All(t.Context(), url, migrations.Schemas()); err != nil || report.Total != 0 {
		t.Errorf("an empty list: %+v, %v", report, err)
	}
	var made int
	if err := pool.QueryRow(t.Context(), `SELECT count(*) FROM pg_class WHERE relname LIKE 'idempotency%'`).Scan(&made); err != nil || made != 0 {
		t.Errorf("%d things made, %v", made, err)
	}
}

func TestOne(t *testing.T) {
	t.Parallel()
	pool := pgtest.NewPool(t)
	conn, err := pool.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Release()
	target := migrations.Target{Schema: parse(t, "acme"), OrgID: uuid.New()}
	for _, outcome := range []migrations.Outcome{migrations.Created, migrations.Current} {
		if r, err := migrations.One(t.Context(), conn.Conn(), target); err != nil || r.Outcome != outcome || r.To != latest {
			t.Errorf("%+v, %v; want %s", r, err, outcome)
		}
	}
	if r, err := migrations.One(t.Context(), conn.Conn(), target, migrations.WithFS(upTo(t, latest, `SELECT 1/0;`))); err == nil || r.SQLState() != "22012" || !strings.Contains(err.Error(), "schema acme") {
		t.Errorf("%+v, %v", r, err)
	}
	var path, lock string
	if err := conn.QueryRow(t.Context(), `SELECT current_setting('search_path'), current_setting('lock_timeout')`).Scan(&path, &lock); err != nil || path != `""` || lock != "0" {
		t.Errorf("left behind search_path %q and lock_timeout %q, %v", path, lock, err)
	}
}
