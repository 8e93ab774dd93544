package bench_test

import (
	"net/http"
	"testing"

	"github.com/google/uuid"

	"github.com/pgidem/pgidem/internal/pgtest"
	"github.com/pgidem/pgidem/internal/storetest"
)

// BenchmarkOneCallerOverPostgres is one request after the other over PostgreSQL: each by
// itself, so that what it allocates can be counted. The server does not wait for its disk, so
// the times are no one's.
func BenchmarkOneCallerOverPostgres(b *testing.B) {
	pool := pgtest.NewPool(b)
	org := storetest.NewTenant(b, pool)
	h := require(storetest.NewStore(b, pool), handlerOf(small))
	for _, work := range []struct {
		name string
		key  func(*keys) string
	}{
		{"first-alone", (*keys).new},
		{"replay-alone", func(*keys) string { return "key" }},
	} {
		b.Run("work="+work.name+"/server=nethttp/impl=postgres", func(b *testing.B) {
			c, k, prefix := newCaller(org), newKeys(), uuid.NewString()
			send := func() {
				if status := c.call(h, prefix+work.key(k)); status != http.StatusCreated {
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
