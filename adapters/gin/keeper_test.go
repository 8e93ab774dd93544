package ginidem_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// keeper is net/http middleware that does what matters here of what pgidem's does:
// it passes on a request of its own, and holds the response back, to keep it, until
// the handler has returned. Headers of the request tell it to do otherwise.
type keeper struct {
	wrapped int
	kept    chan kept
}

// kept is what the middleware saw of a response.
type kept struct {
	status   int // 0: nothing was written
	body     string
	header   http.Header
	sent     bool // by a flush
	hijacked bool
	panicked bool
}

type passedKey struct{}

func newKeeper() *keeper { return &keeper{kept: make(chan kept, 100)} }

func (k *keeper) Middleware(next http.Handler) http.Handler {
	k.wrapped++
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.Header.Get("X-Keeper") {
		case "answer":
			w.Header().Set("X-By", "keeper")
			w.WriteHeader(http.StatusConflict)
			io.WriteString(w, "not now")
			return
		case "answer briefly":
			w.WriteHeader(http.StatusNoContent)
			return
		case "pass":
			next.ServeHTTP(w, r)
			return
		}
		body, _ := io.ReadAll(r.Body)
		r = r.WithContext(context.WithValue(r.Context(), passedKey{}, "passed on"))
		r.Body = io.NopCloser(bytes.NewReader(append(body, " read"...)))
		h := &holding{w: w, header: w.Header().Clone()}
		h.panicked = true
		defer func() {
			h.kept.header = h.header.Clone()
			k.kept <- h.kept
		}()
		next.ServeHTTP(h, r)
		h.panicked = false
		if h.status == 0 && r.Context().Err() != nil {
			http.Error(w, "no outcome", http.StatusServiceUnavailable)
			return
		}
		if !h.hijacked {
			h.send()
		}
	})
}

// want waits for the next response kept.
func (k *keeper) want(t *testing.T, status int, body string) kept {
	t.Helper()
	select {
	case got := <-k.kept:
		if got.status != status || got.body != body {
			t.Fatalf("the middleware saw %d %q, want %d %q", got.status, got.body, status, body)
		}
		return got
	case <-time.After(10 * time.Second):
		t.Fatal("the middleware saw no response")
		panic("unreachable")
	}
}

// holding is a ResponseWriter that does what net/http asks for by Unwrap alone.
type holding struct {
	kept
	w      http.ResponseWriter
	header http.Header
}

func (h *holding) Header() http.Header         { return h.header }
func (h *holding) Unwrap() http.ResponseWriter { return h.w }

func (h *holding) WriteHeader(status int) {
	if h.status == 0 {
		h.status = status
	}
}

func (h *holding) Write(p []byte) (int, error) {
	h.WriteHeader(http.StatusOK)
	h.body += string(p)
	if h.sent {
		return h.w.Write(p)
	}
	return len(p), nil
}

func (h *holding) send() {
	if h.sent {
		return
	}
	h.sent = true
	h.WriteHeader(http.StatusOK)
	for name, values := range h.header {
		h.w.Header()[name] = values
	}
	h.w.WriteHeader(h.status)
	io.WriteString(h.w, h.body)
}

func (h *holding) FlushError() error {
	h.send()
	if h.header.Get("X-Broken") != "" {
		return errBroken
	}
	return http.NewResponseController(h.w).Flush()
}

var errBroken = errors.New("broken")

func (h *holding) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	h.hijacked = true
	return http.NewResponseController(h.w).Hijack()
}
