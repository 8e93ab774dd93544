package idempotencytest_test

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"testing"

	"github.com/google/uuid"

	"github.com/pgidem/pgidem/idempotency"
	"github.com/pgidem/pgidem/idempotency/idempotencytest"
)

// storePerOrg keeps each org's records in a store of its own, and so can clear them.
type storePerOrg struct {
	mu     sync.Mutex
	stores map[uuid.UUID]*idempotency.MemoryStore
	err    error // of Clear
}

func (s *storePerOrg) of(orgID uuid.UUID) *idempotency.MemoryStore {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stores == nil {
		s.stores = make(map[uuid.UUID]*idempotency.MemoryStore)
	}
	if s.stores[orgID] == nil {
		s.stores[orgID] = idempotency.NewMemoryStore()
	}
	return s.stores[orgID]
}

func (s *storePerOrg) Get(ctx context.Context, orgID uuid.UUID, key string) (*idempotency.Record, error) {
	return s.of(orgID).Get(ctx, orgID, key)
}

func (s *storePerOrg) Put(ctx context.Context, rec *idempotency.Record) error {
	return s.of(rec.OrgID).Put(ctx, rec)
}

func (s *storePerOrg) Clear(ctx context.Context, orgID uuid.UUID) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.stores, orgID)
	return errors.Join(s.err, ctx.Err())
}

// fakeT stands for a test, and keeps what it failed with.
type fakeT struct {
	testing.TB
	ctx    context.Context
	failed string
}

func (t *fakeT) Helper()                  {}
func (t *fakeT) Context() context.Context { return t.ctx }

func (t *fakeT) Fatalf(format string, args ...any) {
	t.failed = fmt.Sprintf(format, args...)
	runtime.Goexit()
}

// failure returns what f fails a test with, if it does.
func failure(t *testing.T, f func(testing.TB)) string {
	fake := &fakeT{TB: t, ctx: t.Context()}
	done := make(chan struct{})
	go func() {
		defer close(done)
		f(fake)
	}()
	<-done
	return fake.failed
}

func TestClearForgetsTheOrgsNamed(t *testing.T) {
	t.Parallel()
	store := &storePerOrg{}
	cleared, alsoCleared, other := uuid.New(), uuid.New(), uuid.New()
	for _, org := range []uuid.UUID{cleared, alsoCleared, other} {
		if err := store.Put(t.Context(), &idempotency.Record{OrgID: org, Key: "key", ResponseStatus: 200}); err != nil {
			t.Fatal(err)
		}
	}
	idempotencytest.Clear(t, store, cleared, alsoCleared)
	for org, kept := range map[uuid.UUID]bool{cleared: false, alsoCleared: false, other: true} {
		if _, err := store.Get(t.Context(), org, "key"); (err == nil) != kept {
			t.Errorf("Get after Clear: %v; want the record kept: %t", err, kept)
		}
	}
}

func TestClearInACleanup(t *testing.T) {
	t.Parallel()
	t.Run("test", func(t *testing.T) {
		t.Cleanup(func() { idempotencytest.Clear(t, &storePerOrg{}, uuid.New()) }) // when t.Context has ended
	})
}

func TestClearSaysWhatToDo(t *testing.T) {
	t.Parallel()
	org := uuid.New()
	withoutClear := struct{ idempotency.Store }{idempotency.NewMemoryStore()}
	got := failure(t, func(t testing.TB) { idempotencytest.Clear(t, withoutClear, org) })
	for _, part := range []string{"no method Clear(context.Context, uuid.UUID) error", "an org of its own"} {
		if !strings.Contains(got, part) {
			t.Errorf("failed with %q; want it to say %q", got, part)
		}
	}
	broken := &storePerOrg{err: errors.New("broken on purpose")}
	got = failure(t, func(t testing.TB) { idempotencytest.Clear(t, broken, org) })
	if !strings.Contains(got, org.String()) || !strings.Contains(got, "broken on purpose") {
		t.Errorf("failed with %q; want the org and the store's error", got)
	}
}
