package idempotency

// What the tests of parsing and of canonical forms need to see.
var (
	AppendCanonical    = appendCanonical
	ParseKey           = parseKey
	RequestFingerprint = requestFingerprint
)
