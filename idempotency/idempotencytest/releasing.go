package idempotencytest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/pgidem/pgidem/idempotency"
)

func testStatusesThatAreNotStored(t *testing.T, f *fixture) {
	status := func(w http.ResponseWriter, r *http.Request) {
		var code int
		fmt.Sscanf(r.URL.Path, "/%d", &code)
		w.WriteHeader(code)
		fmt.Fprint(w, code)
	}
	s := f.serve(t, status)
	for _, code := range []int{500, 501, 503, 599, 401, 403, 408, 425, 429} {
		for range 2 {
			if a := s.do(t, call{key: fmt.Sprint(code), path: fmt.Sprint("/", code)}); a.StatusCode != code || a.body != fmt.Sprint(code) || a.replayed() {
				t.Errorf("%d: got %d %q, replayed %t", code, a.StatusCode, a.body, a.replayed())
			}
		}
	}
	s.wantRuns(t, 18)
	for _, code := range []int{200, 302, 400, 404, 409, 410, 422, 451} {
		client := s.server.Client()
		client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
		for i := range 2 {
			if a := s.do(t, call{key: fmt.Sprint(code), path: fmt.Sprint("/", code)}); a.StatusCode != code || a.replayed() != (i == 1) {
				t.Errorf("%d: got %d, replayed %t", code, a.StatusCode, a.replayed())
			}
		}
	}
	all := f.serve(t, status, idempotency.WithStorable(func(int) bool { return true }))
	all.do(t, call{key: "all", path: "/500"})
	if a := all.do(t, call{key: "all", path: "/500"}); !a.replayed() {
		t.Error("WithStorable did not replace the rule")
	}
}

func testPanicReleases(t *testing.T, f *fixture) {
	ends := map[string]func(http.ResponseWriter){
		"/panic":           func(http.ResponseWriter) { panic("on purpose") },
		"/panic-nil":       func(http.ResponseWriter) { panic(nil) },
		"/abort":           func(http.ResponseWriter) { panic(http.ErrAbortHandler) },
		"/after-a-write":   func(w http.ResponseWriter) { io.WriteString(w, "half"); panic(errors.New("on purpose")) },
		"/after-a-flush":   func(w http.ResponseWriter) { io.WriteString(w, "half"); w.(http.Flusher).Flush(); panic("x") },
		"/goexit":          func(http.ResponseWriter) { runtime.Goexit() },
		"/invalid-status":  func(w http.ResponseWriter) { w.WriteHeader(42) },
		"/negative-status": func(w http.ResponseWriter) { w.WriteHeader(-1) },
	}
	var ended sync.Map
	s := f.serve(t, func(w http.ResponseWriter, r *http.Request) {
		if _, again := ended.LoadOrStore(r.URL.Path, true); !again {
			ends[r.URL.Path](w)
		}
		io.WriteString(w, "done")
	})
	// Go's client repeats a request that has a key by itself when a connection that
	// it used before breaks; here each request is to be one request.
	s.server.Client().Transport.(*http.Transport).DisableKeepAlives = true
	for path := range ends {
		// How a broken connection looks to the client is net/http's affair, and
		// after Goexit it does not even break: what counts is the retry.
		wait := patience
		if path == "/goexit" {
			wait = time.Second
		}
		ctx, giveUp := context.WithTimeout(context.Background(), wait)
		if a, err := s.try(t, call{key: path, path: path, ctx: ctx}); err == nil {
			t.Errorf("%s: the client got %d %q; want a connection that breaks", path, a.StatusCode, a.body)
		}
		giveUp()
		eventually(t, "the release after "+path, func() bool {
			a := s.do(t, call{key: path, path: path})
			return a.StatusCode == http.StatusOK && a.body == "done"
		})
	}
	s.wantRuns(t, int64(2*len(ends)))
	s.mu.Lock()
	defer s.mu.Unlock()
	released := 0
	for _, e := range s.events {
		if e.Decision == idempotency.DecisionPanicked {
			released++
			if e.Handler <= 0 || e.Complete <= 0 {
				t.Errorf("handler took %v, release %v", e.Handler, e.Complete)
			}
		}
	}
	if released != len(ends) {
		t.Errorf("%d panics reported, want %d", released, len(ends))
	}
}
