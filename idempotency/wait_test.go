package idempotency_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/pgidem/pgidem/idempotency"
	"github.com/pgidem/pgidem/tenancy"
)

func claimOf(key string) idempotency.ClaimRequest {
	return idempotency.ClaimRequest{
		Claim:       idempotency.Claim{OrgID: orgA, Key: key, Token: idempotency.NewToken()},
		RequestHash: "hash", Lease: time.Minute, TTL: time.Hour,
	}
}

func told(ch <-chan struct{}) bool {
	select {
	case <-ch:
		return true
	default:
		return false
	}
}

// TestWhatIsSignalled: whatever takes an attempt's place in memory is told to those who
// wait for it, also over a store that can only Get and Put.
func TestWhatIsSignalled(t *testing.T) {
	t.Parallel()
	memory := idempotency.NewMemoryStore()
	for name, c := range map[string]struct {
		store idempotency.WatchStore
		end   func(ctx context.Context, store idempotency.WatchStore, c idempotency.Claim) error
	}{
		"Put": {memory, func(ctx context.Context, store idempotency.WatchStore, c idempotency.Claim) error {
			return store.Put(ctx, &idempotency.Record{OrgID: c.OrgID, Key: c.Key, ResponseStatus: 200})
		}},
		"Clear": {idempotency.NewMemoryStore(), func(ctx context.Context, store idempotency.WatchStore, c idempotency.Claim) error {
			return store.(*idempotency.MemoryStore).Clear(ctx, c.OrgID)
		}},
		"Complete over Put": {idempotency.NewPlainStore(getPut{memory}), func(ctx context.Context, store idempotency.WatchStore, c idempotency.Claim) error {
			return store.Complete(ctx, c, &idempotency.Record{OrgID: c.OrgID, Key: c.Key, ResponseStatus: 200})
		}},
	} {
		req := claimOf(name)
		if result, err := c.store.Claim(t.Context(), req); err != nil || result.Outcome != idempotency.OutcomeClaimed {
			t.Fatalf("%s: %+v, %v", name, result, err)
		}
		ended, stop, err := c.store.Watch(orgA, name)
		if err != nil {
			t.Fatal(err)
		}
		if err := c.end(t.Context(), c.store, req.Claim); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if !told(ended) {
			t.Errorf("%s was not signalled", name)
		}
		stop()
	}
}

// slowGet is a plain store whose first Get takes its time.
type slowGet struct {
	getPut
	looked atomic.Bool
	begun  chan struct{}
	finish chan struct{}
}

func (s *slowGet) Get(ctx context.Context, orgID uuid.UUID, key string) (*idempotency.Record, error) {
	if !s.looked.Swap(true) {
		close(s.begun)
		<-s.finish
	}
	return s.getPut.Get(ctx, orgID, key)
}

// TestWaitersOfAPlainStoreLookSideBySide: who looks at a record that is there does not
// keep those who wait from it.
func TestWaitersOfAPlainStoreLookSideBySide(t *testing.T) {
	t.Parallel()
	slow := &slowGet{getPut: getPut{idempotency.NewMemoryStore()}, begun: make(chan struct{}), finish: make(chan struct{})}
	if err := slow.Put(t.Context(), &idempotency.Record{OrgID: orgA, Key: "k", RequestHash: "hash", ResponseStatus: 200}); err != nil {
		t.Fatal(err)
	}
	store := idempotency.NewPlainStore(slow)
	var wg sync.WaitGroup
	claim := func(req idempotency.ClaimRequest, want idempotency.ClaimOutcome) {
		if result, err := store.Claim(t.Context(), req); err != nil || result.Outcome != want {
			t.Errorf("%+v, %v; want outcome %d", result, err, want)
		}
	}
	wg.Go(func() { claim(claimOf("k"), idempotency.OutcomeCompleted) })
	<-slow.begun // and holds the key while it looks
	claim(claimOf("k"), idempotency.OutcomeInFlight)
	for range 20 {
		req := claimOf("k")
		req.Await = true
		claim(req, idempotency.OutcomeCompleted)
	}
	other := claimOf("k")
	other.Await, other.RequestHash = true, "another"
	claim(other, idempotency.OutcomeMismatch)
	close(slow.finish)
	wg.Wait()
}

// unknownTenant is a plain store that does not know the tenant yet.
type unknownTenant struct {
	getPut
	known bool
}

func (s *unknownTenant) Get(ctx context.Context, orgID uuid.UUID, key string) (*idempotency.Record, error) {
	if !s.known {
		return nil, fmt.Errorf("no place: %w", tenancy.ErrUnknownTenant)
	}
	return s.getPut.Get(ctx, orgID, key)
}

