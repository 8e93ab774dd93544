package bench_test

import (
	"net/http"
	"runtime"
	"strconv"
	"sync"
	"testing"

	"github.com/google/uuid"

	"github.com/pgidem/pgidem/idempotency"
)

// BenchmarkInFlight is what requests hold whose handlers are all running at a time: memory,
// and goroutines beside the one that a server has for each. What a request and its goroutine
// take by themselves is in the line of the bare handler.
func BenchmarkInFlight(b *testing.B) {
	const requests = 100_000
	release := make(chan struct{})
	var running, done sync.WaitGroup
	handler := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		running.Done()
		<-release
		w.WriteHeader(http.StatusCreated)
	})
	for _, impl := range []struct {
		name    string
		protect func(http.Handler) http.Handler
	}{
		{"bare", func(h http.Handler) http.Handler { return h }},
		{"memory", func(h http.Handler) http.Handler { return require(idempotency.NewMemoryStore(), h) }},
		// A store that is any LeaseStore to the middleware, so that there are leases to be kept.
		{"leases", func(h http.Handler) http.Handler {
			return require(&struct{ *idempotency.MemoryStore }{idempotency.NewMemoryStore()}, h)
		}},
	} {
		b.Run("work=in-flight/server=nethttp/impl="+impl.name, func(b *testing.B) {
			var heap, stacks, goroutines float64
			for b.Loop() {
				release = make(chan struct{})
				h, org := impl.protect(handler), uuid.New()
				heapBefore, stacksBefore := inUse()
				started := runtime.NumGoroutine()
				running.Add(requests)
				for i := range requests {
					done.Go(func() { newCaller(org).call(h, strconv.Itoa(i)) })
				}
				running.Wait()
				goroutines += float64(runtime.NumGoroutine()-started)/requests - 1
				heapNow, stacksNow := inUse()
				heap += float64(heapNow-heapBefore) / requests
				stacks += float64(stacksNow-stacksBefore) / requests
				close(release)
				done.Wait()
			}
			b.ReportMetric(0, "ns/op") // of no interest
			b.ReportMetric(heap/float64(b.N), "heap-bytes/request")
			b.ReportMetric(stacks/float64(b.N), "stack-bytes/request")
			b.ReportMetric(goroutines/float64(b.N), "goroutines/request")
		})
	}
}

// inUse is the memory of the heap and of stacks that is in use.
func inUse() (heap, stacks int64) {
	var m runtime.MemStats
	runtime.GC() // and once more, since what is in a sync.Pool outlives one
	runtime.GC()
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc), int64(m.StackInuse)
}
