package faults_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgidem/pgidem/chaos/faults"
	"github.com/pgidem/pgidem/idempotency"
	"github.com/pgidem/pgidem/idempotency/pgstore"
	"github.com/pgidem/pgidem/internal/storetest"
)

// The two ways in which a store runs handlers.
const (
	leases       = "leases"
	transactions = "transactions"
)

// patience is for what must come in the end.
const patience = 30 * time.Second

// behaviour is what the handler of a world does besides its payment.
type behaviour struct {
	step  bool          // has an effect elsewhere, in a step
	fails bool          // its first run answers 500
	limit time.Duration // of its statement in a transaction
	until chan struct{} // it goes on until this is closed, or its context ends
}

// world is a service of one tenant behind a proxy, and all that was seen of it.
type world struct {
	mode    string
	direct  *pgxpool.Pool // not through the proxy
	org     uuid.UUID
	schema  string
	proxy   *faults.Proxy
	pool    *pgxpool.Pool // through it
	store   *pgstore.Store
	server  *httptest.Server
	behave  behaviour
	runs    atomic.Int64
	charges atomic.Int64 // effects elsewhere
	unkept  atomic.Int64 // steps whose function ran and whose result was not returned
	mu      sync.Mutex
	answers []answer
	events  []idempotency.Event
	closed  sync.Once

	protected atomic.Pointer[http.Handler]
	patient   atomic.Bool     // the faults are over
	received  map[string]bool // results of steps that a handler was given
}

// answer is what a client was told.
type answer struct {
	status     int
	body       string
	code       string // of a problem
	replayed   bool
	retryAfter string
}

func (a answer) String() string {
	s := fmt.Sprint(a.status, " ")
	if a.code != "" {
		return s + a.code
	}
	if a.replayed {
		s += "replayed "
	}
	return s + a.body
}

// fixed is the fingerprint of every request here.
func fixed(*http.Request, []byte) (string, error) { return "hash", nil }

func newWorld(t *testing.T, direct *pgxpool.Pool, mode string, behave behaviour, opts ...idempotency.Option) *world {
	t.Helper()
	w := &world{mode: mode, direct: direct, behave: behave, received: make(map[string]bool)}
	w.org = storetest.NewTenant(t, direct)
	w.schema = storetest.SchemaOf(t, w.org).Quoted()
	if _, err := direct.Exec(t.Context(), `CREATE TABLE `+w.schema+`.payments (run bigint NOT NULL)`); err != nil {
		t.Fatal(err)
	}
	w.connect(t, direct.Config())
	w.serve(opts...)
	t.Cleanup(w.close)
	return w
}

// connect puts a proxy and a pool before the server that the configuration leads to.
func (w *world) connect(t *testing.T, config *pgxpool.Config) {
	t.Helper()
	proxy, err := faults.NewProxy(config)
	if err != nil {
		t.Fatal(err)
	}
	w.proxy = proxy
	config = proxy.Through(config)
	config.MaxConns, config.MinConns = 6, 0
	config.ConnConfig.RuntimeParams["application_name"] = w.application()
	if w.pool, err = pgxpool.NewWithConfig(t.Context(), config); err != nil {
		t.Fatal(err)
	}
	if w.store, err = pgstore.New(w.pool, storetest.PerOrg); err != nil {
		t.Fatal(err)
	}
}

// application is how the server knows the connections through the proxy.
func (w *world) application() string { return "world " + w.org.String() }

// serve serves what protect last gave.
func (w *world) serve(opts ...idempotency.Option) {
	w.protect(opts...)
	w.server = httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		(*w.protected.Load()).ServeHTTP(rw, r.WithContext(idempotency.WithOrgID(r.Context(), w.org)))
	}))
}

// protect puts the middleware with these options before the handler.
func (w *world) protect(opts ...idempotency.Option) {
	var store idempotency.Store = w.store
	if w.mode == transactions {
		store = w.store.Transactional()
	}
	opts = append([]idempotency.Option{
		idempotency.WithFingerprint(fixed),
		idempotency.WithLogger(slog.New(slog.DiscardHandler)),
		idempotency.WithObserver(func(_ context.Context, e idempotency.Event) {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.events = append(w.events, e)
		}),
	}, opts...)
	protected := idempotency.Require(store, opts...)(http.HandlerFunc(w.pay))
	w.protected.Store(&protected)
}

