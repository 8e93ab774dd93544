package bench_test

import (
	"math/rand/v2"
	"net/http"
	"runtime"
	"strings"
	"testing"

	"github.com/google/uuid"

	"github.com/pgidem/pgidem/idempotency"
)

// BenchmarkKept is what stores in memory keep of a key whose request has completed, as bytes of
// live heap: of 100,000 keys, each a UUID as clients send them. The requests that are timed are
// replays of those keys, at random.
//
// Fiber's storage is its own here, which nothing frees before the process ends. So this stands
// behind all that is timed for its own sake.
func BenchmarkKept(b *testing.B) {
	const count = 100_000
	keys := make([]string, count)
	for i := range keys {
		keys[i] = uuid.NewString()
	}
	for _, impl := range []implementation{
		implementations[0],
		{"nethttp", "memory", newHTTP(func(h http.Handler) http.Handler { return require(idempotency.NewMemoryStore(), h) })},
		{"fasthttp", "bare", func(_ *testing.B, size int) func(string) int { return serveFiber(size) }},
		{"fasthttp", "fiber", func(_ *testing.B, size int) func(string) int { return serveFiber(size, fiberMiddleware(nil)) }},
	} {
		b.Run("work=replay-100k-keys"+impl.String(), func(b *testing.B) {
			before := live()
			call := impl.new(b, small)
			send := func(key string) {
				if status := call(key); status != http.StatusCreated {
					b.Fatalf("status %d", status)
				}
			}
			for _, key := range keys {
				send(strings.Clone(key)) // a server makes a string of its own for each request
			}
			kept := float64(live()-before) / count
			b.ReportAllocs()
			for b.Loop() {
				send(keys[rand.IntN(count)])
			}
			b.ReportMetric(kept, "B/key")
		})
	}
}

// live is how many bytes of the heap can be reached. The second collection takes what pools
// have kept through the first.
func live() int64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.GC()
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}
