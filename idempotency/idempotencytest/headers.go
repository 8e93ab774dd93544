package idempotencytest

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"

	"github.com/pgidem/pgidem/idempotency"
)

// testOuterHeadersAreNotStored: what outer middleware sets belongs to each
// request, and is neither stored nor doubled.
func testOuterHeadersAreNotStored(t *testing.T, f *fixture) {
	n := 0
	require := idempotency.Require(f.store)
	inner := require(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Add("Vary", "Accept")
		w.Header().Set("Cache-Control", "private")
		w.Header().Del("X-Removed")
		io.WriteString(w, w.Header().Get("X-Request-Id"))
	}))
	s := f.serveRaw(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n++
		w.Header().Set("X-Request-Id", fmt.Sprint("request-", n))
		w.Header().Set("Vary", "Origin")
		w.Header().Set("Cache-Control", "no-cache")
		w.Header().Set("X-Removed", "yes")
		inner.ServeHTTP(w, r)
	}))
	for i := 1; i <= 2; i++ {
		a := s.do(t, call{key: "k"})
		a.want(t, http.StatusOK, "request-1")
		got := fmt.Sprint(a.Header["X-Request-Id"], a.Header["Vary"], a.Header["Cache-Control"], a.Header["X-Removed"])
		if want := fmt.Sprintf("[request-%d] [Origin Accept] [private] []", i); got != want {
			t.Errorf("answer %d: %s, want %s", i, got, want)
		}
	}
}

// serveRaw starts a service without middleware of its own.
func (f *fixture) serveRaw(t *testing.T, h http.Handler) *service {
	s := f.serve(t, func(http.ResponseWriter, *http.Request) {})
	s.server.Config.Handler = withOrg(h)
	return s
}

func testSecretHeadersAreNotStored(t *testing.T, f *fixture) {
	secret := []string{"Set-Cookie", "Authorization", "Www-Authenticate", "Keep-Alive", "Upgrade", "X-Hop"}
	s := f.serve(t, func(w http.ResponseWriter, r *http.Request) {
		for _, name := range secret {
			w.Header().Set(name, "secret")
		}
		w.Header()["set-cookie"] = []string{"secret"} // straight into the map
		w.Header()["WWW-Authenticate"] = []string{"secret"}
		w.Header().Set("Connection", "x-hop")
		w.Header().Set("X-Kept", "yes")
		w.Header().Set("Date", "Thu, 01 Jan 1970 00:00:00 GMT")
	})
	s.do(t, call{key: "k"})
	again := s.do(t, call{key: "k"})
	for _, name := range append(secret, "Connection") {
		if v, ok := again.Header[name]; ok {
			t.Errorf("%s came back as %q", name, v)
		}
	}
	if again.Header.Get("X-Kept") != "yes" || strings.Contains(again.Header.Get("Date"), "1970") {
		t.Errorf("headers %v", again.Header)
	}

	s = f.serve(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-A", "a")
		w.Header().Set("X-B", "b")
	}, idempotency.WithHeaders(func(name string) bool { return name == "X-A" }))
	s.do(t, call{key: "only A"})
	again = s.do(t, call{key: "only A"})
	if again.Header.Get("X-A") != "a" || again.Header.Get("X-B") != "" {
		t.Errorf("headers %v", again.Header)
	}
}

func testTrailers(t *testing.T, f *fixture) {
	s := f.serve(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Trailer", "X-Announced")
		w.Header().Set("Content-Length", "4") // with which HTTP/1.1 has no room for trailers
		io.WriteString(w, "body")
		w.Header().Set("X-Announced", "1")
		w.Header().Set(http.TrailerPrefix+"X-Unannounced", "2")
	})
	first := s.do(t, call{key: "k"})
	first.want(t, http.StatusOK, "body")
	if first.Trailer.Get("X-Announced") != "1" || first.Trailer.Get("X-Unannounced") != "2" {
		t.Errorf("trailers %v", first.Trailer)
	}
	again := s.do(t, call{key: "k"})
	again.want(t, http.StatusOK, "body")
	if len(again.Trailer) != 0 || again.Header.Get("Trailer") != "" || again.Header.Get("X-Announced") != "" {
		t.Errorf("replay with trailers %v and headers %v", again.Trailer, again.Header)
	}
}

// testLateHeaders: a goroutine that outlives its handler and sets headers while the
// outcome is stored disturbs nobody.
func testLateHeaders(t *testing.T, f *leaseFixture) {
	completing, set := make(chan struct{}), make(chan struct{})
	var once sync.Once
	store := &faultyStore{LeaseStore: f.leases, complete: func(_ context.Context, real func() error) error {
		once.Do(func() { close(completing) })
		<-set
		return real()
	}}
	s := f.serveOver(t, store, func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, "done")
		go func() {
			defer close(set)
			<-completing
			w.Header().Set("X-Late", "late")
			w.Header().Set(http.TrailerPrefix+"X-Late", "late")
		}()
	})
	a := s.do(t, call{key: "k"})
	a.want(t, http.StatusOK, "done")
	if a.Header.Get("X-Late") != "" || len(a.Trailer) != 0 {
		t.Errorf("headers %v, trailers %v", a.Header, a.Trailer)
	}
}

func testInformationalResponses(t *testing.T, f *fixture) {
	s := f.serve(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Link", "</style.css>; rel=preload")
		w.WriteHeader(http.StatusEarlyHints)
		w.Header().Del("Link")
		w.WriteHeader(http.StatusProcessing)
		w.WriteHeader(http.StatusCreated)
		io.WriteString(w, "made")
	})
	for i := range 2 {
		a := s.do(t, call{key: "k"})
		a.want(t, http.StatusCreated, "made")
		if a.replayed() != (i == 1) || a.Header.Get("Link") != "" {
			t.Errorf("answer %d: %v", i, a.Header)
		}
	}
}

func testSecondWriteHeaderIsIgnored(t *testing.T, f *fixture) {
	s := f.serve(t, func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(http.StatusCreated)
		w.Header().Set("X-Late", "too late")
		w.WriteHeader(http.StatusInternalServerError)
		io.WriteString(w, "made")
		w.WriteHeader(http.StatusInternalServerError)
	})
	for i := range 2 {
		a := s.do(t, call{key: "k"})
		a.want(t, http.StatusCreated, "made")
		if a.replayed() != (i == 1) || a.Header.Get("X-Late") != "" {
			t.Errorf("answer %d: %v", i, a.Header)
		}
	}
}
