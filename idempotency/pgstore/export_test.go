package pgstore

import (
	"time"

	"github.com/pgidem/pgidem/idempotency"
)

// SetListenIdle shortens the time after which listening ends.
func SetListenIdle(s *Store, d time.Duration) { s.listener.idle = d }

// SetFirstAsk sets when those who wait for a transaction first ask again untold.
func SetFirstAsk(s idempotency.Store, d time.Duration) { s.(*txStore).asks = d }

// What the tests of the stored form need to see.
var (
	EncodeHash    = encodeHash
	DecodeHash    = decodeHash
	EncodeHeaders = encodeHeaders
	DecodeHeaders = decodeHeaders
)
