package authctx_test

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/pgidem/pgidem/authctx"
	"github.com/pgidem/pgidem/tenancy"
)

func TestExclude(t *testing.T) {
	t.Parallel()
	auth := newHS256(t, authctx.WithExclude("POST /v1/auth/login", "/healthz"), authctx.WithExclude("/v1/public/", "OPTIONS /"))

	for _, line := range []string{
		"POST /v1/auth/login", "POST /v1/auth/login?next=/v1/payments", "GET /healthz", "GET /v1/public/terms", "GET /v1/public/", "OPTIONS /v1/payments",
	} {
		t.Run("lets through "+line, func(t *testing.T) {
			t.Parallel()
			res := serve(auth, to(line))
			res.wantReached(t)
		})
	}

	t.Run("does not look at a token", func(t *testing.T) {
		t.Parallel()
		for name, value := range map[string]string{"good": good(t), "bad": "x.y.z"} {
			r := to("POST /v1/auth/login")
			r.Header.Set("Authorization", "Bearer "+value)
			res := serve(auth, r)
			res.wantReached(t)
			if orgID, ok := tenancy.OrgID(res.reached.Context()); ok {
				t.Errorf("%s token: OrgID %v", name, orgID)
			}
			if c, ok := authctx.Claims(res.reached.Context()); ok {
				t.Errorf("%s token: Claims %v", name, c)
			}
		}
	})

	for _, line := range []string{
		"GET /v1/auth/login",
		"POST /v1/auth/login/",
		"POST /V1/AUTH/LOGIN",
		"POST //v1/auth/login",
		"POST /v1//auth/login",
		"POST /v1/./auth/login",
		"POST /v1/payments/../auth/login",
		"POST /v1/auth/login/../../payments",
		"POST /v1/auth/l%6Fgin",
		"POST /v1/auth%2Flogin",
		"POST /v1/auth/login%00",
		"POST /v1/auth/login;a=b",
		"POST /v1/payments?path=/v1/auth/login",
		"POST /v1/payments#/v1/auth/login",
		"GET /v1/public",
		"GET /v1/publications",
		"GET /v1/public/../payments",
		"GET /v1/public/..%2fpayments",
		"GET /v1/public/%2e%2e/payments",
		"GET /v1/public/%2E%2E%2Fpayments",
		"GET /v1/public/%252e%252e/payments",
		"GET /v1/public/..;/payments",
		"GET /v1/public/..%5Cpayments",
		"GET /v1/public//payments",
		"GET /v1/public/a%00/../payments",
		"CONNECT /v1/public/../payments",
		"OPTIONS *",
	} {
		t.Run("refuses "+line, func(t *testing.T) {
			t.Parallel()
			serve(auth, to(line)).wantRefused(t, missing)
		})
	}

	t.Run("a method in a header does not count", func(t *testing.T) {
		t.Parallel()
		r := to("GET /v1/auth/login")
		r.Header.Set("X-HTTP-Method-Override", "POST")
		r.Header.Set("X-Original-URL", "/v1/auth/login")
		serve(auth, r).wantRefused(t, missing)
	})
}

// to makes the request of a request line, as the server would.
func to(line string) *http.Request {
	method, target, _ := strings.Cut(line, " ")
	return httptest.NewRequest(method, target, nil)
}
