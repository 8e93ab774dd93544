package idempotency_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/textproto"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/pgidem/pgidem/idempotency"
	"github.com/pgidem/pgidem/idempotency/idempotencytest"
)

// keeper is a RequestStore in memory, which remembers the last request that it was given
// to keep.
type keeper struct {
	*idempotencytest.MemoryStore

	mu       sync.Mutex
	last     idempotency.ClaimRequest
	released []idempotency.Claim
}

func newKeeper() *keeper { return &keeper{MemoryStore: idempotencytest.NewMemoryStore()} }

func (*keeper) KeepsRequests() {}

func (k *keeper) Claim(ctx context.Context, req idempotency.ClaimRequest) (idempotency.ClaimResult, error) {
	k.mu.Lock()
	if !req.Recovery {
		k.last = req
	}
	k.mu.Unlock()
	result, err := k.MemoryStore.Claim(ctx, req)
	if err == nil && req.Recovery && result.Outcome == idempotency.OutcomeClaimed && result.Attempt == 1 {
		return idempotency.ClaimResult{Outcome: idempotency.OutcomeNotInterrupted}, k.MemoryStore.Release(ctx, req.Claim)
	}
	return result, err
}

func (k *keeper) Release(ctx context.Context, c idempotency.Claim) error {
	k.mu.Lock()
	k.released = append(k.released, c)
	k.mu.Unlock()
	return k.MemoryStore.Release(ctx, c)
}

// interrupted is what a worker finds of the last request.
func (k *keeper) interrupted() idempotency.InterruptedRequest {
	k.mu.Lock()
	defer k.mu.Unlock()
	return idempotency.InterruptedRequest{OrgID: k.last.OrgID, Key: k.last.Key, RequestHash: k.last.RequestHash, Request: *k.last.Request}
}

var quiet = idempotency.WithLogger(slog.New(slog.DiscardHandler))

func recoverableRequest(target string) *http.Request {
	r := httptest.NewRequest(http.MethodPost, target, strings.NewReader("body"))
	r.Header.Set(idempotency.HeaderKey, `"key"`)
	return r.WithContext(idempotency.WithOrgID(r.Context(), orgA))
}

// interrupt serves a request whose process dies while its handler runs, and lets its lease
// lapse. The handler of protect must hang for it, until the test ends.
func interrupt(t *testing.T, k *keeper, r *http.Request, opts ...idempotency.Option) {
	t.Helper()
	running, dead := make(chan struct{}), make(chan struct{})
	var wg sync.WaitGroup
	t.Cleanup(wg.Wait)
	t.Cleanup(func() { close(dead) })
	h := idempotency.Require(k, append([]idempotency.Option{idempotency.WithRecoverable(), quiet}, opts...)...)(
		http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
			close(running)
			<-dead
		}))
	wg.Go(func() { h.ServeHTTP(httptest.NewRecorder(), r) })
	select {
	case <-running:
	case <-time.After(20 * time.Second):
		t.Fatal("the handler never ran")
	}
	k.Advance(time.Minute)
}

