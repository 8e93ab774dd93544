package main

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgidem/pgidem/internal/cli"
	"github.com/pgidem/pgidem/internal/cli/clitest"
	"github.com/pgidem/pgidem/internal/pgtest"
	"github.com/pgidem/pgidem/tenancy"
)

func kindNames(kinds []kind) []string {
	var names []string
	for _, k := range kinds {
		names = append(names, k.name)
	}
	slices.Sort(names)
	return names
}

func TestPurgesAllTenants(t *testing.T) {
	t.Parallel()
	pool, url := newPool(t)
	var tenants []tenancy.Schema
	for i := range 6 {
		schema := newTenant(t, url)
		fill(t, pool, schema, 10*(i+1), absent...)
		fill(t, pool, schema, 5, present...)
		tenants = append(tenants, schema)
	}
	idle := newTenant(t, url)

	janitorRun(t, "--database-url", url, "--batch", "7").expect(t, cli.ExitOK,
		"7 tenants, 630 records deleted", " 0 failed", tenants[0].String()+": 30 records deleted\n", tenants[5].String()+": 180 records deleted\n")
	for _, schema := range tenants {
		if got, want := keys(t, pool, schema), kindNames(present); !slices.Equal(got, want) {
			t.Errorf("%s holds %q, want %q", schema, got, want)
		}
		if n := size(t, pool, schema); n != 20 {
			t.Errorf("%s holds %d records, want 20", schema, n)
		}
	}
	again := janitorRun(t, "--database-url", url)
	again.expect(t, cli.ExitOK, "7 tenants, 0 records deleted")
	if lines := strings.Count(again.stdout, "\n"); lines != 1 || strings.Contains(again.stdout, idle.String()) {
		t.Errorf("idle tenants take lines: %q", again.stdout)
	}
}

func TestDryRunCountsWhatAPurgeDeletes(t *testing.T) {
	t.Parallel()
	pool, url := newPool(t)
	for range 3 {
		schema := newTenant(t, url)
		fill(t, pool, schema, 11, absent...)
		fill(t, pool, schema, 3, present...)
	}
	dry := janitorRun(t, "--database-url", url, "--json", "--dry-run")
	dry.expect(t, cli.ExitOK)
	counted := dry.roundOf(t)
	if counted.WouldDelete == nil || *counted.WouldDelete != 99 || counted.Deleted != 0 || !counted.DryRun {
		t.Errorf("dry run: %s", dry.stdout)
	}
	wet := janitorRun(t, "--database-url", url, "--json")
	wet.expect(t, cli.ExitOK)
	purged := wet.roundOf(t)
	if purged.Deleted != 99 || purged.WouldDelete != nil || !slices.Equal(purged.Purged, counted.Purged) {
		t.Errorf("purge %s after the dry run %s", wet.stdout, dry.stdout)
	}
	janitorRun(t, "--database-url", url, "--dry-run").expect(t, cli.ExitOK, "3 tenants, 0 records to delete")
}

