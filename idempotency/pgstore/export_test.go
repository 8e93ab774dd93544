package pgstore

import (
	"time"

	"github.com/pgidem/pgidem/idempotency"
)

// SetListenIdle shortens the time after which listening ends.
func SetListenIdle(s *Store, d time.Duration) {
	for _, server := range s.servers {
		server.listener.idle = d
	}
}

// SetFirstAsk sets when those who wait for a transaction first ask again untold.
func SetFirstAsk(s idempotency.Store, d time.Duration) { s.(*txStore).asks = d }

// What the tests of the stored form need to see.
var (
	EncodeHash    = encodeHash
	DecodeHash    = decodeHash
	EncodeHeaders = encodeHeaders
	DecodeHeaders = decodeHeaders
)

// Pace is how a coalescer finds out how many runs are worth having at once.
type Pace struct{ p pace }

func NewPace(least, most int) *Pace { return &Pace{newPace(least, most)} }

func (p *Pace) Limit() int { return p.p.limit() }

func (p *Pace) Saw(took time.Duration, now time.Time, othersWait bool) {
	p.p.saw(took, now, othersWait)
}

// NeededVersion is the migration that the store needs.
const NeededVersion = neededVersion
