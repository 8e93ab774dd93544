// Package bench_test measures what the middleware costs, beside the same handler
// without it, in one run:
//
//	make bench
//
// Nothing here goes over HTTP: a request is a call of ServeHTTP with a reusable
// ResponseWriter. The store over PostgreSQL talks to a real server with its default
// durability; its work is that of many callers at once, on 16 connections.
package bench_test

import (
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"
	"go.uber.org/goleak"

	"github.com/pgidem/pgidem/idempotency"
	"github.com/pgidem/pgidem/internal/pgtest"
	"github.com/pgidem/pgidem/internal/storetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(pgtest.Tests{M: m}) }

const requestBody = `{"amount":1200,"currency":"EUR","to":"account-42"}`

// handler answers a payment with 12 bytes.
var handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
	io.Copy(io.Discard, r.Body)
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusCreated)
	io.WriteString(w, `{"id":12345}`)
})

// writer is a ResponseWriter that keeps nothing, for use again and again.
type writer struct {
	header http.Header
	status int
}

func (w *writer) Header() http.Header         { return w.header }
func (w *writer) WriteHeader(status int)      { w.status = status }
func (w *writer) Write(p []byte) (int, error) { return len(p), nil }

// caller makes requests one after the other.
type caller struct {
	w    *writer
	r    *http.Request
	body *strings.Reader
}

func newCaller(org uuid.UUID) *caller {
	body := strings.NewReader(requestBody)
	r := &http.Request{
		Method: http.MethodPost, URL: &url.URL{Path: "/v1/payments"},
		Header: http.Header{}, Body: io.NopCloser(body), ContentLength: int64(len(requestBody)),
	}
	return &caller{
		w: &writer{header: http.Header{}}, body: body,
		r: r.WithContext(idempotency.WithOrgID(r.Context(), org)),
	}
}

func (c *caller) call(b *testing.B, h http.Handler, key string) {
	c.body.Reset(requestBody)
	clear(c.w.header)
	if key != "" {
		c.r.Header["Idempotency-Key"] = []string{key}
	}
	h.ServeHTTP(c.w, c.r)
	if c.w.status != http.StatusCreated {
		b.Errorf("status %d", c.w.status)
	}
}

func require(store idempotency.Store) http.Handler {
	return idempotency.Require(store, idempotency.WithLogger(slog.New(slog.DiscardHandler)))(handler)
}

func BenchmarkOneCaller(b *testing.B) {
	org := uuid.New()
	memory := func(*testing.B) http.Handler { return require(idempotency.NewMemoryStore()) }
	bare := func(*testing.B) http.Handler { return handler }
	first := func(i int) string { return fmt.Sprintf("key-%012d", i) }
	for _, run := range []struct {
		work, impl string
		handler    func(*testing.B) http.Handler
		key        func(i int) string
	}{
		{"no-key", "bare", bare, func(int) string { return "" }},
		{"no-key", "memory", memory, func(int) string { return "" }},
		{"first", "bare", bare, first},
		{"first", "memory", memory, first},
		{"replay", "bare", bare, func(int) string { return "key" }},
		{"replay", "memory", memory, func(int) string { return "key" }},
	} {
		b.Run("work="+run.work+"/impl="+run.impl, func(b *testing.B) {
			h, c := run.handler(b), newCaller(org)
			c.call(b, h, run.key(0))
			b.ReportAllocs()
			i := 0
			for b.Loop() {
				i++
				c.call(b, h, run.key(i))
			}
		})
	}
}

func BenchmarkManyCallers(b *testing.B) {
	server := pgtest.NewServer(b, pgtest.WithDurable())
	databaseURL, _, err := server.CreateDatabase(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	cfg, err := pgxpool.ParseConfig(databaseURL)
	if err != nil {
		b.Fatal(err)
	}
	cfg.MaxConns = 16
	pool, err := pgxpool.NewWithConfig(b.Context(), cfg)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(pool.Close)
	org := storetest.NewTenant(b, pool)
	for _, impl := range []struct {
		name    string
		handler http.Handler
	}{
		{"bare", handler},
		{"memory", require(idempotency.NewMemoryStore())},
		{"postgres", require(storetest.NewStore(b, pool))},
	} {
		var n atomic.Int64
		run := func(work string, key func() string) {
			b.Run("work="+work+"/impl="+impl.name, func(b *testing.B) {
				b.SetParallelism(8) // times GOMAXPROCS
				b.ReportAllocs()
				b.RunParallel(func(pb *testing.PB) {
					c := newCaller(org)
					for pb.Next() {
						c.call(b, impl.handler, key())
					}
				})
			})
		}
		prefix := uuid.NewString()
		run("first-parallel", func() string { return fmt.Sprint(prefix, n.Add(1)) })
		newCaller(org).call(b, impl.handler, "hot-"+prefix)
		run("replay-parallel", func() string { return "hot-" + prefix })
	}
}
