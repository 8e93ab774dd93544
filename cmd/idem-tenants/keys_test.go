package main

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/pgidem/pgidem/idempotency"
	"github.com/pgidem/pgidem/idempotency/pgstore"
	"github.com/pgidem/pgidem/internal/cli"
	"github.com/pgidem/pgidem/internal/cli/clitest"
	"github.com/pgidem/pgidem/internal/pgtest"
	"github.com/pgidem/pgidem/migrations"
	"github.com/pgidem/pgidem/tenancy"
	"github.com/pgidem/pgidem/tenancy/registry"
)

func (f fixture) store(t testing.TB) *pgstore.Store {
	t.Helper()
	dir, err := tenancy.PerOrg("")
	if err != nil {
		t.Fatal(err)
	}
	store, err := pgstore.New(f.pool, dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(store.Close)
	return store
}

// claim claims a key that nobody holds.
func claim(t testing.TB, store idempotency.LeaseStore, req idempotency.ClaimRequest) idempotency.ClaimResult {
	t.Helper()
	result, err := store.Claim(t.Context(), req)
	if err != nil || result.Outcome != idempotency.OutcomeClaimed {
		t.Fatalf("outcome %d, %v", result.Outcome, err)
	}
	return result
}

// serve sends a request through the middleware.
func serve(org uuid.UUID, key string, store idempotency.Store, handler http.HandlerFunc, opts ...idempotency.Option) int {
	r := httptest.NewRequest(http.MethodPost, "/pay?card=4000-SECRET", strings.NewReader("request-SECRET"))
	r.Header.Set(idempotency.HeaderKey, key)
	w := httptest.NewRecorder()
	idempotency.Require(store, opts...)(handler).ServeHTTP(w, r.WithContext(tenancy.WithOrgID(r.Context(), org)))
	return w.Code
}

func TestInspectTenant(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	tenant := f.tenant(t)
	org := tenant.OrgID.String()
	store := f.store(t)
	claim(t, store, claimRequest(tenant.OrgID, "running", time.Hour/2))
	lapsing := claimRequest(tenant.OrgID, "lapsed", time.Millisecond)
	claim(t, store, lapsing)
	for i := range 3 {
		if err := store.Put(t.Context(), &idempotency.Record{OrgID: tenant.OrgID, Key: strconv.Itoa(i), ResponseStatus: 200}); err != nil {
			t.Fatal(err)
		}
	}
	clitest.Eventually(t, "the lease lapses", func() bool {
		r := object[tenantReport](t, f.run(t, "inspect", org, "--json").expect(t, cli.ExitOK))
		return r.Records.Interrupted == 1
	})
	r := object[tenantReport](t, f.run(t, "inspect", org, "--json").expect(t, cli.ExitOK))
	if r.Records != (recordCounts{InProgress: 1, Interrupted: 1, Completed: 3}) || r.State != registry.Active || r.Schema != tenant.Schema.String() ||
		*r.Cluster != "" || r.Bytes["idempotency_records"] == 0 || r.OldestInProgress == nil {
		t.Errorf("%+v", r)
	}
	f.run(t, "inspect", org).expect(t, cli.ExitOK, tenant.Schema.String(), "active", "1 in progress, 1 interrupted, 3 completed", "oldest in progress", "KiB")

	half := f.register(t, registry.Provisioning)
	f.run(t, "inspect", half.OrgID.String()).expect(t, cli.ExitFailed, "state         provisioning", "is registered as provisioning", "idem-tenants provision")
	f.run(t, "inspect", half.OrgID.String(), "key").expect(t, cli.ExitFailed, "is registered as provisioning")
	f.run(t, "release", "--yes", half.OrgID.String(), "key").expect(t, cli.ExitFailed, "is registered as provisioning")
	f.run(t, "inspect", uuid.NewString()).expect(t, exitNotFound, "no tenant")

	far := uuid.New()
	if _, err := f.tenants.Add(t.Context(), registry.Tenant{OrgID: far, Schema: schemaOf(t, far), Cluster: "eu", State: registry.Active}); err != nil {
		t.Fatal(err)
	}
	f.run(t, "inspect", far.String()).expect(t, cli.ExitUsage, `cluster "eu"`, "IDEM_TENANTS_SERVER")
}

// TestClusters looks at a tenant on another server than that of the registry.
func TestClusters(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	eu := pgtest.NewPool(t).Config().ConnString() // another database will do for another server
	org := uuid.New()
	if _, err := f.tenants.Add(t.Context(), registry.Tenant{OrgID: org, Schema: schemaOf(t, org), Cluster: "eu", State: registry.Active}); err != nil {
		t.Fatal(err)
	}
	if err := migrations.Up(t.Context(), eu, schemaOf(t, org)); err != nil {
		t.Fatal(err)
	}
	f.run(t, "inspect", org.String(), "--server", "eu="+eu).expect(t, cli.ExitOK, "cluster", "eu")
	env := map[string]string{"DATABASE_URL": f.url, "IDEM_TENANTS_SERVER": "us=" + anyURL + " eu=" + eu}
	runEnv(t, env, "inspect", org.String()).expect(t, cli.ExitOK, "0 in progress")
	env["IDEM_TENANTS_SERVER"] = "eu=postgres://operator:hunter2@db:port/app"
	runEnv(t, env, "inspect", org.String()).expect(t, cli.ExitUsage, "--server eu").without(t, "hunter2")
	env["IDEM_TENANTS_SERVER"] = "eu=postgres://operator:hunter2@127.0.0.1:1/app?sslmode=disable"
	runEnv(t, env, "inspect", org.String()).expect(t, cli.ExitUnreachable, "cluster eu").without(t, "hunter2")
}

// TestInspectKeyShowsNoSecrets looks at a key in all of its states; what client and handler
// sent is shown on request alone.
func TestInspectKeyShowsNoSecrets(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	tenant := f.tenant(t)
	org := tenant.OrgID.String()
	store := f.store(t)
	look := func(key string, args ...string) result {
		t.Helper()
		return f.run(t, append([]string{"inspect", org, key}, args...)...).expect(t, cli.ExitOK)
	}
	all := func(key string) (text, revealed result, info keyJSON) {
		t.Helper()
		text = look(key)
		info = object[keyJSON](t, look(key, "--json"))
		text.without(t, "SECRET")
		look(key, "--json").without(t, "SECRET", "U0VDUkVU") // in base64
		return text, look(key, "--reveal"), info
	}
	handler := func(key string) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			_, err := idempotency.Step(r.Context(), "charge", func(context.Context) (string, error) { return "result-SECRET", nil })
			if err != nil {
				t.Error(err)
			}
			text, revealed, info := all(key)
			text.expect(t, cli.ExitOK, "kept request", "POST", `"charge"`, "attempt")
			revealed.expect(t, cli.ExitOK, "request-SECRET", "4000-SECRET", "result-SECRET")
			if q := info.Request; q == nil || q.BodyBytes != 14 || q.Attempts != 0 || q.Target != "" || len(info.Steps) != 1 || info.Steps[0].Result != nil {
				t.Errorf("%s: %+v", key, info)
			}
			if strings.HasPrefix(key, "transaction") {
				if info.State != pgstore.KeyInTransaction || info.Transaction == nil || info.Transaction.PID == 0 || info.Record != nil {
					t.Errorf("%s: %+v", key, info)
				}
				text.expect(t, cli.ExitOK, "of server process")
			} else {
				if info.State != pgstore.KeyInProgress || info.Record.LeaseUntil == nil || info.Record.CompletedAt != nil || info.Record.Attempt != 1 {
					t.Errorf("%s: %+v", key, info)
				}
				text.expect(t, cli.ExitOK, "lease until")
			}
			w.Header().Set("X-Account", "header-SECRET")
			w.WriteHeader(http.StatusCreated)
			_, _ = w.Write([]byte("response-SECRET"))
		}
	}
	for key, over := range map[string]idempotency.Store{"lease": store, "transaction": store.Transactional()} {
		if code := serve(tenant.OrgID, key, over, handler(key), idempotency.WithRecoverable("POST /pay")); code != http.StatusCreated {
			t.Fatalf("%s: %d", key, code)
		}
		text, revealed, info := all(key)
		text.expect(t, cli.ExitOK, "completed", "201", `"charge"`)
		revealed.expect(t, cli.ExitOK, "header-SECRET", "response-SECRET", "result-SECRET")
		r := info.Record
		if info.State != pgstore.KeyCompleted || r.Status != 201 || !*r.Kept || r.BodyBytes != 15 || r.HeaderBytes == 0 || len(r.Fingerprint) != 64 || info.Request != nil || r.LeaseUntil != nil {
			t.Errorf("%s: %+v %+v", key, info, r)
		}
		secret := object[keyJSON](t, look(key, "--json", "--reveal"))
		if string(secret.Record.Body) != "response-SECRET" || secret.Record.Headers["X-Account"][0] != "header-SECRET" || string(secret.Steps[0].Result) != `"result-SECRET"` {
			t.Errorf("%s: %+v", key, secret)
		}
	}

	// A fingerprint of the service's own may be the request itself.
	own := claimRequest(tenant.OrgID, "own", time.Hour/2)
	own.RequestHash = "amount SECRET"
	claim(t, store, own)
	if _, _, info := all("own"); info.Record.Fingerprint != "" {
		t.Errorf("%+v", info.Record)
	}

	f.run(t, "inspect", org, "nothing").expect(t, exitNotFound, `"nothing"`)
	f.run(t, "inspect", f.tenant(t).OrgID.String(), "lease").expect(t, exitNotFound)
	f.run(t, "inspect", org, "lease", "--schema", "tenant_nobody").expect(t, exitNotFound, "tenant_nobody")
	noRegistry := runEnv(t, map[string]string{"DATABASE_URL": f.url, "IDEM_TENANTS_CONTROL_SCHEMA": "nowhere"}, "inspect", org, "lease", "--schema", tenant.Schema.String())
	noRegistry.expect(t, cli.ExitOK, "201")
}

