package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pressly/goose/v3"

	"github.com/pgidem/pgidem/idempotency"
	"github.com/pgidem/pgidem/idempotency/pgstore"
	"github.com/pgidem/pgidem/internal/cli"
	"github.com/pgidem/pgidem/internal/cli/clitest"
	"github.com/pgidem/pgidem/internal/pgtest"
	"github.com/pgidem/pgidem/migrations"
	"github.com/pgidem/pgidem/tenancy"
	"github.com/pgidem/pgidem/tenancy/registry"
)

// behind makes a tenant whose schema lacks the newest migration.
func (f fixture) behind(t testing.TB) registry.Tenant {
	t.Helper()
	tenant := f.register(t, registry.Active)
	f.exec(t, `CREATE SCHEMA `+tenant.Schema.Quoted())
	cfg, err := pgx.ParseConfig(f.url)
	if err != nil {
		t.Fatal(err)
	}
	cfg.RuntimeParams["search_path"] = tenant.Schema.Quoted()
	conn := stdlib.OpenDB(*cfg)
	defer func() { _ = conn.Close() }()
	provider, err := goose.NewProvider(goose.DialectPostgres, conn, migrations.FS(), goose.WithTableName(migrations.VersionTable), goose.WithDisableGlobalRegistry(true))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := provider.UpTo(t.Context(), migrations.Latest()-1); err != nil {
		t.Fatal(err)
	}
	return tenant
}

func (f fixture) version(t testing.TB, schema tenancy.Schema) (version int64) {
	t.Helper()
	if err := f.pool.QueryRow(t.Context(), `SELECT max(version_id) FROM `+schema.Quoted()+`.`+migrations.VersionTable).Scan(&version); err != nil {
		t.Fatal(err)
	}
	return version
}

func (f fixture) setVersion(t testing.TB, tenant registry.Tenant, version int64) {
	t.Helper()
	at := tenant.Placement()
	at.Version = version
	if err := f.tenants.SetVersion(t.Context(), tenant.OrgID, at); err != nil {
		t.Fatal(err)
	}
}

func (f fixture) exists(t testing.TB, schema tenancy.Schema) (exists bool) {
	t.Helper()
	if err := f.pool.QueryRow(t.Context(), `SELECT EXISTS (SELECT FROM pg_catalog.pg_namespace WHERE nspname = $1)`, schema.String()).Scan(&exists); err != nil {
		t.Fatal(err)
	}
	return exists
}

// noted reports whether the registry has the newest version of the tenants. A run notes it
// once it knows that a tenant is through, which is later than others see the migration.
func (f fixture) noted(t testing.TB, tenants ...registry.Tenant) bool {
	t.Helper()
	for _, tenant := range tenants {
		now, err := f.tenants.Tenant(t.Context(), tenant.OrgID)
		if err != nil {
			t.Fatal(err)
		}
		if now.Version != migrations.Latest() {
			return false
		}
	}
	return true
}

// block locks the table of a tenant, so that a migration of it waits until the returned
// function is called.
func (f fixture) block(t testing.TB, schema tenancy.Schema) (unblock func()) {
	t.Helper()
	tx, err := f.pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	unblock = func() { _ = tx.Rollback(context.Background()) }
	t.Cleanup(unblock)
	if _, err := tx.Exec(t.Context(), `LOCK TABLE `+schema.Quoted()+`.idempotency_records IN ACCESS SHARE MODE`); err != nil {
		t.Fatal(err)
	}
	return unblock
}

// idle checks that no statement of the program waits for a lock any more, now that it is gone.
func (f fixture) idle(t testing.TB) {
	t.Helper()
	if n := f.waiting(t); n > 0 {
		t.Errorf("%d statements still wait for a lock", n)
	}
}

// waiting returns how many statements of the program wait for a lock.
func (f fixture) waiting(t testing.TB) (n int) {
	t.Helper()
	return f.waitingAs(t, "idem-tenants")
}

