package service_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"
	"go.uber.org/goleak"

	"github.com/pgidem/pgidem/examples/payments/internal/service"
	"github.com/pgidem/pgidem/internal/pgtest"
	"github.com/pgidem/pgidem/tenancy"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(pgtest.Tests{M: m}) }

const goodOrder = `{"reference":"inv-1","payee":"printer","amount":1250,"currency":"EUR"}`

// api is a service on a database of the test's own, with both tenants migrated.
type api struct {
	*service.Service
	pool *pgxpool.Pool
	url  string // of a server that serves it
}

// newService returns a service that nobody serves.
func newService(t *testing.T, change func(*service.Config)) *api {
	t.Helper()
	pool := pgtest.NewPool(t)
	if err := service.Migrate(t.Context(), pool.Config().ConnString(), schemaOf(t, service.North), schemaOf(t, service.South)); err != nil {
		t.Fatal(err)
	}
	cfg := service.Config{
		Pool:       pool,
		Tenants:    directory(t),
		SigningKey: ed25519.NewKeyFromSeed(bytes.Repeat([]byte{7}, ed25519.SeedSize)),
		Logger:     slog.New(slog.NewTextHandler(t.Output(), nil)),
	}
	if change != nil {
		change(&cfg)
	}
	s, err := service.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return &api{Service: s, pool: pool}
}

// newAPI returns a service that a test server serves.
func newAPI(t *testing.T) *api {
	t.Helper()
	a := newService(t, nil)
	server := httptest.NewServer(a)
	t.Cleanup(server.Close)
	a.url = server.URL
	return a
}

