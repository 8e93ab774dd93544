package idempotencytest

import (
	"net/http"
	"strings"
	"testing"

	"github.com/pgidem/pgidem/idempotency"
)

func testRequiredKey(t *testing.T, f *fixture) {
	items := f.serve(t, create(), idempotency.WithRequireKey("POST /v1/items/{id}"))
	for _, path := range []string{"/v1/items/7", "/v1/items/7;", "/v1/items/7%25", "/v1/items/7%5c", "/v1/items/7%2f8", "/v1/items/%01"} {
		items.do(t, call{path: path}).wantProblem(t, http.StatusBadRequest, "key_missing")
	}
	s := f.serve(t, create(), idempotency.WithRequireKey("POST /v1/payments"))
	for _, path := range []string{"", "/v1/p%61yments", "//v1/payments", "/v1/x/../payments"} {
		s.do(t, call{path: path}).wantProblem(t, http.StatusBadRequest, "key_missing")
	}
	s.do(t, call{path: "/v1/other"}).want(t, http.StatusCreated, `{"id":1}`)
	s.do(t, call{key: "k"}).want(t, http.StatusCreated, `{"id":2}`)
	missing := idempotency.DecisionMissingKey
	s.wantDecisions(t, missing, missing, missing, missing, idempotency.DecisionExecuted)

	everywhere := f.serve(t, create(), idempotency.WithRequireKey())
	everywhere.do(t, call{path: "/any/where"}).wantProblem(t, http.StatusBadRequest, "key_missing")
	everywhere.do(t, call{method: http.MethodGet}).want(t, http.StatusCreated, `{"id":1}`)
}

func testInvalidKeys(t *testing.T, f *fixture) {
	s := f.serve(t, create())
	for name, lines := range map[string][]string{
		"two lines":              {"a", "b"},
		"two equal lines":        {"a", "a"},
		"empty":                  {""},
		"blank":                  {"  "},
		"too long":               {strings.Repeat("k", 256)},
		"quoted and too long":    {`"` + strings.Repeat("k", 256) + `"`},
		"tab":                    {"a\tb"},
		"byte above ASCII":       {"caf\xc3\xa9"},
		"quoted empty":           {`""`},
		"quote never closed":     {`"a`},
		"quoted and more":        {`"a" b`},
		"list of quoted":         {`"a", "b"`},
		"quoted bad escape":      {`"a\b"`},
		"quoted control":         {"\"a\tb\""},
		"quoted byte over ASCII": {"\"caf\xc3\xa9\""},
	} {
		a := s.do(t, call{header: http.Header{idempotency.HeaderKey: lines}})
		if a.StatusCode != http.StatusBadRequest {
			t.Errorf("%s: %d %s, want 400", name, a.StatusCode, a.body)
			continue
		}
		a.wantProblem(t, http.StatusBadRequest, "key_invalid")
		if !strings.Contains(a.body, "This one will not do: ") {
			t.Errorf("%s: the problem does not say what is wrong: %s", name, a.body)
		}
	}
	s.wantRuns(t, 0)
	for name, key := range map[string]string{
		"longest": strings.Repeat("k", 255), "punctuation": "~!@#$%^&*()_+-=[]{}|;:',./<>? x", "comma": "a,b",
	} {
		if a := s.do(t, call{key: key}); a.StatusCode != http.StatusCreated {
			t.Errorf("%s: %d %s, want 201", name, a.StatusCode, a.body)
		}
	}
}

func testQuotedAndBareAreOneKey(t *testing.T, f *fixture) {
	s := f.serve(t, func(_ http.ResponseWriter, r *http.Request) {
		if key, ok := idempotency.Key(r.Context()); key != `key"1` || !ok {
			t.Errorf("the handler's key is %q, %t", key, ok)
		}
	})
	for i, key := range []string{`key"1`, `"key\"1"`, `"key\"1";v=1`} {
		if a := s.do(t, call{key: key}); a.replayed() != (i > 0) {
			t.Errorf("key %s: replayed is %t", key, a.replayed())
		}
	}
	s.wantRuns(t, 1)
}

func testTenantsShareNoKeys(t *testing.T, f *fixture) {
	s := f.serve(t, create())
	other := f.newTenant(t, f.store)
	s.do(t, call{key: "k", body: "1"}).want(t, http.StatusCreated, `{"id":1}`)
	s.do(t, call{key: "k", body: "2", org: other}).want(t, http.StatusCreated, `{"id":2}`)
	s.do(t, call{key: "k", body: "1"}).want(t, http.StatusCreated, `{"id":1}`)
	s.do(t, call{key: "k", body: "2", org: other}).want(t, http.StatusCreated, `{"id":2}`)
	s.wantRuns(t, 2)
}

func testScopesShareNoKeys(t *testing.T, f *fixture) {
	s := f.serve(t, create(), idempotency.WithScope(func(r *http.Request) string { return r.Header.Get("X-User") }))
	as := func(user string) call { return call{key: "k", header: http.Header{"X-User": {user}}} }
	s.do(t, as("ann")).want(t, http.StatusCreated, `{"id":1}`)
	s.do(t, as("bob")).want(t, http.StatusCreated, `{"id":2}`)
	s.do(t, as("ann")).want(t, http.StatusCreated, `{"id":1}`)
	s.wantRuns(t, 2)
}
