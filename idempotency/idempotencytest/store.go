package idempotencytest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/pgidem/pgidem/idempotency"
)

// Option tells the suite about the store under test.
type Option func(*suite)

// WithTenant gives the suite the function that makes a new tenant ready in the
// store and returns its org_id. By default the suite uses random org_ids, for
// stores in which a tenant needs no place of its own.
func WithTenant(newTenant func(t testing.TB, store idempotency.Store) uuid.UUID) Option {
	return func(s *suite) { s.newTenant = newTenant }
}

// WithAdvance gives the suite the function that lets time pass in the store: it
// moves a manual clock on, or all of the store's times back. By default the suite
// uses short times and waits for them to pass.
func WithAdvance(advance func(t testing.TB, store idempotency.Store, d time.Duration)) Option {
	return func(s *suite) { s.advance = advance }
}

type suite struct {
	newStore  func(t testing.TB) idempotency.Store
	newTenant func(t testing.TB, store idempotency.Store) uuid.UUID
	advance   func(t testing.TB, store idempotency.Store, d time.Duration)
}

func newSuite(newStore func(t testing.TB) idempotency.Store, opts []Option) *suite {
	s := &suite{
		newStore:  newStore,
		newTenant: func(testing.TB, idempotency.Store) uuid.UUID { return uuid.New() },
	}
	for _, opt := range opts {
		opt(s)
	}
	return s
}

// TestStore runs the contract of [idempotency.Store] against the stores that
// newStore returns, each in a test of its own, and the contract of
// [idempotency.LeaseStore] if they implement it.
func TestStore(t *testing.T, newStore func(t testing.TB) idempotency.Store, opts ...Option) {
	s := newSuite(newStore, opts)
	for name, test := range map[string]func(*testing.T, *fixture){
		"GetOfNothing":           testGetOfNothing,
		"PutThenGet":             testPutThenGet,
		"PutReplaces":            testPutReplaces,
		"PutFillsInTimes":        testPutFillsInTimes,
		"PutRefusesNonsense":     testPutRefusesNonsense,
		"RecordsAreCopies":       testRecordsAreCopies,
		"TenantsNeverMeet":       testTenantsNeverMeet,
		"OddPayloads":            testOddPayloads,
		"LargePayload":           testLargePayload,
		"ExpiredRecordIsAbsent":  testExpiredRecordIsAbsent,
		"CancelledContextIsSeen": testCancelledContextIsSeen,
		"ConcurrentPutsAndGets":  testConcurrentPutsAndGets,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(t, s.fixture(t))
		})
	}
	if _, ok := newStore(t).(idempotency.LeaseStore); !ok {
		return
	}
	for name, test := range map[string]func(*testing.T, *leaseFixture){
		"ClaimCompleteReplay":             testClaimCompleteReplay,
		"ClaimInFlight":                   testClaimInFlight,
		"ClaimMismatch":                   testClaimMismatch,
		"ClaimInProgressHasNoRecord":      testClaimInProgressHasNoRecord,
		"ClaimReleased":                   testClaimReleased,
		"ClaimRepeated":                   testClaimRepeated,
		"ReleaseAfterTakeOver":            testReleaseAfterTakeOver,
		"ClaimAfterExpiry":                testClaimAfterExpiry,
		"ClaimOutlivesExpiry":             testClaimOutlivesExpiry,
		"ClaimTakesOverLapsedLease":       testClaimTakesOverLapsedLease,
		"ClaimRefusesLapsedLease":         testClaimRefusesLapsedLease,
		"ClaimMismatchOnLapsedLease":      testClaimMismatchOnLapsedLease,
		"ClaimsOfTenantsNeverMeet":        testClaimsOfTenantsNeverMeet,
		"StaleTokenChangesNothing":        testStaleTokenChangesNothing,
		"CompletedRecordIsNotReleased":    testCompletedRecordIsNotReleased,
		"CompleteMayBeRepeated":           testCompleteMayBeRepeated,
		"CompleteKeepsTermsOfTheClaim":    testCompleteKeepsTermsOfTheClaim,
		"CompleteAfterLapse":              testCompleteAfterLapse,
		"ExtendKeepsTheLease":             testExtendKeepsTheLease,
		"Tombstone":                       testTombstone,
		"ConcurrentClaimsHaveOneWinner":   testConcurrentClaimsHaveOneWinner,
		"ConcurrentTakeOversHaveOne":      testConcurrentTakeOversHaveOneWinner,
		"ConcurrentReleaseLeavesNoErrors": testConcurrentReleases,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := s.fixture(t)
			test(t, &leaseFixture{fixture: f, leases: f.store.(idempotency.LeaseStore)})
		})
	}
}