func TestKeptRequest(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		opts   []idempotency.Option
		target string
		change func(*http.Request)
		want   *idempotency.KeptRequest
	}{
		"by default": {nil, "/v1/a%2Fb?q=%20&r", nil, &idempotency.KeptRequest{
			Target: "/v1/a%2Fb?q=%20&r", Header: map[string][]string{"Idempotency-Key": {`"key"`}, "Accept": {"a", "b"}, "If-Match": {`"1"`}},
		}},
		"other headers": {[]idempotency.Option{idempotency.WithRecoverableHeaders("x-mine")}, "/v1", nil, &idempotency.KeptRequest{
			Target: "/v1", Header: map[string][]string{"Idempotency-Key": {`"key"`}, "X-Mine": {"1"}},
		}},
		"no headers": {[]idempotency.Option{idempotency.WithRecoverableHeaders()}, "/v1", nil, &idempotency.KeptRequest{
			Target: "/v1", Header: map[string][]string{"Idempotency-Key": {`"key"`}},
		}},
		"behind a ServeMux": {[]idempotency.Option{idempotency.WithRecoverableHeaders()}, "/v1/x/y/z", func(r *http.Request) {
			r.Pattern = "POST example.com/v1/{id}/{rest...}"
			r.SetPathValue("id", "x")
			r.SetPathValue("rest", "y/z")
		}, &idempotency.KeptRequest{
			Target: "/v1/x/y/z", Pattern: "POST example.com/v1/{id}/{rest...}", PathValues: map[string]string{"id": "x", "rest": "y/z"},
			Header: map[string][]string{"Idempotency-Key": {`"key"`}},
		}},
		"a pattern without a value": {[]idempotency.Option{idempotency.WithRecoverableHeaders()}, "/v1/", func(r *http.Request) { r.Pattern = "/v1/{$}" },
			&idempotency.KeptRequest{Target: "/v1/", Pattern: "/v1/{$}", Header: map[string][]string{"Idempotency-Key": {`"key"`}}}},
		"another route": {nil, "/v2", nil, nil},
		"too large":     {nil, "/v1?" + strings.Repeat("x", 1<<20), nil, nil},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			k := newKeeper()
			h := idempotency.Require(k, append([]idempotency.Option{idempotency.WithRecoverable("POST /v1", "/v1/"), quiet}, tc.opts...)...)(http.NotFoundHandler())
			r := recoverableRequest(tc.target)
			r.Header["Accept"] = []string{"a", "b"}
			for name, value := range map[string]string{"If-Match": `"1"`, "X-Mine": "1", "Authorization": "Bearer x", "Cookie": "x", "X-Forwarded-For": "192.0.2.1"} {
				r.Header.Set(name, value)
			}
			if tc.change != nil {
				tc.change(r)
			}
			w := httptest.NewRecorder()
			h.ServeHTTP(w, r)
			if w.Code != http.StatusNotFound || k.last.Kept != (tc.want != nil) {
				t.Errorf("%d, kept: %t", w.Code, k.last.Kept)
			}
			if tc.want != nil {
				tc.want.Method, tc.want.Host, tc.want.Body = http.MethodPost, "example.com", []byte("body")
			}
			if !reflect.DeepEqual(k.last.Request, tc.want) {
				t.Errorf("kept %+v, want %+v", k.last.Request, tc.want)
			}
		})
	}
}

