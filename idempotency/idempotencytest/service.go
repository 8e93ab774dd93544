package idempotencytest

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/pgidem/pgidem/idempotency"
)

// service is a real HTTP service behind the middleware, for one test.
type service struct {
	*fixture
	server *httptest.Server
	runs   atomic.Int64   // how often the handler has run
	calls  sync.WaitGroup // in the background

	mu     sync.Mutex
	events []idempotency.Event
}

// serve starts a service whose handler is h, behind Require over the fixture's
// store. The tenant comes from the header X-Org, as if from authentication.
func (f *fixture) serve(t *testing.T, h http.HandlerFunc, opts ...idempotency.Option) *service {
	return f.serveOver(t, f.store, h, opts...)
}

func (f *fixture) serveOver(t *testing.T, store idempotency.Store, h http.HandlerFunc, opts ...idempotency.Option) *service {
	t.Helper()
	s := &service{fixture: f}
	opts = append([]idempotency.Option{
		idempotency.WithLogger(slog.New(slog.DiscardHandler)),
		idempotency.WithObserver(s.observe),
	}, opts...)
	counted := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.runs.Add(1)
		h(w, r)
	})
	s.server = httptest.NewUnstartedServer(withOrg(idempotency.Require(store, opts...)(counted)))
	s.server.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	if f.http2 {
		s.server.EnableHTTP2 = true
		s.server.StartTLS()
	} else {
		s.server.Start()
	}
	s.server.Client().Timeout = patience
	t.Cleanup(func() { s.close(t) })
	return s
}

// close ends the service. It waits for its handlers, but not after a failure: one of
// them may be waiting for a word that the test did not get to say.
func (s *service) close(t *testing.T) {
	if t.Failed() {
		s.server.Config.Close()
	} else {
		s.server.Close()
	}
	s.calls.Wait()
}

func withOrg(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if org, err := uuid.Parse(r.Header.Get("X-Org")); err == nil {
			r = r.WithContext(idempotency.WithOrgID(r.Context(), org))
		}
		next.ServeHTTP(w, r)
	})
}

func (s *service) observe(_ context.Context, e idempotency.Event) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.events = append(s.events, e)
}

// wantDecisions is wantEvents for a test that looks no further.
func (s *service) wantDecisions(t *testing.T, want ...idempotency.Decision) {
	t.Helper()
	s.wantEvents(t, want...)
}

// wantEvents waits until as many events as named have come, compares their decisions
// in the order in which they came, and returns them.
func (s *service) wantEvents(t *testing.T, want ...idempotency.Decision) []idempotency.Event {
	t.Helper()
	var got []idempotency.Decision
	eventually(t, "the events", func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		got = got[:0]
		for _, e := range s.events {
			got = append(got, e.Decision)
		}
		return len(got) >= len(want)
	})
	if len(got) != len(want) {
		t.Fatalf("decisions %q, want %q", got, want)
	}
	for i := range want {
		if got[i] != want[i] {
			t.Fatalf("decisions %q, want %q", got, want)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.events)
}

func (s *service) wantRuns(t *testing.T, want int64) {
	t.Helper()
	if got := s.runs.Load(); got != want {
		t.Fatalf("the handler ran %d times, want %d", got, want)
	}
}

// call is a request to be made; the zero value of a field means its default.
type call struct {
	method string // POST
	path   string // /v1/payments
	body   string
	key    string // none
	org    uuid.UUID
	header http.Header
	ctx    context.Context
	stream io.Reader // in place of body, of unknown length
}

// answer is a response, read whole.
type answer struct {
	*http.Response
	body string
}

func (s *service) request(t testing.TB, c call) *http.Request {
	t.Helper()
	if c.method == "" {
		c.method = http.MethodPost
	}
	if c.path == "" {
		c.path = "/v1/payments"
	}
	if c.org == uuid.Nil {
		c.org = s.org
	}
	if c.ctx == nil {
		c.ctx = context.Background()
	}
	var body io.Reader = strings.NewReader(c.body)
	if c.stream != nil {
		body = c.stream
	}
	r, err := http.NewRequestWithContext(c.ctx, c.method, s.server.URL+c.path, body)
	if err != nil {
		t.Fatal(err)
	}
	for name, values := range c.header {
		r.Header[name] = values
	}
	if c.key != "" {
		r.Header[idempotency.HeaderKey] = []string{c.key}
	}
	r.Header.Set("X-Org", c.org.String())
	return r
}

// do makes a call that must be answered.
func (s *service) do(t testing.TB, c call) answer {
	t.Helper()
	a, err := s.try(t, c)
	if err != nil {
		t.Fatalf("%s %s: %v", c.method, c.path, err)
	}
	return a
}

// try makes a call that may break off.
func (s *service) try(t testing.TB, c call) (answer, error) {
	t.Helper()
	resp, err := s.server.Client().Do(s.request(t, c))
	if err != nil {
		return answer{}, err
	}
	defer resp.Body.Close()
	if s.http2 && resp.ProtoMajor != 2 {
		t.Errorf("answer over %s, want HTTP/2", resp.Proto)
	}
	body, err := io.ReadAll(resp.Body)
	return answer{resp, string(body)}, err
}

func (a answer) replayed() bool { return a.Header.Get("Idempotency-Replayed") == "true" }

func (a answer) want(t testing.TB, status int, body string) {
	t.Helper()
	if a.StatusCode != status || a.body != body {
		t.Fatalf("answer %d %q, want %d %q", a.StatusCode, a.body, status, body)
	}
}

// wantProblem checks that the answer is a problem detail of the given status and
// code.
func (a answer) wantProblem(t testing.TB, status int, code string) {
	t.Helper()
	if a.StatusCode != status || a.Header.Get("Content-Type") != "application/problem+json" || !strings.Contains(a.body, `"code":"`+code+`"`) {
		t.Fatalf("answer %d %s %s\nwant problem %d with code %q", a.StatusCode, a.Header.Get("Content-Type"), a.body, status, code)
	}
}

// patience is how long a test waits for what must come before it fails.
var patience = 20 * time.Second

// eventually polls until the condition holds.
func eventually(t testing.TB, what string, condition func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !condition(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("timed out waiting for %s", what)
		}
	}
}

// within receives from ch, or fails the test.
func within[T any](t testing.TB, what string, ch <-chan T) T {
	t.Helper()
	select {
	case v := <-ch:
		return v
	case <-time.After(patience):
		t.Fatalf("timed out waiting for %s", what)
		panic("unreachable")
	}
}

// gate is a handler that says when it has begun and ends when it is told to.
type gate struct {
	begun chan struct{}
	open  chan struct{}
}

func newGate() gate { return gate{begun: make(chan struct{}, 100), open: make(chan struct{})} }

func (g gate) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	g.begun <- struct{}{}
	<-g.open
	w.WriteHeader(http.StatusCreated)
	io.WriteString(w, "made")
}

// background makes a call in a goroutine and returns where its answer will come.
func (s *service) background(t testing.TB, c call) <-chan answer {
	answers := make(chan answer, 1)
	s.calls.Go(func() {
		a, err := s.try(t, c)
		if err != nil {
			t.Errorf("background call: %v", err)
		}
		answers <- a
	})
	return answers
}

// create is the handler of most tests: it answers with something that differs
// from run to run.
func create() http.HandlerFunc {
	var mu sync.Mutex
	n := 0
	return func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		n++
		id := n
		mu.Unlock()
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("Location", fmt.Sprintf("/v1/payments/%d", id))
		w.WriteHeader(http.StatusCreated)
		fmt.Fprintf(w, `{"id":%d}`, id)
	}
}