func TestOneTenantsFailureDoesNotStopTheRest(t *testing.T) {
	t.Parallel()
	pool, url := newPool(t)
	sound := []tenancy.Schema{newTenant(t, url), newTenant(t, url), newTenant(t, url)}
	raising, diverged := newTenant(t, url), newTenant(t, url)
	for _, schema := range append([]tenancy.Schema{raising, diverged}, sound...) {
		fill(t, pool, schema, 4, absent...)
	}
	exec(t, pool, `CREATE FUNCTION `+raising.Quoted()+`.refuse() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RAISE EXCEPTION ''legal hold''; END'`)
	exec(t, pool, `CREATE TRIGGER refuse BEFORE DELETE ON `+raising.Quoted()+`.idempotency_records FOR EACH ROW EXECUTE FUNCTION `+raising.Quoted()+`.refuse()`)
	exec(t, pool, `ALTER TABLE `+diverged.Quoted()+`.idempotency_records RENAME COLUMN expires_at TO expiry`)

	for _, workers := range []string{"1", "4"} {
		text := janitorRun(t, "--database-url", url, "--workers", workers)
		text.expect(t, cli.ExitFailed, "5 tenants", "2 failed")
		for _, want := range []string{raising.String() + ": ", "ERROR: legal hold (SQLSTATE P0001)", diverged.String() + ": ", "(SQLSTATE 42703)"} {
			if !strings.Contains(text.stderr, want) {
				t.Errorf("%q is not in the errors %q", want, text.stderr)
			}
		}
		for _, schema := range sound {
			if n := size(t, pool, schema); n != 0 {
				t.Errorf("%d records are left in %s", n, schema)
			}
			fill(t, pool, schema, 4, expired)
		}
	}

	object := janitorRun(t, "--database-url", url, "--json")
	object.expect(t, cli.ExitFailed)
	r := object.roundOf(t)
	if r.Tenants != 5 || r.Done != 3 || r.Failed != 2 || r.Deleted != 12 || len(r.Failures) != 2 || object.stderr != "" {
		t.Errorf("%s%s", object.stdout, object.stderr)
	}
	for _, f := range r.Failures {
		if want := map[string]string{raising.String(): "P0001", diverged.String(): "42703"}[f.Schema]; f.SQLState != want {
			t.Errorf("%s: SQLSTATE %q, want %q", f.Schema, f.SQLState, want)
		}
	}
}

func TestFailureOfAMissingTableElsewhereIsNoDrop(t *testing.T) {
	t.Parallel()
	pool, url := newPool(t)
	schema := newTenant(t, url)
	fill(t, pool, schema, 1, expired)
	exec(t, pool, `CREATE FUNCTION `+schema.Quoted()+`.note() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN INSERT INTO nowhere VALUES (1); RETURN OLD; END'`)
	exec(t, pool, `CREATE TRIGGER note BEFORE DELETE ON `+schema.Quoted()+`.idempotency_records FOR EACH ROW EXECUTE FUNCTION `+schema.Quoted()+`.note()`)
	janitorRun(t, "--database-url", url).expect(t, cli.ExitFailed, "(SQLSTATE 42P01)", "1 failed")
}

func TestTenantDroppedMeanwhile(t *testing.T) {
	t.Parallel()
	pool, url := newPool(t)
	schema, other := newTenant(t, url), newTenant(t, url)
	fill(t, pool, other, 1, expired)

	tx, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback(context.Background()) }()
	if _, err := tx.Exec(t.Context(), `DROP SCHEMA `+schema.Quoted()+` CASCADE`); err != nil {
		t.Fatal(err)
	}
	b := start(t, "--database-url", url)
	blocked(t, pool)
	if err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	b.wait(t).expect(t, cli.ExitOK, "2 tenants, 1 record deleted", "0 failed, 1 dropped meanwhile", schema.String()+": dropped meanwhile\n")
}

func TestSchemaFlag(t *testing.T) {
	t.Parallel()
	pool, url := newPool(t)
	a, b, c := newTenant(t, url), newTenant(t, url), newTenant(t, url)
	for _, schema := range []tenancy.Schema{a, b, c} {
		fill(t, pool, schema, 2, expired)
	}
	janitorRun(t, "--database-url", url, "-schema", a.String(), "--schema="+a.String()+", "+b.String()).
		expect(t, cli.ExitOK, "2 tenants, 4 records deleted")
	if n := size(t, pool, c); n != 2 {
		t.Errorf("%s was not named, and holds %d records", c, n)
	}
	janitorRun(t, "--database-url", url, "--schema", "tenant_nobody,"+c.String()).
		expect(t, cli.ExitFailed, "tenant_nobody: ", "unknown tenant", "2 tenants, 2 records deleted", "1 failed")
}

