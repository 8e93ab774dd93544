package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	"github.com/pgidem/pgidem/internal/pgtest"
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

	f.run(t, "move", org).expect(t, 2, "give --to CLUSTER, or --cancel")
	f.run(t, "move", org, "--to", "eu-2", "--cancel").expect(t, 2, "give --to CLUSTER, or --cancel")
	f.run(t, "move", org, "--to", "eu-2", "--drain-timeout", "0", other).expect(t, 2, "--drain-timeout")
	f.run(t, "move", "0b8f0f4e-4a53-4fc1-9a0f-0a7c1e1d6a11", "--to", "eu-2", "--yes", other).expect(t, 6, "there is no tenant")
	f.run(t, "move", org, "--to", "eu-3", "--yes", other).expect(t, 1, `no database URL is given for cluster "eu-3"`)
	f.run(t, "move", org, "--cancel", other).expect(t, 1, "it is not being moved")
	f.run(t, "move", org, "--to", "eu-2", other).expect(t, 2, "give --yes")
	if got := f.state(t, tenant.OrgID); got != registry.Active {
		t.Fatalf("it is %s, though nothing was moved", got)
	}

	// It fails on the way, and is taken back.
	f.run(t, "move", org, "--to", "eu-2", "--yes", "--programs", t.TempDir(), other).expect(t, 1, "has to be installed")
	broken := t.TempDir()
	for _, program := range []string{"pg_dump", "pg_restore"} {
		if err := os.WriteFile(filepath.Join(broken, program), []byte("#!/bin/sh\necho nothing works >&2\nexit 3\n"), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	f.run(t, "move", org, "--to", "eu-2", "--yes", "--programs", broken, other).expect(t, 1, "nothing works", "run it again to go on, or with --cancel")
	f.run(t, "resume", org).expect(t, 1, "")
	if got := f.state(t, tenant.OrgID); got != registry.Suspended {
		t.Errorf("it is %s while it is being moved", got)
	}
	f.run(t, "move", org, "--cancel", other).expect(t, 0, "active")

	f.run(t, "move", org, "--to", "eu-2", "--yes", other).expect(t, 0, "moved from the nameless cluster to cluster eu-2", "and active", "copy\nverify\nswitch\ndrop\n")
	f.run(t, "move", org, "--to", "eu-2", "--yes", other).expect(t, 0, "is in cluster eu-2")
	back := f.run(t, "move", org, "--to", "", "--yes", "--json", other)
	back.expect(t, 0, "")
	var object struct {
		From, Cluster string
		State         registry.State
		Tables        []struct {
			Name string
			Rows int64
		}
	}
	if err := json.Unmarshal([]byte(back.stdout), &object); err != nil || object.From != "eu-2" || object.Cluster != "" || object.State != registry.Active {
		t.Errorf("%+v, %v", object, err)
	}
	var payments int64
	for _, table := range object.Tables {
		if table.Name == "payments" {
			payments = table.Rows
		}
	}
	if payments != 7 {
		t.Errorf("%d payments were moved; want 7: %+v", payments, object.Tables)
	}
	var n int
	if err := f.pool.QueryRow(t.Context(), `SELECT count(*) FROM `+tenant.Schema.Quoted()+`.payments`).Scan(&n); err != nil || n != 7 {
		t.Errorf("%d payments are back, %v", n, err)
	}
}