func TestInspectScopes(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	tenant := f.tenant(t)
	org := tenant.OrgID.String()
	store := f.store(t)
	for i, user := range []string{"alice", "bob"} {
		code := serve(tenant.OrgID, "order", store, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(200 + i) },
			idempotency.WithScope(func(*http.Request) string { return user }))
		if code != 200+i {
			t.Fatal(code)
		}
	}
	both := objects[keyJSON](t, f.run(t, "inspect", org, "order", "--json").expect(t, cli.ExitOK))
	if len(both) != 2 || both[0].Scope == both[1].Scope || len(both[0].Scope) != 32 || both[0].Key != "order" || both[0].Record.Status+both[1].Record.Status != 401 {
		t.Fatalf("%+v", both)
	}
	one := object[keyJSON](t, f.run(t, "inspect", org, "order", "--scope", both[1].Scope, "--json").expect(t, cli.ExitOK))
	if one.Record.Status != both[1].Record.Status {
		t.Errorf("%+v", one)
	}
	text := f.run(t, "inspect", org, "order").expect(t, cli.ExitOK, both[0].Scope, both[1].Scope)
	if !strings.Contains(text.stdout, "\n\n") {
		t.Errorf("nothing between the two: %s", text.stdout)
	}
	f.run(t, "inspect", org, "order", "--scope", "alice").expect(t, cli.ExitUsage, "32 hexadecimal")
	f.run(t, "inspect", org, "order", "--scope", strings.Repeat("0", 32)).expect(t, exitNotFound)
	f.run(t, "release", org, "order", "--yes").expect(t, cli.ExitUsage, "2 scopes", "--scope")
}