func (f fixture) waitingAs(t testing.TB, application string) (n int) {
	t.Helper()
	err := f.pool.QueryRow(t.Context(), `SELECT count(*) FROM pg_catalog.pg_stat_activity
		WHERE application_name = $1 AND datname = current_database() AND wait_event_type = 'Lock'`, application).Scan(&n)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func TestMigrateTheRegistry(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	latest := migrations.Latest()
	old, current, suspended := f.behind(t), f.tenant(t), f.behind(t)
	f.run(t, "suspend", "--yes", suspended.OrgID.String()).expect(t, cli.ExitOK)
	half, dropping := f.register(t, registry.Provisioning), f.register(t, registry.Deleting)

	dry := f.run(t, "migrate", "--dry-run").expect(t, cli.ExitOK,
		fmt.Sprintf("%s: would be migrated from %d to %d", old.Schema, latest-1, latest), "to migrate        2", "1 tenant being provisioned, 1 tenant being dropped")
	dry.without(t, current.Schema.String()+":", half.Schema.String(), dropping.Schema.String())
	if f.version(t, old.Schema) != latest-1 {
		t.Error("a dry run migrates")
	}

	got := object[migrateJSON](t, f.run(t, "migrate", "--json", "--workers", "2").expect(t, cli.ExitOK))
	if got.Tenants != 3 || got.Created != 0 || got.Migrated != 2 || got.Current != 1 || got.Failed+got.Busy+got.Left != 0 || got.LeftOut != 2 || got.DryRun || got.Latest != latest || len(got.Changed) != 2 {
		t.Errorf("%+v", got)
	}
	for _, change := range got.Changed {
		if change.OrgID == old.OrgID.String() && (change.Outcome != migrations.Migrated || change.From != latest-1 || change.To != latest) {
			t.Errorf("%+v", change)
		}
	}
	for _, tenant := range []registry.Tenant{old, current, suspended} {
		now, err := f.tenants.Tenant(t.Context(), tenant.OrgID)
		if err != nil || now.Version != latest || f.version(t, tenant.Schema) != latest {
			t.Errorf("%+v, %v; want version %d", now, err, latest)
		}
	}
	f.run(t, "migrate").expect(t, cli.ExitOK, "up to date        3", "created           0", "failed            0")
	if r := f.run(t, "migrate", "--quiet"); r != (result{}) {
		t.Errorf("%+v", r)
	}
}

// TestServedAfterAnUpgrade: a store goes by the version that is noted. What migrates without the
// registry leaves the tenant refused, and the advice of the error is what has it served.
func TestServedAfterAnUpgrade(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	tenant := f.behind(t)
	f.setVersion(t, tenant, migrations.Latest()-1)
	store, err := pgstore.New(f.pool, f.tenants)
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	claim := func() error {
		_, err := store.Claim(t.Context(), claimRequest(tenant.OrgID, uuid.NewString(), time.Minute))
		return err
	}
	refused := func(after string) {
		t.Helper()
		if err := claim(); !errors.Is(err, idempotency.ErrStoreRefused) || !strings.Contains(err.Error(), "idem-tenants migrate") {
			t.Errorf("after %s: %v", after, err)
		}
	}
	refused("nothing")
	f.run(t, "migrate", "--schema", tenant.Schema.String()).expect(t, cli.ExitOK, "migrated          1")
	refused("migrate --schema")
	f.run(t, "migrate", "--all-schemas").expect(t, cli.ExitOK, "up to date        1")
	refused("migrate --all-schemas")
	if err := migrations.Up(t.Context(), f.url, tenant.Schema); err != nil {
		t.Fatal(err)
	}
	refused("migrations.Up")
	f.run(t, "migrate").expect(t, cli.ExitOK, "up to date        1")
	clitest.Eventually(t, "the tenant is served", func() bool { return claim() == nil })
}

// TestMigrateMakesNoSchemaAnew: the schema of a tenant that is served and has none was lost,
// or moved or dropped since the registry was read. An empty one would run requests again.
func TestMigrateMakesNoSchemaAnew(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	old, absent, suspended, empty := f.behind(t), f.register(t, registry.Active), f.register(t, registry.Suspended), f.register(t, registry.Active)
	f.exec(t, `CREATE SCHEMA `+empty.Schema.Quoted())
	untouched := func() {
		t.Helper()
		var tables int
		err := f.pool.QueryRow(t.Context(), `SELECT count(*) FROM pg_catalog.pg_class AS c JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace WHERE n.nspname = $1`, empty.Schema.String()).Scan(&tables)
		if err != nil || tables != 0 || f.exists(t, absent.Schema) || f.exists(t, suspended.Schema) {
			t.Errorf("%d tables were made, or a schema: %v", tables, err)
		}
	}
	advice := []string{absent.Schema.String() + ": the schema is missing or empty", suspended.Schema.String() + ": the", empty.Schema.String() + ": the", "suspend, drop and provision", "failed            3"}
	f.run(t, "migrate", "--dry-run").expect(t, cli.ExitFailed, append(advice, "to migrate        1")...)
	f.run(t, "migrate").expect(t, cli.ExitFailed, append(advice, "migrated          1", "created           0")...)
	untouched()
	got := object[migrateJSON](t, f.run(t, "migrate", "--json").expect(t, cli.ExitFailed))
	if got.Failed != 3 || got.Current != 1 || got.Created != 0 || len(got.Failures) != 3 || !strings.Contains(got.Failures[0].Error, "provision") {
		t.Errorf("%+v", got)
	}
	untouched()
	if f.version(t, old.Schema) != migrations.Latest() {
		t.Error("a tenant without a schema has stopped another")
	}
	f.run(t, "inspect", absent.OrgID.String()).expect(t, cli.ExitFailed, "suspend, drop and provision")

	// The advice is good.
	for _, tenant := range []registry.Tenant{absent, suspended, empty} {
		org := tenant.OrgID.String()
		f.run(t, "suspend", "--yes", org).expect(t, cli.ExitOK)
		f.run(t, "drop", org, "--yes", "--confirm", tenant.Schema.String()).expect(t, cli.ExitOK)
		f.run(t, "provision", org).expect(t, cli.ExitOK)
	}
	f.run(t, "migrate").expect(t, cli.ExitOK, "up to date        4")
}

// TestMigrateMakesNoSchemaOfAll: the same goes for --all-schemas.
func TestMigrateMakesNoSchemaOfAll(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.exec(t, `CREATE SCHEMA payments CREATE TABLE idempotency_records (lease_until timestamptz)`)
	f.run(t, "migrate", "--all-schemas").expect(t, cli.ExitFailed, "payments: the schema is missing or empty, or has no table", "left alone")
}

func TestMigrateWithoutARegistry(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	latest := migrations.Latest()
	a, b := f.behind(t), f.behind(t)
	f.exec(t, `DROP SCHEMA pgidem CASCADE`)
	f.run(t, "migrate").expect(t, cli.ExitFailed, "no registry")

	f.run(t, "migrate", "--schema", a.Schema.String()+",payments").expect(t, cli.ExitOK, "migrated          1", "created           1")
	if f.version(t, a.Schema) != latest || f.version(t, b.Schema) != latest-1 {
		t.Error("not the schema that was named")
	}
	f.exec(t, `CREATE TABLE public.idempotency_records (lease_until timestamptz)`)
	f.run(t, "migrate", "--all-schemas").expect(t, cli.ExitOK, "tenants           3", "migrated          1", "warning: not visited", `"public"`)
	if f.version(t, b.Schema) != latest {
		t.Error("not all schemas")
	}
	f.run(t, "migrate", "--all-schemas", "--schema", "payments").expect(t, cli.ExitUsage, "one of --schema")
	for flag, want := range map[string]string{
		"--workers=0": "1 to 64", "--lock-timeout=0": "--lock-timeout", "--tries=0": "1 to 1000", "--max-duration=5": "with a unit", "--schema=public": "public",
	} {
		f.run(t, "migrate", flag).expect(t, cli.ExitUsage, want)
	}
}

func TestMigrateFailuresAndBusyTenants(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	sound, broken, busy := f.behind(t), f.behind(t), f.behind(t)
	f.exec(t, `ALTER TABLE `+broken.Schema.Quoted()+`.idempotency_records DROP CONSTRAINT idempotency_records_key_check`)
	unblock := f.block(t, busy.Schema)
	// Not so much of a hurry that a tenant counts as busy because the machine is.
	hurry := []string{"migrate", "--lock-timeout", "500ms", "--tries", "2"}

	r := f.run(t, hurry...).expect(t, cli.ExitFailed, broken.Schema.String()+": migration 5: ", "(SQLSTATE 42704)", busy.Schema.String()+": busy: ", "(SQLSTATE 55P03)",
		"failed            1", "busy              1, left for the next run", "migrated          1")
	if strings.Count(r.stderr, "\n") != 2 {
		t.Errorf("more than a line for each failure:\n%s", r.stderr)
	}
	if f.version(t, sound.Schema) != migrations.Latest() {
		t.Error("a tenant's failure has stopped another")
	}
	got := object[migrateJSON](t, f.run(t, append(hurry, "--json")...).expect(t, cli.ExitFailed))
	if got.Failed != 1 || got.Busy != 1 || got.Current != 1 || len(got.Failures) != 2 {
		t.Errorf("%+v", got)
	}
	for _, failed := range got.Failures {
		want := map[string]string{broken.Schema.String(): "42704", busy.Schema.String(): "55P03"}[failed.Schema]
		if failed.SQLState != want || failed.Busy != (failed.Schema == busy.Schema.String()) || failed.Error == "" || failed.Tries < 1 {
			t.Errorf("%+v", failed)
		}
	}

	f.exec(t, `ALTER TABLE `+broken.Schema.Quoted()+`.idempotency_records ADD CONSTRAINT idempotency_records_key_check CHECK (true)`)
	f.run(t, hurry...).expect(t, cli.ExitUnfinished, "busy              1, left for the next run", "migrated          1")
	unblock()
	f.run(t, hurry...).expect(t, cli.ExitOK, "migrated          1", "up to date        2")
}

// TestInterruptedMigrate stops a run that waits for a lock; the next one goes on where it
// ended.
func TestInterruptedMigrate(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	var tenants []registry.Tenant
	for range 4 {
		tenants = append(tenants, f.behind(t))
	}
	for cause, want := range map[error]int{cli.Signalled{Signal: syscall.SIGTERM}: cli.ExitSignal + 15, cli.Signalled{Signal: syscall.SIGINT}: cli.ExitSignal + 2} {
		unblock := f.block(t, tenants[0].Schema)
		b := f.start(t, "migrate", "--json", "--workers", "4", "--lock-timeout", "1m")
		clitest.Eventually(t, "the migration waits for a lock, and the others are through", func() bool {
			return f.waiting(t) == 1 && f.noted(t, tenants[1:]...)
		})
		b.stop(cause)
		r := b.wait(t).expect(t, want)
		got := object[migrateJSON](t, r)
		if got.Left != 1 || got.Failed != 0 || got.Stopped != cause.Error() || got.Error != "" {
			t.Errorf("%s%s", r.stdout, r.stderr)
		}
		f.idle(t)
		unblock()
	}
	unblock := f.block(t, tenants[0].Schema)
	limit := 50 * time.Millisecond
	clitest.Eventually(t, "a run comes to the migration that waits, and is ended there", func() bool {
		limit *= 2 // on a busy machine a run may end before it knows the tenants
		r := f.run(t, "migrate", "--lock-timeout", "1m", "--max-duration", limit.String()).expect(t, cli.ExitUnfinished, "--max-duration")
		f.idle(t)
		return strings.Contains(r.stdout, "stopped by        --max-duration") && strings.Contains(r.stdout, "not reached       1,")
	})
	unblock()
	f.run(t, "migrate").expect(t, cli.ExitOK, "migrated          1", "up to date        3")
}

func TestMigrateClusters(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	eu := pgtest.NewPool(t).Config().ConnString() // another database will do for another server
	here := f.behind(t)
	far := uuid.New()
	if _, err := f.tenants.Add(t.Context(), registry.Tenant{OrgID: far, Schema: schemaOf(t, far), Cluster: "eu", State: registry.Active}); err != nil {
		t.Fatal(err)
	}
	f.run(t, "migrate").expect(t, cli.ExitUsage, `cluster "eu"`)
	f.run(t, "migrate", "--cluster=", "--dry-run").expect(t, cli.ExitOK, "tenants           1", here.Schema.String())
	f.run(t, "migrate", "--server", "eu="+eu).expect(t, cli.ExitFailed, "migrated          1", schemaOf(t, far).String()+" in eu: the schema is missing")
	if err := migrations.Up(t.Context(), eu, schemaOf(t, far)); err != nil {
		t.Fatal(err)
	}
	f.run(t, "migrate", "--server", "eu="+eu).expect(t, cli.ExitOK, "tenants           2", "up to date        2")
	f.run(t, "status", "--server", "eu="+eu).expect(t, cli.ExitOK, "up to date        2")
	f.run(t, "inspect", far.String(), "--server", "eu="+eu).expect(t, cli.ExitOK, "eu")
}

func TestStatus(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	latest := migrations.Latest()
	sound, old, absent, drifted, newer := f.tenant(t), f.behind(t), f.register(t, registry.Active), f.tenant(t), f.tenant(t)
	f.run(t, "status", "--schema", sound.Schema.String()).expect(t, cli.ExitOK, "tenants           1", "up to date        1")
	f.setVersion(t, sound, latest-2)
	f.run(t, "status", "--cluster=").expect(t, exitDisorder, sound.Schema.String()+": up to date, at 5 (3 in the registry; migrate notes it)")
	f.setVersion(t, sound, latest)
	f.exec(t, `ALTER TABLE `+drifted.Schema.Quoted()+`.idempotency_records ALTER COLUMN attempt DROP NOT NULL`)
	f.exec(t, `INSERT INTO `+newer.Schema.Quoted()+`.`+migrations.VersionTable+` (version_id, is_applied) VALUES (99, true)`)
	f.setVersion(t, old, 2)

	r := f.run(t, "status").expect(t, exitDisorder, "behind            1", "absent            1", "newer             1", "drifted           1",
		old.Schema.String()+": behind, at 4 (2 in the registry", absent.Schema.String()+": absent", newer.Schema.String()+": newer, at 99",
		drifted.Schema.String()+": up to date, at 5, drifted\n    table idempotency_records: column attempt")
	r.without(t, sound.Schema.String())
	got := object[statusJSON](t, f.run(t, "status", "--json").expect(t, exitDisorder))
	if got.Tenants != 5 || got.UpToDate != 2 || got.Behind != 1 || got.Absent != 1 || got.Newer != 1 || got.Drifted != 1 || got.Versions[latest] != 2 || len(got.Disorder) != 4 {
		t.Errorf("%+v", got)
	}
	for _, row := range got.Disorder {
		if row.OrgID == old.OrgID.String() && (row.Version != latest-1 || *row.RegistryVersion != 2 || row.Standing != migrations.Behind || row.State != registry.Active) {
			t.Errorf("%+v", row)
		}
		if row.OrgID == drifted.OrgID.String() && (len(row.Drift) != 1 || row.RegistryVersion != nil) {
			t.Errorf("%+v", row)
		}
	}
	if got := object[statusJSON](t, f.run(t, "status", "--versions-only", "--json")); got.Drifted != 0 || got.Behind != 1 {
		t.Errorf("%+v", got)
	}
	if f.version(t, old.Schema) != latest-1 {
		t.Error("status migrates")
	}
}

func TestMigrateProgressLines(t *testing.T) {
	t.Parallel()
	var stdout, stderr bytes.Buffer
	report := &textMigrateReport{app: &app{stdout: &stdout, stderr: &stderr}, every: time.Hour}
	report.begin(chosen{tenants: 10_000})
	progress := migrations.Progress{Total: 10_000, Done: 120, Failed: 2, Waiting: 3, Rate: 243.2, Left: 40 * time.Second}
	for range 100 {
		report.tenant(migrated{Result: migrations.Result{Outcome: migrations.Migrated}})
		report.progress(progress)
	}
	if stdout.Len() > 0 {
		t.Errorf("each tenant takes a line: %.200q", stdout.String())
	}
	report.every = 0
	report.progress(progress)
	if want := "120 of 10000 tenants, 2 failed, 3 busy, 243/s, 40s left\n"; stdout.String() != want || stderr.Len() > 0 {
		t.Errorf("%q, want %q; %q", stdout.String(), want, stderr.String())
	}
}

// progressOnly keeps how far a run was, and with it what came of each tenant.
type progressOnly struct {
	migrateReporter
	seen []migrations.Progress
}

func (p *progressOnly) progress(now migrations.Progress) { p.seen = append(p.seen, now) }

// TestMigrateProgressOfClusters: what is left is of all clusters, and not of the one at hand,
// but for those that cannot be reached.
func TestMigrateProgressOfClusters(t *testing.T) {
	t.Parallel()
	run := migrateRun{chosen: chosen{tenants: 1000}, cutOff: []cutOff{{"ap", 300, io.EOF}}}
	before := migrations.Progress{Done: 200, Failed: 5}
	got := run.overall(before, migrations.Progress{Total: 100, Done: 50, Failed: 1, Waiting: 2, Rate: 10, Left: 5 * time.Second})
	if want := (migrations.Progress{Total: 1000, Done: 250, Failed: 6, Waiting: 2, Rate: 10, Left: 45 * time.Second}); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
	if got := run.overall(before, migrations.Progress{Total: 100, Done: 50}); got.Left != 0 {
		t.Errorf("%s are left at a rate that is not known", got.Left)
	}

	f := newFixture(t)
	eu := newFixture(t)
	for i := range 5 {
		f.behind(t)
		if i < 3 {
			f.behindIn(t, eu, "eu")
		}
	}
	broken := f.behind(t)
	f.exec(t, `ALTER TABLE `+broken.Schema.Quoted()+`.idempotency_records DROP CONSTRAINT idempotency_records_key_check`)
	a := &app{databaseURL: f.url, servers: map[string]string{"eu": eu.url}, control: registry.DefaultSchema, getenv: func(string) string { return "" }}
	defer a.close()
	run = migrateRun{}
	var err error
	if run.chosen, err = a.choose(t.Context(), choice{}); err != nil {
		t.Fatal(err)
	}
	terms := migrateTerms{workers: 2, tries: 1000, lockTimeout: time.Second}
	report := &progressOnly{migrateReporter: jsonMigrateReport{a}}
	notes := a.takeNotes(t.Context(), terms)
	for _, s := range run.chosen.servers {
		if err := a.migrateServer(t.Context(), &run, s, terms, report, notes); err != nil {
			t.Error(err)
		}
	}
	if late, err := notes.end(); late != nil || err != nil {
		t.Error(late, err)
	}
	if len(report.seen) != 9 {
		t.Errorf("%d of 9 tenants", len(report.seen))
	}
	for i, now := range report.seen {
		left := time.Duration(float64(8-i) / now.Rate * float64(time.Second))
		if now.Total != 9 || now.Done != i+1 || now.Rate <= 0 || now.Left != left {
			t.Errorf("after %d tenants: %+v; want %s left", i+1, now, left)
		}
	}
	if last := report.seen[len(report.seen)-1]; last.Failed != 1 {
		t.Errorf("%d failed, want the one of the first cluster", last.Failed)
	}
}

// behindIn makes a tenant of a cluster, which is the database of another fixture, whose schema
// lacks the newest migration.
func (f fixture) behindIn(t testing.TB, in fixture, cluster string) registry.Tenant {
	t.Helper()
	tenant := in.behind(t)
	tenant, err := f.tenants.Add(t.Context(), registry.Tenant{OrgID: tenant.OrgID, Schema: tenant.Schema, Cluster: cluster, State: registry.Active})
	if err != nil {
		t.Fatal(err)
	}
	return tenant
}

// TestMigrateWhatCanBeReached: a cluster that is away, from the beginning or from when its turn
// comes, is reported, and the tenants of the others are migrated.
func TestMigrateWhatCanBeReached(t *testing.T) {
	t.Parallel()
	f, eu, full := newFixture(t), newFixture(t), newFixture(t)
	latest := migrations.Latest()
	here, there := f.behind(t), f.behindIn(t, eu, "eu")
	for range 2 {
		f.behindIn(t, full, "ap-away")
	}
	f.behindIn(t, full, "de-full")

	// This one has room for the connection that the program begins with, and for no worker's.
	role := "migrator_" + strings.ReplaceAll(uuid.NewString(), "-", "")
	full.exec(t, `CREATE ROLE `+role+` LOGIN PASSWORD 'hunter2' CONNECTION LIMIT 1`)
	t.Cleanup(func() {
		if _, err := full.pool.Exec(context.Background(), `DROP ROLE `+role); err != nil {
			t.Error(err)
		}
	})
	refusing, err := url.Parse(full.url)
	if err != nil {
		t.Fatal(err)
	}
	refusing.User = url.UserPassword(role, "hunter2")
	away := "postgres://operator:hunter2@127.0.0.1:1/app?sslmode=disable"
	servers := func(away, full string) []string {
		return []string{"--server", "ap-away=" + away, "--server", "de-full=" + full, "--server", "eu=" + eu.url}
	}
	cutOff := servers(away, refusing.String())

	f.run(t, append([]string{"migrate", "--dry-run"}, cutOff...)...).expect(t, cli.ExitUnreachable, "to migrate        2", "not reached       3,").without(t, "hunter2")
	if f.version(t, here.Schema) != latest-1 {
		t.Error("a dry run migrates")
	}
	f.run(t, append([]string{"migrate", "--quiet"}, cutOff...)...).expect(t, cli.ExitUnreachable,
		"2 tenants of cluster ap-away not reached: ", "1 tenant of cluster de-full not reached: ", "(SQLSTATE 53300)").without(t, "hunter2")
	for in, tenant := range map[*fixture]registry.Tenant{&f: here, &eu: there} {
		if in.version(t, tenant.Schema) != latest || !f.noted(t, tenant) {
			t.Errorf("%s: a cluster that is away has stopped it", tenant.Schema)
		}
	}
	got := object[migrateJSON](t, f.run(t, append([]string{"migrate", "--json"}, cutOff...)...).expect(t, cli.ExitUnreachable))
	if got.Tenants != 5 || got.Current != 2 || got.Left != 3 || got.Failed != 0 || len(got.Unreached) != 2 || !strings.Contains(got.Error, "ap-away") || !strings.Contains(got.Error, "de-full") {
		t.Errorf("%+v", got)
	}
	for _, lost := range got.Unreached {
		if want := map[string]int{"ap-away": 2, "de-full": 1}[lost.Cluster]; lost.Tenants != want || lost.Error == "" {
			t.Errorf("%+v", lost)
		}
	}
	status := object[statusJSON](t, f.run(t, append([]string{"status", "--json"}, servers(away, full.url)...)...).expect(t, cli.ExitUnreachable))
	if status.UpToDate != 2 || status.Behind != 1 || len(status.Unreached) != 1 || status.Unreached[0].Tenants != 2 {
		t.Errorf("%+v", status)
	}
	refused := object[statusJSON](t, f.run(t, append([]string{"status", "--json"}, cutOff...)...).expect(t, cli.ExitUnreachable).without(t, "hunter2"))
	if refused.UpToDate != 2 || refused.Behind != 0 || len(refused.Unreached) != 2 {
		t.Errorf("%+v", refused)
	}
	f.run(t, append([]string{"status"}, servers(away, full.url)...)...).expect(t, cli.ExitUnreachable, "2 tenants of cluster ap-away not reached: ", "not reached       2")

	f.run(t, append([]string{"migrate"}, servers(full.url, full.url)...)...).expect(t, cli.ExitOK, "migrated          3", "up to date        2").without(t, "not reached")
}

func TestNotesThatCannotBeTaken(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.behind(t)
	f.exec(t, `CREATE FUNCTION pgidem.refuse() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RAISE EXCEPTION ''read only''; END'`)
	f.exec(t, `CREATE TRIGGER refuse BEFORE UPDATE ON pgidem.tenants FOR EACH ROW EXECUTE FUNCTION pgidem.refuse()`)
	f.run(t, "migrate").expect(t, cli.ExitFailed, "does not know the version of 1 tenant;", "read only", "migrated          1")
	f.exec(t, `DROP TRIGGER refuse ON pgidem.tenants`)
	f.run(t, "migrate").expect(t, cli.ExitOK, "up to date        1")
	for tenant, err := range f.tenants.Tenants(t.Context(), registry.Filter{OlderThan: migrations.Latest()}) {
		t.Errorf("%+v, %v", tenant, err)
	}
}

// TestNotesOfAStoppedRun takes a note when the run has been stopped already.
func TestNotesOfAStoppedRun(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	tenant := f.register(t, registry.Active)
	a := &app{databaseURL: f.url, control: registry.DefaultSchema, getenv: func(string) string { return "" }}
	defer a.close()
	ctx, stop := context.WithCancel(t.Context())
	notes := a.takeNotes(ctx, migrateTerms{})
	stop()
	notes.take(migrated{
		Result: migrations.Result{Target: migrations.Target{OrgID: tenant.OrgID, Schema: tenant.Schema}, Outcome: migrations.Migrated, From: 3, To: 4},
		target: target{Target: migrations.Target{OrgID: tenant.OrgID, Schema: tenant.Schema}, tenant: &tenant},
	})
	if late, err := notes.end(); late != nil || err != nil {
		t.Fatal(late, err)
	}
	if now, err := f.tenants.Tenant(t.Context(), tenant.OrgID); err != nil || now.Version != 4 {
		t.Errorf("%+v, %v", now, err)
	}
}

// TestNotesOfATenantThatWent to another cluster as it was migrated: the next run notes it there.
func TestNotesOfATenantThatWent(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	tenant := f.register(t, registry.Active)
	f.exec(t, `UPDATE pgidem.tenants SET cluster = 'eu-2' WHERE org_id = $1`, tenant.OrgID)
	var stderr bytes.Buffer
	a := &app{databaseURL: f.url, control: registry.DefaultSchema, getenv: func(string) string { return "" }, stdout: io.Discard, stderr: &stderr}
	defer a.close()
	notes := a.takeNotes(t.Context(), migrateTerms{})
	for _, moving := range []bool{false, true} { // of one that was left out there is nothing to note
		notes.take(migrated{
			Result: migrations.Result{Target: migrations.Target{OrgID: tenant.OrgID, Schema: tenant.Schema}, Outcome: migrations.Migrated, From: 3, To: 4},
			target: target{Target: migrations.Target{OrgID: tenant.OrgID, Schema: tenant.Schema}, tenant: &tenant}, moving: moving,
		})
	}
	run := migrateRun{}
	run.late, run.noted = notes.end()
	if run.noted != nil || run.late == nil || !strings.Contains(run.late.Error(), "of 1 tenant that went") || run.exitCode() != cli.ExitUnfinished {
		t.Errorf("late %v, not noted %v, exit code %d", run.late, run.noted, run.exitCode())
	}
	(&textMigrateReport{app: a}).end(run)
	if !strings.Contains(stderr.String(), "warning: the registry does not know") {
		t.Errorf("stderr: %s", stderr.String())
	}
}

func TestExitErrorSays(t *testing.T) {
	t.Parallel()
	cause := errors.New("cause")
	if err := error(exitError{7, cause}); !errors.Is(err, cause) || err.Error() != "cause" || (exitError{code: 7}).Error() == "" {
		t.Error(err)
	}
}
