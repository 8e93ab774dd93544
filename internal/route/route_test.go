package route_test

import (
	"net/http"
	"net/http/httptest"
	"net/url"
	"testing"

	"github.com/pgidem/pgidem/internal/route"
)

// send makes the request that net/http would make of a request line.
func send(t testing.TB, method, target string) *http.Request {
	t.Helper()
	u, err := url.ParseRequestURI(target)
	if err != nil {
		t.Fatalf("request target %q: %v", target, err)
	}
	return &http.Request{Method: method, URL: u, RequestURI: target, Host: "api.example.com", Header: http.Header{}}
}

func compile(t testing.TB, patterns ...string) *route.Set {
	t.Helper()
	s, err := route.Compile(patterns...)
	if err != nil {
		t.Fatalf("Compile(%q): %v", patterns, err)
	}
	return s
}

// served reports whether a ServeMux that knows only the pattern calls its
// handler; a redirect is not a call.
func served(pattern string, r *http.Request) bool {
	called := false
	mux := http.NewServeMux()
	mux.HandleFunc(pattern, func(http.ResponseWriter, *http.Request) { called = true })
	mux.ServeHTTP(httptest.NewRecorder(), r)
	return called
}

func TestMatch(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name           string
		pattern        string
		method, target string
		want           bool
		unlikeServeMux bool // it would serve the request
	}{
		{name: "method and path", pattern: "POST /v1/auth/login", method: "POST", target: "/v1/auth/login", want: true},
		{name: "query is no part of it", pattern: "POST /v1/auth/login", method: "POST", target: "/v1/auth/login?next=/v1/payments", want: true},
		{name: "absolute form", pattern: "POST /v1/auth/login", method: "POST", target: "http://api.example.com/v1/auth/login", want: true},
		{name: "other method", pattern: "POST /v1/auth/login", method: "GET", target: "/v1/auth/login"},
		{name: "method in lower case", pattern: "POST /v1/auth/login", method: "post", target: "/v1/auth/login"},
		{name: "GET includes HEAD", pattern: "GET /healthz", method: "HEAD", target: "/healthz", want: true},
		{name: "HEAD does not include GET", pattern: "HEAD /healthz", method: "GET", target: "/healthz"},
		{name: "POST does not include HEAD", pattern: "POST /healthz", method: "HEAD", target: "/healthz"},
		{name: "any method", pattern: "/healthz", method: "DELETE", target: "/healthz", want: true},
		{name: "extension method", pattern: "VERSION-CONTROL /doc", method: "VERSION-CONTROL", target: "/doc", want: true},
		{name: "several spaces after the method", pattern: "GET \t /healthz", method: "GET", target: "/healthz", want: true},
		{name: "CONNECT with a path", pattern: "/tunnel", method: "CONNECT", target: "/tunnel", want: true},

		{name: "longer path", pattern: "/healthz", method: "GET", target: "/healthz/live"},
		{name: "shorter path", pattern: "/v1/healthz", method: "GET", target: "/v1"},
		{name: "prefix of a segment", pattern: "/health", method: "GET", target: "/healthz"},
		{name: "other case", pattern: "POST /v1/auth/login", method: "POST", target: "/V1/AUTH/LOGIN"},
		{name: "slash too many", pattern: "POST /v1/auth/login", method: "POST", target: "/v1/auth/login/"},

		{name: "wildcard", pattern: "GET /v1/items/{id}", method: "GET", target: "/v1/items/42", want: true},
		{name: "wildcard in the middle", pattern: "/v1/{org}/login", method: "GET", target: "/v1/acme/login", want: true},
		{name: "wildcard and nothing", pattern: "/v1/items/{id}", method: "GET", target: "/v1/items"},
		{name: "wildcard and an empty segment", pattern: "/v1/items/{id}", method: "GET", target: "/v1/items/"},
		{name: "wildcard and two segments", pattern: "/v1/items/{id}", method: "GET", target: "/v1/items/42/refund"},
		{name: "wildcard and a slash", pattern: "/v1/items/{id}", method: "GET", target: "/v1/items/42/"},
		{name: "wildcard named like a keyword", pattern: "/{type}", method: "GET", target: "/a", want: true},

		{name: "subtree", pattern: "/v1/public/", method: "GET", target: "/v1/public/a/b", want: true},
		{name: "subtree, its root", pattern: "/v1/public/", method: "GET", target: "/v1/public/", want: true},
		{name: "subtree, its root without the slash", pattern: "/v1/public/", method: "GET", target: "/v1/public"},
		{name: "subtree, a neighbour", pattern: "/v1/public/", method: "GET", target: "/v1/publications/a"},
		{name: "subtree below a wildcard", pattern: "/{org}/public/", method: "GET", target: "/acme/public/a/", want: true},
		{name: "everything", pattern: "/", method: "GET", target: "/v1/a", want: true},
		{name: "everything, the root", pattern: "OPTIONS /", method: "OPTIONS", target: "/", want: true},

		{name: "rest", pattern: "/static/{rest...}", method: "GET", target: "/static/css/a.css", want: true},
		{name: "rest, empty", pattern: "/static/{rest...}", method: "GET", target: "/static/", want: true},
		{name: "rest, without the slash", pattern: "/static/{rest...}", method: "GET", target: "/static"},
		{name: "exact slash", pattern: "/v1/auth/{$}", method: "GET", target: "/v1/auth/", want: true},
		{name: "exact slash, none there", pattern: "/v1/auth/{$}", method: "GET", target: "/v1/auth"},
		{name: "exact slash, more below", pattern: "/v1/auth/{$}", method: "GET", target: "/v1/auth/login"},
		{name: "the root alone", pattern: "/{$}", method: "GET", target: "/", want: true},
		{name: "the root alone, a path", pattern: "/{$}", method: "GET", target: "/a"},

		{name: "dots in a name", pattern: "/v1/public/", method: "GET", target: "/v1/public/..a/.b/c../...", want: true},
		{name: "usual encoding", pattern: "/caf\u00e9", method: "GET", target: "/caf%C3%A9", want: true},
		{name: "encoded space", pattern: "/v1/public/", method: "GET", target: "/v1/public/a%20b", want: true},

		{name: "attack: parent", pattern: "/v1/public/", method: "GET", target: "/v1/public/../payments"},
		{name: "attack: parent at the end", pattern: "/v1/public/", method: "GET", target: "/v1/public/.."},
		{name: "attack: parent and back", pattern: "/v1/public/", method: "GET", target: "/v1/payments/../public/a"},
		{name: "attack: here", pattern: "/v1/public/", method: "GET", target: "/v1/public/./a"},
		{name: "attack: encoded slash", pattern: "/v1/public/", method: "GET", target: "/v1/public/..%2fpayments", unlikeServeMux: true},
		{name: "attack: encoded slash in upper case", pattern: "/v1/public/", method: "GET", target: "/v1/public/..%2Fpayments", unlikeServeMux: true},
		{name: "attack: encoded parent", pattern: "/v1/public/", method: "GET", target: "/v1/public/%2e%2e/payments", unlikeServeMux: true},
		{name: "attack: half encoded parent", pattern: "/v1/public/", method: "GET", target: "/v1/public/.%2e/payments", unlikeServeMux: true},
		{name: "attack: parent encoded twice", pattern: "/v1/public/", method: "GET", target: "/v1/public/%252e%252e/payments", unlikeServeMux: true},
		{name: "attack: parent with a parameter", pattern: "/v1/public/", method: "GET", target: "/v1/public/..;/payments", unlikeServeMux: true},
		{name: "attack: backslash", pattern: "/v1/public/", method: "GET", target: `/v1/public/..%5Cpayments`, unlikeServeMux: true},
		{name: "attack: NUL", pattern: "/v1/public/", method: "GET", target: "/v1/public/a%00b", unlikeServeMux: true},
		{name: "attack: line break", pattern: "/v1/public/", method: "GET", target: "/v1/public/a%0Ab", unlikeServeMux: true},
		{name: "attack: DEL", pattern: "/v1/public/", method: "GET", target: "/v1/public/a%7Fb", unlikeServeMux: true},
		{name: "attack: NUL after the path", pattern: "/v1/auth/login", method: "GET", target: "/v1/auth/login%00"},
		{name: "attack: parameter after the path", pattern: "/v1/auth/login", method: "GET", target: "/v1/auth/login;a=b"},
		{name: "attack: double slash in front", pattern: "/v1/auth/login", method: "GET", target: "//v1/auth/login"},
		{name: "attack: double slash inside", pattern: "/v1/public/", method: "GET", target: "/v1/public//a"},
		{name: "attack: double slash at the end", pattern: "/v1/public/", method: "GET", target: "/v1/public//"},
		{name: "attack: only slashes", pattern: "/", method: "GET", target: "//"},
		{name: "attack: encoded letter", pattern: "/v1/auth/login", method: "GET", target: "/v1/auth/l%6Fgin", unlikeServeMux: true},
		{name: "attack: encoded letters, lower-case digits", pattern: "/caf\u00e9", method: "GET", target: "/caf%c3%a9", unlikeServeMux: true},
		{name: "attack: bare bytes", pattern: "/caf\u00e9", method: "GET", target: "/caf\u00e9", unlikeServeMux: true},
		{name: "attack: asterisk", pattern: "/", method: "OPTIONS", target: "*"},
		{name: "attack: opaque", pattern: "/", method: "GET", target: "http:v1/public/a"},
		{name: "attack: CONNECT is not cleaned", pattern: "/v1/public/", method: "CONNECT", target: "/v1/public/../payments", unlikeServeMux: true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := compile(t, "GET /some/other/route", tt.pattern)
			if got := s.Match(send(t, tt.method, tt.target)); got != tt.want {
				t.Errorf("%q matches %s %s: %v, want %v", tt.pattern, tt.method, tt.target, got, tt.want)
			}
			if got, want := served(tt.pattern, send(t, tt.method, tt.target)), tt.want || tt.unlikeServeMux; got != want {
				t.Errorf("ServeMux serves %s %s with %q: %v, want %v", tt.method, tt.target, tt.pattern, got, want)
			}
		})
	}
}

