package idempotency_test

import (
	"context"
	"errors"
	"io"
	"math"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/pgidem/pgidem/idempotency"
	"github.com/pgidem/pgidem/idempotency/idempotencytest"
)

// The tests of this file call the middleware directly, to stand where no client can
// reach: between two of its steps.

// hookedStore runs a hook before a step of a MemoryStore.
type hookedStore struct {
	*idempotency.MemoryStore
	claim  func()
	extend func(context.Context) error
}

func (s *hookedStore) Claim(ctx context.Context, req idempotency.ClaimRequest) (idempotency.ClaimResult, error) {
	if s.claim != nil {
		s.claim()
	}
	return s.MemoryStore.Claim(ctx, req)
}

func (s *hookedStore) Extend(ctx context.Context, c idempotency.Claim, lease time.Duration) error {
	if s.extend != nil {
		if err := s.extend(ctx); err != nil {
			return err
		}
	}
	return s.MemoryStore.Extend(ctx, c, lease)
}

// decisions returns an observer and where it puts the decisions.
func decisions() (idempotency.Option, *[]idempotency.Decision) {
	var got []idempotency.Decision
	return idempotency.WithObserver(func(_ context.Context, e idempotency.Event) { got = append(got, e.Decision) }), &got
}

func TestHandlerDoesNotRunForAClientThatLeftDuringTheClaim(t *testing.T) {
	t.Parallel()
	ctx, leave := context.WithCancel(t.Context())
	store := &hookedStore{MemoryStore: idempotency.NewMemoryStore(), claim: leave}
	observe, got := decisions()
	runs := 0
	h := idempotency.Require(store, observe)(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { runs++ }))
	r := request(t, "k", "")
	h.ServeHTTP(httptest.NewRecorder(), r.WithContext(idempotency.WithOrgID(ctx, orgA)))
	if runs != 0 || store.Len() != 0 || len(*got) != 1 || (*got)[0] != idempotency.DecisionClientLeft {
		t.Errorf("%d runs, %d records, decisions %v; want none, none, and one that the client left", runs, store.Len(), *got)
	}
	h.ServeHTTP(httptest.NewRecorder(), r)
	if runs != 1 {
		t.Errorf("%d runs after the retry, want 1", runs)
	}
}

// earlyWriter notes informational responses, and takes them for what they are.
type earlyWriter struct {
	*httptest.ResponseRecorder
	early []int
}

func (w *earlyWriter) WriteHeader(status int) {
	if status < 200 {
		w.early = append(w.early, status)
		return
	}
	w.ResponseRecorder.WriteHeader(status)
}

func TestPanicAfterEarlyHintsLeavesCleanHeaders(t *testing.T) {
	t.Parallel()
	h := idempotency.Require(idempotency.NewMemoryStore())(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Link", "</a>")
		w.Header().Del("X-Outer")
		w.WriteHeader(http.StatusEarlyHints)
		panic("on purpose")
	}))
	w := &earlyWriter{ResponseRecorder: httptest.NewRecorder()}
	w.Header().Set("X-Outer", "yes")
	func() {
		defer func() {
			if p := recover(); p != "on purpose" {
				t.Errorf("panic %v did not go on as it was", p)
			}
		}()
		h.ServeHTTP(w, request(t, "k", ""))
	}()
	if len(w.early) != 1 || w.Header().Get("Link") != "" || w.Header().Get("X-Outer") != "yes" {
		t.Errorf("early %v, headers %v; want the outer ones alone for whoever recovers", w.early, w.Header())
	}
}

func TestSwitchingProtocolsIsNotKept(t *testing.T) {
	t.Parallel()
	h := idempotency.Require(idempotency.NewMemoryStore())(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusSwitchingProtocols)
	}))
	var codes []int
	for range 2 {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, request(t, "k", ""))
		codes = append(codes, w.Code)
	}
	if codes[0] != http.StatusSwitchingProtocols || codes[1] != http.StatusConflict {
		t.Errorf("codes %v, want 101 and then 409", codes)
	}
}

// TestPanickingRules: a rule of the user's that panics after the handler has run may
// leave an effect without a record; one before it does not.
func TestPanickingRules(t *testing.T) {
	t.Parallel()
	boom := func() { panic("on purpose") }
	for name, c := range map[string]struct {
		opt  idempotency.Option
		want idempotency.Decision
		runs int
	}{
		"storable":    {idempotency.WithStorable(func(int) bool { boom(); return true }), idempotency.DecisionCompleteFailed, 1},
		"headers":     {idempotency.WithHeaders(func(string) bool { boom(); return true }), idempotency.DecisionCompleteFailed, 1},
		"fingerprint": {idempotency.WithFingerprint(func(*http.Request, []byte) (string, error) { boom(); return "", nil }), idempotency.DecisionAborted, 0},
		"scope":       {idempotency.WithScope(func(*http.Request) string { boom(); return "" }), idempotency.DecisionAborted, 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			observe, got := decisions()
			runs := 0
			h := idempotency.Require(idempotency.NewMemoryStore(), observe, c.opt)(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				runs++
				w.Header().Set("X-A", "a")
			}))
			func() {
				defer func() { recover() }()
				h.ServeHTTP(httptest.NewRecorder(), request(t, "k", ""))
			}()
			if runs != c.runs || len(*got) != 1 || (*got)[0] != c.want {
				t.Errorf("%d runs, decisions %v; want %d and %q", runs, *got, c.runs, c.want)
			}
		})
	}
}