// fixture is one store with one tenant in it, for one test.
type fixture struct {
	*suite
	ctx   context.Context
	store idempotency.Store
	org   uuid.UUID
}

func (s *suite) fixture(t *testing.T) *fixture {
	store := s.newStore(t)
	return &fixture{suite: s, ctx: t.Context(), store: store, org: s.newTenant(t, store)}
}

// span is how long the suite's leases and expiries are: long enough to hold while
// a test does its work where the clock can be moved, and short enough to wait for
// where it cannot.
func (f *fixture) span() time.Duration {
	if f.advance != nil {
		return time.Hour
	}
	return time.Second
}

// pass lets the span of a lease or an expiry pass.
func (f *fixture) pass(t testing.TB) {
	t.Helper()
	if f.advance != nil {
		f.advance(t, f.store, f.span()+time.Second)
		return
	}
	<-time.After(f.span() + 50*time.Millisecond)
}

func (f *fixture) record(key string) *idempotency.Record {
	now := time.Now().Truncate(time.Microsecond)
	return &idempotency.Record{
		OrgID: f.org, Key: key, RequestHash: strings.Repeat("ab", 32),
		ResponseStatus:  201,
		ResponseBody:    []byte(`{"id":1}`),
		ResponseHeaders: map[string][]string{"Content-Type": {"application/json"}, "X-Two": {"a", "b"}, "X-None": nil},
		AppendedHeaders: []string{"X-Two"},
		CreatedAt:       now, ExpiresAt: now.Add(24 * time.Hour),
	}
}

func (f *fixture) put(t *testing.T, rec *idempotency.Record) {
	t.Helper()
	if err := f.store.Put(f.ctx, rec); err != nil {
		t.Fatalf("Put: %v", err)
	}
}

func (f *fixture) get(t *testing.T, org uuid.UUID, key string) *idempotency.Record {
	t.Helper()
	rec, err := f.store.Get(f.ctx, org, key)
	if err != nil {
		t.Fatalf("Get: %v", err)
	}
	return rec
}

func (f *fixture) wantAbsent(t *testing.T, org uuid.UUID, key string) {
	t.Helper()
	rec, err := f.store.Get(f.ctx, org, key)
	if !errors.Is(err, idempotency.ErrNotFound) {
		t.Fatalf("Get = %+v, %v; want an error that wraps ErrNotFound", rec, err)
	}
}

// wantEqual compares two records; times to the microsecond, which is what
// PostgreSQL keeps.
func wantEqual(t *testing.T, got, want *idempotency.Record) {
	t.Helper()
	sameTime := func(a, b time.Time) bool {
		return a.Truncate(time.Microsecond).Equal(b.Truncate(time.Microsecond))
	}
	switch {
	case got.OrgID != want.OrgID, got.Key != want.Key, got.RequestHash != want.RequestHash,
		got.ResponseStatus != want.ResponseStatus, got.Tombstone != want.Tombstone,
		!bytes.Equal(got.ResponseBody, want.ResponseBody),
		fmt.Sprint(got.ResponseHeaders) != fmt.Sprint(want.ResponseHeaders),
		fmt.Sprint(got.AppendedHeaders) != fmt.Sprint(want.AppendedHeaders),
		!sameTime(got.CreatedAt, want.CreatedAt), !sameTime(got.ExpiresAt, want.ExpiresAt):
		t.Fatalf("record differs:\n got %+v\nwant %+v", got, want)
	}
}

