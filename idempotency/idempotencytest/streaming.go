package idempotencytest

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/pgidem/pgidem/idempotency"
)

func testStreamedResponse(t *testing.T, f *fixture) {
	more := make(chan struct{})
	s := f.serve(t, func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(http.StatusAccepted)
		io.WriteString(w, "<p>first ")
		if err := http.NewResponseController(w).Flush(); err != nil {
			t.Errorf("Flush: %v", err)
		}
		w.Header().Set("X-Late", "too late")
		<-more
		io.WriteString(w, "second")
		w.(http.Flusher).Flush()
	})
	resp, err := s.server.Client().Do(s.request(t, call{key: "k"}))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	begin := make([]byte, len("<p>first "))
	if _, err := io.ReadFull(resp.Body, begin); err != nil || resp.StatusCode != http.StatusAccepted {
		t.Fatalf("before the handler went on: %d %q, %v", resp.StatusCode, begin, err)
	}
	close(more)
	rest, err := io.ReadAll(resp.Body)
	if string(rest) != "second" || err != nil {
		t.Fatalf("rest %q, %v", rest, err)
	}
	var again answer
	eventually(t, "the record of a streamed response", func() bool {
		again = s.do(t, call{key: "k"})
		return again.StatusCode != http.StatusConflict
	})
	again.want(t, http.StatusAccepted, "<p>first second")
	if again.Header.Get("Content-Type") != resp.Header.Get("Content-Type") || again.Header.Get("X-Late") != "" {
		t.Errorf("replayed headers %v, first %v", again.Header, resp.Header)
	}
	s.wantRuns(t, 1)
}

func testStreamedPastTheBound(t *testing.T, f *fixture) {
	s := f.serve(t, func(w http.ResponseWriter, r *http.Request) {
		for range 10 {
			io.WriteString(w, "0123456789")
			w.(http.Flusher).Flush()
		}
	}, idempotency.WithMaxResponseBytes(55))
	s.do(t, call{key: "k"}).want(t, http.StatusOK, strings.Repeat("0123456789", 10))
	eventually(t, "the tombstone", func() bool {
		return strings.Contains(s.do(t, call{key: "k"}).body, "response_not_kept")
	})
	s.wantRuns(t, 1)
}

func testFlushBeforeBody(t *testing.T, f *fixture) {
	s := f.serve(t, func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(http.StatusOK)
		w.(http.Flusher).Flush()
		io.WriteString(w, "<p>late")
	})
	first := s.do(t, call{key: "k"})
	eventually(t, "the record", func() bool { return s.do(t, call{key: "k"}).replayed() })
	again := s.do(t, call{key: "k"})
	if fmt.Sprint(first.Header["Content-Type"]) != fmt.Sprint(again.Header["Content-Type"]) || again.body != first.body {
		t.Errorf("first %v %q, then %v %q", first.Header, first.body, again.Header, again.body)
	}
}

// testStreamBrokenOff: half a stream is no response to be repeated.
func testStreamBrokenOff(t *testing.T, f *fixture) {
	sent := make(chan struct{})
	s := f.serve(t, func(w http.ResponseWriter, r *http.Request) {
		for range 1000 {
			io.WriteString(w, "row\n")
			w.(http.Flusher).Flush()
			select {
			case sent <- struct{}{}:
			case <-r.Context().Done():
				return
			}
		}
	})
	ctx, leave := context.WithCancel(context.Background())
	go func() {
		<-sent
		<-sent
		leave()
	}()
	s.try(t, call{key: "k", ctx: ctx})
	eventually(t, "the tombstone", func() bool {
		a := s.do(t, call{key: "k"})
		if a.replayed() {
			t.Fatalf("%d bytes of a stream were replayed as if they were all", len(a.body))
		}
		return strings.Contains(a.body, "response_not_kept")
	})
	s.wantRuns(t, 1)
}
