package pgstore_test

import (
	"math"
	"testing"
	"time"

	"github.com/pgidem/pgidem/idempotency/pgstore"
)

// TestPace: it settles at the most where runs take as long however many there are, and at
// the least where they wait for each other; and it changes its mind when that changes.
func TestPace(t *testing.T) {
	t.Parallel()
	const least, most = 2, 16
	p, now := pgstore.NewPace(least, most), time.Now()
	serve := func(name string, takes func(atOnce int) time.Duration, want int) {
		for range 20_000 {
			took := takes(p.Limit())
			now = now.Add(took / time.Duration(p.Limit()))
			p.Saw(took, now, true)
		}
		if got := p.Limit(); got != want {
			t.Errorf("%s: %d at once, want %d", name, got, want)
		}
	}
	alone := 0
	far := func(int) time.Duration { return 5 * time.Millisecond }
	near := func(atOnce int) time.Duration { // now and then one runs when no other does
		if alone++; alone%50 == 0 {
			return 200 * time.Microsecond
		}
		return time.Duration(atOnce) * 250 * time.Microsecond
	}
	serve("far away", far, most)
	serve("on the same processors", near, least)
	serve("far away again", far, most)
}

// TestPaceOfAll: as many as there may ever be are many.
func TestPaceOfAll(t *testing.T) {
	t.Parallel()
	if n := pgstore.NewPace(math.MaxInt, math.MaxInt).Limit(); n < 1_000_000 {
		t.Errorf("%d at once", n)
	}
}

// TestPaceWithoutNeed: what nobody waits for does not grow, nor do few become fewer than
// there may be.
func TestPaceWithoutNeed(t *testing.T) {
	t.Parallel()
	p, now := pgstore.NewPace(1, 1), time.Now()
	for i := range 100 {
		now = now.Add(time.Millisecond)
		p.Saw(time.Duration(i)*time.Millisecond, now, i%2 == 0)
		if p.Limit() != 1 {
			t.Fatalf("%d at once, want 1", p.Limit())
		}
	}
}