func TestMatchWithoutRoutes(t *testing.T) {
	t.Parallel()
	r := send(t, "GET", "/")
	if (*route.Set)(nil).Match(r) {
		t.Error("a nil Set matches")
	}
	if new(route.Set).Match(r) {
		t.Error("the zero Set matches")
	}
	if compile(t).Match(r) {
		t.Error("a Set of no patterns matches")
	}
}

func TestMatchUnusualURL(t *testing.T) {
	t.Parallel()
	s := compile(t, "/")
	for name, u := range map[string]*url.URL{
		"none":              nil,
		"empty":             {},
		"relative":          {Path: "v1/public"},
		"opaque and a path": {Opaque: "//v1/payments", Path: "/v1/public"},
		"two encodings":     {Path: "/v1/public", RawPath: "/v1/payments"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if s.Match(&http.Request{Method: "GET", URL: u}) {
				t.Errorf("URL %#v matches", u)
			}
		})
	}
}

func TestMatchDoesNotAllocate(t *testing.T) {
	s := compile(t, "POST /v1/auth/login", "/healthz", "GET /v1/items/{id}", "/v1/public/", "/static/{rest...}", "/v1/auth/{$}")
	for _, target := range []string{"/v1/items/42", "/static/a/b/c", "/v1/payments", "/v1/public/../payments", "/caf%C3%A9"} {
		r := send(t, "GET", target)
		if n := testing.AllocsPerRun(100, func() { s.Match(r) }); n != 0 {
			t.Errorf("Match of %s allocates %v times", target, n)
		}
	}
}