// TestTenantOnItsWay: a schema that is being moved to another cluster is passed over.
func TestTenantOnItsWay(t *testing.T) {
	t.Parallel()
	pool, url := newPool(t)
	schema := newTenant(t, url)
	fill(t, pool, schema, 3, expired)
	fenced := "moving_0b8f0f4e4a534fc19a0f0a7c1e1d6a11"
	exec(t, pool, `ALTER SCHEMA `+schema.Quoted()+` RENAME TO `+fenced)
	janitorRun(t, "--database-url", url).expect(t, cli.ExitOK, "no tenants: ")
	janitorRun(t, "--database-url", url, "--schema", fenced).expect(t, cli.ExitFailed, "on its way to another cluster", "1 failed")
	exec(t, pool, `ALTER SCHEMA `+fenced+` RENAME TO `+schema.Quoted())
	janitorRun(t, "--database-url", url).expect(t, cli.ExitOK, "1 tenant, 3 records deleted")
}

func TestNoTenants(t *testing.T) {
	t.Parallel()
	pool, url := newPool(t)
	janitorRun(t, "--database-url", url).expect(t, cli.ExitOK, "no tenants: ")
	if r := janitorRun(t, "--database-url", url, "--json").roundOf(t); r.Tenants != 0 || r.Purged == nil || r.Failures == nil {
		t.Errorf("%+v", r)
	}

	exec(t, pool, `CREATE TABLE public.idempotency_records (lease_until timestamptz)`)
	unfit := janitorRun(t, "--database-url", url, "--quiet")
	unfit.expect(t, cli.ExitOK, "warning: not visited: ", `"public"`)
	if unfit.stdout != "" {
		t.Errorf("stdout %q", unfit.stdout)
	}
	if r := janitorRun(t, "--database-url", url, "--json").roundOf(t); !strings.Contains(r.Warning, `"public"`) {
		t.Errorf("%+v", r)
	}
}

func TestQuiet(t *testing.T) {
	t.Parallel()
	pool, url := newPool(t)
	fill(t, pool, newTenant(t, url), 2, expired)
	if r := janitorRun(t, "--database-url", url, "--quiet"); r != (result{}) {
		t.Errorf("%+v", r)
	}
	r := janitorRun(t, "--database-url", url, "--quiet", "--schema", "tenant_nobody")
	r.expect(t, cli.ExitFailed, "tenant_nobody: ")
	if r.stdout != "" || strings.Count(r.stderr, "\n") != 1 {
		t.Errorf("%+v", r)
	}
}

func TestMaxDuration(t *testing.T) {
	t.Parallel()
	pool, url := newPool(t)
	stuck, other := newTenant(t, url), newTenant(t, url)
	fill(t, pool, stuck, 2, expired)
	fill(t, pool, other, 2, expired)
	unblock := block(t, pool, stuck, "ACCESS EXCLUSIVE")

	began := time.Now()
	r := janitorRun(t, "--database-url", url, "--max-duration", "2s", "--json", "--workers", "2")
	r.expect(t, cli.ExitUnfinished)
	if got := r.roundOf(t); got.Left != 1 || got.Done != 1 || got.Failed != 0 || got.Deleted != 2 || got.Stopped != "--max-duration" {
		t.Errorf("%s", r.stdout)
	}
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("took %s", took)
	}
	janitorRun(t, "--database-url", url, "--max-duration", "2s", "--workers", "1", "--schema", stuck.String()).
		expect(t, cli.ExitUnfinished, "1 left for the next run (by --max-duration)")
	unblock()
	janitorRun(t, "--database-url", url, "--max-duration", "1h").expect(t, cli.ExitOK, "2 tenants, 2 records deleted")
}

func TestOrder(t *testing.T) {
	t.Parallel()
	var named []outcome
	for i := range 20 {
		schema, err := tenancy.ParseSchema(fmt.Sprintf("tenant_%d", i))
		if err != nil {
			t.Fatal(err)
		}
		named = append(named, outcome{tenant: tenant{[]string{"", "eu"}[i%2], schema}})
	}
	j := &janitor{left: map[tenant]bool{named[7].tenant: true, named[18].tenant: true}}
	first := make(map[tenant]bool)
	for range 100 {
		order := slices.Clone(named)
		j.order(order)
		if !j.left[order[0].tenant] || !j.left[order[1].tenant] || order[0] == order[1] {
			t.Fatalf("order %v, want those that were left in front", order)
		}
		first[order[2].tenant] = true
	}
	if len(first) < 2 {
		t.Error("the order is the same each time, so a limit starves the same tenants")
	}
}

