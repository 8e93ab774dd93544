package main

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"
	"go.uber.org/goleak"

	"github.com/pgidem/pgidem/idempotency"
	"github.com/pgidem/pgidem/internal/cli/clitest"
	"github.com/pgidem/pgidem/internal/pgtest"
	"github.com/pgidem/pgidem/migrations"
	"github.com/pgidem/pgidem/tenancy"
	"github.com/pgidem/pgidem/tenancy/registry"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(pgtest.Tests{M: m}) }

// fixture is a database of a test's own, with a registry.
type fixture struct {
	pool    *pgxpool.Pool
	url     string
	tenants *registry.Registry
}

func newFixture(t testing.TB) fixture {
	t.Helper()
	pool := pgtest.NewPool(t)
	f := fixture{pool: pool, url: pool.Config().ConnString()}
	f.run(t, "init").expect(t, 0)
	tenants, err := registry.New(pool)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(tenants.Close)
	f.tenants = tenants
	return f
}

// run runs the program on the fixture's database.
func (f fixture) run(t testing.TB, args ...string) result {
	t.Helper()
	return runEnv(t, map[string]string{"DATABASE_URL": f.url}, args...)
}

// register adds a tenant to the registry, without a schema.
func (f fixture) register(t testing.TB, state registry.State) registry.Tenant {
	t.Helper()
	org := uuid.New()
	tenant, err := f.tenants.Add(t.Context(), registry.Tenant{OrgID: org, Schema: schemaOf(t, org), State: state})
	if err != nil {
		t.Fatal(err)
	}
	return tenant
}

// tenant adds a tenant that has been migrated.
func (f fixture) tenant(t testing.TB) registry.Tenant {
	t.Helper()
	tenant := f.register(t, registry.Active)
	if err := migrations.Up(t.Context(), f.url, tenant.Schema); err != nil {
		t.Fatal(err)
	}
	return tenant
}

func (f fixture) state(t testing.TB, org uuid.UUID) registry.State {
	t.Helper()
	tenant, err := f.tenants.Tenant(t.Context(), org)
	if err != nil {
		t.Fatal(err)
	}
	return tenant.State
}

func (f fixture) exec(t testing.TB, sql string, args ...any) {
	t.Helper()
	if _, err := f.pool.Exec(t.Context(), sql, args...); err != nil {
		t.Fatal(err)
	}
}

func schemaOf(t testing.TB, org uuid.UUID) tenancy.Schema {
	t.Helper()
	dir, err := tenancy.PerOrg("")
	if err != nil {
		t.Fatal(err)
	}
	schema, err := dir.Schema(t.Context(), org)
	if err != nil {
		t.Fatal(err)
	}
	return schema
}

func claimRequest(org uuid.UUID, key string, lease time.Duration) idempotency.ClaimRequest {
	return idempotency.ClaimRequest{
		Claim:       idempotency.Claim{OrgID: org, Key: key, Token: idempotency.NewToken()},
		RequestHash: strings.Repeat("ab", 32), Lease: lease, TTL: time.Hour,
	}
}

// result is what a run of the program came to.
type result struct {
	code           int
	stdout, stderr string
}

func runEnv(t testing.TB, env map[string]string, args ...string) result {
	t.Helper()
	return runInput(t, env, strings.NewReader(""), args...)
}

func runInput(t testing.TB, env map[string]string, stdin io.Reader, args ...string) result {
	t.Helper()
	var stdout, stderr bytes.Buffer
	code := run(t.Context(), args, func(name string) string { return env[name] }, stdin, &stdout, &stderr)
	return result{code, stdout.String(), stderr.String()}
}

// expect checks the exit code and that each of the texts was printed.
func (r result) expect(t testing.TB, code int, texts ...string) result {
	t.Helper()
	failed := false
	if r.code != code {
		t.Errorf("exit code %d, want %d", r.code, code)
		failed = true
	}
	for _, text := range texts {
		if !strings.Contains(r.stdout+r.stderr, text) {
			t.Errorf("%q is not in the output", text)
			failed = true
		}
	}
	if failed {
		t.Logf("stdout:\n%s\nstderr:\n%s", r.stdout, r.stderr)
	}
	return r
}

// without checks that none of the texts was printed.
func (r result) without(t testing.TB, texts ...string) result {
	t.Helper()
	for _, text := range texts {
		if strings.Contains(r.stdout+r.stderr, text) {
			t.Errorf("%q is in the output:\n%s%s", text, r.stdout, r.stderr)
		}
	}
	return r
}

// objects reads the lines of the output of --json.
func objects[T any](t testing.TB, r result) (all []T) {
	t.Helper()
	if r.stdout != "" && !strings.HasSuffix(r.stdout, "\n") {
		t.Errorf("the last line has no end: %q", r.stdout)
	}
	for line := range strings.Lines(r.stdout) {
		var object T
		decoder := json.NewDecoder(strings.NewReader(line))
		decoder.DisallowUnknownFields()
		if err := decoder.Decode(&object); err != nil {
			t.Fatalf("%v in %q", err, line)
		}
		all = append(all, object)
	}
	return all
}

// object reads the only object of the output of --json.
func object[T any](t testing.TB, r result) T {
	t.Helper()
	all := objects[T](t, r)
	if len(all) != 1 {
		t.Fatalf("%d objects, want 1; stdout:\n%s\nstderr:\n%s", len(all), r.stdout, r.stderr)
	}
	return all[0]
}

// background is a run of the program that goes on beside the test.
type background struct {
	stop   context.CancelCauseFunc
	stdout clitest.Buffer
	stderr clitest.Buffer
	done   chan struct{}
	code   int
}

func (f fixture) start(t testing.TB, args ...string) *background {
	t.Helper()
	ctx, stop := context.WithCancelCause(context.Background())
	b := &background{stop: stop, done: make(chan struct{})}
	getenv := func(name string) string { return map[string]string{"DATABASE_URL": f.url}[name] }
	go func() {
		defer close(b.done)
		b.code = run(ctx, args, getenv, strings.NewReader(""), &b.stdout, &b.stderr)
	}()
	t.Cleanup(func() {
		stop(context.Canceled)
		<-b.done
	})
	return b
}

// wait returns the result of the run when it has ended.
func (b *background) wait(t testing.TB) result {
	t.Helper()
	select {
	case <-b.done:
	case <-time.After(clitest.Patience):
		t.Fatalf("it goes on; stdout:\n%s\nstderr:\n%s", b.stdout.String(), b.stderr.String())
	}
	return result{b.code, b.stdout.String(), b.stderr.String()}
}