func TestRecover(t *testing.T) {
	t.Parallel()
	k := newKeeper()
	var events []idempotency.Event
	opts := []idempotency.Option{
		idempotency.WithRecoverable(), quiet, idempotency.WithWait(time.Hour), idempotency.WithFailOpen(),
		idempotency.WithScope(func(r *http.Request) string { return r.Header.Get("Authorization") }),
		idempotency.WithObserver(func(_ context.Context, e idempotency.Event) { events = append(events, e) }),
	}
	fail := true
	h := idempotency.Require(k, opts...)(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		key, _ := idempotency.Key(r.Context())
		body, _ := io.ReadAll(r.Body)
		if key != "key" || string(body) != "body" || !idempotency.Recovered(r.Context()) || r.RemoteAddr != "" {
			t.Errorf("key %q, body %q, recovered: %t", key, body, idempotency.Recovered(r.Context()))
		}
		if fail {
			w.WriteHeader(http.StatusInternalServerError)
			return
		}
		if _, _, err := http.NewResponseController(w).Hijack(); err == nil {
			t.Error("there is something to hijack")
		}
		if err := http.NewResponseController(w).Flush(); err != nil {
			t.Errorf("Flush: %v", err)
		}
		io.WriteString(w, "made")
	}))
	r := recoverableRequest("/v1/payments")
	r.Header.Set("Authorization", "Bearer x")
	interrupt(t, k, r, idempotency.WithScope(func(r *http.Request) string { return r.Header.Get("Authorization") }))
	it := k.interrupted()

	k.released = nil
	if outcome, err := idempotency.Recover(t.Context(), h, it); outcome != idempotency.DecisionReleased || err == nil || !strings.Contains(err.Error(), "status 500") {
		t.Errorf("a status that is not storable: %s, %v", outcome, err)
	}
	if len(k.released) != 1 || k.released[0].Kept {
		t.Errorf("released %+v; want the request to stay", k.released)
	}
	fail = false
	if outcome, err := idempotency.Recover(t.Context(), h, it); outcome != idempotency.DecisionTakenOver || err != nil {
		t.Fatalf("Recover = %s, %v", outcome, err)
	}
	for range 2 {
		if outcome, err := idempotency.Recover(t.Context(), h, it); outcome != idempotency.DecisionNotInterrupted || err != nil {
			t.Errorf("again: %s, %v", outcome, err)
		}
	}
	for _, e := range events {
		if !e.Recovered || e.OrgID != orgA || e.KeyHash != it.KeyHash() || e.KeyHash == "" || e.Path != "/v1/payments" {
			t.Errorf("event %+v", e)
		}
	}
	w := httptest.NewRecorder()
	r = recoverableRequest("/v1/payments")
	r.Header.Set("Authorization", "Bearer x")
	h.ServeHTTP(w, r)
	if w.Body.String() != "made" || w.Header().Get(idempotency.DefaultReplayHeader) != "true" {
		t.Errorf("the client that comes back gets %q", w.Body)
	}
	gone := it
	gone.Key = "nothing in progress"
	if outcome, err := idempotency.Recover(t.Context(), h, gone); outcome != idempotency.DecisionNotInterrupted || err != nil {
		t.Errorf("nothing in progress: %s, %v", outcome, err)
	}
}

// TestRecoverThatFails: each failure says what to do, and none kills the service.
func TestRecoverThatFails(t *testing.T) {
	t.Parallel()
	k := newKeeper()
	interrupt(t, k, recoverableRequest("/v1/payments"))
	it := k.interrupted()
	protect := idempotency.Require(k, idempotency.WithRecoverable(), quiet)
	ok := http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("the handler ran") })
	release, left := make(chan struct{}), make(chan struct{})
	otherOrg := func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			next.ServeHTTP(w, r.WithContext(idempotency.WithOrgID(r.Context(), uuid.New())))
		})
	}
	for name, tc := range map[string]struct {
		handler http.Handler
		change  func(*idempotency.InterruptedRequest)
		outcome idempotency.Outcome
		want    string
	}{
		"a panic":         {protect(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic("oh") })), nil, idempotency.DecisionPanicked, "panicked: oh"},
		"an abort":        {protect(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) })), nil, idempotency.DecisionPanicked, "aborted"},
		"no Require":      {http.NotFoundHandler(), nil, idempotency.DecisionNotRecoverable, "no Require took the request"},
		"no handler":      {nil, nil, "", "handler is nil"},
		"excluded":        {idempotency.Require(k, idempotency.WithRecoverable(), idempotency.WithExclude("/v1/payments"), quiet)(http.NotFoundHandler()), nil, idempotency.DecisionNotRecoverable, "no Require took the request"},
		"another tenant":  {otherOrg(protect(ok)), nil, idempotency.DecisionMissingOrg, "idempotency.Recovered"},
		"another route":   {idempotency.Require(k, idempotency.WithRecoverable("/v2"), quiet)(ok), nil, idempotency.DecisionNotRecoverable, "WithRecoverable"},
		"another store":   {idempotency.Require(idempotency.NewMemoryStore(), quiet)(ok), nil, idempotency.DecisionNotRecoverable, "WithRecoverable"},
		"another request": {protect(ok), func(it *idempotency.InterruptedRequest) { it.RequestHash = "another" }, idempotency.DecisionMismatch, "key reused"},
		"a larger body": {idempotency.Require(k, idempotency.WithRecoverable(), idempotency.WithMaxRequestBytes(3), quiet)(ok), nil,
			idempotency.DecisionTooLarge, "too large"},
		"a target that is none": {protect(ok), func(it *idempotency.InterruptedRequest) { it.Request.Target = "\x00" }, "", "target"},
		"no key":                {protect(ok), func(it *idempotency.InterruptedRequest) { it.Request.Header = nil }, "", "not kept by Require"},
		"no tenant":             {protect(ok), func(it *idempotency.InterruptedRequest) { it.OrgID = uuid.Nil }, "", "org_id"},
	} {
		it := it
		if tc.change != nil {
			tc.change(&it)
		}
		outcome, err := idempotency.Recover(t.Context(), tc.handler, it)
		if outcome != tc.outcome || err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %q, %v; want %q and %q", name, outcome, err, tc.outcome, tc.want)
		}
	}
	running := make(chan struct{})
	outcome, err := idempotency.Recover(t.Context(), http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		go func() { // as http.TimeoutHandler does
			defer close(left)
			protect(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				close(running)
				<-release
				w.WriteHeader(http.StatusCreated)
			})).ServeHTTP(w, r)
		}()
		<-running
	}), it)
	if outcome != "" || err == nil || !strings.Contains(err.Error(), "returned before it") {
		t.Errorf("a timeout in front: %q, %v", outcome, err)
	}
	if outcome, err := idempotency.Recover(t.Context(), protect(ok), it); outcome != idempotency.DecisionInFlight || err != nil {
		t.Errorf("in flight: %q, %v", outcome, err)
	}
	close(release)
	<-left
}

