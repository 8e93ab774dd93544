package idempotency

import (
	"context"
	"fmt"
	"hash/maphash"
	"math"
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
// away some that have, whatever their keys.
//
// Under [Require] an attempt holds its key until it ends, and is told at once when Clear or
// Put takes the key away: a lease lapses for the sake of those whose process has died, and
// the store dies with its process.
type MemoryStore struct {
	clock    func() time.Time // nil for the system's
	began    time.Time        // what it showed when the store was made
	ended    watch.Hub[memoryKey]
	seed     maphash.Seed
	hashMask uint64 // of the bits of a hash that are used: all, but in a test
	shards   [memoryShards]memoryShard
}

// memoryShards is how many parts of a store can be used at a time.
const memoryShards = 64

// memoryShard is one part of the store: the records of the keys that hash to it.
type memoryShard struct {
	index   int // in the store
	mu      sync.Mutex
	records map[uint64]*memoryRecord // by the hash of the key; the first of those that share it
	count   int
	turn    int                     // which of the other parts was cleared last, counted from this one
	queue   dueQueue[*memoryRecord] // all records, by when it is time to look whether they are absent
	_       [64]byte                // no two are in use on one cache line
}

// memoryKey is a key of one tenant.
type memoryKey struct {
	hash  uint64 // of the others
	orgID uuid.UUID
	key   string
}

// memoryRecord is what the store keeps of a key.
type memoryRecord struct {
	place                   // in the queue of its shard
	memoryKey               // never changed
	next      *memoryRecord // with a key of the same hash
	token     Token
	attempt   int
	lease     time.Duration     // when it lapses, from createdAt
	handler   *lazyContext      // to be cancelled when the claim is lost, nil where others see to that
	steps     map[string][]byte // of this life of the key, never changed once they are here

	requestHash string    // never changed
	createdAt   time.Time // never changed
	expiresAt   time.Time // never changed
	completed   bool
	removed     bool     // from the store
	response    response // never changed once completed, so that it can be handed out
}

// response is what is kept of one, and sent again in a replay.
type response struct {
	status    int
	tombstone bool
	headers   packedHeaders
	body      []byte
}

// newResponse returns the response of a record, with which it shares the body.
func newResponse(rec *Record) response {
	return response{rec.ResponseStatus, rec.Tombstone, packHeaders(rec.ResponseHeaders, rec.AppendedHeaders), rec.ResponseBody}
}

// own returns a response whose body is no other's.
func (r response) own() response {
	r.body = slices.Clone(r.body)
	return r
}

// compact returns a response whose body takes little more memory than it needs.
func (r response) compact() response {
	if room := cap(r.body) - len(r.body); room > len(r.body)/8+16 {
		return r.own()
	}
	return r
}

// record returns a record of the response, with which it shares the body.
func (r response) record() *Record {
	rec := &Record{ResponseStatus: r.status, Tombstone: r.tombstone, ResponseBody: r.body}
	if len(r.headers) > 0 {
		rec.ResponseHeaders, rec.AppendedHeaders = r.headers.unpack()
	}
	return rec
}

// record returns m, which must be completed, as others see it.
func (m *memoryRecord) record() *Record {
	rec := m.response.record()
	rec.OrgID, rec.Key, rec.RequestHash = m.orgID, m.key, m.requestHash
	rec.CreatedAt, rec.ExpiresAt = m.createdAt, m.expiresAt
	return rec
}

// NewMemoryStore returns an empty MemoryStore.
func NewMemoryStore() *MemoryStore { return NewMemoryStoreWithClock(nil) }

// NewMemoryStoreWithClock returns an empty MemoryStore that takes the time from
// now, for tests that move the clock by hand. Its leases lapse by that clock as those of any
// other store do.
func NewMemoryStoreWithClock(now func() time.Time) *MemoryStore {
	s := &MemoryStore{clock: now, seed: maphash.MakeSeed(), hashMask: math.MaxUint64}
	s.began = s.now()
	for i := range s.shards {
		s.shards[i].index, s.shards[i].records = i, make(map[uint64]*memoryRecord)
	}
	return s
}

func (s *MemoryStore) now() time.Time {
	if s.clock != nil {
		return s.clock()
	}
	return time.Now()
}

// inProcess returns the store if it is a MemoryStore by the system's clock, and no type that
// embeds one. Such a store answers at once and never fails, so its calls need no context, no
// deadline and no second try. It dies with the process, and while that lives every attempt
// comes to an end, however its handler does. So its claims need no lease that would have to
// be extended: they hold [forever], and whoever loses one is told at once.
func inProcess(store Store) *MemoryStore {
	if s, ok := store.(*MemoryStore); ok && s.clock == nil {
		return s
	}
	return nil
}

// forever is longer than any attempt takes.
const forever = 100 * 365 * 24 * time.Hour

// hold has the handler of the claim of m cancelled when another takes its place or clears it.
func (s *MemoryStore) hold(m *memoryRecord, token Token, handler *lazyContext) {
	shard := s.lock(m.memoryKey)
	defer shard.mu.Unlock()
	if !m.isHeldBy(token) {
		handler.end(ErrLeaseLost)
		return
	}
	m.handler = handler
}

func (s *MemoryStore) key(orgID uuid.UUID, key string) memoryKey {
	k := memoryKey{orgID: orgID, key: key}
	k.hash = maphash.Comparable(s.seed, k) & s.hashMask
	return k
}

// lock returns the part of the store that has the key, locked.
func (s *MemoryStore) lock(key memoryKey) *memoryShard {
	shard := &s.shards[key.hash%memoryShards]
	shard.mu.Lock()
	return shard
}

// lockClaim returns the part of the store that has the claim, locked, and the record of its
// token if that is in progress. The caller unlocks, whatever the error.
func (s *MemoryStore) lockClaim(c Claim) (*memoryShard, *memoryRecord, error) {
	key := s.key(c.OrgID, c.Key)
	shard := s.lock(key)
	m, err := shard.running(key, c.Token)
	return shard, m, err
}

// Get implements [Store].
func (s *MemoryStore) Get(ctx context.Context, orgID uuid.UUID, key string) (*Record, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if m := s.completed(s.key(orgID, key)); m != nil {
		rec := m.record()
		rec.ResponseBody = slices.Clone(rec.ResponseBody)
		return rec, nil
	}
	return nil, fmt.Errorf("%w: org %s", ErrNotFound, orgID)
}

// completed returns the completed record of the key, or nil.
func (s *MemoryStore) completed(key memoryKey) *memoryRecord {
	shard := s.lock(key)
	defer shard.mu.Unlock()
	if m := shard.find(key); m != nil && m.completed && !m.absent(s.now()) {
		return m
	}
	return nil
}

// Put implements [Store].
func (s *MemoryStore) Put(ctx context.Context, rec *Record) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := rec.validate(); err != nil {
		return err
	}
	now, times := s.now(), *rec
	times.setTimes(now)
	m := &memoryRecord{
		memoryKey: s.key(rec.OrgID, rec.Key), token: NewToken(), attempt: 1,
		requestHash: rec.RequestHash, createdAt: times.CreatedAt, expiresAt: times.ExpiresAt,
		completed: true, response: newResponse(rec).own(),
	}
	shard := s.lock(m.memoryKey)
	defer s.unlockClearing(shard, now)
	shard.set(m, s.due(now, times.ExpiresAt.Sub(now)))
	s.ended.Signal(m.memoryKey)
	return nil
}