// unreadBody fails the test when anybody reads it.
type unreadBody struct{ t *testing.T }

func (b unreadBody) Read([]byte) (int, error) {
	b.t.Error("a body that was announced too large was read")
	return 0, io.EOF
}

func TestAnnouncedTooLargeIsNotRead(t *testing.T) {
	t.Parallel()
	h := idempotency.Require(idempotency.NewMemoryStore(), idempotency.WithMaxRequestBytes(10))(http.NotFoundHandler())
	r := request(t, "k", "")
	r.Body, r.ContentLength = io.NopCloser(unreadBody{t}), 11
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	if w.Code != http.StatusRequestEntityTooLarge {
		t.Errorf("%d %s", w.Code, w.Body)
	}
}

// TestAnnouncedSizesAreNotTrusted: the largest that there is may be allowed and announced.
func TestAnnouncedSizesAreNotTrusted(t *testing.T) {
	t.Parallel()
	for _, size := range []int64{math.MaxInt64, math.MaxInt64 - 1, 64 << 10, 64<<10 - 1} {
		h := idempotency.Require(idempotency.NewMemoryStore(), idempotency.WithMaxRequestBytes(math.MaxInt64))(
			http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.Copy(w, r.Body) }))
		r := request(t, "k", "")
		r.Body, r.ContentLength = io.NopCloser(strings.NewReader("short")), size
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		if w.Code != http.StatusOK || w.Body.String() != "short" {
			t.Errorf("%d announced: %d %q", size, w.Code, w.Body)
		}
	}
}

// TestLeaseIsLostALeaseAfterTheLastExtension: an extension that succeeded counts,
// however many fail after it; and the handler is told before the lease has lapsed
// for others.
func TestLeaseIsLostALeaseAfterTheLastExtension(t *testing.T) {
	t.Parallel()
	const lease = 600 * time.Millisecond
	var good atomic.Int32
	var last atomic.Pointer[time.Time]
	store := &hookedStore{MemoryStore: idempotency.NewMemoryStore(), extend: func(context.Context) error {
		if good.Add(1) > 4 {
			return errors.New("cut off")
		}
		now := time.Now()
		last.Store(&now)
		return nil
	}}
	var held time.Duration
	h := idempotency.Require(store, idempotency.WithLease(lease))(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		<-r.Context().Done()
		if at := last.Load(); at != nil {
			held = time.Since(*at)
		}
	}))
	w := httptest.NewRecorder()
	h.ServeHTTP(w, request(t, "k", ""))
	if !strings.Contains(w.Body.String(), "lease_lost") || held < lease/2 {
		t.Errorf("%s; cancelled %s after the last extension, want a lease of %s", w.Body, held, lease)
	}
}

// TestSlowClaimKeepsItsLease: a claim that took longer than its lease to be answered
// is held all the same, as the store will tell.
func TestSlowClaimKeepsItsLease(t *testing.T) {
	t.Parallel()
	extended := make(chan struct{}, 1000)
	store := &hookedStore{
		MemoryStore: idempotency.NewMemoryStore(),
		claim:       func() { time.Sleep(150 * time.Millisecond) },
		extend: func(context.Context) error {
			extended <- struct{}{}
			return nil
		},
	}
	h := idempotency.Require(store, idempotency.WithLease(100*time.Millisecond))(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		<-extended
		if err := context.Cause(r.Context()); err != nil {
			t.Errorf("cancelled: %v", err)
		}
		w.WriteHeader(http.StatusCreated)
	}))
	w := httptest.NewRecorder()
	h.ServeHTTP(w, request(t, "k", ""))
	if w.Code != http.StatusCreated {
		t.Errorf("%d %s", w.Code, w.Body)
	}
}

// TestNoExtensionOutlivesTheRequest: when the middleware returns, nothing of it runs
// any more.
func TestNoExtensionOutlivesTheRequest(t *testing.T) {
	t.Parallel()
	under := make(chan struct{})
	var over atomic.Bool
	store := &hookedStore{MemoryStore: idempotency.NewMemoryStore(), extend: func(ctx context.Context) error {
		close(under)
		<-ctx.Done() // the request has ended, and tells us to
		time.Sleep(20 * time.Millisecond)
		over.Store(true)
		return ctx.Err()
	}}
	h := idempotency.Require(store, idempotency.WithLease(3*time.Second), idempotency.WithStoreTimeout(time.Minute))(
		http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-under }))
	h.ServeHTTP(httptest.NewRecorder(), request(t, "k", ""))
	if !over.Load() {
		t.Error("the middleware returned while an extension was under way")
	}
}

// TestMemoryStoreForgetsByPut: a store that is only ever written to forgets as well.
func TestMemoryStoreForgetsByPut(t *testing.T) {
	t.Parallel()
	store := idempotencytest.NewMemoryStore()
	put := func() {
		if err := store.Put(t.Context(), &idempotency.Record{OrgID: orgA, Key: uuid.NewString(), ResponseStatus: 200}); err != nil {
			t.Fatal(err)
		}
	}
	for range 1000 {
		put()
	}
	store.Advance(48 * time.Hour)
	for range 1000 {
		put()
	}
	if n := store.Len(); n != 1000 {
		t.Errorf("%d records held, want the 1,000 live ones", n)
	}
}