func TestTimeouts(t *testing.T) {
	t.Parallel()
	pool, url := newPool(t)
	schema := newTenant(t, url)
	block(t, pool, schema, "ACCESS EXCLUSIVE")
	janitorRun(t, "--database-url", url, "--lock-timeout", "20ms").expect(t, cli.ExitFailed, schema.String()+": ", "(SQLSTATE 55P03)")
	janitorRun(t, "--database-url", url, "--statement-timeout", "20ms").expect(t, cli.ExitFailed, schema.String()+": ", "(SQLSTATE 57014)")
}

func TestStopLetsTheStatementFinish(t *testing.T) {
	t.Parallel()
	pool, url := newPool(t)
	schema := newTenant(t, url)
	fill(t, pool, schema, 10, expired)
	unblock := block(t, pool, schema, "SHARE") // the table may be read, and seen to hold rows
	b := start(t, "--database-url", url, "--json", "--batch", "4")
	blocked(t, pool)
	b.stop(cli.Signalled{Signal: syscall.SIGTERM})
	unblock()
	r := b.wait(t)
	r.expect(t, cli.ExitSignal+15)
	if got := r.roundOf(t); got.Deleted != 4 || got.Left != 1 || got.Failed != 0 || got.Stopped != "signal terminated" {
		t.Errorf("%s", r.stdout)
	}
	if n := size(t, pool, schema); n != 6 {
		t.Errorf("%d records, want 6", n)
	}
}

func TestStopBeforeTheTenantsAreListed(t *testing.T) {
	t.Parallel()
	_, url := newPool(t)
	ctx, stop := context.WithCancelCause(t.Context())
	stop(cli.Signalled{Signal: syscall.SIGINT})
	var stdout, stderr bytes.Buffer
	code := run(ctx, []string{"--json", "--database-url", url}, func(string) string { return "" }, &stdout, &stderr)
	r := result{code, stdout.String(), stderr.String()}
	r.expect(t, cli.ExitSignal+2)
	if got := r.roundOf(t); got.Stopped != "signal interrupt" || got.Error != "" {
		t.Errorf("%s", r.stdout)
	}
}

func TestSeveralJanitors(t *testing.T) {
	t.Parallel()
	pool, url := newPool(t)
	var tenants []tenancy.Schema
	for range 3 {
		schema := newTenant(t, url)
		fill(t, pool, schema, 500, absent...)
		fill(t, pool, schema, 100, present...)
		tenants = append(tenants, schema)
	}
	var janitors []*background
	for range 3 {
		janitors = append(janitors, start(t, "--database-url", url, "--json", "--batch", "50"))
	}
	var deleted int64
	for _, b := range janitors {
		r := b.wait(t)
		r.expect(t, cli.ExitOK)
		deleted += r.roundOf(t).Deleted
	}
	// What one of them had locked the others may have passed by.
	last := janitorRun(t, "--database-url", url, "--json")
	if deleted += last.roundOf(t).Deleted; deleted != 3*1500 {
		t.Errorf("%d records deleted, want 4500", deleted)
	}
	for _, schema := range tenants {
		if n := size(t, pool, schema); n != 400 {
			t.Errorf("%d records in %s, want 400", n, schema)
		}
	}
}

func TestLostConnectionIsTriedAgain(t *testing.T) {
	t.Parallel()
	pool, url := newPool(t)
	schema := newTenant(t, url)
	fill(t, pool, schema, 3, expired)
	unblock := block(t, pool, schema, "ACCESS EXCLUSIVE")
	b := start(t, "--database-url", url)
	pid := blocked(t, pool)
	exec(t, pool, fmt.Sprintf("SELECT pg_catalog.pg_terminate_backend(%d)", pid))
	blocked(t, pool, pid)
	unblock()
	b.wait(t).expect(t, cli.ExitOK, "1 tenant, 3 records deleted")
}

