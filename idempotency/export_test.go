package idempotency

// What the tests of parsing and of canonical forms need to see.
var (
	AppendCanonical    = appendCanonical
	ParseKey           = parseKey
	RequestFingerprint = requestFingerprint
)

// NewPlainStore returns what Require makes of a store that can only Get and Put.
func NewPlainStore(s Store) WatchStore { return newPlainStore(s) }