// Claim implements [LeaseStore].
func (s *MemoryStore) Claim(ctx context.Context, req ClaimRequest) (ClaimResult, error) {
	if err := ctx.Err(); err != nil {
		return ClaimResult{}, err
	}
	result, m := s.claim(&req, s.now())
	if result.Outcome == OutcomeCompleted {
		result.Record = m.record()
	}
	return result, nil
}

// claim is Claim at the time that the store's clock shows. It returns the record itself that
// was claimed or is completed, in place of a copy.
func (s *MemoryStore) claim(req *ClaimRequest, now time.Time) (ClaimResult, *memoryRecord) {
	key := s.key(req.OrgID, req.Key)
	shard := s.lock(key)
	defer s.unlockClearing(shard, now)
	attempt := 1
	var steps map[string][]byte
	if m := shard.find(key); m != nil && !m.absent(now) {
		lapsed := !m.completed && m.hasLapsed(now)
		switch {
		case m.token == req.Token && !m.completed:
			return ClaimResult{Outcome: OutcomeClaimed, Attempt: m.attempt}, m
		case m.requestHash != req.RequestHash:
			return ClaimResult{Outcome: OutcomeMismatch}, nil
		case m.completed:
			return ClaimResult{Outcome: OutcomeCompleted}, m
		case !lapsed:
			return ClaimResult{Outcome: OutcomeInFlight}, nil
		case req.Interrupted == Refuse:
			return ClaimResult{Outcome: OutcomeInterrupted}, nil
		}
		attempt, steps = m.attempt+1, m.steps
	}
	m := &memoryRecord{
		memoryKey: key, token: req.Token, attempt: attempt, lease: req.Lease, steps: steps,
		requestHash: req.RequestHash, createdAt: now, expiresAt: now.Add(req.TTL),
	}
	shard.set(m, s.due(now, req.TTL))
	return ClaimResult{Outcome: OutcomeClaimed, Attempt: attempt}, m
}

