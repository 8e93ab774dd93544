package pgstore_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgidem/pgidem/authctx"
	"github.com/pgidem/pgidem/idempotency"
	"github.com/pgidem/pgidem/idempotency/pgstore"
	"github.com/pgidem/pgidem/internal/pgtest"
	"github.com/pgidem/pgidem/internal/storetest"
	"github.com/pgidem/pgidem/migrations"
	"github.com/pgidem/pgidem/tenancy"
	"github.com/pgidem/pgidem/tenancy/registry"
)

// The tenants of the tests of isolation. What is A's is sent with B's name wherever a
// client can put one.
var (
	orgA = uuid.MustParse("aaaaaaaa-0000-4000-8000-00000000000a")
	orgB = uuid.MustParse("bbbbbbbb-0000-4000-8000-00000000000b")
)

const secretOfB = "what only B may see"

// twoTenants serves A and B over one database: by schemas of their own names and by the
// registry, in which nothing but the lookup leads to them; with leases and in transactions.
type twoTenants struct {
	pool     *pgxpool.Pool
	key      []byte
	handlers map[string]http.Handler
	tablesOf string // the tables of B, as a query that returns all that they hold
	before   string
}

func newTwoTenants(t testing.TB) *twoTenants {
	t.Helper()
	pool := pgtest.NewPool(t)
	connection := pool.Config().ConnString()
	control, err := tenancy.ParseSchema(registry.DefaultSchema)
	if err != nil {
		t.Fatal(err)
	}
	if err := migrations.UpControl(t.Context(), connection, control); err != nil {
		t.Fatal(err)
	}
	reg, err := registry.New(pool)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(reg.Close)
	for org, schema := range map[uuid.UUID]tenancy.Schema{orgA: storetest.NewSchema(t, pool, "alpha"), orgB: storetest.NewSchema(t, pool, "beta")} {
		if _, err := reg.Add(t.Context(), registry.Tenant{OrgID: org, Schema: schema, State: registry.Active}); err != nil {
			t.Fatal(err)
		}
		if err := migrations.Up(t.Context(), connection, storetest.SchemaOf(t, org)); err != nil {
			t.Fatal(err)
		}
		for _, s := range []tenancy.Schema{schema, storetest.SchemaOf(t, org)} {
			if _, err := pool.Exec(t.Context(), `CREATE TABLE `+s.Quoted()+`.payments (org text NOT NULL)`); err != nil {
				t.Fatal(err)
			}
		}
	}

	w := &twoTenants{pool: pool, key: bytes.Repeat([]byte("k"), 32), handlers: make(map[string]http.Handler)}
	auth, err := authctx.New(authctx.WithKey("HS256", w.key))
	if err != nil {
		t.Fatal(err)
	}
	for name, dir := range map[string]tenancy.Directory{"per org": storetest.PerOrg, "registry": reg} {
		store, err := pgstore.New(pool, dir)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(store.Close)
		recoverable := idempotency.WithRecoverable("POST /recoverable")
		w.handlers[name+", leases"] = auth.Middleware(idempotency.Require(store, recoverable)(http.HandlerFunc(payFor)))
		w.handlers[name+", transactions"] = auth.Middleware(idempotency.Require(store.Transactional(), recoverable)(http.HandlerFunc(payFor)))
	}
	for name := range w.handlers {
		for _, key := range []string{"key", "shared", orgB.String()} {
			if status, body := w.send(t, name, orgB, request{method: "POST", path: "/payments", key: key}); status != http.StatusCreated || !strings.Contains(body, secretOfB) {
				t.Fatalf("%s: B's own request: %d %s", name, status, body)
			}
		}
	}
	w.tablesOf = w.query(t)
	w.before = w.look(t)
	if strings.Count(w.before, orgB.String()) < 6 {
		t.Fatalf("B has too little to lose:\n%s", w.before)
	}
	return w
}