// TestRecoveryIsOneRequest: what the handler makes of other requests is not recovered, and
// neither is what a middleware in front of Require does by Do.
func TestRecoveryIsOneRequest(t *testing.T) {
	t.Parallel()
	k := newKeeper()
	interrupt(t, k, recoverableRequest("/v1/batch"))
	var decisions []string
	protect := idempotency.Require(k, idempotency.WithRecoverable(), quiet, idempotency.WithObserver(func(_ context.Context, e idempotency.Event) {
		decisions = append(decisions, fmt.Sprint(e.Path, " ", e.Decision, " ", e.Recovered))
	}))
	item := protect(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, outcome, err := idempotency.Do(r.Context(), k, orgA, "once", "", func(context.Context) (int, error) { return 1, nil }, quiet, idempotency.WithRecoverable()); err != nil || outcome != idempotency.DecisionExecuted {
			t.Errorf("Do: %s, %v", outcome, err)
		}
		protect(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			inner := httptest.NewRequest(http.MethodPost, "/v1/item", nil)
			inner.Header.Set(idempotency.HeaderKey, "item")
			item.ServeHTTP(httptest.NewRecorder(), inner.WithContext(r.Context()))
		})).ServeHTTP(w, r)
	})
	if outcome, err := idempotency.Recover(t.Context(), h, k.interrupted()); outcome != idempotency.DecisionTakenOver || err != nil {
		t.Errorf("%s, %v", outcome, err)
	}
	if got := strings.Join(decisions, ", "); got != "/v1/item executed false, /v1/batch taken_over true" {
		t.Errorf("decisions: %s", got)
	}
}

// TestNobodyCanSayThatTheyAreRecovered: no header does, whatever it is called.
func TestNobodyCanSayThatTheyAreRecovered(t *testing.T) {
	t.Parallel()
	k := newKeeper()
	h := idempotency.Require(k, idempotency.WithRecoverable(), quiet)(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		if idempotency.Recovered(r.Context()) {
			t.Error("a client made a request a recovered one")
		}
	}))
	r := recoverableRequest("/v1/payments?recovered=true")
	for _, name := range []string{"Recovered", "X-Recovered", "Idempotency-Recovered", "Idempotency-Recovery"} {
		r.Header[textproto.CanonicalMIMEHeaderKey(name)] = []string{"true"}
	}
	h.ServeHTTP(httptest.NewRecorder(), r)
}

