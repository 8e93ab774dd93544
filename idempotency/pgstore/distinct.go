package pgstore

import (
	"hash/maphash"
	"math"
	"math/bits"
	"sync/atomic"
	"time"
)

// distinct counts, more or less, the different names that it has met of late: by how many
// of its bits are still zero (linear counting; within a few per cent up to 50,000).
type distinct struct {
	bits  [1 << 8]atomic.Uint64
	since atomic.Int64
}

const distinctWindow = 10 * time.Minute

var distinctSeed = maphash.MakeSeed()

// add takes note of a name, and reports whether it was a new one.
func (d *distinct) add(name string) bool {
	h := maphash.String(distinctSeed, name)
	word, bit := &d.bits[h%uint64(len(d.bits))], uint64(1)<<(h>>58)
	return word.Load()&bit == 0 && word.Or(bit)&bit == 0
}

// count estimates how many there were, and forgets them when the window has passed.
func (d *distinct) count(now time.Time) int {
	zeros := 0
	for i := range d.bits {
		zeros += bits.OnesCount64(^d.bits[i].Load())
	}
	m := float64(64 * len(d.bits))
	n := int(math.Round(m * math.Log(m/float64(max(zeros, 1)))))
	began := d.since.Load()
	if now.Sub(time.Unix(0, began)) > distinctWindow && d.since.CompareAndSwap(began, now.UnixNano()) {
		for i := range d.bits {
			d.bits[i].Store(0)
		}
	}
	return n
}