// Complete implements [LeaseStore].
func (s *MemoryStore) Complete(ctx context.Context, c Claim, rec *Record) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	key := s.key(c.OrgID, c.Key)
	shard := s.lock(key)
	defer shard.mu.Unlock()
	m, err := shard.held(key, c.Token)
	if err == nil {
		s.finish(m, newResponse(rec).own())
	}
	return err
}

// complete is Complete of the claim of m, for a response that is the store's from now on.
func (s *MemoryStore) complete(m *memoryRecord, token Token, r response) error {
	shard := s.lock(m.memoryKey)
	defer shard.mu.Unlock()
	if !m.isHeldBy(token) {
		return leaseLost(m.orgID)
	}
	s.finish(m, r)
	return nil
}

// finish completes m, unless the same call has, which is repeated. The lock is held.
func (s *MemoryStore) finish(m *memoryRecord, r response) {
	if m.completed {
		return
	}
	m.response, m.completed, m.handler, m.steps = r, true, nil, nil
	s.ended.Signal(m.memoryKey)
}

// Release implements [LeaseStore].
func (s *MemoryStore) Release(ctx context.Context, c Claim) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	return s.release(c)
}

// release is Release without a context.
func (s *MemoryStore) release(c Claim) error {
	shard, m, err := s.lockClaim(c)
	defer shard.mu.Unlock()
	if err != nil {
		return err
	}
	m.handler = nil
	if m.attempt > 1 || len(m.steps) > 0 {
		m.lease, m.token = s.now().Sub(m.createdAt), NewToken()
	} else {
		shard.remove(m)
	}
	s.ended.Signal(m.memoryKey)
	return nil
}

// letLapse gives the claim, if it holds, a lease in place of a handler that is to be told.
func (s *MemoryStore) letLapse(c Claim, lease time.Duration) {
	shard, m, err := s.lockClaim(c)
	defer shard.mu.Unlock()
	if err != nil {
		return // it is another's
	}
	m.lease, m.handler = s.leased(m, lease), nil
}

// leased is a lease from now on, as m counts it.
func (s *MemoryStore) leased(m *memoryRecord, lease time.Duration) time.Duration {
	return s.now().Sub(m.createdAt) + min(lease, forever)
}

// Extend implements [LeaseStore].
func (s *MemoryStore) Extend(ctx context.Context, c Claim, lease time.Duration) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	shard, m, err := s.lockClaim(c)
	defer shard.mu.Unlock()
	if err != nil {
		return err
	}
	m.lease = s.leased(m, lease)
	return nil
}

// LoadStep implements [StepStore].
func (s *MemoryStore) LoadStep(ctx context.Context, c Claim, name string) (result []byte, found bool, err error) {
	if err := ctx.Err(); err != nil {
		return nil, false, err
	}
	shard, m, err := s.lockClaim(c)
	defer shard.mu.Unlock()
	if err != nil {
		return nil, false, err
	}
	result, found = m.steps[name]
	return result, found, nil
}

// SaveStep implements [StepStore].
func (s *MemoryStore) SaveStep(ctx context.Context, c Claim, name string, result []byte) (stored []byte, err error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	shard, m, err := s.lockClaim(c)
	defer shard.mu.Unlock()
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
	ended, stop = s.ended.Watch(s.key(orgID, key))
	return ended, stop, nil
}

// Clear deletes all records of a tenant, those in progress among them: for tests,
// and for a tenant that is gone.
func (s *MemoryStore) Clear(ctx context.Context, orgID uuid.UUID) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	for i := range s.shards {
		for _, key := range s.shards[i].clear(orgID) {
			s.ended.Signal(key)
		}
	}
	return nil
}

// Len returns how many records the store holds at the moment, those in progress
// and those that have expired but are not cleared away yet among them.
func (s *MemoryStore) Len() (n int) {
	for i := range s.shards {
		n += s.shards[i].len()
	}
	return n
}

// isHeld reports whether an attempt holds the key.
func (s *MemoryStore) isHeld(orgID uuid.UUID, key string) bool {
	k := s.key(orgID, key)
	shard := s.lock(k)
	defer shard.mu.Unlock()
	m := shard.find(k)
	return m != nil && !m.completed && !m.hasLapsed(s.now())
}

