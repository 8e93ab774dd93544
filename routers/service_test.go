package routers_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/google/uuid"

	"github.com/pgidem/pgidem/idempotency"
)

// layouts are the ways to stand the middleware in a router. Each makes the routes of
// the same service, in the idiom of its router:
//
//	POST /v1/payments/{id}  makes a payment, other than any before
//	POST /v1/settings       has a status to tell, and no more
//	POST /v1/refused        answers 402 by way of an error
//	POST /v1/broken         answers 500 by way of an error
//	POST /v1/panics         panics, but not the second time
//	POST /v1/gives-up       returns when its client is gone, but not the second time
//	POST /v1/stream         answers piece by piece
//	POST /v1/slow           answers when it is told to
//	POST /v1/auth/login     hands out a token, which must not be stored
var layouts = []struct {
	name string
	make func(*work, wrapper) http.Handler
}{
	{"net-http", serveMux},
	{"net-http-one-route", serveMuxOneRoute},
	{"chi", chiRouter},
	{"gin", ginEngine},
	{"gin-whole", ginWhole},
	{"echo-v4", echo4},
	{"echo-v4-whole", echo4Whole},
	{"echo-v5", echo5},
	{"echo-v5-whole", echo5Whole},
}

type wrapper = func(http.Handler) http.Handler

// login is the route that the middleware excludes.
const login = "POST /v1/auth/login"

var (
	errNoMoney = errors.New("no money")
	errBroken  = errors.New("broken")
)

// work is what the handlers of a service do, whatever its router.
type work struct {
	payments atomic.Int64

	mu   sync.Mutex
	runs map[string]int // of each idempotency key

	begun chan struct{} // the slow handler runs, or the one that will give up
	open  chan struct{} // the slow handler may end
}

func newWork() *work {
	return &work{runs: make(map[string]int), begun: make(chan struct{}, 100), open: make(chan struct{}, 1)}
}

// unclaimed is what the runs without a claim are counted by.
const unclaimed = "none"

// run counts a run of a handler. It returns how many there were for this key.
func (w *work) run(ctx context.Context) int {
	key, ok := idempotency.Key(ctx)
	if !ok {
		key = unclaimed
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.runs[key]++
	return w.runs[key]
}

func (w *work) wantRuns(t *testing.T, key string, want int) {
	t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	if got := w.runs[key]; got != want {
		t.Fatalf("the handler ran %d times, want %d", got, want)
	}
}

// payment is the answer of the route of that name.
type payment struct {
	ID     string `json:"id"`
	Number int64  `json:"number"`
}

func (w *work) pay(ctx context.Context, id string) payment {
	w.run(ctx)
	return payment{id, w.payments.Add(1)}
}

// panicAtFirst panics when it runs for a key for the first time.
func (w *work) panicAtFirst(ctx context.Context) {
	if w.run(ctx) == 1 {
		panic("at first")
	}
}

// giveUpAtFirst waits for the client to go when it runs for a key for the first
// time, and returns the error of the context then.
func (w *work) giveUpAtFirst(ctx context.Context) error {
	if w.run(ctx) > 1 {
		return nil
	}
	w.begun <- struct{}{}
	<-ctx.Done()
	return ctx.Err()
}

func (w *work) slow(ctx context.Context) {
	w.run(ctx)
	w.begun <- struct{}{}
	select {
	case <-w.open:
	case <-ctx.Done(): // the test has failed already
	}
}

func (w *work) token(ctx context.Context) string {
	return fmt.Sprint("token ", w.run(ctx))
}

// orgOf stands in for authentication.
func orgOf(r *http.Request) (context.Context, bool) {
	org, err := uuid.Parse(r.Header.Get("X-Org"))
	return idempotency.WithOrgID(r.Context(), org), err == nil
}

// service is one layout on a server.
type service struct {
	*work
	server *httptest.Server
	org    uuid.UUID
	major  int // of HTTP
}

func serve(t *testing.T, make func(*work, wrapper) http.Handler, store idempotency.Store, org uuid.UUID, major int) *service {
	t.Helper()
	s := &service{work: newWork(), org: org, major: major}
	idempotent := idempotency.Require(store,
		idempotency.WithExclude(login),
		idempotency.WithLogger(slog.New(slog.DiscardHandler)),
	)
	s.server = httptest.NewUnstartedServer(make(s.work, idempotent))
	s.server.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	if major == 2 {
		s.server.EnableHTTP2 = true
		s.server.StartTLS()
	} else {
		s.server.Start()
	}
	t.Cleanup(s.server.Close)
	return s
}