// heal ends all faults. From then on the store has the time that it needs, however busy the
// machine is.
func (w *world) heal() {
	w.proxy.Heal()
	w.patient.Store(true)
	w.protect(idempotency.WithStoreTimeout(patience), idempotency.WithLease(patience))
}

// limit bounds a handler's statement.
func (w *world) limit() time.Duration {
	if w.patient.Load() {
		return patience
	}
	return w.behave.limit
}

// close lets everything that is held arrive and ends the service.
func (w *world) close() {
	w.closed.Do(func() {
		w.proxy.Heal()
		w.server.Close()
		w.store.Close()
		w.pool.Close()
		w.proxy.Close()
	})
}

// pay makes a payment, in the handler's transaction if it has one.
func (w *world) pay(rw http.ResponseWriter, r *http.Request) {
	ctx, run := r.Context(), w.runs.Add(1)
	charge := ""
	if w.behave.step {
		var err error
		if charge, err = w.charge(ctx); err != nil {
			http.Error(rw, err.Error(), http.StatusInternalServerError)
			return
		}
	}
	var err error
	if tx, ok := pgstore.Tx(ctx); ok {
		bounded, cancel := context.WithTimeout(ctx, w.limit())
		defer cancel()
		_, err = tx.Exec(bounded, `INSERT INTO payments VALUES ($1)`, run)
	} else {
		_, err = w.direct.Exec(ctx, `INSERT INTO `+w.schema+`.payments VALUES ($1)`, run)
	}
	if err != nil {
		http.Error(rw, err.Error(), http.StatusInternalServerError)
		return
	}
	if w.behave.until != nil {
		select {
		case <-w.behave.until:
		case <-ctx.Done():
			return
		}
	}
	if w.behave.fails && run == 1 {
		http.Error(rw, "not today", http.StatusInternalServerError)
		return
	}
	rw.WriteHeader(http.StatusCreated)
	fmt.Fprint(rw, "run ", run, charge)
}

// charge has an effect elsewhere.
func (w *world) charge(ctx context.Context) (string, error) {
	ran := false
	result, err := idempotency.Step(ctx, "charge", func(context.Context) (string, error) {
		ran = true
		return fmt.Sprint(" charge ", w.charges.Add(1)), nil
	})
	w.mu.Lock()
	defer w.mu.Unlock()
	if err != nil {
		if ran {
			w.unkept.Add(1)
		}
		return "", err
	}
	w.received[result] = true
	return result, nil
}

// send sends the one request that all requests here are.
func (w *world) send(t *testing.T) answer {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, w.server.URL, strings.NewReader(`{}`))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set(idempotency.HeaderKey, "key")
	resp, err := w.server.Client().Do(r)
	if err != nil {
		t.Errorf("no answer: %v", err)
		return answer{}
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Errorf("half an answer: %v", err)
	}
	a := answer{
		status: resp.StatusCode, body: strings.TrimSpace(string(body)),
		replayed: resp.Header.Get(idempotency.DefaultReplayHeader) == "true", retryAfter: resp.Header.Get("Retry-After"),
	}
	var problem idempotency.Problem
	if json.Unmarshal(body, &problem) == nil {
		a.code = problem.Code
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.answers = append(w.answers, a)
	return a
}

// sendUntilDone sends until the payment is made.
func (w *world) sendUntilDone(t *testing.T) answer {
	t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(25 * time.Millisecond) {
		a := w.send(t)
		if a.status == http.StatusCreated {
			return a
		}
		if time.Now().After(deadline) {
			t.Fatalf("after %s still %s; %s", patience, a, w.story())
		}
	}
}

// wantReplay checks that a retry is told what was told before.
func (w *world) wantReplay(t *testing.T, final answer) {
	t.Helper()
	if again := w.sendUntilDone(t); !again.replayed || again.body != final.body {
		t.Errorf("a retry was told %s after %s; %s", again, final, w.story())
	}
}

// decided returns how often one of the decisions was taken.
func (w *world) decided(decisions ...idempotency.Decision) (n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, e := range w.events {
		for _, d := range decisions {
			if e.Decision == d {
				n++
			}
		}
	}
	return n
}

