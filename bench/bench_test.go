// Package bench_test measures what the middleware costs, beside the same handler
// without it and beside other middleware, in one run:
//
//	make bench
//
// A benchmark's name says what is done (work), what calls the handler (server), and what stands in
// front of the handler (impl). The command ratios compares all with the bare handler of their
// server.
//
// Nothing here goes over HTTP: a request is a call of ServeHTTP with a reusable
// ResponseWriter, and of fasthttp's handler for fiber. The store over PostgreSQL talks to
// a real server with its default durability; its work is that of many callers at once, on
// 16 connections. The command pgload measures over HTTP.
package bench_test

import (
	"net/http"
	"strconv"
	"sync/atomic"
	"testing"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"
	"go.uber.org/goleak"

	"github.com/pgidem/pgidem/idempotency"
	"github.com/pgidem/pgidem/internal/pgtest"
	"github.com/pgidem/pgidem/internal/storetest"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(pgtest.Tests{M: m},
		// Fiber's own storage ends neither of these.
		goleak.IgnoreAnyFunction("github.com/gofiber/fiber/v2/internal/storage/memory.(*Storage).gc"),
		goleak.IgnoreAnyFunction("github.com/gofiber/fiber/v2/utils.StartTimeStampUpdater.func1.1"),
	)
}

// BenchmarkOneCaller is one request after the other.
func BenchmarkOneCaller(b *testing.B) {
	for _, work := range []struct {
		name string
		size int
		key  func(*keys) string
	}{
		{"no-key", small, func(*keys) string { return "" }},
		{"first", small, (*keys).new},
		{"replay", small, func(*keys) string { return "key" }},
		{"first-64k", large, (*keys).new},
		{"replay-64k", large, func(*keys) string { return "key" }},
	} {
		for _, impl := range implementations {
			b.Run("work="+work.name+impl.String(), func(b *testing.B) {
				call, k := impl.new(b, work.size), newKeys()
				send := func() {
					if status := call(work.key(k)); status != http.StatusCreated {
						b.Fatalf("status %d", status)
					}
				}
				send()
				b.ReportAllocs()
				for b.Loop() {
					send()
				}
			})
		}
	}
}

// BenchmarkManyCallers is many requests at once.
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
	handler := handlerOf(small)
	for _, impl := range []struct {
		name    string
		handler http.Handler
	}{
		{"bare", handler},
		{"memory", require(idempotency.NewMemoryStore(), handler)},
		{"postgres", require(storetest.NewStore(b, pool), handler)},
	} {
		run := func(work string, newKey func() func() string) {
			b.Run("work="+work+"/server=nethttp/impl="+impl.name, func(b *testing.B) {
				b.SetParallelism(8) // times GOMAXPROCS
				b.ReportAllocs()
				var failed atomic.Int64
				b.RunParallel(func(pb *testing.PB) {
					c, key := newCaller(org), newKey()
					for pb.Next() {
						if c.call(impl.handler, key()) != http.StatusCreated {
							failed.Add(1)
						}
					}
				})
				if n := failed.Load(); n > 0 {
					b.Errorf("%d requests failed", n)
				}
			})
		}
		prefix, n := uuid.NewString(), new(atomic.Int64)
		run("first-parallel", func() func() string {
			return func() string { return prefix + strconv.FormatInt(n.Add(1), 10) }
		})
		hot := uuid.NewString()
		newCaller(org).call(impl.handler, hot)
		run("replay-parallel", func() func() string { return func() string { return hot } })
	}
}
