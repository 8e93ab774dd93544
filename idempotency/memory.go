package idempotency

import (
	"container/heap"
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/pgidem/pgidem/internal/watch"
)

// MemoryStore is a [WatchStore] and a [StepStore] in the memory of one process: for tests, and for
// a service that runs as one process and may forget its keys when it restarts.
// Make one with [NewMemoryStore].
//
// It holds every record until the record expires; each claim and each Put clears
// away some that have.
type MemoryStore struct {
	now   func() time.Time
	ended watch.Hub[memoryKey]

	mu      sync.Mutex
	records map[memoryKey]*memoryRecord
	queue   dueQueue[*memoryRecord] // all records, by when they may be cleared away
}

type memoryKey struct {
	orgID uuid.UUID
	key   string
}

type memoryRecord struct {
	place      // due when it is time to look whether it is absent
	token      Token
	attempt    int
	leaseUntil time.Time
	completed  bool
	steps      map[string][]byte // of this life of the key, never changed once they are here
	rec        *Record           // never changed once it is here, so that it can be handed out
}

// NewMemoryStore returns an empty MemoryStore.
func NewMemoryStore() *MemoryStore { return NewMemoryStoreWithClock(time.Now) }

// NewMemoryStoreWithClock returns an empty MemoryStore that takes the time from
// now, for tests that move the clock by hand.
func NewMemoryStoreWithClock(now func() time.Time) *MemoryStore {
	return &MemoryStore{now: now, records: make(map[memoryKey]*memoryRecord)}
}

// Get implements [Store].
func (s *MemoryStore) Get(ctx context.Context, orgID uuid.UUID, key string) (*Record, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	m, ok := s.records[memoryKey{orgID, key}]
	if !ok || !m.completed || m.absent(s.now()) {
		return nil, fmt.Errorf("%w: org %s", ErrNotFound, orgID)
	}
	return m.rec.Clone(), nil
}

// Put implements [Store].
func (s *MemoryStore) Put(ctx context.Context, rec *Record) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := rec.validate(); err != nil {
		return err
	}
	rec = rec.Clone()
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.now()
	s.clearSome(now)
	rec.setTimes(now)
	s.set(&memoryRecord{token: NewToken(), attempt: 1, completed: true, rec: rec})
	s.ended.Signal(memoryKey{rec.OrgID, rec.Key})
	return nil
}

// Claim implements [LeaseStore].
func (s *MemoryStore) Claim(ctx context.Context, req ClaimRequest) (ClaimResult, error) {
	if err := ctx.Err(); err != nil {
		return ClaimResult{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.now()
	s.clearSome(now)
	attempt := 1
	var steps map[string][]byte
	if m, ok := s.records[memoryKey{req.OrgID, req.Key}]; ok && !m.absent(now) {
		lapsed := !m.completed && !now.Before(m.leaseUntil)
		switch {
		case m.token == req.Token && !m.completed:
			return ClaimResult{Outcome: OutcomeClaimed, Attempt: m.attempt}, nil
		case m.rec.RequestHash != req.RequestHash:
			return ClaimResult{Outcome: OutcomeMismatch}, nil
		case m.completed:
			return ClaimResult{Outcome: OutcomeCompleted, Record: m.rec}, nil
		case !lapsed:
			return ClaimResult{Outcome: OutcomeInFlight}, nil
		case req.Interrupted == Refuse:
			return ClaimResult{Outcome: OutcomeInterrupted}, nil
		}
		attempt, steps = m.attempt+1, m.steps
	}
	s.set(&memoryRecord{
		token: req.Token, attempt: attempt, leaseUntil: now.Add(req.Lease), steps: steps,
		rec: &Record{
			OrgID: req.OrgID, Key: req.Key, RequestHash: req.RequestHash,
			CreatedAt: now, ExpiresAt: now.Add(req.TTL),
		},
	})
	return ClaimResult{Outcome: OutcomeClaimed, Attempt: attempt}, nil
}

// Complete implements [LeaseStore].
func (s *MemoryStore) Complete(ctx context.Context, c Claim, rec *Record) error {
	rec = rec.Clone()
	s.mu.Lock()
	defer s.mu.Unlock()
	m, err := s.held(ctx, c)
	if err != nil {
		return err
	}
	rec.OrgID, rec.Key, rec.RequestHash = m.rec.OrgID, m.rec.Key, m.rec.RequestHash
	rec.CreatedAt, rec.ExpiresAt = m.rec.CreatedAt, m.rec.ExpiresAt
	m.completed, m.rec, m.steps = true, rec, nil
	s.ended.Signal(memoryKey{c.OrgID, c.Key})
	return nil
}

// Release implements [LeaseStore].
func (s *MemoryStore) Release(ctx context.Context, c Claim) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	m, err := s.running(ctx, c)
	if err != nil {
		return err
	}
	if m.attempt > 1 || len(m.steps) > 0 {
		m.leaseUntil, m.token = s.now(), NewToken()
	} else {
		s.remove(m)
	}
	s.ended.Signal(memoryKey{c.OrgID, c.Key})
	return nil
}

// Extend implements [LeaseStore].
func (s *MemoryStore) Extend(ctx context.Context, c Claim, lease time.Duration) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	m, err := s.running(ctx, c)
	if err != nil {
		return err
	}
	m.leaseUntil = s.now().Add(lease)
	return nil
}

