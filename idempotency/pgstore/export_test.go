package pgstore

import "time"

// SetListenIdle shortens the time after which listening ends.
func SetListenIdle(s *Store, d time.Duration) { s.listener.idle = d }

// What the tests of the stored form need to see.
var (
	EncodeHash    = encodeHash
	DecodeHash    = decodeHash
	EncodeHeaders = encodeHeaders
	DecodeHeaders = decodeHeaders
)