func directory(t *testing.T) tenancy.Directory {
	t.Helper()
	dir, err := tenancy.PerOrg("")
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

func schemaOf(t *testing.T, orgID uuid.UUID) tenancy.Schema {
	t.Helper()
	schema, err := directory(t).Schema(t.Context(), orgID)
	if err != nil {
		t.Fatal(err)
	}
	return schema
}

// count counts the rows of a tenant's table.
func (a *api) count(t *testing.T, orgID uuid.UUID, table string) (n int) {
	t.Helper()
	if err := a.pool.QueryRow(t.Context(), "SELECT count(*) FROM "+schemaOf(t, orgID).Quoted()+"."+table).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

// exec runs a statement in which %s stands for north's schema.
func (a *api) exec(t *testing.T, before, after string, args ...any) {
	t.Helper()
	if _, err := a.pool.Exec(t.Context(), before+schemaOf(t, service.North).Quoted()+after, args...); err != nil {
		t.Fatal(err)
	}
}

// lockPayments keeps north's payments from being written until it is released.
func (a *api) lockPayments(t *testing.T) (release func()) {
	t.Helper()
	tx, err := a.pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	release = func() { _ = tx.Rollback(context.Background()) }
	t.Cleanup(release)
	if _, err := tx.Exec(t.Context(), "LOCK TABLE "+schemaOf(t, service.North).Quoted()+".payments IN SHARE MODE"); err != nil {
		t.Fatal(err)
	}
	return release
}

// awaitBlocked waits until a handler waits for the lock of lockPayments.
func (a *api) awaitBlocked(t *testing.T) {
	t.Helper()
	eventually(t, "a handler that waits for the table", func() bool {
		var blocked bool
		err := a.pool.QueryRow(t.Context(), `
			SELECT EXISTS (
				SELECT FROM pg_catalog.pg_locks AS l
				JOIN pg_catalog.pg_database AS d ON d.oid = l.database
				WHERE NOT l.granted AND d.datname = current_database()
			)`).Scan(&blocked)
		if err != nil {
			t.Fatal(err)
		}
		return blocked
	})
}

func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for !is() {
		if time.Now().After(deadline) {
			t.Fatalf("10 seconds without %s", what)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// call is a request of a test.
type call struct {
	method, path, token, key, body string
}

// reply is its response.
type reply struct {
	status int
	header http.Header
	body   []byte
}

func (a *api) do(t *testing.T, c call) reply {
	t.Helper()
	r, err := send(t.Context(), a.url, c)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func send(ctx context.Context, url string, c call) (reply, error) {
	req, err := http.NewRequestWithContext(ctx, c.method, url+c.path, bytes.NewReader([]byte(c.body)))
	if err != nil {
		return reply{}, err
	}
	if c.token != "" {
		req.Header.Set("Authorization", "Bearer "+c.token)
	}
	if c.key != "" {
		req.Header.Set("Idempotency-Key", c.key)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return reply{}, err
	}
	body, err := io.ReadAll(resp.Body)
	return reply{resp.StatusCode, resp.Header, body}, errors.Join(err, resp.Body.Close())
}

// login returns the token of a tenant's user.
func (a *api) login(t *testing.T, tenant string) string {
	t.Helper()
	r := a.do(t, call{method: "POST", path: "/v1/auth/login", body: `{"email":"cashier@` + tenant + `.example","password":"fake-password-` + tenant + `"}`})
	token, _ := r.json(t)["access_token"].(string)
	if r.status != http.StatusOK || token == "" {
		t.Fatalf("login: %d %s", r.status, r.body)
	}
	return token
}

// pay returns the call that makes a payment.
func pay(token, key, body string) call {
	return call{method: "POST", path: "/v1/payments", token: token, key: key, body: body}
}

func (r reply) json(t *testing.T) (object map[string]any) {
	t.Helper()
	if err := json.Unmarshal(r.body, &object); err != nil {
		t.Fatalf("body %q: %v", r.body, err)
	}
	return object
}

func (r reply) replayed() bool { return r.header.Get("Idempotency-Replayed") == "true" }

// wantProblem checks that the reply is a problem (RFC 9457).
func (r reply) wantProblem(t *testing.T, status int, code string) {
	t.Helper()
	if r.status != status || r.header.Get("Content-Type") != "application/problem+json" {
		t.Fatalf("got %d %s %s, want problem %d", r.status, r.header.Get("Content-Type"), r.body, status)
	}
	p := r.json(t)
	if p["code"] != code || p["status"] != float64(status) || p["title"] == "" || p["detail"] == "" {
		t.Errorf("got problem %s, want code %s", r.body, code)
	}
}

func (r reply) wantStatus(t *testing.T, status int) {
	t.Helper()
	if r.status != status {
		t.Fatalf("got %d %s, want %d", r.status, r.body, status)
	}
}

func TestNewNeedsItsParts(t *testing.T) {
	t.Parallel()
	whole := service.Config{
		Pool: pgtest.NewPool(t), Tenants: directory(t),
		SigningKey: ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize)),
	}
	if _, err := service.New(whole); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*service.Config){
		"pool":        func(c *service.Config) { c.Pool = nil },
		"directory":   func(c *service.Config) { c.Tenants = nil },
		"key":         func(c *service.Config) { c.SigningKey = nil },
		"interval":    func(c *service.Config) { c.PurgeInterval = -1 },
		"grace":       func(c *service.Config) { c.ShutdownGrace = -1 },
		"short key":   func(c *service.Config) { c.SigningKey = c.SigningKey[:32] },
		"no anything": func(c *service.Config) { *c = service.Config{} },
	} {
		cfg := whole
		change(&cfg)
		if _, err := service.New(cfg); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func TestMigrateAgain(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	a.do(t, pay(a.login(t, "north"), "k", goodOrder)).wantStatus(t, http.StatusCreated)
	if err := service.Migrate(t.Context(), a.pool.Config().ConnString(), schemaOf(t, service.North)); err != nil {
		t.Fatal(err)
	}
	if n := a.count(t, service.North, "payments"); n != 1 {
		t.Errorf("%d payments after a second migration, want the 1 from before", n)
	}
}

func TestLogin(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	login := call{method: "POST", path: "/v1/auth/login"}

	t.Run("issues a token", func(t *testing.T) {
		login := login
		login.body = `{"email":"cashier@south.example","password":"fake-password-south"}`
		r := a.do(t, login)
		r.wantStatus(t, http.StatusOK)
		if r.header.Get("Cache-Control") != "no-store" {
			t.Error("a token may be cached")
		}
		token, _ := r.json(t)["access_token"].(string)
		a.do(t, pay(token, "south's", goodOrder)).wantStatus(t, http.StatusCreated)
		if n := a.count(t, service.South, "payments"); n != 1 {
			t.Errorf("%d payments in south's schema, want 1", n)
		}
	})
	t.Run("is excluded from both middlewares", func(t *testing.T) {
		login := login
		login.key, login.body = "login-key", `{"email":"cashier@north.example","password":"fake-password-north"}`
		for range 2 {
			r := a.do(t, login)
			r.wantStatus(t, http.StatusOK)
			if r.replayed() {
				t.Error("a token was replayed")
			}
		}
		if n := a.count(t, service.North, "idempotency_records"); n != 0 {
			t.Errorf("%d records, want none: a token was stored", n)
		}
	})
	for name, tc := range map[string]struct {
		body   string
		status int
		code   string
	}{
		"wrong password":       {`{"email":"cashier@north.example","password":"fake-password-south"}`, 401, "login_refused"},
		"unknown user":         {`{"email":"nobody@north.example","password":""}`, 401, "login_refused"},
		"no body":              {``, 400, "body_malformed"},
		"unknown field":        {`{"email":"cashier@north.example","password":"fake-password-north","org_id":"x"}`, 400, "body_malformed"},
		"two objects":          {`{} {}`, 400, "body_malformed"},
		"a body without limit": {`{"email":"` + string(bytes.Repeat([]byte("a"), 1<<20)) + `"}`, 413, "body_too_large"},
	} {
		t.Run(name, func(t *testing.T) {
			login := login
			login.body = tc.body
			a.do(t, login).wantProblem(t, tc.status, tc.code)
		})
	}
}

func TestRoutesNeedAToken(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	a.do(t, pay("", "k", goodOrder)).wantProblem(t, http.StatusUnauthorized, "token_missing")
	a.do(t, call{method: "GET", path: "/v1/payments"}).wantProblem(t, http.StatusUnauthorized, "token_missing")
	a.do(t, call{method: "GET", path: "/healthz"}).wantStatus(t, http.StatusOK)
}

func TestHealthWithoutDatabase(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	a.pool.Close()
	a.do(t, call{method: "GET", path: "/healthz"}).wantProblem(t, http.StatusServiceUnavailable, "database_unreachable")
}