// LoadStep implements [StepStore].
func (s *MemoryStore) LoadStep(ctx context.Context, c Claim, name string) (result []byte, found bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	m, err := s.running(ctx, c)
	if err != nil {
		return nil, false, err
	}
	result, found = m.steps[name]
	return result, found, nil
}

// SaveStep implements [StepStore].
func (s *MemoryStore) SaveStep(ctx context.Context, c Claim, name string, result []byte) (stored []byte, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	m, err := s.running(ctx, c)
	if err != nil {
		return nil, err
	}
	if stored, found := m.steps[name]; found {
		return stored, nil
	}
	if m.steps == nil {
		m.steps = make(map[string][]byte)
	}
	m.steps[name] = slices.Clone(result)
	return m.steps[name], nil
}

// Watch implements [WatchStore]. It never fails.
func (s *MemoryStore) Watch(orgID uuid.UUID, key string) (ended <-chan struct{}, stop func(), err error) {
	ended, stop = s.ended.Watch(memoryKey{orgID, key})
	return ended, stop, nil
}

// Clear deletes all records of a tenant, those in progress among them: for tests,
// and for a tenant that is gone.
func (s *MemoryStore) Clear(ctx context.Context, orgID uuid.UUID) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for key, m := range s.records {
		if key.orgID == orgID {
			s.remove(m)
			s.ended.Signal(key)
		}
	}
	return nil
}

// Len returns how many records the store holds at the moment, those in progress
// and those that have expired but are not cleared away yet among them.
func (s *MemoryStore) Len() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.records)
}

// held returns the record of c's token, in progress or completed.
func (s *MemoryStore) held(ctx context.Context, c Claim) (*memoryRecord, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	m, ok := s.records[memoryKey{c.OrgID, c.Key}]
	if !ok || m.token != c.Token {
		return nil, fmt.Errorf("%w: org %s", ErrLeaseLost, c.OrgID)
	}
	return m, nil
}

// isHeld reports whether an attempt holds the key.
func (s *MemoryStore) isHeld(orgID uuid.UUID, key string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	m, ok := s.records[memoryKey{orgID, key}]
	return ok && !m.completed && s.now().Before(m.leaseUntil)
}

// running returns the record of c's token if it is in progress.
func (s *MemoryStore) running(ctx context.Context, c Claim) (*memoryRecord, error) {
	m, err := s.held(ctx, c)
	if err == nil && m.completed {
		return nil, fmt.Errorf("%w: org %s: the record is completed", ErrLeaseLost, c.OrgID)
	}
	return m, err
}

// claimed returns what the record of c, in progress, was claimed with.
func (s *MemoryStore) claimed(ctx context.Context, c Claim) (*Record, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	m, err := s.running(ctx, c)
	if err != nil {
		return nil, err
	}
	return m.rec, nil
}

// absent reports whether the record counts as absent: expired, and not in
// progress under a lease that still holds.
func (m *memoryRecord) absent(now time.Time) bool {
	expired := !now.Before(m.rec.ExpiresAt)
	return expired && (m.completed || !now.Before(m.leaseUntil))
}

// set puts m in place of whatever the store holds of its key.
func (s *MemoryStore) set(m *memoryRecord) {
	key := memoryKey{m.rec.OrgID, m.rec.Key}
	if old, ok := s.records[key]; ok {
		s.remove(old)
	}
	m.due = m.rec.ExpiresAt
	s.records[key] = m
	heap.Push(&s.queue, m)
}

func (s *MemoryStore) remove(m *memoryRecord) {
	delete(s.records, memoryKey{m.rec.OrgID, m.rec.Key})
	heap.Remove(&s.queue, m.index)
}

// clearSome deletes a few records that count as absent. With more deleted than
// added, they cannot pile up.
func (s *MemoryStore) clearSome(now time.Time) {
	const looks = 4
	for range looks {
		if len(s.queue) == 0 || now.Before(s.queue[0].due) {
			return
		}
		m := s.queue[0]
		if m.absent(now) {
			s.remove(m)
			continue
		}
		m.due = m.leaseUntil // it outlives its expiry
		heap.Fix(&s.queue, m.index)
	}
}