// payFor pays, in the transaction if there is one, and says whose it is.
func payFor(w http.ResponseWriter, r *http.Request) {
	org, _ := tenancy.OrgID(r.Context())
	if tx, ok := pgstore.Tx(r.Context()); ok {
		if _, err := tx.Exec(r.Context(), `INSERT INTO payments (org) VALUES ($1)`, org.String()); err != nil { // unqualified
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
	}
	_, _ = io.Copy(io.Discard, r.Body)
	w.WriteHeader(http.StatusCreated)
	if org == orgB {
		_, _ = io.WriteString(w, secretOfB)
		return
	}
	_, _ = fmt.Fprint(w, "done for ", org)
}

// request is what a client chooses beside the org_id of its token.
type request struct {
	method, path, query, key, header, value, claim, said, body string
}

// send sends a request with a token of org.
func (w *twoTenants) send(t testing.TB, handler string, org uuid.UUID, req request) (status int, body string) {
	t.Helper()
	claims := jwt.MapClaims{}
	if req.claim != "" {
		claims[req.claim] = req.said
		claims["nested"] = map[string]any{req.claim: req.said, "org_id": req.said}
	}
	claims["org_id"], claims["exp"] = org.String(), time.Now().Add(time.Hour).Unix()
	if req.claim == "nbf" || req.claim == "iss" || req.claim == "aud" {
		delete(claims, req.claim)
	}
	token, err := jwt.NewWithClaims(jwt.SigningMethodHS256, claims).SignedString(w.key)
	if err != nil {
		t.Skip(err) // no token can say that
	}
	r := (&http.Request{
		Method: req.method, URL: &url.URL{Path: req.path, RawQuery: req.query}, Host: req.value, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: http.Header{}, Body: io.NopCloser(strings.NewReader(req.body)), ContentLength: int64(len(req.body)), RemoteAddr: req.value,
	}).WithContext(context.Background())
	if req.header != "" {
		r.Header[req.header] = []string{req.value}
		r.Header.Set(req.header, req.value)
	}
	if req.key != "" {
		r.Header["Idempotency-Key"] = append(r.Header["Idempotency-Key"], req.key)
	}
	for name := range r.Header {
		if http.CanonicalHeaderKey(name) == "Authorization" {
			delete(r.Header, name)
		}
	}
	r.Header.Set("Authorization", "Bearer "+token)
	answer := httptest.NewRecorder()
	w.handlers[handler].ServeHTTP(answer, r)
	return answer.Code, answer.Body.String()
}

// query returns a query for all that the tables of B hold, each version of a row with who
// made, changed or locked it, and for the tables that there are at all.
func (w *twoTenants) query(t testing.TB) string {
	t.Helper()
	var sql string
	err := w.pool.QueryRow(t.Context(), `
		SELECT string_agg(format('SELECT %L || coalesce(string_agg(concat_ws('' '', ctid, xmin, xmax, x::text), E''\n'' ORDER BY ctid), '''') FROM %s x', oid::regclass || E'\n', oid::regclass), ' UNION ALL ')
		FROM pg_class WHERE relkind = 'r' AND relnamespace IN ('beta'::regnamespace, $1::text::regnamespace)`,
		storetest.SchemaOf(t, orgB).Quoted()).Scan(&sql)
	if err != nil {
		t.Fatal(err)
	}
	return `SELECT string_agg(part, E'\n' ORDER BY part) FROM (` + sql + ` UNION ALL
		SELECT string_agg(oid::regclass::text, ' ' ORDER BY oid) FROM pg_class WHERE relnamespace::regnamespace::text !~ '^pg_'
		UNION ALL SELECT string_agg(concat_ws(' ', xmin, xmax, x::text), E'\n' ORDER BY ctid) FROM pgidem.tenants x) parts (part)`
}

func (w *twoTenants) look(t testing.TB) string {
	t.Helper()
	var all string
	if err := w.pool.QueryRow(t.Context(), w.tablesOf).Scan(&all); err != nil {
		t.Fatal(err)
	}
	return all
}

// try sends a request of A, twice, in all ways, and checks that it met nothing of B's. It
// returns the statuses.
func (w *twoTenants) try(t testing.TB, req request) (statuses []int) {
	t.Helper()
	for name := range w.handlers {
		for range 2 {
			status, body := w.send(t, name, orgA, req)
			if strings.Contains(body, secretOfB) {
				t.Errorf("%s: A got a response of B: %d %s", name, status, body)
			}
			statuses = append(statuses, status)
		}
	}
	if after := w.look(t); after != w.before {
		t.Fatalf("B's tables were\n%s\nand are, after %+v of A,\n%s", w.before, req, after)
	}
	return statuses
}

// spellings are the ways to name B.
func spellings(t testing.TB) []string {
	t.Helper()
	schema := storetest.SchemaOf(t, orgB)
	hex := strings.ReplaceAll(orgB.String(), "-", "")
	return []string{
		orgB.String(), strings.ToUpper(orgB.String()), hex, strings.ToUpper(hex), "{" + orgB.String() + "}", orgB.URN(),
		schema.String(), schema.Quoted(), "beta", `"beta"`, "beta.idempotency_records",
		`alpha"; SET search_path = beta; --`, "'; DELETE FROM beta.idempotency_records; --", "../" + orgB.String(), "-c search_path=beta",
	}
}

// requestsNaming returns requests with what is said in each place that a client can put it.
func requestsNaming(said string) []request {
	plain := request{method: "POST", path: "/payments", key: "key"}
	with := func(change func(*request)) request {
		req := plain
		change(&req)
		return req
	}
	requests := []request{
		plain,
		with(func(r *request) { r.key = said }),
		with(func(r *request) { r.key = `"` + said + `"` }),
		with(func(r *request) { r.path = "/" + said + "/payments" }),
		with(func(r *request) { r.path = "/recoverable"; r.query = "org_id=" + said; r.key = "kept" }),
		with(func(r *request) { r.query = "org_id=" + said + "&tenant=" + said + "&schema=" + said }),
		with(func(r *request) { r.body = `{"org_id":"` + said + `"}` }),
		with(func(r *request) { r.method = said }),
		with(func(r *request) { r.method = "PUT"; r.key = "shared" }),
	}
	for _, name := range []string{"X-Org-Id", "org_id", "X-Tenant", "X-Tenant-Id", "X-Schema", "Host", "X-Forwarded-Host", "Cookie", "Idempotency-Key", "authorization", "Search_path", "Pgoptions"} {
		requests = append(requests, with(func(r *request) { r.header, r.value = name, said }))
	}
	for _, name := range []string{"sub", "org", "orgId", "ORG_ID", "Org_ID", "org_id ", "tenant", "tenant_id", "schema", "iss", "aud", "azp", "jti", "scope", "https://example.com/org_id"} {
		requests = append(requests, with(func(r *request) { r.claim, r.said = name, said }))
	}
	return requests
}

// TestATenantNeverTouchesAnother: whatever a request of A says, B's tables stay as they
// are, byte for byte, and no response is B's.
func TestATenantNeverTouchesAnother(t *testing.T) {
	t.Parallel()
	w := newTwoTenants(t)
	var created int
	for _, said := range spellings(t) {
		for _, req := range requestsNaming(said) {
			for _, status := range w.try(t, req) {
				if status == http.StatusCreated {
					created++
				}
			}
		}
	}
	if created < 1000 {
		t.Errorf("only %d requests of A were served: the test proves little", created)
	}
	// It is A's tables that the requests were in.
	var records int
	schema := storetest.SchemaOf(t, orgA).Quoted()
	if err := w.pool.QueryRow(t.Context(), `SELECT (SELECT count(*) FROM `+schema+`.idempotency_records) + (SELECT count(*) FROM alpha.idempotency_records)`).Scan(&records); err != nil || records < 20 {
		t.Errorf("A has %d records, %v", records, err)
	}
}

// FuzzATenantNeverTouchesAnother is the same with anything that a client may say.
func FuzzATenantNeverTouchesAnother(f *testing.F) {
	for i, said := range spellings(f) {
		requests := requestsNaming(said)
		for j := i % 3; j < len(requests); j += 3 {
			r := requests[j]
			f.Add(r.method, r.path, r.query, r.key, r.header, r.value, r.claim, r.said, r.body)
		}
	}
	w := newTwoTenants(f)
	f.Fuzz(func(t *testing.T, method, path, query, key, header, value, claim, said, body string) {
		w.try(t, request{method, path, query, key, header, value, claim, said, body})
	})
}