func TestRelease(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	tenant := f.tenant(t)
	org := tenant.OrgID.String()
	store := f.store(t)
	state := func(key string) pgstore.KeyState {
		t.Helper()
		return object[keyJSON](t, f.run(t, "inspect", org, key, "--json").expect(t, cli.ExitOK)).State
	}

	held := claimRequest(tenant.OrgID, "held", time.Hour/2)
	claim(t, store, held)
	for _, flag := range []string{"--forget=false", "--forget"} {
		f.run(t, "release", "--yes", flag, org, "held").expect(t, cli.ExitFailed, "its lease holds until", "--force")
	}
	f.run(t, "release", "--force", org, "held").expect(t, cli.ExitUsage, "no terminal", "--yes")
	if err := store.Extend(t.Context(), held.Claim, time.Hour/2); err != nil {
		t.Fatalf("the attempt has lost its key: %v", err)
	}
	got := object[releaseJSON](t, f.run(t, "release", "--force", "--yes", "--json", org, "held").expect(t, cli.ExitOK))
	if got.Was != pgstore.KeyInProgress || got.Attempt != 1 || got.Forgotten || got.Key != "held" {
		t.Errorf("%+v", got)
	}
	if err := store.Complete(t.Context(), held.Claim, &idempotency.Record{OrgID: tenant.OrgID, Key: "held", ResponseStatus: 200}); !errors.Is(err, idempotency.ErrLeaseLost) {
		t.Errorf("the attempt that was released has stored its outcome: %v", err)
	}
	if result := claim(t, store, claimRequest(tenant.OrgID, "held", time.Hour/2)); result.Attempt != 2 {
		t.Errorf("attempt %d, want 2", result.Attempt)
	}

	lapsed := claimRequest(tenant.OrgID, "lapsed", time.Millisecond)
	claim(t, store, lapsed)
	clitest.Eventually(t, "the lease lapses", func() bool { return state("lapsed") == pgstore.KeyInterrupted })
	retry := claimRequest(tenant.OrgID, "lapsed", time.Hour/2)
	retry.Interrupted = idempotency.Refuse
	f.run(t, "release", "--yes", org, "lapsed").expect(t, cli.ExitOK, "attempt 1 is released", "a retry is attempt 2")
	if result, err := store.Claim(t.Context(), retry); err != nil || result.Outcome != idempotency.OutcomeInterrupted {
		t.Errorf("outcome %d, %v", result.Outcome, err)
	}
	f.run(t, "release", "--yes", "--forget", org, "lapsed").expect(t, cli.ExitOK, "a retry is a first attempt")
	f.run(t, "inspect", org, "lapsed").expect(t, exitNotFound)
	if result := claim(t, store, retry); result.Attempt != 1 {
		t.Errorf("attempt %d, want 1", result.Attempt)
	}

	if err := store.Put(t.Context(), &idempotency.Record{OrgID: tenant.OrgID, Key: "completed", ResponseStatus: 200}); err != nil {
		t.Fatal(err)
	}
	f.run(t, "release", "--yes", "--force", "--forget", org, "completed").expect(t, cli.ExitFailed, "what has completed is left alone")
	if state("completed") != pgstore.KeyCompleted {
		t.Error("what had completed was touched")
	}
	f.run(t, "release", "--yes", org, "nothing").expect(t, exitNotFound, `"nothing"`)

	serve(tenant.OrgID, "transaction", store.Transactional(), func(w http.ResponseWriter, _ *http.Request) {
		f.run(t, "release", "--yes", "--force", org, "transaction").expect(t, cli.ExitFailed, "in_transaction", "pg_terminate_backend(")
		w.WriteHeader(http.StatusCreated)
	})
	if state("transaction") != pgstore.KeyCompleted {
		t.Error("the transaction did not complete")
	}
}