func BenchmarkMatch(b *testing.B) {
	s := compile(b, "POST /v1/auth/login", "/healthz", "GET /v1/items/{id}", "/v1/public/")
	r := send(b, "POST", "/v1/payments/42/refund")
	b.ReportAllocs()
	for b.Loop() {
		s.Match(r)
	}
}

func TestMatchLoosely(t *testing.T) {
	t.Parallel()
	s, err := route.Compile("POST /v1/items/{id}", "/v1/public/", "/x/{$}")
	if err != nil {
		t.Fatal(err)
	}
	for target, want := range map[string]bool{
		"/v1/items/7": true, "/v1/items/7;": true, "/v1/items/7%25": true, "/v1/items/7%5c": true, "/v1/items/7%2f8": true,
		"/v1/items/%01": true, "//v1/items/7": true, "/v1/./items/7": true, "/v1/y/../items/7": true, "/v1/it%65ms/7": true,
		"/v1/items": false, "/v1/items/": false, "/v1/items/7/8": false, "/v1/items/7/": false, "/V1/items/7": false,
		"/v1/public/a": true, "/v1//public//a": true, "/v1/public/../private": false, "/v1/public%2fa": true,
		"/x/": true, "//x/": true, "/x": false, "//": false, "/": false,
	} {
		u, err := url.ParseRequestURI(target)
		if err != nil {
			t.Fatal(err)
		}
		if got := s.MatchLoosely(&http.Request{Method: http.MethodPost, URL: u}); got != want {
			t.Errorf("%s: %t, want %t", target, got, want)
		}
	}
	if (*route.Set)(nil).MatchLoosely(&http.Request{Method: http.MethodPost, URL: &url.URL{Path: "/"}}) {
		t.Error("a nil Set matches")
	}
	root, err := route.Compile("/{$}")
	if err != nil {
		t.Fatal(err)
	}
	if !root.MatchLoosely(&http.Request{Method: http.MethodPost, URL: &url.URL{Path: "//"}}) {
		t.Error(`"//" is not "/"`)
	}
}
