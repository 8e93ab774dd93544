package idempotencytest

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/pgidem/pgidem/idempotency"
)

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
	tombstone := f.record("key")
	tombstone.ResponseBody, tombstone.ResponseHeaders, tombstone.AppendedHeaders = nil, nil, nil
	tombstone.Tombstone = true
	f.put(t, tombstone)
	wantEqual(t, f.get(t, f.org, "key"), tombstone)
	last := f.record("key")
	f.put(t, last)
	wantEqual(t, f.get(t, f.org, "key"), last)
}

func testPutFillsInTimes(t *testing.T, f *fixture) {
	rec := f.record("key")
	rec.CreatedAt, rec.ExpiresAt = time.Time{}, time.Time{}
	f.put(t, rec)
	got := f.get(t, f.org, "key")
	if got.CreatedAt.IsZero() || got.ExpiresAt.Sub(got.CreatedAt) != idempotency.DefaultTTL {
		t.Fatalf("CreatedAt %v, ExpiresAt %v; want now, and %v later", got.CreatedAt, got.ExpiresAt, idempotency.DefaultTTL)
	}
	if !rec.CreatedAt.IsZero() || !rec.ExpiresAt.IsZero() {
		t.Fatalf("Put changed the times of the caller's record to %v and %v", rec.CreatedAt, rec.ExpiresAt)
	}
	old := f.record("old")
	old.CreatedAt, old.ExpiresAt = old.CreatedAt.Add(-time.Hour), time.Time{}
	f.put(t, old)
	old.ExpiresAt = old.CreatedAt.Add(idempotency.DefaultTTL)
	wantEqual(t, f.get(t, f.org, "old"), old)
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
	spoil(rec)
	wantEqual(t, f.get(t, f.org, "key"), want)
	spoil(f.get(t, f.org, "key"))
	wantEqual(t, f.get(t, f.org, "key"), want)
}

// spoil writes to all the memory that a record leads to.
func spoil(r *idempotency.Record) {
	clear(r.ResponseBody)
	for _, values := range r.ResponseHeaders {
		clear(values)
	}
	if r.ResponseHeaders != nil {
		r.ResponseHeaders["X-New"] = []string{"spoilt"}
	}
	clear(r.AppendedHeaders)
}

// testKeysAreExact: keys are told apart byte by byte.
func testKeysAreExact(t *testing.T, f *fixture) {
	long := strings.Repeat("k", 287) // as long as keys get: 255 bytes behind a scope of 32
	f.put(t, f.record("Key"))
	f.put(t, f.record(long+"1"))
	for _, other := range []string{"key", "KEY", "Ke", "Key ", " Key", `"Key"`, "Key%", "_ey", long, long + "2"} {
		f.wantAbsent(t, f.org, other)
	}
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
	wantEqual(t, f.get(t, other, "key"), rec)
}

func testExpiredRecordIsAbsent(t *testing.T, f *fixture) {
	rec := f.record("key")
	rec.ExpiresAt = rec.CreatedAt.Add(f.span())
	f.put(t, rec)
	wantEqual(t, f.get(t, f.org, "key"), rec)
	f.pass(t)
	f.wantAbsent(t, f.org, "key")
	again := f.record("key")
	again.ExpiresAt = again.ExpiresAt.Add(24 * time.Hour)
	f.put(t, again)
	wantEqual(t, f.get(t, f.org, "key"), again)
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
			if err != nil || got == nil || fmt.Sprint(got.ResponseStatus) != string(got.ResponseBody) {
				t.Errorf("Get = %+v, %v; want one of the records, whole", got, err)
			}
		})
	}
	wg.Wait()
}
