package idempotencytest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/pgidem/pgidem/idempotency"
)

// fixture is one store with one tenant in it, for one test.
type fixture struct {
	*suite
	ctx     context.Context
	store   idempotency.Store
	org     uuid.UUID
	advance func(testing.TB, time.Duration) // nil where time can only be waited for
}

func (s *suite) fixture(t *testing.T) *fixture {
	store := s.newStore(t)
	f := &fixture{suite: s, ctx: t.Context(), store: store, org: s.newTenant(t, store)}
	if s.advance != nil {
		f.advance = func(t testing.TB, d time.Duration) { s.advance(t, store, d) }
	} else if clocked, ok := store.(interface{ Advance(d time.Duration) }); ok {
		f.advance = func(_ testing.TB, d time.Duration) { clocked.Advance(d) }
	}
	return f
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
		f.advance(t, f.span()+time.Second)
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
		ResponseHeaders: map[string][]string{"Content-Type": {"application/json"}, "X-Two": {"b", "b", "a"}, "X-None": nil},
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
	if err != nil || rec == nil {
		t.Fatalf("Get = %+v, %v; want a record", rec, err)
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
		fmt.Sprintf("%q", got.ResponseHeaders) != fmt.Sprintf("%q", want.ResponseHeaders),
		fmt.Sprintf("%q", got.AppendedHeaders) != fmt.Sprintf("%q", want.AppendedHeaders),
		!sameTime(got.CreatedAt, want.CreatedAt), !sameTime(got.ExpiresAt, want.ExpiresAt):
		t.Fatalf("record differs:\n got %s\nwant %s", inShort(got), inShort(want))
	}
}

// inShort shows a record with no more than the beginning of its body.
func inShort(r *idempotency.Record) string {
	const shown = 300
	short := *r
	short.ResponseBody = nil
	return fmt.Sprintf("%+v with headers %q and a body of %d bytes, %.*q", short, r.ResponseHeaders, len(r.ResponseBody), shown, r.ResponseBody)
}

// mark notes the store's present time, as the CreatedAt of a record of its own.
func (f *fixture) mark(t *testing.T, name string) {
	t.Helper()
	rec := f.record(name)
	rec.CreatedAt, rec.ExpiresAt = time.Time{}, time.Time{}
	f.put(t, rec)
}

// wantBetween checks that the record's attempt claimed its key between two marks.
func (f *fixture) wantBetween(t *testing.T, before string, rec *idempotency.Record, after string) {
	t.Helper()
	from, to := f.get(t, f.org, before).CreatedAt, f.get(t, f.org, after).CreatedAt
	if rec.CreatedAt.Before(from) || rec.CreatedAt.After(to) {
		t.Fatalf("CreatedAt %v; want the time of the claim, from %v to %v", rec.CreatedAt, from, to)
	}
}

// otherHash is the fingerprint of another request than those of [leaseFixture.request].
var otherHash = strings.Repeat("ef", 32)

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
