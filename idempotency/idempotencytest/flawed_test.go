package idempotencytest_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/pgidem/pgidem/idempotency"
	"github.com/pgidem/pgidem/idempotency/idempotencytest"
)

// flaw names one way in which a flawedStore breaks the contract. Each is a mistake
// of one place, as a store would have it.
type flaw string

// flawedStore is a small, plain LeaseStore that keeps the contract but for its
// flaw, if it has one. Its flaws are mistakes of logic: it locks its map even
// where it should have held the lock for longer, so that it is not the race
// detector that finds them.
type flawedStore struct {
	*idempotencytest.Clock
	flaw flaw

	mu   sync.Mutex
	rows map[rowKey]*row
	kept map[rowKey]bool // requests
	met  chan struct{}   // where two racing claims meet
}

type rowKey struct {
	orgID uuid.UUID
	key   string
}

type row struct {
	token      idempotency.Token
	attempt    int
	leaseUntil time.Time
	completed  bool
	steps      map[string][]byte
	rec        *idempotency.Record
}

func newFlawedStore(f flaw) *flawedStore {
	return &flawedStore{
		Clock: idempotencytest.NewClock(), flaw: f,
		rows: make(map[rowKey]*row), kept: make(map[rowKey]bool), met: make(chan struct{}),
	}
}

func (s *flawedStore) at(orgID uuid.UUID, key string) rowKey {
	switch s.flaw {
	case "rows keyed by key alone":
		orgID = uuid.Nil
	case "keys without upper case":
		key = strings.ToLower(key)
	case "keys cut at 255 bytes":
		key = key[:min(len(key), 255)]
	case "keys trimmed":
		key = strings.TrimSpace(key)
	}
	return rowKey{orgID, key}
}

func (s *flawedStore) expired(r *row) bool {
	return !s.Now().Before(r.rec.ExpiresAt)
}

func (s *flawedStore) lapsed(r *row) bool {
	switch s.flaw {
	case "in flight taken over before the lease lapses":
		return !r.completed
	case "lapsed lease never taken over":
		return false
	}
	return !r.completed && !s.Now().Before(r.leaseUntil)
}

// absent reports whether a row that is there counts as absent.
func (s *flawedStore) absent(r *row) bool {
	switch s.flaw {
	case "expired record replayed":
		return false
	case "expired but running claim absent":
		return s.expired(r)
	case "expired and lapsed claim not absent":
		return s.expired(r) && r.completed
	}
	return s.expired(r) && (r.completed || s.lapsed(r))
}

// Get implements [idempotency.Store].
func (s *flawedStore) Get(ctx context.Context, orgID uuid.UUID, key string) (*idempotency.Record, error) {
	if err := ctx.Err(); err != nil && s.flaw != "Get ignores its context" {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	r, ok := s.rows[s.at(orgID, key)]
	if ok && !r.completed && s.flaw != "Get returns a record in progress" {
		ok = false
	}
	if ok && s.expired(r) && s.flaw != "Get ignores expiry" {
		ok = false
	}
	switch {
	case ok && s.flaw == "Get hands out its own memory":
		return r.rec, nil
	case ok:
		return r.rec.Clone(), nil
	case s.flaw == "Get returns another error":
		return nil, errors.New("no rows in result set")
	case s.flaw == "Get returns nothing and no error":
		return nil, nil
	}
	return nil, fmt.Errorf("flawed: %w", idempotency.ErrNotFound)
}

// Put implements [idempotency.Store].
func (s *flawedStore) Put(ctx context.Context, rec *idempotency.Record) error {
	if err := ctx.Err(); err != nil && s.flaw != "Put ignores its context" {
		return err
	}
	switch {
	case rec == nil:
		return s.nonsense("Put accepts nil")
	case rec.OrgID == uuid.Nil:
		return s.nonsense("Put accepts a record without an org")
	case rec.Key == "":
		return s.nonsense("Put accepts a record without a key")
	}
	caller := rec
	if s.flaw != "Put keeps the caller's record" {
		rec = rec.Clone()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if rec.CreatedAt.IsZero() && s.flaw != "Put ignores default times" {
		rec.CreatedAt = s.Now()
	}
	switch {
	case !rec.ExpiresAt.IsZero() || s.flaw == "Put ignores default times":
	case s.flaw == "Put counts the default expiry from now":
		rec.ExpiresAt = s.Now().Add(idempotency.DefaultTTL)
	default:
		rec.ExpiresAt = rec.CreatedAt.Add(idempotency.DefaultTTL)
	}
	if s.flaw == "Put fills in the caller's record" {
		caller.CreatedAt, caller.ExpiresAt = rec.CreatedAt, rec.ExpiresAt
	}
	at := s.at(rec.OrgID, rec.Key)
	token := idempotency.NewToken()
	if old, ok := s.rows[at]; ok {
		switch {
		case s.flaw == "Put leaves a claim in progress alone" && !old.completed:
			return nil
		case s.flaw == "Put leaves the claim its token":
			token = old.token
		case s.flaw == "Put merges":
			merge(rec, old.rec)
		case s.flaw == "Put keeps the tombstone":
			rec.Tombstone = rec.Tombstone || old.rec.Tombstone
		}
	}
	var steps map[string][]byte
	if old, ok := s.rows[at]; ok && s.flaw == "steps outlive a Put" {
		steps = old.steps
	}
	if s.flaw != "requests outlive a Put" {
		delete(s.kept, at)
	}
	s.rows[at] = &row{token: token, attempt: 1, completed: true, steps: steps, rec: s.stored(rec)}
	return nil
}

func (s *flawedStore) nonsense(accepted flaw) error {
	if s.flaw == accepted {
		return nil
	}
	return errors.New("flawed: this record cannot be stored")
}

// merge leaves what rec does not say as it was.
func merge(rec, old *idempotency.Record) {
	if rec.ResponseBody == nil {
		rec.ResponseBody = old.ResponseBody
	}
	for name, values := range old.ResponseHeaders {
		if _, ok := rec.ResponseHeaders[name]; !ok {
			if rec.ResponseHeaders == nil {
				rec.ResponseHeaders = make(map[string][]string)
			}
			rec.ResponseHeaders[name] = values
		}
	}
}
