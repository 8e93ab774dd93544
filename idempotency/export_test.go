package idempotency

import "time"

// What the tests of parsing and of canonical forms need to see.
var (
	AppendCanonical    = appendCanonical
	ParseKey           = parseKey
	RequestFingerprint = requestFingerprint
)

// NewPlainStore returns what Require makes of a store that can only Get and Put.
func NewPlainStore(s Store) WatchStore { return newPlainStore(s) }

// DueQueue is a dueQueue, for its test.
type (
	DueQueue = dueQueue[*DueItem]
	DueItem  struct{ place }
)

// What a DueQueue does.
func (it *DueItem) Push(q *DueQueue, due time.Duration) { q.push(it, due) }
func (it *DueItem) Remove(q *DueQueue)                  { q.remove(it) }

// FirstDue is what stands in front, and when it is due.
func FirstDue(q *DueQueue) (*DueItem, time.Duration) { return (*q)[0].item, (*q)[0].due }

// NarrowHash leaves so many bits of the hashes of a new store's keys, so that many collide.
func NarrowHash(s *MemoryStore, bits int) { s.hashMask = 1<<bits - 1 }