func TestUnreachable(t *testing.T) {
	t.Parallel()
	_, base := newPool(t)
	const password = "s3cret-Passw0rd"
	noDatabase, err := url.Parse(base)
	if err != nil {
		t.Fatal(err)
	}
	noDatabase.Path = "/pgidem_no_such_database"
	for _, databaseURL := range []string{
		"postgres://janitor:" + password + "@127.0.0.1:1/app?sslmode=disable",
		"host=127.0.0.1 port=1 user=janitor dbname=app password=" + password,
		noDatabase.String(),
	} {
		for _, mode := range []string{"--quiet", "--json", "--dry-run"} {
			r := janitorRunEnv(t, map[string]string{"DATABASE_URL": databaseURL}, mode)
			r.expect(t, cli.ExitUnreachable, "connect: ")
			if strings.Contains(r.stdout+r.stderr, password) {
				t.Errorf("the password is printed: %s%s", r.stdout, r.stderr)
			}
			if mode == "--json" && r.roundOf(t).Error == "" {
				t.Errorf("no error in %s", r.stdout)
			}
		}
	}
}

func TestDatabaseAwayInBetween(t *testing.T) {
	t.Parallel()
	server := pgtest.NewServer(t)
	schema := newTenant(t, server.URL())
	b := start(t, "--database-url", server.URL(), "--json", "--interval", "10ms")
	rounds := func() []roundJSON { return parseRounds(t, b.stdout.String()) }
	last := func() roundJSON { all := rounds(); return all[len(all)-1] }
	clitest.Eventually(t, "a round", func() bool { return len(rounds()) > 0 })

	if err := server.Kill(); err != nil {
		t.Fatal(err)
	}
	clitest.Eventually(t, "a round without the database", func() bool { return last().Error != "" })
	if err := server.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	pool := connect(t, server.URL())
	fill(t, pool, schema, 5, expired)
	clitest.Eventually(t, "a purge after the database came back", func() bool { return size(t, pool, schema) == 0 })

	b.stop(cli.Signalled{Signal: syscall.SIGTERM})
	b.wait(t).expect(t, cli.ExitOK)
}

func TestDatabaseGoesAwayMidway(t *testing.T) {
	t.Parallel()
	server := pgtest.NewServer(t)
	pool := connect(t, server.URL())
	stuck := newTenant(t, server.URL())
	for range 5 {
		newTenant(t, server.URL())
	}
	block(t, pool, stuck, "ACCESS EXCLUSIVE")
	b := start(t, "--database-url", server.URL(), "--json", "--workers", "1")
	blocked(t, pool)
	if err := server.Kill(); err != nil {
		t.Fatal(err)
	}
	r := b.wait(t)
	r.expect(t, cli.ExitUnreachable, "the database went away")
	if got := r.roundOf(t); got.Left == 0 || got.Failed != 0 || got.Done+got.Left != 6 {
		t.Errorf("%s", r.stdout)
	}
}

func connect(t *testing.T, url string) *pgxpool.Pool {
	t.Helper()
	pool, err := pgxpool.New(context.Background(), url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	return pool
}

func TestConnectionsAreRenewed(t *testing.T) {
	t.Parallel()
	cfg := pgtest.NewPool(t).Config()
	cfg.MaxConns, cfg.AfterRelease = 1, isFresh
	pool, err := pgxpool.NewWithConfig(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	uses := make(map[int32]int)
	for range 2*maxUses + 1 {
		var pid int32
		if err := pool.QueryRow(t.Context(), `SELECT pg_backend_pid()`).Scan(&pid); err != nil {
			t.Fatal(err)
		}
		uses[pid]++
	}
	if len(uses) != 3 || slices.Max(slices.Collect(maps.Values(uses))) != maxUses {
		t.Errorf("uses of connections: %v, want %d at most of each", uses, maxUses)
	}
}
