package idempotencytest

import (
	"context"
	"errors"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pgidem/pgidem/idempotency"
)

func testLargeResponse(t *testing.T, f *fixture) {
	big := strings.Repeat("x", 3000)
	s := f.serve(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Size", "big")
		w.WriteHeader(http.StatusAccepted)
		for part := range slices.Chunk([]byte(big), 700) {
			w.Write(part)
		}
	}, idempotency.WithMaxResponseBytes(1000))
	first := s.do(t, call{key: "k"})
	first.want(t, http.StatusAccepted, big)
	if first.Header.Get("X-Size") != "big" {
		t.Errorf("headers %v", first.Header)
	}
	again := s.do(t, call{key: "k"})
	again.wantProblem(t, http.StatusConflict, "response_not_kept")
	if !strings.Contains(again.body, `"original_status":202`) {
		t.Errorf("problem %s; want the original status", again.body)
	}
	s.wantRuns(t, 1)
	s.wantDecisions(t, idempotency.DecisionExecuted, idempotency.DecisionNotKept)

	failing := f.serve(t, func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(http.StatusBadGateway)
		io.WriteString(w, big)
	}, idempotency.WithMaxResponseBytes(1000))
	failing.do(t, call{key: "failing"}).want(t, http.StatusBadGateway, big)
	failing.do(t, call{key: "failing"}).want(t, http.StatusBadGateway, big) // not storable, however large
	failing.wantRuns(t, 2)
}

func testResponseAtTheBound(t *testing.T, f *fixture) {
	s := f.serve(t, func(w http.ResponseWriter, r *http.Request) {
		n := len(r.URL.Path) - 1
		io.WriteString(w, strings.Repeat("x", n/2))
		io.WriteString(w, strings.Repeat("x", n-n/2))
	}, idempotency.WithMaxResponseBytes(100))
	at, over := "/"+strings.Repeat("p", 100), "/"+strings.Repeat("p", 101)
	s.do(t, call{key: "at", path: at}).want(t, http.StatusOK, at2x(at))
	if a := s.do(t, call{key: "at", path: at}); !a.replayed() || a.body != at2x(at) {
		t.Errorf("at the bound: %d %q", a.StatusCode, a.body)
	}
	s.do(t, call{key: "over", path: over}).want(t, http.StatusOK, at2x(over))
	s.do(t, call{key: "over", path: over}).wantProblem(t, http.StatusConflict, "response_not_kept")
}

func at2x(path string) string { return strings.Repeat("x", len(path)-1) }

func testHijackedResponse(t *testing.T, f *fixture) {
	s := f.serve(t, func(w http.ResponseWriter, r *http.Request) {
		conn, rw, err := http.NewResponseController(w).Hijack()
		if f.http2 && errors.Is(err, http.ErrNotSupported) { // a connection of many requests is nobody's own
			io.WriteString(w, "no connection")
			return
		}
		if err != nil {
			t.Errorf("Hijack: %v", err)
			return
		}
		defer conn.Close()
		if _, err := w.Write([]byte("x")); !errors.Is(err, http.ErrHijacked) {
			t.Errorf("Write after Hijack: %v", err)
		}
		io.WriteString(rw, "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nConnection: close\r\n\r\nraw")
		rw.Flush()
	})
	if f.http2 {
		for range 2 {
			s.do(t, call{key: "k"}).want(t, http.StatusOK, "no connection")
		}
		s.wantRuns(t, 1)
		return
	}
	s.do(t, call{key: "k"}).want(t, http.StatusOK, "raw")
	eventually(t, "the tombstone", func() bool {
		return strings.Contains(s.do(t, call{key: "k"}).body, "response_not_kept")
	})
	s.wantRuns(t, 1)
}

func testCopyIsRecorded(t *testing.T, f *fixture) {
	s := f.serve(t, func(w http.ResponseWriter, r *http.Request) {
		if _, ok := w.(io.ReaderFrom); ok {
			t.Error("the writer has a ReadFrom of its own")
		}
		io.Copy(w, strings.NewReader("copied"))
	})
	for range 2 {
		s.do(t, call{key: "k"}).want(t, http.StatusOK, "copied")
	}
	s.wantRuns(t, 1)
}

func testWriteAfterReturn(t *testing.T, f *fixture) {
	done, late := make(chan struct{}), make(chan error, 3)
	s := f.serve(t, func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, "in time")
		go func() {
			<-done
			_, err := w.Write([]byte("late"))
			late <- err
			_, err = io.WriteString(w, "late")
			late <- err
			late <- http.NewResponseController(w).Flush()
		}()
	})
	s.do(t, call{key: "k"}).want(t, http.StatusOK, "in time")
	close(done)
	for range 3 {
		if err := within(t, "the late write", late); err == nil {
			t.Error("a write after the handler returned succeeded")
		}
	}
	s.do(t, call{key: "k"}).want(t, http.StatusOK, "in time")
}

// testNothingSentBeforeStored: a response that reached the client is one that a
// retry will get.
func testNothingSentBeforeStored(t *testing.T, f *fixture) {
	completing, storeIt := make(chan struct{}), make(chan struct{})
	var once sync.Once
	held := func(_ context.Context, real func() error) error {
		once.Do(func() { close(completing) })
		<-storeIt
		return real()
	}
	var store idempotency.Store = &faultyPlain{Store: f.store, put: held}
	if leases, ok := f.store.(idempotency.LeaseStore); ok {
		store = &faultyStore{LeaseStore: leases, complete: held}
	}
	s := f.serveOver(t, store, create())
	answers := s.background(t, call{key: "k"})
	within(t, "the completion", completing)
	select {
	case a := <-answers:
		t.Fatalf("the client got %d %q before it was stored", a.StatusCode, a.body)
	case <-time.After(50 * time.Millisecond): // long enough for a response on loopback, had it been sent
	}
	close(storeIt)
	within(t, "the answer", answers).want(t, http.StatusCreated, `{"id":1}`)
}
