package idempotencytest

import (
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/google/uuid"

	"github.com/pgidem/pgidem/idempotency"
)

func testSafeMethodsPassThrough(t *testing.T, f *fixture) {
	s := f.serve(t, create())
	for i, method := range []string{http.MethodGet, http.MethodHead, http.MethodOptions, http.MethodTrace} {
		s.do(t, call{method: method, key: "k"})
		if a := s.do(t, call{method: method, key: "k"}); a.replayed() {
			t.Errorf("%s was replayed", method)
		}
		s.wantRuns(t, int64(2*i+2))
	}
	s.wantDecisions(t)
}

func testOtherMethodsPassThrough(t *testing.T, f *fixture) {
	s := f.serve(t, create(), idempotency.WithMethods(http.MethodPatch))
	s.do(t, call{method: http.MethodPost, key: "k"})
	s.do(t, call{method: http.MethodPost, key: "k"})
	s.wantRuns(t, 2)
	s.do(t, call{method: http.MethodPatch, key: "k"})
	s.do(t, call{method: http.MethodPatch, key: "k"})
	s.wantRuns(t, 3)
}

func testExcludedRoutesPassThrough(t *testing.T, f *fixture) {
	s := f.serve(t, create(), idempotency.WithExclude("POST /v1/auth/login"), idempotency.WithExclude("/public/"))
	for _, path := range []string{"/v1/auth/login", "/v1/auth/login", "/public/a/b", "/public/a/b"} {
		if a := s.do(t, call{path: path, key: strings.Repeat("not a valid key", 20)}); a.StatusCode != http.StatusCreated {
			t.Fatalf("%s: %d %s", path, a.StatusCode, a.body)
		}
	}
	s.wantRuns(t, 4)
	s.do(t, call{method: http.MethodPut, path: "/v1/auth/login", key: "k"}) // another method is another route
	if a := s.do(t, call{method: http.MethodPut, path: "/v1/auth/login", key: "k"}); !a.replayed() {
		t.Fatal("another method of an excluded path passed through")
	}
}

func testNoKeyPassesThrough(t *testing.T, f *fixture) {
	s := f.serve(t, create())
	s.do(t, call{})
	s.do(t, call{})
	s.wantRuns(t, 2)
	s.wantDecisions(t)
}

func testNoOrgPassesThrough(t *testing.T, f *fixture) {
	s := f.serve(t, create())
	c := call{key: "k", header: http.Header{}}
	for range 2 {
		r := s.request(t, c)
		r.Header.Del("X-Org")
		resp, err := s.server.Client().Do(r)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
	}
	s.wantRuns(t, 2)
	s.wantDecisions(t, idempotency.DecisionBypassedNoOrg, idempotency.DecisionBypassedNoOrg)
}

func testRequiredOrg(t *testing.T, f *fixture) {
	s := f.serve(t, create(), idempotency.WithRequireOrg())
	r := s.request(t, call{key: "k"})
	r.Header.Set("X-Org", uuid.Nil.String()) // the nil UUID is no tenant
	resp, err := s.server.Client().Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, _ := io.ReadAll(resp.Body)
	answer{resp, string(body)}.wantProblem(t, http.StatusUnauthorized, "org_missing")
	if resp.Header.Get("WWW-Authenticate") == "" {
		t.Error("401 without WWW-Authenticate")
	}
	s.wantRuns(t, 0)
}
