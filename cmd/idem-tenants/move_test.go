package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/pgidem/pgidem/internal/cli"
	"github.com/pgidem/pgidem/internal/cli/clitest"
	"github.com/pgidem/pgidem/internal/pgtest"
	"github.com/pgidem/pgidem/tenancy"
	"github.com/pgidem/pgidem/tenancy/registry"
)

// TestMove: a tenant goes to another cluster and back, and what goes wrong on the way says
// what to do.
func TestMove(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	tenant := f.tenant(t)
	org := tenant.OrgID.String()
	f.exec(t, `CREATE TABLE `+tenant.Schema.Quoted()+`.payments AS SELECT generate_series(1, 7) AS n`)
	other := "--server=eu-2=" + pgtest.NewDatabase(t)

	f.run(t, "move", org).expect(t, cli.ExitUsage, "give --to CLUSTER, or --cancel")
	f.run(t, "move", org, "--to", "eu-2", "--cancel").expect(t, cli.ExitUsage, "give --to CLUSTER, or --cancel")
	f.run(t, "move", org, "--to", "eu-2", "--drain-timeout", "0", other).expect(t, cli.ExitUsage, "--drain-timeout")
	f.run(t, "move", "0b8f0f4e-4a53-4fc1-9a0f-0a7c1e1d6a11", "--to", "eu-2", "--yes", other).expect(t, exitNotFound, "there is no tenant")
	f.run(t, "move", org, "--to", "eu-3", other).expect(t, cli.ExitUsage, `no server for cluster "eu-3"`, "--server")
	f.run(t, "move", org, "--to", "eu-2", "--yes", "--server", "eu-2=host=db").expect(t, cli.ExitUsage, "give a URL")
	f.run(t, "move", org, "--to", "eu-2", "--yes", "--server", "eu-2=postgres://operator:hunter2@db:port/app").
		expect(t, cli.ExitUsage, "--server eu-2").without(t, "hunter2")
	f.run(t, "move", org, "--to", "eu-2", "--yes", "--server", "eu-2=postgres://operator:hunter2@127.0.0.1:1/app?sslmode=disable").
		expect(t, cli.ExitUnreachable, `cluster "eu-2"`).without(t, "hunter2")
	f.run(t, "move", org, "--cancel", other).expect(t, cli.ExitFailed, "it is not being moved")
	f.run(t, "move", org, "--to", "eu-2", other).expect(t, cli.ExitUsage, "give --yes")
	if got := f.state(t, tenant.OrgID); got != registry.Active {
		t.Fatalf("it is %s, though nothing was moved", got)
	}

	// It fails on the way, and is taken back.
	f.run(t, "move", org, "--to", "eu-2", "--yes", "--programs", t.TempDir(), other).expect(t, cli.ExitFailed, "has to be installed")
	broken := t.TempDir()
	for _, program := range []string{"pg_dump", "pg_restore"} {
		if err := os.WriteFile(filepath.Join(broken, program), []byte("#!/bin/sh\necho nothing works >&2\nexit 3\n"), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	f.run(t, "move", org, "--to", "eu-2", "--yes", "--programs", broken, other).expect(t, cli.ExitFailed, "nothing works", "run it again to go on, or with --cancel")
	f.run(t, "resume", org).expect(t, cli.ExitFailed, "is being moved", "--cancel")
	f.run(t, "drop", org, "--yes", "--confirm", tenant.Schema.String()).expect(t, cli.ExitFailed, "is being moved", "--cancel")
	if got := f.state(t, tenant.OrgID); got != registry.Suspended {
		t.Errorf("it is %s while it is being moved", got)
	}
	f.run(t, "migrate", "--tries", "2", "--schema", tenant.Schema.String()).expect(t, cli.ExitUnfinished, org+` is on its way to cluster "eu-2"`, "or cancel", "failed            0", "being moved       1, left for the next run")
	f.run(t, "migrate", "--all-schemas").expect(t, cli.ExitOK, "tenants           0")
	f.run(t, "move", org, "--cancel", other).expect(t, cli.ExitOK, "active")
	f.run(t, "migrate", "--schema", tenant.Schema.String()).expect(t, cli.ExitOK, "up to date        1")

	f.run(t, "move", org, "--to", "eu-2", "--yes", other).expect(t, cli.ExitOK, "moved from the nameless cluster to cluster eu-2", "and active", "copy\nverify\nswitch\ndrop\n")
	f.run(t, "move", org, "--to", "eu-2", "--yes", other).expect(t, cli.ExitOK, "is in cluster eu-2")
	f.run(t, "migrate", "--schema", tenant.Schema.String()).expect(t, cli.ExitFailed, org+` went to cluster "eu-2"`, "drop the schema")
	back := object[moveJSON](t, f.run(t, "move", org, "--to", "", "--yes", "--json", other).expect(t, cli.ExitOK))
	if back.OrgID != tenant.OrgID || back.From != "eu-2" || back.Cluster != "" || back.State != registry.Active || back.MovingTo != nil || back.Seconds <= 0 {
		t.Errorf("%+v", back)
	}
	var payments int64
	for _, table := range back.Tables {
		if table.Name == "payments" {
			payments = table.Rows
		}
	}
	if payments != 7 {
		t.Errorf("%d payments were moved; want 7: %+v", payments, back.Tables)
	}
	var n int
	if err := f.pool.QueryRow(t.Context(), `SELECT count(*) FROM `+tenant.Schema.Quoted()+`.payments`).Scan(&n); err != nil || n != 7 {
		t.Errorf("%d payments are back, %v", n, err)
	}
}

// TestMoveOfABusyTenant: a tenant with an attempt in progress is served again where it is, and
// a move that is stopped while it waits for it says how to go on.
func TestMoveOfABusyTenant(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	tenant := f.tenant(t)
	org := tenant.OrgID.String()
	claim(t, f.store(t), claimRequest(tenant.OrgID, "key", time.Hour/2))
	other := "--server=eu-2=" + pgtest.NewDatabase(t)

	f.run(t, "move", org, "--to", "eu-2", "--yes", "--drain-timeout", "100ms", other).expect(t, cli.ExitUnfinished, "busy")
	if got := f.state(t, tenant.OrgID); got != registry.Active {
		t.Errorf("it is %s after a move that came to nothing", got)
	}
	b := f.start(t, "move", org, "--to", "eu-2", "--yes", "--drain-timeout", "30m", other)
	clitest.Eventually(t, "it waits for the attempt", func() bool { return strings.Contains(b.stderr.String(), "drain\n") })
	b.stop(cli.Signalled{Signal: syscall.SIGINT})
	b.wait(t).expect(t, cli.ExitSignal+2, "stopped by signal interrupt", org+" may be suspended now", "--cancel")
	f.run(t, "move", org, "--cancel", other).expect(t, cli.ExitOK, "active")
}

// TestMoveThatLeavesSomething: the tenant is where it was to go, and what is in the way of dropping
// what it has left is said, with nothing of a tenant that is suspended.
func TestMoveThatLeavesSomething(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	tenant := f.tenant(t)
	org, fence := tenant.OrgID.String(), fmt.Sprintf("moving_%x", tenant.OrgID[:])
	fenced, err := tenancy.ParseSchema(fence)
	if err != nil {
		t.Fatal(err)
	}
	again := []string{"move", org, "--to", "eu-2", "--yes", "--drain-timeout", "100ms", "--server=eu-2=" + pgtest.NewDatabase(t)}
	f.run(t, again...).expect(t, cli.ExitOK)

	f.exec(t, `CREATE SCHEMA `+fence+` CREATE TABLE idempotency_records (a int)`) // as a run that was cut off leaves it
	unblock := f.block(t, fenced)
	left := []string{org + ` is in cluster "eu-2"`, "schema " + fence + `, which an earlier move has left, is still in cluster ""`, `move it to cluster "eu-2" again`}
	f.run(t, again...).expect(t, cli.ExitUnfinished, append(left, "busy")...).without(t, "suspended")
	b := f.start(t, append(again, "--drain-timeout", "1h")...)
	clitest.Eventually(t, "it waits for the lock", func() bool { return f.waitingAs(t, "pgidem move") == 1 })
	b.stop(cli.Signalled{Signal: syscall.SIGINT})
	b.wait(t).expect(t, cli.ExitSignal+2, org+" has been moved", "run it again to drop").without(t, "suspended")
	clitest.Eventually(t, "nothing of it waits any more", func() bool { return f.waitingAs(t, "pgidem move") == 0 })
	unblock()
	f.exec(t, `CREATE SCHEMA reports CREATE VIEW went AS SELECT * FROM `+fence+`.idempotency_records`)
	f.run(t, again...).expect(t, cli.ExitFailed, append(left, "view reports.went", org+" is in cluster eu-2, as the registry says: run it again to drop what it has left")...).without(t, "suspended")
	f.exec(t, `DROP SCHEMA reports CASCADE`)
	f.run(t, again...).expect(t, cli.ExitOK, "is in cluster eu-2")
	if f.exists(t, fenced) {
		t.Error("it is still there")
	}
}

// TestMoveOfATenantThatIsGone by the time that the move has the locks: it is not suspended.
func TestMoveOfATenantThatIsGone(t *testing.T) {
	t.Parallel()
	gone := fmt.Errorf("look up: %w", tenancy.ErrUnknownTenant)
	if err := new(app).moveError(t.Context(), place{}, gone); !errors.Is(err, gone) || strings.Contains(err.Error(), "suspended") {
		t.Errorf("%v; want %v alone", err, gone)
	}
}

// TestMigrateBesideAMove: a tenant that is being moved has not failed, nor has one that went
// after the run had read the registry; one that the registry says is here has.
func TestMigrateBesideAMove(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	other, away := f.behind(t), f.behind(t)
	if bytes.Compare(other.OrgID[:], away.OrgID[:]) > 0 {
		other, away = away, other // a run comes to the other first
	}
	org := away.OrgID.String()
	eu := "--server=eu-2=" + pgtest.NewDatabase(t)
	broken := t.TempDir()
	for _, program := range []string{"pg_dump", "pg_restore"} {
		if err := os.WriteFile(filepath.Join(broken, program), []byte("#!/bin/sh\nexit 3\n"), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	f.run(t, "move", org, "--to", "eu-2", "--yes", "--programs", broken, eu).expect(t, cli.ExitFailed)

	hurry := []string{"migrate", "--tries", "2", eu}
	f.run(t, append(hurry, "--dry-run")...).expect(t, cli.ExitUnfinished, "being moved       1", "failed            0", "to migrate        1")
	got := object[migrateJSON](t, f.run(t, append(hurry, "--dry-run", "--json")...).expect(t, cli.ExitUnfinished))
	if got.Failed != 0 || got.Busy != 0 || got.Moving != 1 || got.Left != 0 || len(got.Failures) != 1 {
		t.Fatalf("%+v", got)
	}
	if one := got.Failures[0]; !one.Moving || one.Busy || one.OrgID != org {
		t.Errorf("%+v", one)
	}

	// Cancelled, and gone while a run that has read the registry is at the other.
	f.run(t, "move", org, "--cancel", eu).expect(t, cli.ExitOK)
	unblock := f.block(t, other.Schema)
	b := f.start(t, append(hurry, "--workers", "1", "--lock-timeout", "1m")...)
	clitest.Eventually(t, "the migration waits for a lock", func() bool { return f.waiting(t) == 1 })
	f.run(t, "move", org, "--to", "eu-2", "--yes", eu).expect(t, cli.ExitOK)
	unblock()
	b.wait(t).expect(t, cli.ExitUnfinished, away.Schema.String()+": it was moved to cluster eu-2 while", "run migrate again", "being moved       1", "failed            0", "migrated          1")
	f.run(t, hurry...).expect(t, cli.ExitOK, "migrated          1", "up to date        1")

	f.run(t, "move", org, "--to", "", "--yes", "--programs", broken, eu).expect(t, cli.ExitFailed)
	f.run(t, hurry...).expect(t, cli.ExitUnfinished, away.Schema.String()+" in eu-2: it is being moved to the nameless cluster: run migrate again",
		"idem-tenants move "+org+` --to "" goes on`, "--cancel", "being moved       1, left for the next run", "failed            0", "up to date        1")
	f.run(t, "move", org, "--cancel", eu).expect(t, cli.ExitOK)
	f.exec(t, `UPDATE pgidem.tenants SET cluster = '' WHERE org_id = $1`, away.OrgID)
	f.run(t, hurry...).expect(t, cli.ExitFailed, org+` went to cluster "eu-2"`, "failed            1")
}