func testGetOfNothing(t *testing.T, f *fixture) { f.wantAbsent(t, f.org, "nothing") }

func testPutThenGet(t *testing.T, f *fixture) {
	rec := f.record("key")
	f.put(t, rec)
	wantEqual(t, f.get(t, f.org, "key"), rec)
}

func testPutReplaces(t *testing.T, f *fixture) {
	f.put(t, f.record("key"))
	second := f.record("key")
	second.ResponseStatus, second.ResponseBody, second.RequestHash = 404, nil, "another"
	second.ResponseHeaders, second.AppendedHeaders = nil, nil
	second.ExpiresAt = second.ExpiresAt.Add(time.Hour)
	f.put(t, second)
	wantEqual(t, f.get(t, f.org, "key"), second)
}

func testPutFillsInTimes(t *testing.T, f *fixture) {
	rec := f.record("key")
	rec.CreatedAt, rec.ExpiresAt = time.Time{}, time.Time{}
	f.put(t, rec)
	got := f.get(t, f.org, "key")
	if got.CreatedAt.IsZero() || got.ExpiresAt.Sub(got.CreatedAt) != idempotency.DefaultTTL {
		t.Fatalf("CreatedAt %v, ExpiresAt %v; want now, and %v later", got.CreatedAt, got.ExpiresAt, idempotency.DefaultTTL)
	}
}

func testPutRefusesNonsense(t *testing.T, f *fixture) {
	if err := f.store.Put(f.ctx, nil); err == nil {
		t.Error("Put accepted a nil record")
	}
	noOrg := f.record("key")
	noOrg.OrgID = uuid.Nil
	if err := f.store.Put(f.ctx, noOrg); err == nil {
		t.Error("Put accepted a record without an OrgID")
	}
	if err := f.store.Put(f.ctx, f.record("")); err == nil {
		t.Error("Put accepted a record without a Key")
	}
}

func testRecordsAreCopies(t *testing.T, f *fixture) {
	rec := f.record("key")
	f.put(t, rec)
	want := rec.Clone()
	spoil := func(r *idempotency.Record) {
		r.ResponseBody[0] = '!'
		r.ResponseHeaders["X-Two"][0] = "spoilt"
		r.ResponseHeaders["X-New"] = []string{"spoilt"}
	}
	spoil(rec)
	wantEqual(t, f.get(t, f.org, "key"), want)
	spoil(f.get(t, f.org, "key"))
	wantEqual(t, f.get(t, f.org, "key"), want)
}

func testTenantsNeverMeet(t *testing.T, f *fixture) {
	other := f.newTenant(t, f.store)
	f.put(t, f.record("key"))
	f.wantAbsent(t, other, "key")
	rec := f.record("key")
	rec.OrgID, rec.ResponseStatus = other, 409
	f.put(t, rec)
	if got := f.get(t, f.org, "key").ResponseStatus; got != 201 {
		t.Fatalf("the first tenant's status became %d", got)
	}
}