// claimed returns what the record of c, in progress, was claimed with.
func (s *MemoryStore) claimed(ctx context.Context, c Claim) (*Record, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	shard, m, err := s.lockClaim(c)
	defer shard.mu.Unlock()
	if err != nil {
		return nil, err
	}
	return &Record{RequestHash: m.requestHash, CreatedAt: m.createdAt, ExpiresAt: m.expiresAt}, nil
}

// absent reports whether the record counts as absent: expired, and not in
// progress under a lease that still holds.
func (m *memoryRecord) absent(now time.Time) bool {
	return !now.Before(m.expiresAt) && (m.completed || m.hasLapsed(now))
}

// isHeldBy reports whether m is the record of its key, in progress or completed, and the
// token's. The lock of its shard is held.
func (m *memoryRecord) isHeldBy(token Token) bool { return !m.removed && m.token == token }

// hasLapsed reports whether the lease of a record in progress has.
func (m *memoryRecord) hasLapsed(now time.Time) bool { return now.Sub(m.createdAt) >= m.lease }

// due is the given time from now as a time in a queue.
func (s *MemoryStore) due(now time.Time, in time.Duration) time.Duration {
	return now.Sub(s.began) + min(max(in, 0), forever)
}

// held returns the record of c's token, in progress or completed. The lock is held, here
// and below.
func (s *memoryShard) held(key memoryKey, token Token) (*memoryRecord, error) {
	if m := s.find(key); m != nil && m.isHeldBy(token) {
		return m, nil
	}
	return nil, leaseLost(key.orgID)
}

func leaseLost(orgID uuid.UUID) error { return fmt.Errorf("%w: org %s", ErrLeaseLost, orgID) }

// running returns the record of c's token if it is in progress.
func (s *memoryShard) running(key memoryKey, token Token) (*memoryRecord, error) {
	m, err := s.held(key, token)
	if err == nil && m.completed {
		return nil, fmt.Errorf("%w: org %s: the record is completed", ErrLeaseLost, key.orgID)
	}
	return m, err
}

// find returns the record of the key, or nil.
func (s *memoryShard) find(key memoryKey) *memoryRecord {
	m := s.records[key.hash]
	for m != nil && m.memoryKey != key {
		m = m.next
	}
	return m
}

// set puts m in place of whatever there is of its key.
func (s *memoryShard) set(m *memoryRecord, due time.Duration) {
	if old := s.find(m.memoryKey); old != nil {
		s.remove(old)
	}
	m.next = s.records[m.hash]
	s.records[m.hash] = m
	s.count++
	s.queue.push(m, due)
}

func (s *memoryShard) remove(m *memoryRecord) {
	switch first := s.records[m.hash]; {
	case first != m:
		for first.next != m {
			first = first.next
		}
		first.next = m.next
	case m.next != nil:
		s.records[m.hash] = m.next
	default:
		delete(s.records, m.hash)
	}
	s.count--
	m.removed = true
	s.queue.remove(m)
	if m.handler != nil {
		m.handler.end(ErrLeaseLost)
	}
}

// unlockClearing clears some of a shard, unlocks it, and clears some of another, in turn:
// there may be no more claims of its own keys. Each shard counts its turns by itself, so that
// the claims of all have nothing in common.
func (s *MemoryStore) unlockClearing(shard *memoryShard, now time.Time) {
	s.clearSome(shard, now)
	shard.turn = shard.turn%(memoryShards-1) + 1
	other := &s.shards[(shard.index+shard.turn)%memoryShards]
	shard.mu.Unlock()
	if other.mu.TryLock() { // whoever is there clears it, too
		s.clearSome(other, now)
		other.mu.Unlock()
	}
}

// clearSome deletes a few records of a shard that count as absent. With more deleted than
// added, they cannot pile up.
func (s *MemoryStore) clearSome(shard *memoryShard, now time.Time) {
	const looks, later = 4, time.Minute
	for range looks {
		if len(shard.queue) == 0 || s.due(now, 0) < shard.queue[0].due {
			return
		}
		m := shard.queue[0].item
		if m.absent(now) {
			shard.remove(m)
			continue
		}
		shard.queue.remove(m) // it outlives its expiry
		shard.queue.push(m, s.due(now, later))
	}
}

// clear deletes all records of a tenant, and returns their keys. It locks s, as len does.
func (s *memoryShard) clear(orgID uuid.UUID) (keys []memoryKey) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, m := range s.records {
		for ; m != nil; m = m.next {
			if m.orgID == orgID {
				s.remove(m)
				keys = append(keys, m.memoryKey)
			}
		}
	}
	return keys
}

func (s *memoryShard) len() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.count
}
