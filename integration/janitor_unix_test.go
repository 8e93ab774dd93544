//go:build unix

package integration_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/pgidem/pgidem/idempotency"
	"github.com/pgidem/pgidem/internal/storetest"
)

// testJanitor runs the real command through a PgBouncer: it deletes what has expired, of all
// tenants, and nothing else, over connections that others share.
func testJanitor(t *testing.T, b *bouncer) {
	direct, pooled := b.pools(t, "janitor", pgx.QueryExecModeExec)
	store := storetest.NewStore(t, pooled)
	const tenants, expired, fresh = 6, 7, 3
	var orgs []uuid.UUID
	put := func(org uuid.UUID, name string, n int) {
		for i := range n {
			if err := store.Put(t.Context(), &idempotency.Record{OrgID: org, Key: fmt.Sprint(name, i), RequestHash: "hash", ResponseStatus: 201}); err != nil {
				t.Fatal(err)
			}
		}
	}
	for range tenants {
		org := storetest.NewTenant(t, direct)
		put(org, "expired", expired)
		storetest.Advance(t, direct, org, 48*time.Hour)
		put(org, "fresh", fresh)
		orgs = append(orgs, org)
	}

	program := filepath.Join(t.TempDir(), "idem-janitor")
	build := exec.CommandContext(t.Context(), "go", "build", "-C", "..", "-o", program, "./cmd/idem-janitor") // of the library's own module
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	run := func(flags ...string) (stdout string, code int) {
		cmd := exec.CommandContext(t.Context(), program, append(flags, "--json", "--workers=8", "--batch=2")...)
		cmd.Env = append(os.Environ(), "DATABASE_URL="+inDatabase(t, b.url, "janitor"))
		out, err := cmd.Output()
		var exit *exec.ExitError
		if err != nil && !errors.As(err, &exit) {
			t.Fatal(err)
		}
		return string(out), cmd.ProcessState.ExitCode()
	}
	// As --lock-timeout, it is a parameter of the connection, which PgBouncer refuses.
	if out, code := run("--statement-timeout=10s"); code != 3 || !strings.Contains(out, "statement_timeout") {
		t.Errorf("exit code %d, %s; want 3 and the parameter", code, out)
	}
	for _, want := range []int{tenants * expired, 0} {
		out, code := run()
		var report struct {
			Tenants int `json:"tenants_done"`
			Deleted int `json:"records_deleted"`
			Failed  int `json:"tenants_failed"`
		}
		if err := json.Unmarshal([]byte(out), &report); err != nil || code != 0 || report.Tenants != tenants || report.Deleted != want || report.Failed != 0 {
			t.Errorf("exit code %d, %v, %s; want %d deleted of %d tenants", code, err, out, want, tenants)
		}
	}
	for _, org := range orgs {
		var n int
		if err := direct.QueryRow(t.Context(), `SELECT count(*) FROM `+storetest.SchemaOf(t, org).Quoted()+`.idempotency_records WHERE key LIKE 'fresh%'`).Scan(&n); err != nil || n != fresh {
			t.Errorf("%d fresh records are left, %v; want %d", n, err, fresh)
		}
	}
	wantClean(t, direct, pooled)
}