func testOddPayloads(t *testing.T, f *fixture) {
	every := make([]byte, 256)
	for i := range every {
		every[i] = byte(i)
	}
	for name, change := range map[string]func(*idempotency.Record){
		"nothing but a status": func(r *idempotency.Record) {
			r.ResponseBody, r.ResponseHeaders, r.AppendedHeaders = nil, nil, nil
		},
		"every byte":           func(r *idempotency.Record) { r.ResponseBody = every },
		"header of odd bytes":  func(r *idempotency.Record) { r.ResponseHeaders["X-Odd"] = []string{"", " ", "\x80\xff", "a,b"} },
		"hash of other form":   func(r *idempotency.Record) { r.RequestHash = "v2:not-hexadecimal" },
		"hash of upper case":   func(r *idempotency.Record) { r.RequestHash = strings.Repeat("AB", 32) },
		"empty hash":           func(r *idempotency.Record) { r.RequestHash = "" },
		"scoped key":           func(r *idempotency.Record) { r.Key = strings.Repeat("f", 32) + "\x1f" + strings.Repeat("k", 255) },
		"key with odd letters": func(r *idempotency.Record) { r.Key = `';DROP TABLE "x"--%s\` },
		"unusual status":       func(r *idempotency.Record) { r.ResponseStatus = 799 },
		"unknown status":       func(r *idempotency.Record) { r.ResponseStatus = 0 },
	} {
		rec := f.record(name)
		change(rec)
		f.put(t, rec)
		got := f.get(t, f.org, rec.Key)
		if len(got.ResponseBody) == 0 {
			got.ResponseBody = rec.ResponseBody // nil or empty, as the store likes
		}
		wantEqual(t, got, rec)
	}
}

func testLargePayload(t *testing.T, f *fixture) {
	rec := f.record("key")
	rec.ResponseBody = bytes.Repeat([]byte("0123456789abcdef"), 4<<20/16)
	f.put(t, rec)
	wantEqual(t, f.get(t, f.org, "key"), rec)
}

func testExpiredRecordIsAbsent(t *testing.T, f *fixture) {
	rec := f.record("key")
	rec.ExpiresAt = rec.CreatedAt.Add(f.span())
	f.put(t, rec)
	wantEqual(t, f.get(t, f.org, "key"), rec)
	f.pass(t)
	f.wantAbsent(t, f.org, "key")
}

func testCancelledContextIsSeen(t *testing.T, f *fixture) {
	ctx, cancel := context.WithCancel(f.ctx)
	cancel()
	if _, err := f.store.Get(ctx, f.org, "key"); !errors.Is(err, context.Canceled) {
		t.Errorf("Get with a cancelled context: %v", err)
	}
	if err := f.store.Put(ctx, f.record("key")); !errors.Is(err, context.Canceled) {
		t.Errorf("Put with a cancelled context: %v", err)
	}
}

func testConcurrentPutsAndGets(t *testing.T, f *fixture) {
	var wg sync.WaitGroup
	for i := range 16 {
		wg.Go(func() {
			rec := f.record("key")
			rec.ResponseStatus = 200 + i
			rec.ResponseBody = []byte(fmt.Sprint(200 + i))
			if err := f.store.Put(f.ctx, rec); err != nil {
				t.Errorf("Put: %v", err)
				return
			}
			got, err := f.store.Get(f.ctx, f.org, "key")
			if err != nil || fmt.Sprint(got.ResponseStatus) != string(got.ResponseBody) {
				t.Errorf("Get = %+v, %v; want one of the records, whole", got, err)
			}
		})
	}
	wg.Wait()
}

// leaseFixture is a fixture whose store has leases.
type leaseFixture struct {
	*fixture
	leases idempotency.LeaseStore
}

func (f *leaseFixture) request(key string) idempotency.ClaimRequest {
	return idempotency.ClaimRequest{
		Claim:       idempotency.Claim{OrgID: f.org, Key: key, Token: idempotency.NewToken()},
		RequestHash: strings.Repeat("cd", 32),
		Lease:       f.span(),
		TTL:         48 * time.Hour,
	}
}

func (f *leaseFixture) claim(t *testing.T, req idempotency.ClaimRequest, want idempotency.ClaimOutcome) idempotency.ClaimResult {
	t.Helper()
	result, err := f.leases.Claim(f.ctx, req)
	if err != nil {
		t.Fatalf("Claim: %v", err)
	}
	if result.Outcome != want {
		t.Fatalf("Claim: outcome %d, want %d", result.Outcome, want)
	}
	if want == idempotency.OutcomeClaimed && result.Attempt < 1 {
		t.Fatalf("Claim: attempt %d, want 1 or more", result.Attempt)
	}
	if want == idempotency.OutcomeCompleted && result.Record == nil {
		t.Fatal("Claim: completed, but without the record")
	}
	return result
}

func (f *leaseFixture) complete(t *testing.T, c idempotency.Claim, status int) {
	t.Helper()
	rec := f.record(c.Key)
	rec.ResponseStatus = status
	if err := f.leases.Complete(f.ctx, c, rec); err != nil {
		t.Fatalf("Complete: %v", err)
	}
}

func wantLost(t *testing.T, step string, err error) {
	t.Helper()
	if !errors.Is(err, idempotency.ErrLeaseLost) {
		t.Fatalf("%s: %v; want an error that wraps ErrLeaseLost", step, err)
	}
}

func testClaimCompleteReplay(t *testing.T, f *leaseFixture) {
	req := f.request("key")
	if result := f.claim(t, req, idempotency.OutcomeClaimed); result.Attempt != 1 {
		t.Fatalf("attempt %d, want 1", result.Attempt)
	}
	f.complete(t, req.Claim, 201)
	for range 3 {
		got := f.claim(t, f.request("key"), idempotency.OutcomeCompleted).Record
		want := f.record("key")
		want.RequestHash, want.CreatedAt, want.ExpiresAt = req.RequestHash, got.CreatedAt, got.ExpiresAt
		wantEqual(t, got, want)
		wantEqual(t, f.get(t, f.org, "key"), want)
	}
}

func testClaimInFlight(t *testing.T, f *leaseFixture) {
	f.claim(t, f.request("key"), idempotency.OutcomeClaimed)
	f.claim(t, f.request("key"), idempotency.OutcomeInFlight)
	f.claim(t, f.request("another"), idempotency.OutcomeClaimed)
}

func testClaimMismatch(t *testing.T, f *leaseFixture) {
	req, other := f.request("key"), f.request("key")
	other.RequestHash = strings.Repeat("ef", 32)
	f.claim(t, req, idempotency.OutcomeClaimed)
	f.claim(t, other, idempotency.OutcomeMismatch)
	f.complete(t, req.Claim, 201)
	f.claim(t, other, idempotency.OutcomeMismatch)
}

func testClaimInProgressHasNoRecord(t *testing.T, f *leaseFixture) {
	f.claim(t, f.request("key"), idempotency.OutcomeClaimed)
	f.wantAbsent(t, f.org, "key")
}

func testClaimReleased(t *testing.T, f *leaseFixture) {
	req := f.request("key")
	f.claim(t, req, idempotency.OutcomeClaimed)
	if err := f.leases.Release(f.ctx, req.Claim); err != nil {
		t.Fatalf("Release: %v", err)
	}
	other := f.request("key")
	other.RequestHash = strings.Repeat("ef", 32) // nothing of the first one is left
	f.claim(t, other, idempotency.OutcomeClaimed)
}

// testClaimRepeated: who asks again because the answer was lost finds its own claim.
func testClaimRepeated(t *testing.T, f *leaseFixture) {
	first, second := f.request("key"), f.request("key")
	for range 2 {
		if result := f.claim(t, first, idempotency.OutcomeClaimed); result.Attempt != 1 {
			t.Fatalf("attempt %d, want 1", result.Attempt)
		}
	}
	f.pass(t)
	for range 2 {
		if result := f.claim(t, second, idempotency.OutcomeClaimed); result.Attempt != 2 {
			t.Fatalf("attempt %d, want 2", result.Attempt)
		}
	}
	f.claim(t, first, idempotency.OutcomeInFlight)
	f.complete(t, second.Claim, 201)
	f.claim(t, second, idempotency.OutcomeCompleted)
}

// testReleaseAfterTakeOver: what the interrupted attempt did is still unknown, so
// the next attempt must not look like a first one.
func testReleaseAfterTakeOver(t *testing.T, f *leaseFixture) {
	dead := f.request("key")
	f.claim(t, dead, idempotency.OutcomeClaimed)
	f.pass(t)
	for attempt := 2; attempt < 5; attempt++ {
		req := f.request("key")
		if result := f.claim(t, req, idempotency.OutcomeClaimed); result.Attempt != attempt {
			t.Fatalf("attempt %d, want %d", result.Attempt, attempt)
		}
		if err := f.leases.Release(f.ctx, req.Claim); err != nil {
			t.Fatalf("Release: %v", err)
		}
		wantLost(t, "Complete after Release", f.leases.Complete(f.ctx, req.Claim, f.record("key")))
		wantLost(t, "second Release", f.leases.Release(f.ctx, req.Claim))
		wantLost(t, "Complete by the dead", f.leases.Complete(f.ctx, dead.Claim, f.record("key")))
		f.wantAbsent(t, f.org, "key")
	}
	other := f.request("key")
	other.RequestHash = strings.Repeat("ef", 32)
	f.claim(t, other, idempotency.OutcomeMismatch)
}

func testClaimAfterExpiry(t *testing.T, f *leaseFixture) {
	req := f.request("key")
	req.TTL = f.span()
	f.claim(t, req, idempotency.OutcomeClaimed)
	f.complete(t, req.Claim, 201)
	f.pass(t)
	other := f.request("key")
	other.RequestHash = strings.Repeat("ef", 32)
	if result := f.claim(t, other, idempotency.OutcomeClaimed); result.Attempt != 1 {
		t.Fatalf("attempt %d at an expired record, want 1", result.Attempt)
	}
	wantLost(t, "Complete by the expired claim", f.leases.Complete(f.ctx, req.Claim, f.record("key")))
}

func testClaimOutlivesExpiry(t *testing.T, f *leaseFixture) {
	req := f.request("key")
	req.TTL, req.Lease = f.span(), 20*f.span()
	f.claim(t, req, idempotency.OutcomeClaimed)
	f.pass(t)
	f.claim(t, f.request("key"), idempotency.OutcomeInFlight) // the lease still holds
}

func testClaimTakesOverLapsedLease(t *testing.T, f *leaseFixture) {
	f.claim(t, f.request("key"), idempotency.OutcomeClaimed)
	for attempt := 2; attempt < 4; attempt++ {
		f.pass(t)
		if result := f.claim(t, f.request("key"), idempotency.OutcomeClaimed); result.Attempt != attempt {
			t.Fatalf("attempt %d, want %d", result.Attempt, attempt)
		}
		f.claim(t, f.request("key"), idempotency.OutcomeInFlight)
	}
}

func testClaimRefusesLapsedLease(t *testing.T, f *leaseFixture) {
	req := f.request("key")
	f.claim(t, req, idempotency.OutcomeClaimed)
	refusing := f.request("key")
	refusing.Interrupted = idempotency.Refuse
	f.claim(t, refusing, idempotency.OutcomeInFlight)
	f.pass(t)
	f.claim(t, refusing, idempotency.OutcomeInterrupted)
	f.complete(t, req.Claim, 201) // late, but nobody took over
	f.claim(t, refusing, idempotency.OutcomeCompleted)
}

func testClaimMismatchOnLapsedLease(t *testing.T, f *leaseFixture) {
	req := f.request("key")
	f.claim(t, req, idempotency.OutcomeClaimed)
	f.pass(t)
	other := f.request("key")
	other.RequestHash = strings.Repeat("ef", 32)
	f.claim(t, other, idempotency.OutcomeMismatch)
	f.complete(t, req.Claim, 201)
}

func testClaimsOfTenantsNeverMeet(t *testing.T, f *leaseFixture) {
	mine, theirs := f.request("key"), f.request("key")
	theirs.OrgID = f.newTenant(t, f.store)
	theirs.Token = mine.Token // not even with the token can one touch the other's
	f.claim(t, mine, idempotency.OutcomeClaimed)
	f.claim(t, theirs, idempotency.OutcomeClaimed)
	if err := f.leases.Release(f.ctx, theirs.Claim); err != nil {
		t.Fatalf("Release: %v", err)
	}
	f.claim(t, f.request("key"), idempotency.OutcomeInFlight)
	f.complete(t, mine.Claim, 201)
	f.wantAbsent(t, theirs.OrgID, "key")
}

func testStaleTokenChangesNothing(t *testing.T, f *leaseFixture) {
	stale, fresh := f.request("key"), f.request("key")
	f.claim(t, stale, idempotency.OutcomeClaimed)
	f.pass(t)
	f.claim(t, fresh, idempotency.OutcomeClaimed)
	wantStale := func() {
		t.Helper()
		wantLost(t, "Complete", f.leases.Complete(f.ctx, stale.Claim, f.record("key")))
		wantLost(t, "Release", f.leases.Release(f.ctx, stale.Claim))
		wantLost(t, "Extend", f.leases.Extend(f.ctx, stale.Claim, time.Hour))
	}
	wantStale()
	f.claim(t, f.request("key"), idempotency.OutcomeInFlight)
	f.complete(t, fresh.Claim, 202)
	wantStale()
	if got := f.get(t, f.org, "key").ResponseStatus; got != 202 {
		t.Fatalf("status %d, want the fresh attempt's 202", got)
	}
	never := f.request("never claimed").Claim
	wantLost(t, "Complete of nothing", f.leases.Complete(f.ctx, never, f.record("never claimed")))
	wantLost(t, "Release of nothing", f.leases.Release(f.ctx, never))
	wantLost(t, "Extend of nothing", f.leases.Extend(f.ctx, never, time.Hour))
	f.wantAbsent(t, f.org, "never claimed")
}

func testCompletedRecordIsNotReleased(t *testing.T, f *leaseFixture) {
	req := f.request("key")
	f.claim(t, req, idempotency.OutcomeClaimed)
	f.complete(t, req.Claim, 201)
	wantLost(t, "Release", f.leases.Release(f.ctx, req.Claim))
	wantLost(t, "Extend", f.leases.Extend(f.ctx, req.Claim, time.Hour))
	f.claim(t, f.request("key"), idempotency.OutcomeCompleted)
}

func testCompleteMayBeRepeated(t *testing.T, f *leaseFixture) {
	req := f.request("key")
	f.claim(t, req, idempotency.OutcomeClaimed)
	f.complete(t, req.Claim, 201)
	f.complete(t, req.Claim, 201)
	f.claim(t, f.request("key"), idempotency.OutcomeCompleted)
}

func testCompleteKeepsTermsOfTheClaim(t *testing.T, f *leaseFixture) {
	req := f.request("key")
	f.claim(t, req, idempotency.OutcomeClaimed)
	rec := f.record("key")
	rec.RequestHash, rec.ExpiresAt = "another", rec.CreatedAt.Add(time.Minute)
	if err := f.leases.Complete(f.ctx, req.Claim, rec); err != nil {
		t.Fatalf("Complete: %v", err)
	}
	got := f.get(t, f.org, "key")
	if got.RequestHash != req.RequestHash || got.ExpiresAt.Sub(got.CreatedAt) != req.TTL {
		t.Fatalf("record %+v; want the fingerprint and the expiry of the claim", got)
	}
}

func testCompleteAfterLapse(t *testing.T, f *leaseFixture) {
	req := f.request("key")
	f.claim(t, req, idempotency.OutcomeClaimed)
	f.pass(t)
	f.complete(t, req.Claim, 201) // nobody took over, so the outcome is welcome
	f.claim(t, f.request("key"), idempotency.OutcomeCompleted)
}

func testExtendKeepsTheLease(t *testing.T, f *leaseFixture) {
	req := f.request("key")
	f.claim(t, req, idempotency.OutcomeClaimed)
	if err := f.leases.Extend(f.ctx, req.Claim, 20*f.span()); err != nil {
		t.Fatalf("Extend: %v", err)
	}
	f.pass(t)
	f.claim(t, f.request("key"), idempotency.OutcomeInFlight)
	if err := f.leases.Extend(f.ctx, req.Claim, f.span()); err != nil { // counted from now, so shorter again
		t.Fatalf("Extend: %v", err)
	}
	f.pass(t)
	f.claim(t, f.request("key"), idempotency.OutcomeClaimed)
}

func testTombstone(t *testing.T, f *leaseFixture) {
	req := f.request("key")
	f.claim(t, req, idempotency.OutcomeClaimed)
	err := f.leases.Complete(f.ctx, req.Claim, &idempotency.Record{OrgID: f.org, Key: "key", ResponseStatus: 200, Tombstone: true})
	if err != nil {
		t.Fatalf("Complete: %v", err)
	}
	for _, rec := range []*idempotency.Record{
		f.claim(t, f.request("key"), idempotency.OutcomeCompleted).Record,
		f.get(t, f.org, "key"),
	} {
		if !rec.Tombstone || rec.ResponseStatus != 200 || len(rec.ResponseBody) != 0 {
			t.Fatalf("record %+v; want a tombstone with status 200", rec)
		}
	}
}

// claimMany lets many attempts claim one key at once and returns the winners.
func (f *leaseFixture) claimMany(t *testing.T, key string, others idempotency.ClaimOutcome) []idempotency.ClaimRequest {
	const attempts = 50
	var (
		wg      sync.WaitGroup
		mu      sync.Mutex
		winners []idempotency.ClaimRequest
		start   = make(chan struct{})
	)
	for range attempts {
		wg.Go(func() {
			req := f.request(key)
			<-start
			result, err := f.leases.Claim(f.ctx, req)
			switch {
			case err != nil:
				t.Errorf("Claim: %v", err)
			case result.Outcome == idempotency.OutcomeClaimed:
				mu.Lock()
				winners = append(winners, req)
				mu.Unlock()
			case result.Outcome != others:
				t.Errorf("Claim: outcome %d, want %d", result.Outcome, others)
			}
		})
	}
	close(start)
	wg.Wait()
	return winners
}

func testConcurrentClaimsHaveOneWinner(t *testing.T, f *leaseFixture) {
	for round := range 10 {
		key := fmt.Sprint("key-", round)
		winners := f.claimMany(t, key, idempotency.OutcomeInFlight)
		if len(winners) != 1 {
			t.Fatalf("round %d: %d winners, want 1", round, len(winners))
		}
		f.complete(t, winners[0].Claim, 201)
		if late := f.claimMany(t, key, idempotency.OutcomeCompleted); len(late) != 0 {
			t.Fatalf("round %d: %d claims of a completed record", round, len(late))
		}
	}
}

func testConcurrentTakeOversHaveOneWinner(t *testing.T, f *leaseFixture) {
	for round := range 3 {
		lapsed, expired := fmt.Sprint("lapsed-", round), fmt.Sprint("expired-", round)
		f.claim(t, f.request(lapsed), idempotency.OutcomeClaimed)
		req := f.request(expired)
		req.TTL = f.span()
		f.claim(t, req, idempotency.OutcomeClaimed)
		f.complete(t, req.Claim, 201)
		f.pass(t)
		for _, key := range []string{lapsed, expired} {
			if winners := f.claimMany(t, key, idempotency.OutcomeInFlight); len(winners) != 1 {
				t.Fatalf("round %d, %s: %d winners, want 1", round, key, len(winners))
			}
		}
	}
}

// testConcurrentReleases has many attempts claim and release one key as fast as
// they can: whoever claims while another releases gets an answer, never an error,
// and no two hold the key at once.
func testConcurrentReleases(t *testing.T, f *leaseFixture) {
	var (
		wg      sync.WaitGroup
		holders atomic.Int32
		claims  atomic.Int32
	)
	for range 16 {
		wg.Go(func() {
			for range 20 {
				req := f.request("key")
				result, err := f.leases.Claim(f.ctx, req)
				if err != nil {
					t.Errorf("Claim: %v", err)
					return
				}
				if result.Outcome != idempotency.OutcomeClaimed {
					continue
				}
				claims.Add(1)
				if n := holders.Add(1); n != 1 {
					t.Errorf("%d attempts hold the key", n)
				}
				holders.Add(-1)
				if err := f.leases.Release(f.ctx, req.Claim); err != nil {
					t.Errorf("Release: %v", err)
					return
				}
			}
		})
	}
	wg.Wait()
	if claims.Load() == 0 {
		t.Error("no claim succeeded")
	}
}