// TestPlainStoreOfAnUnknownTenant: a claim that came to nothing holds nothing.
func TestPlainStoreOfAnUnknownTenant(t *testing.T) {
	t.Parallel()
	store := &unknownTenant{getPut: getPut{idempotency.NewMemoryStore()}}
	observe, got := decisions()
	h := idempotency.Require(store, observe, idempotency.WithInterrupted(idempotency.Refuse))(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "done") }))
	w := httptest.NewRecorder()
	h.ServeHTTP(w, request(t, "k", ""))
	if w.Code != http.StatusForbidden {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	store.known = true
	w = httptest.NewRecorder()
	h.ServeHTTP(w, request(t, "k", ""))
	if w.Body.String() != "done" || fmt.Sprint(*got) != "[unknown_tenant executed]" {
		t.Errorf("%d %s, decisions %v", w.Code, w.Body, *got)
	}
}

// watchedMemory is a MemoryStore whose Watch is looked at.
type watchedMemory struct {
	*idempotency.MemoryStore
	err     error
	closed  bool
	watches int
	claims  int
}

func (s *watchedMemory) Watch(orgID uuid.UUID, key string) (<-chan struct{}, func(), error) {
	if s.err != nil {
		return nil, nil, s.err
	}
	ended, stop, err := s.MemoryStore.Watch(orgID, key)
	if s.closed {
		closed := make(chan struct{})
		close(closed)
		ended = closed
	}
	s.watches++
	return ended, func() { stop(); s.watches-- }, err
}

func (s *watchedMemory) Claim(ctx context.Context, req idempotency.ClaimRequest) (idempotency.ClaimResult, error) {
	s.claims++
	return s.MemoryStore.Claim(ctx, req)
}

// waitOnce lets one request wait for a claim that nobody ends.
func waitOnce(t *testing.T, store *watchedMemory, log *bytes.Buffer) {
	t.Helper()
	hold := claimOf("k")
	if _, err := store.MemoryStore.Claim(t.Context(), hold); err != nil {
		t.Fatal(err)
	}
	h := idempotency.Require(store, idempotency.WithWait(60*time.Millisecond), idempotency.WithLogger(slog.New(slog.NewTextHandler(log, nil))),
		idempotency.WithFingerprint(func(*http.Request, []byte) (string, error) { return "hash", nil }))(http.NotFoundHandler())
	for range 2 {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, request(t, "k", ""))
		if w.Code != http.StatusConflict {
			t.Errorf("%d %s", w.Code, w.Body)
		}
	}
}

func TestWaitingEndsItsWatch(t *testing.T) {
	t.Parallel()
	store := &watchedMemory{MemoryStore: idempotency.NewMemoryStore()}
	waitOnce(t, store, &bytes.Buffer{})
	if store.watches != 0 {
		t.Errorf("%d watches left behind", store.watches)
	}
}

// TestWaitingOnAClosedChannel: a store that has no more to tell is asked, and not
// without a pause.
func TestWaitingOnAClosedChannel(t *testing.T) {
	t.Parallel()
	store := &watchedMemory{MemoryStore: idempotency.NewMemoryStore(), closed: true}
	waitOnce(t, store, &bytes.Buffer{})
	if store.claims > 20 {
		t.Errorf("%d claims in 120 ms", store.claims)
	}
}

// TestWaitingWithoutAWatch: that requests have to ask is in the log, once, with the
// reason.
func TestWaitingWithoutAWatch(t *testing.T) {
	t.Parallel()
	var log bytes.Buffer
	store := &watchedMemory{MemoryStore: idempotency.NewMemoryStore(), err: errors.New("a pooler stands before the server")}
	waitOnce(t, store, &log)
	if n := strings.Count(log.String(), "a pooler stands before the server"); n != 1 {
		t.Errorf("%d lines, want 1:\n%s", n, &log)
	}
}

// hungGet is a plain store that cannot be asked any more.
type hungGet struct {
	getPut
	hung atomic.Bool
}

func (s *hungGet) Get(ctx context.Context, orgID uuid.UUID, key string) (*idempotency.Record, error) {
	if s.hung.Load() {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	return s.getPut.Get(ctx, orgID, key)
}

// TestWaitingAtAStoreThatHangs: an attempt in flight in this process is one, whatever ails
// the store.
func TestWaitingAtAStoreThatHangs(t *testing.T) {
	t.Parallel()
	store := &hungGet{getPut: getPut{idempotency.NewMemoryStore()}}
	begun, finish := make(chan struct{}), make(chan struct{})
	h := idempotency.Require(store, idempotency.WithWait(20*time.Millisecond), idempotency.WithStoreTimeout(300*time.Millisecond))(
		http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
			close(begun)
			<-finish
		}))
	var wg sync.WaitGroup
	wg.Go(func() { h.ServeHTTP(httptest.NewRecorder(), request(t, "k", "")) })
	<-begun
	store.hung.Store(true)
	w := httptest.NewRecorder()
	h.ServeHTTP(w, request(t, "k", ""))
	if w.Code != http.StatusConflict || !strings.Contains(w.Body.String(), "in_flight") {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	close(finish)
	wg.Wait()
}
