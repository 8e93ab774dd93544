package route_test

import (
	"net/http"
	"net/url"
	"path"
	"strings"
	"testing"

	"github.com/pgidem/pgidem/internal/route"
)

// FuzzMatch compares a Set of one pattern with a ServeMux that has only it:
// they agree on paths in clean form, and on all others the Set does not match.
func FuzzMatch(f *testing.F) {
	patterns := []string{
		"POST /v1/auth/login", "/healthz", "GET /v1/items/{id}", "/v1/public/", "/v1/auth/{$}",
		"/static/{rest...}", "/", "/{$}", "/{a}", "/{a}/{b...}", "/{a}/b/{c}/", "CONNECT /{_}/{$}", "HEAD /caf\u00e9",
	}
	targets := []string{
		"/v1/auth/login", "/v1/auth/login/", "/healthz?q=1", "/v1/items/42", "/v1/items/", "/v1/public", "/v1/public/",
		"/v1/public/../payments", "/v1/public/..%2fpayments", "/v1/public/%2e%2e/payments", "/v1/public/..;/payments",
		"/v1/public/%252e%252e/payments", "//v1/auth/login", "/V1/AUTH/LOGIN", "/", "//", "/.", "*", "http:opaque",
		"http://host/healthz", "/caf%C3%A9", "/caf%c3%a9", "/a%00b", "/a%5Cb", "/a/b/c/", "/static", "/static/a//b", "/%2F", "/%FF/",
	}
	for i, target := range targets {
		for j, pattern := range patterns {
			f.Add(pattern, []string{"GET", "HEAD", "POST", "CONNECT"}[(i+j)%4], target)
		}
	}
	f.Fuzz(func(t *testing.T, pattern, method, target string) {
		s, err := route.Compile(pattern)
		if err != nil {
			t.Skip()
		}
		u, err := url.ParseRequestURI(target)
		if err != nil {
			t.Skip()
		}
		request := func() *http.Request {
			return &http.Request{Method: method, URL: u, RequestURI: target, Host: "api.example.com", Header: http.Header{}}
		}
		// Every pattern that Compile accepts is one of ServeMux, or this panics.
		reached := served(pattern, request())
		if reached && !s.MatchLoosely(request()) {
			t.Errorf("%s: ServeMux serves %s %s, but it does not match loosely", pattern, method, target)
		}
		want := reached && inCleanForm(u)
		if got := s.Match(request()); got != want {
			t.Errorf("%q matches %s %q: %v, want %v", pattern, method, target, got, want)
		}
	})
}

// inCleanForm says in other words than the package what it matches at all.
func inCleanForm(u *url.URL) bool {
	plain := u.Opaque == "" && u.RawPath == ""
	cleaned := path.Clean(u.Path) == u.Path || u.Path != "//" && path.Clean(u.Path)+"/" == u.Path
	unambiguous := !strings.ContainsFunc(u.Path, func(c rune) bool {
		return c < 0x20 || 0x7f <= c && c < 0xa0 || strings.ContainsRune(`%\;`, c)
	})
	return plain && strings.HasPrefix(u.Path, "/") && cleaned && unambiguous
}
