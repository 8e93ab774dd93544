package registry

import (
	"hash/maphash"
	"sync/atomic"

	"github.com/google/uuid"

	"github.com/pgidem/pgidem/tenancy"
)

// entry is what was read of one org_id.
type entry struct {
	orgID     uuid.UUID
	placement tenancy.Placement
	err       error // beside it; nil for a tenant that is served
	read      int64 // when, on the clock of the registry: no later than the query began
	anew      bool  // it was read because what was known before was found wrong

	next   atomic.Pointer[entry]
	used   atomic.Bool // since the hand of the clock last went by
	asking atomic.Bool // that it be read again before it is too old
}

// cache is a hash table of a bounded number of entries. Any number of goroutines may get
// entries, without waiting; whoever changes it holds a lock.
type cache struct {
	seed  maphash.Seed
	heads []atomic.Pointer[entry] // of lists; their number is a power of two
	max   int

	len  int
	hand int // the list at which the search for one to evict goes on
}

func newCache(size int) *cache {
	lists := 1
	for lists < size {
		lists *= 2
	}
	return &cache{seed: maphash.MakeSeed(), heads: make([]atomic.Pointer[entry], lists), max: size}
}

func (c *cache) head(orgID uuid.UUID) *atomic.Pointer[entry] {
	return &c.heads[maphash.Bytes(c.seed, orgID[:])&uint64(len(c.heads)-1)]
}

// get returns the entry of an org_id, or nil.
func (c *cache) get(orgID uuid.UUID) *entry {
	e := c.head(orgID).Load()
	for e != nil && e.orgID != orgID {
		e = e.next.Load()
	}
	return e
}

// put puts an entry in the place of that of its org_id, or beside the others, of which one
// has to go if there is no room.
func (c *cache) put(e *entry) {
	c.drop(e.orgID)
	if c.len >= c.max {
		c.evict()
	}
	head := c.head(e.orgID)
	e.next.Store(head.Load())
	head.Store(e)
	c.len++
}

// drop removes the entry of an org_id. Whoever has come to it in the list goes on from there.
func (c *cache) drop(orgID uuid.UUID) {
	link := c.head(orgID)
	for e := link.Load(); e != nil; e = link.Load() {
		if e.orgID == orgID {
			link.Store(e.next.Load())
			c.len--
			return
		}
		link = &e.next
	}
}

// clear removes all entries.
func (c *cache) clear() {
	for i := range c.heads {
		c.heads[i].Store(nil)
	}
	c.len = 0
}

// evict removes an entry that has not been used since the hand last went by: the clock
// algorithm. Where all are used again as fast as it goes, any will do.
func (c *cache) evict() {
	for lists := 0; c.len > 0; lists++ {
		link := &c.heads[c.hand]
		for e := link.Load(); e != nil; e = link.Load() {
			if !e.used.Swap(false) || lists > len(c.heads) {
				link.Store(e.next.Load())
				c.len--
				return
			}
			link = &e.next
		}
		c.hand = (c.hand + 1) & (len(c.heads) - 1)
	}
}