// TestRecoverStopsWithItsContext: as for a client that leaves.
func TestRecoverStopsWithItsContext(t *testing.T) {
	t.Parallel()
	k := newKeeper()
	interrupt(t, k, recoverableRequest("/v1/payments"))
	ctx, stop := context.WithCancel(t.Context())
	h := idempotency.Require(k, idempotency.WithRecoverable(), quiet)(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		stop()
		<-r.Context().Done()
	}))
	for _, want := range []idempotency.Outcome{idempotency.DecisionNoOutcome, idempotency.DecisionClientLeft} {
		if outcome, err := idempotency.Recover(ctx, h, k.interrupted()); outcome != want || err == nil {
			t.Errorf("%s, %v; want %s", outcome, err, want)
		}
	}
}

// down is a RequestStore that cannot be reached.
type down struct{ *keeper }

func (down) Claim(context.Context, idempotency.ClaimRequest) (idempotency.ClaimResult, error) {
	return idempotency.ClaimResult{}, errors.New("down")
}

func TestRecoverNeverRunsUnprotected(t *testing.T) {
	t.Parallel()
	k := newKeeper()
	interrupt(t, k, recoverableRequest("/v1/payments"))
	h := idempotency.Require(down{k}, idempotency.WithRecoverable(), idempotency.WithFailOpen(), idempotency.WithStoreTimeout(50*time.Millisecond), quiet)(
		http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("it ran") }))
	if outcome, err := idempotency.Recover(t.Context(), h, k.interrupted()); outcome != idempotency.DecisionStoreError || err == nil {
		t.Errorf("%s, %v", outcome, err)
	}
}

func TestRecoverableOptions(t *testing.T) {
	t.Parallel()
	for want, opts := range map[string][]idempotency.Option{
		"WithInterrupted(Refuse)":         {idempotency.WithRecoverable(), idempotency.WithInterrupted(idempotency.Refuse)},
		"pattern":                         {idempotency.WithRecoverable("v1")},
		"Authorization holds credentials": {idempotency.WithRecoverableHeaders("Accept", "authorization")},
		"Cookie holds credentials":        {idempotency.WithRecoverableHeaders("Cookie")},
		"Proxy-Authorization holds":       {idempotency.WithRecoverableHeaders("Proxy-Authorization")},
		"Content-Length belongs":          {idempotency.WithRecoverableHeaders("content-length")},
		"Host belongs":                    {idempotency.WithRecoverableHeaders("Host")},
		"Connection belongs":              {idempotency.WithRecoverableHeaders("Connection")},
		`"a b" is not a header name`:      {idempotency.WithRecoverableHeaders("a b")},
	} {
		func() {
			defer func() {
				if p := recover(); p == nil || !strings.Contains(fmt.Sprint(p), want) {
					t.Errorf("%s: %v", want, p)
				}
			}()
			idempotency.Require(newKeeper(), opts...)
		}()
	}
	for name, store := range map[string]idempotency.Store{"memory": idempotency.NewMemoryStore(), "plain": struct{ idempotency.Store }{idempotency.NewMemoryStore()}} {
		func() {
			defer func() {
				if p := recover(); p == nil || !strings.Contains(fmt.Sprint(p), "pgstore.Store") {
					t.Errorf("%s: %v", name, p)
				}
			}()
			idempotency.Require(store, idempotency.WithRecoverable("/v1"))
		}()
		if _, _, err := idempotency.Do(t.Context(), store, orgA, "key", "", func(context.Context) (int, error) { return 1, nil }, idempotency.WithRecoverable(), quiet); err != nil {
			t.Errorf("Do: %v", err)
		}
	}
	k := newKeeper()
	if _, _, err := idempotency.Do(t.Context(), k, orgA, "key", "", func(context.Context) (int, error) { return 1, nil },
		idempotency.WithRecoverable(), idempotency.WithInterrupted(idempotency.Refuse), quiet); err != nil || k.last.Kept {
		t.Errorf("Do: %v, and keeps: %t", err, k.last.Kept)
	}
}
