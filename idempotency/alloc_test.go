//go:build !race

package idempotency_test

import (
	"io"
	"log/slog"
	"net/http"
	"strconv"
	"strings"
	"testing"

	"github.com/pgidem/pgidem/idempotency"
)

// sink is a ResponseWriter that keeps nothing.
type sink struct{ header http.Header }

func (s *sink) Header() http.Header         { return s.header }
func (s *sink) WriteHeader(int)             {}
func (s *sink) Write(p []byte) (int, error) { return len(p), nil }

// TestAllocations bounds how often a small request allocates over a MemoryStore, which is most
// of what it costs. Escape analysis decides that, so a small change may undo it.
func TestAllocations(t *testing.T) { // not beside others, whose allocations would count
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusCreated)
		io.WriteString(w, `{"id":12345}`)
	})
	protected := idempotency.Require(idempotency.NewMemoryStore(), idempotency.WithLogger(slog.New(slog.DiscardHandler)))(handler)
	body := strings.NewReader("")
	r := request(t, "", "")
	r.Header.Del(idempotency.HeaderKey)
	r.Body, r.ContentLength = io.NopCloser(body), 50
	w := &sink{http.Header{}}
	line := []string{""}
	const rounds = 500
	keys := make([]string, 0, rounds+1)
	for i := range cap(keys) {
		keys = append(keys, "key "+strconv.Itoa(i))
	}
	next := 0
	call := func(h http.Handler, key string) {
		body.Reset(`{"amount":1200,"currency":"EUR","to":"account-42"}`)
		clear(w.header)
		if line[0] = key; key != "" {
			r.Header[idempotency.HeaderKey] = line
		}
		h.ServeHTTP(w, r)
	}
	bare := testing.AllocsPerRun(rounds, func() { call(handler, "") })
	for _, c := range []struct {
		name string
		most float64
		call func()
	}{
		{"passes through", bare, func() { call(protected, "") }},
		{"first", 9, func() { call(protected, keys[next]); next++ }},
		{"replay", 5, func() { call(protected, keys[0]) }},
	} {
		if n := testing.AllocsPerRun(rounds, c.call); n > c.most {
			t.Errorf("%s: %v allocations, want at most %v; the handler alone makes %v", c.name, n, c.most, bare)
		}
	}
}
