package idempotency_test

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/pgidem/pgidem/idempotency"
)

// TestDueQueue: whatever comes and goes, from wherever in the queue, what is due first stands
// in front.
func TestDueQueue(t *testing.T) {
	t.Parallel()
	random := rand.New(rand.NewPCG(1, 2))
	var q idempotency.DueQueue
	due := map[*idempotency.DueItem]time.Duration{}
	for range 50_000 {
		if len(due) == 0 || len(due) < 200 && random.IntN(2) == 0 {
			it, at := new(idempotency.DueItem), time.Duration(random.IntN(1000))
			it.Push(&q, at)
			due[it] = at
		} else {
			gone, _ := idempotency.FirstDue(&q)
			if random.IntN(2) == 0 {
				for gone = range due { // any
					break
				}
			}
			gone.Remove(&q)
			delete(due, gone)
		}
		if len(q) != len(due) {
			t.Fatalf("%d in the queue, want %d", len(q), len(due))
		}
		if len(q) == 0 {
			continue
		}
		var all []time.Duration
		for _, at := range due {
			all = append(all, at)
		}
		if _, first := idempotency.FirstDue(&q); first != slices.Min(all) {
			t.Fatalf("%v in front, want %v", first, slices.Min(all))
		}
	}
}
