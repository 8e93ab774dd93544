package pgstore

import (
	"hash/maphash"
	"sync/atomic"

	"github.com/google/uuid"
)

// seenKeys remembers which keys this process has lately met, so that the statements can be
// chosen by which a claim is likely done in one round trip: a retry looks, and a first
// request inserts. It knows a bounded number of keys, and none for certain; both ways come
// to the same.
type seenKeys struct {
	seed  maphash.Seed
	marks [1 << 16]atomic.Uint32 // of the keys that hash to the place

	// strangers counts down from maxStrangers since a key was met that had a record and
	// was not known: retries come here whose first requests went elsewhere.
	strangers atomic.Int32
}

const maxStrangers = 64

func newSeenKeys() *seenKeys { return &seenKeys{seed: maphash.MakeSeed()} }

// add makes a key known, and reports whether it was.
func (s *seenKeys) add(orgID uuid.UUID, key string) (known bool) {
	var h maphash.Hash
	h.SetSeed(s.seed)
	h.Write(orgID[:])
	h.WriteString(key)
	sum := h.Sum64()
	mark := uint32(sum>>32) | 1 // 0 is no key's
	return s.marks[sum%uint64(len(s.marks))].Swap(mark) == mark
}

// expectStrangers reports whether an unknown key may well have a record.
func (s *seenKeys) expectStrangers() bool { return s.strangers.Load() > 0 }

// met takes note of what became of the claim of an unknown key.
func (s *seenKeys) met(record bool) {
	if record {
		s.strangers.Store(maxStrangers)
	} else if s.strangers.Load() > 0 {
		s.strangers.Add(-1)
	}
}