// story tells what happened, for whoever has to find out why.
func (w *world) story() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	var b strings.Builder
	fmt.Fprintf(&b, "%d runs; answers:", w.runs.Load())
	for _, a := range w.answers {
		fmt.Fprintf(&b, " [%s]", a)
	}
	b.WriteString("; events:")
	for _, e := range w.events {
		fmt.Fprintf(&b, "\n\t%s (attempt %d, %v)", e.Decision, e.Attempt, e.Err)
	}
	return b.String()
}

// payments returns the runs whose payments are committed.
func (w *world) payments(t *testing.T) (runs []int64) {
	t.Helper()
	if err := w.direct.QueryRow(context.Background(), `SELECT array_agg(p.run ORDER BY p.run) FROM `+w.schema+`.payments AS p`).Scan(&runs); err != nil {
		t.Fatal(err)
	}
	return runs
}

// awaitQuiet ends the service and waits until the server has done all that it was ever
// sent through the proxy.
func (w *world) awaitQuiet(t *testing.T) {
	t.Helper()
	w.proxy.Heal()
	w.pool.Close()
	eventually(t, "the server to have done all it was sent", func() bool {
		var n int
		err := w.direct.QueryRow(context.Background(), `SELECT count(*) FROM pg_stat_activity WHERE application_name = $1`, w.application()).Scan(&n)
		if err != nil {
			t.Fatal(err)
		}
		return n == 0
	})
}

func eventually(t *testing.T, what string, condition func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !condition(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited %s for %s", patience, what)
		}
	}
}

// check holds what was seen against what is promised. final is the answer that the
// requests came to in the end.
func (w *world) check(t *testing.T, final answer) {
	t.Helper()
	fail := func(format string, args ...any) {
		t.Helper()
		t.Errorf(format+"; %s", append(args, w.story())...)
	}
	// What a retry gets is what was got before, also of a service that shares nothing with
	// this one but the database.
	rec, err := storetest.NewStore(t, w.direct).Get(context.Background(), w.org, "key")
	if err != nil {
		fail("no record: %v", err)
	} else if got := string(rec.ResponseBody); got != final.body || rec.ResponseStatus != final.status {
		fail("the record says %d %q, and the clients were told %s", rec.ResponseStatus, got, final)
	}

	paid := w.payments(t)
	w.mu.Lock()
	bodies := map[string]bool{}
	for _, a := range w.answers {
		switch {
		case a.status == http.StatusCreated:
			bodies[a.body] = true
		case a.code == "" && a.status != http.StatusInternalServerError: // which the handler answers
			w.mu.Unlock()
			fail("an answer that is nobody's: %s", a)
			return
		case a.code != "" && a.retryAfter == "":
			t.Errorf("%s without Retry-After", a)
		}
	}
	given := len(w.received)
	w.mu.Unlock()

	// An attempt of which it is said that it was rolled back has committed nothing.
	executed := w.decided(idempotency.DecisionExecuted, idempotency.DecisionTakenOver)
	if executed+w.decided(idempotency.DecisionCompleteFailed) == 0 {
		fail("an outcome is stored, and no event tells of its attempt")
	}
	if w.mode == transactions {
		if executed > 1 {
			fail("%d attempts are said to have been executed", executed)
		}
		if len(paid) != 1 || !strings.HasPrefix(final.body+" ", fmt.Sprintf("run %d ", paid[0])) {
			fail("payments %v for the answer %q", paid, final.body)
		}
		if len(bodies) != 1 {
			fail("clients were told of several payments: %v", bodies)
		}
	} else {
		// Each run but one must be owned up to by an event.
		owned := w.decided(idempotency.DecisionCompleteFailed, idempotency.DecisionLeaseLost, idempotency.DecisionNoOutcome,
			idempotency.DecisionReleased, idempotency.DecisionReleaseFailed, idempotency.DecisionPanicked)
		if len(paid) < 1 || len(paid) > 1+owned {
			fail("payments %v, and %d runs without a record that an event tells of", paid, owned)
		}
		if failed := w.decided(idempotency.DecisionCompleteFailed); len(bodies) > 1+failed {
			fail("clients were told of several payments: %v", bodies)
		}
	}
	if given > 1 {
		fail("a step gave several results: %v", w.received)
	}
	if charges, unkept := w.charges.Load(), w.unkept.Load(); charges > 1+unkept {
		fail("%d charges, and %d steps that were not kept", charges, unkept)
	}
}
