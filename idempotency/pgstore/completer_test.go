package pgstore_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgidem/pgidem/idempotency"
	"github.com/pgidem/pgidem/idempotency/pgstore"
	"github.com/pgidem/pgidem/internal/moved"
	"github.com/pgidem/pgidem/internal/pgtest"
	"github.com/pgidem/pgidem/internal/storetest"
	"github.com/pgidem/pgidem/tenancy"
)

// clinic is a service whose handler hangs on the first attempt at each key that is
// interrupted by [clinic.interrupt], as if its process were dead, and treats all others by
// treat.
type clinic struct {
	pool    *pgxpool.Pool
	store   *pgstore.Store
	mode    idempotency.Store
	handler http.Handler // without authentication: for a context with a tenant
	treat   http.HandlerFunc
	hanging chan int // the server process of each attempt that hangs, if it is in a transaction
	buried  chan struct{}
	lost    sync.WaitGroup

	mu   sync.Mutex
	hang map[string]bool // by tenant and key
	runs map[string]int  // those that did not hang
}

// modes are the stores that keep requests.
var modes = map[string]func(*pgstore.Store) idempotency.Store{
	"lease":       func(s *pgstore.Store) idempotency.Store { return s },
	"transaction": func(s *pgstore.Store) idempotency.Store { return s.Transactional() },
}

func newClinic(t *testing.T, pool *pgxpool.Pool, mode func(*pgstore.Store) idempotency.Store, treat http.HandlerFunc, opts ...idempotency.Option) *clinic {
	t.Helper()
	store := storetest.NewStore(t, pool)
	c := &clinic{
		pool: pool, store: store, mode: mode(store), treat: treat,
		hanging: make(chan int), buried: make(chan struct{}), hang: make(map[string]bool), runs: make(map[string]int),
	}
	mux := http.NewServeMux()
	protect := idempotency.Require(c.mode, append([]idempotency.Option{
		idempotency.WithRecoverable(), idempotency.WithLogger(slog.New(slog.DiscardHandler)),
	}, opts...)...)
	mux.Handle("POST /v1/payments/{id}", protect(http.HandlerFunc(c.serve)))
	mux.Handle("POST /v1/others/{id}", idempotency.Require(c.mode, idempotency.WithRecoverable("/v1/payments/{id}"))(http.HandlerFunc(c.serve)))
	c.handler = mux
	t.Cleanup(func() {
		close(c.buried)
		c.lost.Wait()
		store.Close()
	})
	return c
}

func name(r *http.Request) string {
	org, _ := tenancy.OrgID(r.Context())
	key, _ := idempotency.Key(r.Context())
	return org.String() + " " + key
}

func (c *clinic) serve(w http.ResponseWriter, r *http.Request) {
	c.mu.Lock()
	hang := c.hang[name(r)]
	delete(c.hang, name(r))
	if !hang {
		c.runs[name(r)]++
	}
	c.mu.Unlock()
	if !hang {
		c.treat(w, r)
		return
	}
	pid := 0
	if tx, ok := pgstore.Tx(r.Context()); ok {
		if err := tx.QueryRow(r.Context(), "SELECT pg_backend_pid()").Scan(&pid); err != nil {
			pid = -1
		}
	}
	c.hanging <- pid
	<-c.buried
}

func newPayment(org uuid.UUID, key string) *http.Request {
	r := httptest.NewRequest(http.MethodPost, "/v1/payments/pay%2F7?note=a%20b&empty", strings.NewReader(`{"amount":1}`))
	r.Header.Set(idempotency.HeaderKey, key)
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("Authorization", "Bearer secret")
	r.Header.Set("Cookie", "session=secret")
	r.Header.Set("X-Unknown", "not kept")
	return r.WithContext(tenancy.WithOrgID(r.Context(), org))
}

// interrupt has a request of a client's run into the death of its process, and lets its
// lease lapse.
func (c *clinic) interrupt(t *testing.T, org uuid.UUID, keys ...string) {
	t.Helper()
	for _, key := range keys {
		c.mu.Lock()
		c.hang[org.String()+" "+key] = true
		c.mu.Unlock()
		c.lost.Go(func() { c.handler.ServeHTTP(httptest.NewRecorder(), newPayment(org, key)) })
		select {
		case pid := <-c.hanging:
			if pid != 0 {
				c.exec(t, `SELECT pg_terminate_backend($1, 10000)`, pid)
			}
		case <-time.After(20 * time.Second):
			t.Fatal("the request never ran")
		}
	}
	storetest.Advance(t, c.pool, org, time.Minute) // their lease of 30 seconds lapses
}

func (c *clinic) exec(t *testing.T, sql string, args ...any) {
	t.Helper()
	if _, err := c.pool.Exec(t.Context(), sql, args...); err != nil {
		t.Fatal(err)
	}
}

// send sends a request as its client would.
func (c *clinic) send(org uuid.UUID, key string) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	c.handler.ServeHTTP(w, newPayment(org, key))
	return w
}

func (c *clinic) wantAnswer(t *testing.T, org uuid.UUID, key string, status int, body, replayed string) {
	t.Helper()
	w := c.send(org, key)
	if w.Code != status || !strings.Contains(w.Body.String(), body) || w.Header().Get(idempotency.DefaultReplayHeader) != replayed {
		t.Errorf("key %s: %d %q, replayed %q; want %d %q, replayed %q", key, w.Code, w.Body, w.Header().Get(idempotency.DefaultReplayHeader), status, body, replayed)
	}
}

func (c *clinic) wantRuns(t *testing.T, org uuid.UUID, key string, want int) {
	t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	if got := c.runs[org.String()+" "+key]; got != want {
		t.Errorf("key %s: %d runs after the interrupted one, want %d", key, got, want)
	}
}

func (c *clinic) completer(t *testing.T, opts ...pgstore.CompleterOption) *pgstore.Completer {
	t.Helper()
	completer, err := pgstore.NewCompleter(c.store, c.handler, append([]pgstore.CompleterOption{
		pgstore.WithPause(time.Microsecond), pgstore.WithCompleterLogger(slog.New(slog.DiscardHandler)),
	}, opts...)...)
	if err != nil {
		t.Fatal(err)
	}
	return completer
}

func wantPass(t *testing.T, completer *pgstore.Completer, want pgstore.CompleterResult) {
	t.Helper()
	got, err := completer.Pass(t.Context())
	if err != nil || got != want {
		t.Fatalf("Pass = %+v, %v; want %+v", got, err, want)
	}
}

// kept counts the requests that are kept of a tenant.
func kept(t testing.TB, pool *pgxpool.Pool, org uuid.UUID) (n int) {
	t.Helper()
	if err := pool.QueryRow(context.Background(), `SELECT count(*) FROM `+storetest.SchemaOf(t, org).Quoted()+`.idempotency_requests`).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

func wantKept(t testing.TB, pool *pgxpool.Pool, org uuid.UUID, want int) {
	t.Helper()
	if n := kept(t, pool, org); n != want {
		t.Errorf("%d requests are kept, want %d", n, want)
	}
}

// attempts returns how often the completers have begun the request of a tenant that is
// kept.
func attempts(t *testing.T, pool *pgxpool.Pool, org uuid.UUID) (n int) {
	t.Helper()
	if err := pool.QueryRow(t.Context(), `SELECT coalesce(sum(attempts), 0) FROM `+storetest.SchemaOf(t, org).Quoted()+`.idempotency_requests`).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

func inEachMode(t *testing.T, test func(t *testing.T, mode func(*pgstore.Store) idempotency.Store)) {
	for name, mode := range modes {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(t, mode)
		})
	}
}

// TestCompleterFinishesARequest: what the handler needs is there again, what is secret is
// not, and the client that comes back finds the response.
func TestCompleterFinishesARequest(t *testing.T) {
	t.Parallel()
	inEachMode(t, func(t *testing.T, mode func(*pgstore.Store) idempotency.Store) {
		pool := pgtest.NewPool(t)
		org := storetest.NewTenant(t, pool)
		c := newClinic(t, pool, mode, func(w http.ResponseWriter, r *http.Request) {
			body, _ := io.ReadAll(r.Body)
			key, _ := idempotency.Key(r.Context())
			attempt, _ := idempotency.Attempt(r.Context())
			_, inTx := pgstore.Tx(r.Context())
			wantAttempt := 2
			if inTx {
				wantAttempt = 1
			}
			got := fmt.Sprint(r.Method, " ", r.URL, " ", r.RequestURI, " ", r.Host, " ", r.Pattern, " ", r.PathValue("id"), " ", string(body), " ", r.ContentLength, " ", key, " ", attempt)
			want := fmt.Sprint(`POST /v1/payments/pay%2F7?note=a%20b&empty /v1/payments/pay%2F7?note=a%20b&empty example.com POST /v1/payments/{id} pay/7 {"amount":1} 12 key `, wantAttempt)
			if got != want {
				t.Errorf("the handler saw\n%s, want\n%s", got, want)
			}
			if len(r.Header) != 2 || r.Header.Get("Content-Type") != "application/json" || r.Header.Get(idempotency.HeaderKey) != "key" {
				t.Errorf("the handler saw the headers %v", r.Header)
			}
			if !idempotency.Recovered(r.Context()) {
				t.Error("the handler is not told that it is recovered")
			}
			w.WriteHeader(http.StatusCreated)
			io.WriteString(w, "made")
			w.(http.Flusher).Flush()
		},
			idempotency.WithScope(func(r *http.Request) string { return r.Header.Get("Authorization") }), // gone the second time
			idempotency.WithFingerprint(func(r *http.Request, body []byte) (string, error) {
				return r.Header.Get("X-Unknown") + string(body), nil // likewise
			}),
			idempotency.WithReplayCheck(func(r *http.Request, _ *idempotency.Record) error {
				if idempotency.Recovered(r.Context()) {
					return errors.New("nothing is replayed to nobody")
				}
				return nil
			}))
		if _, inTx := c.mode.(*pgstore.Store); !inTx {
			c.treat = func(treat http.HandlerFunc) http.HandlerFunc {
				return func(w http.ResponseWriter, r *http.Request) { treat(unflushable{w}, r) }
			}(c.treat)
		}
		c.interrupt(t, org, "key")
		wantKept(t, pool, org, 1)
		wantPass(t, c.completer(t), pgstore.CompleterResult{Completed: 1})
		wantKept(t, pool, org, 0)
		wantPass(t, c.completer(t), pgstore.CompleterResult{})
		c.wantAnswer(t, org, "key", http.StatusCreated, "made", "true")
		c.wantRuns(t, org, "key", 1)
	})
}

// unflushable ignores what a handler in a transaction must not do.
type unflushable struct{ http.ResponseWriter }

func (unflushable) Flush() {}

// TestRequestIsKeptWhileItIsInProgress: not longer, however it ends, and not at all where
// nobody asked for it.
func TestRequestIsKeptWhileItIsInProgress(t *testing.T) {
	t.Parallel()
	inEachMode(t, func(t *testing.T, mode func(*pgstore.Store) idempotency.Store) {
		pool := pgtest.NewPool(t)
		for _, tc := range []struct {
			name   string
			path   string
			during int
			treat  http.HandlerFunc
		}{
			{"completed", "/v1/payments/1", 1, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusCreated) }},
			{"not storable", "/v1/payments/1", 1, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusBadGateway) }},
			{"panic", "/v1/payments/1", 1, func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }},
			{"a statement that fails", "/v1/payments/1", 1, func(w http.ResponseWriter, r *http.Request) {
				if tx, ok := pgstore.Tx(r.Context()); ok {
					tx.Exec(r.Context(), "SELECT 1/0")
				}
				w.WriteHeader(http.StatusInternalServerError)
			}},
			{"a commit that fails", "/v1/payments/1", 1, func(w http.ResponseWriter, r *http.Request) {
				if tx, ok := pgstore.Tx(r.Context()); ok {
					tx.Exec(r.Context(), "SELECT 1/0")
				}
			}},
			{"with a step", "/v1/payments/1", 1, func(w http.ResponseWriter, r *http.Request) {
				_, err := idempotency.Step(r.Context(), "charge", func(context.Context) (int, error) { return 1, nil })
				if err != nil {
					t.Error(err)
				}
				w.WriteHeader(http.StatusServiceUnavailable)
			}},
			{"another route", "/v1/others/1", 0, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusCreated) }},
		} {
			t.Run(tc.name, func(t *testing.T) {
				t.Parallel()
				org := storetest.NewTenant(t, pool)
				c := newClinic(t, pool, mode, func(w http.ResponseWriter, r *http.Request) {
					wantKept(t, pool, org, tc.during)
					tc.treat(w, r)
				})
				r := newPayment(org, "key")
				r.URL.Path, r.URL.RawPath = tc.path, ""
				func() {
					defer func() { _ = recover() }()
					c.handler.ServeHTTP(httptest.NewRecorder(), r)
				}()
				c.wantRuns(t, org, "key", 1)
				wantKept(t, pool, org, 0)
				storetest.Advance(t, pool, org, time.Minute)
				wantPass(t, c.completer(t), pgstore.CompleterResult{})
			})
		}
	})
}

// TestKeptRequestsGoWithTheRecord: by Put, by Clear, and by the purge.
func TestKeptRequestsGoWithTheRecord(t *testing.T) {
	t.Parallel()
	inEachMode(t, func(t *testing.T, mode func(*pgstore.Store) idempotency.Store) {
		pool := pgtest.NewPool(t)
		org := storetest.NewTenant(t, pool)
		c := newClinic(t, pool, mode, func(http.ResponseWriter, *http.Request) {})
		purge := func() {
			t.Helper()
			if _, err := pgstore.Purge(t.Context(), pool, storetest.SchemaOf(t, org), pgstore.PurgeOptions{}); err != nil {
				t.Fatal(err)
			}
		}
		c.interrupt(t, org, "put", "cleared")
		wantKept(t, pool, org, 2)
		if err := c.store.Put(t.Context(), &idempotency.Record{OrgID: org, Key: "put", ResponseStatus: 201}); err != nil {
			t.Fatal(err)
		}
		wantKept(t, pool, org, 1)
		if err := c.store.Clear(t.Context(), org); err != nil {
			t.Fatal(err)
		}
		wantKept(t, pool, org, 0)

		c.interrupt(t, org, "expires")
		storetest.Advance(t, pool, org, 2*time.Hour)
		purge()
		wantKept(t, pool, org, 1) // interrupted, and not expired
		storetest.Advance(t, pool, org, 22*time.Hour)
		wantPass(t, c.completer(t), pgstore.CompleterResult{}) // expired: nobody's any more
		purge()
		c.wantRuns(t, org, "expires", 0)
		storetest.Advance(t, pool, org, time.Hour)
		purge()
		wantKept(t, pool, org, 0)

		// One that an older version of the service completed knows nothing of requests.
		c.interrupt(t, org, "left behind")
		req := claimRequest(org, "left behind")
		req.TTL = 48 * time.Hour
		c.exec(t, `DELETE FROM `+storetest.SchemaOf(t, org).Quoted()+`.idempotency_records`)
		mustClaim(t, c.store, req, idempotency.OutcomeClaimed)
		mustComplete(t, c.store, req.Claim)
		if _, leases := c.mode.(*pgstore.Store); leases { // else a pass forgets it: TestCompletedRequestIsNotRunAgain
			wantPass(t, c.completer(t), pgstore.CompleterResult{})
		}
		purge()
		wantKept(t, pool, org, 1)
		storetest.Advance(t, pool, org, time.Hour)
		purge()
		wantKept(t, pool, org, 0)
	})
}

// TestRecoverableRoundTrips: to keep a request takes none more with leases, and one more
// in front of a transaction.
func TestRecoverableRoundTrips(t *testing.T) {
	t.Parallel()
	want := map[string]map[string]int64{
		"lease":       {"claim": 1, "complete": 1, "replay": 1, "claim again": 1, "release": 1},
		"transaction": {"claim": 2, "complete": 1, "replay": 1, "claim again": 2, "release": 1},
	}
	for name, mode := range modes {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pool := pgtest.NewPool(t)
			org := storetest.NewTenant(t, pool)
			config := pool.Config()
			config.MaxConns = 1 // and so none waits for a second one
			trips := &tripCounter{}
			config.ConnConfig.DialFunc = trips.dial(config.ConnConfig.DialFunc)
			counted, err := pgxpool.NewWithConfig(t.Context(), config)
			if err != nil {
				t.Fatal(err)
			}
			defer counted.Close()
			store := mode(storetest.NewStore(t, counted)).(idempotency.RequestStore)
			claim := func(req idempotency.ClaimRequest, want idempotency.ClaimOutcome) {
				t.Helper()
				if result, err := store.Claim(t.Context(), req); err != nil || result.Outcome != want {
					t.Fatalf("Claim: %+v, %v; want outcome %d", result, err, want)
				}
			}
			steps := []struct {
				name string
				do   func(req, again idempotency.ClaimRequest) error
			}{
				{"claim", func(req, _ idempotency.ClaimRequest) error { claim(req, idempotency.OutcomeClaimed); return nil }},
				{"complete", func(req, _ idempotency.ClaimRequest) error {
					return store.Complete(t.Context(), req.Claim, &idempotency.Record{ResponseStatus: 201})
				}},
				{"replay", func(req, _ idempotency.ClaimRequest) error {
					req.Token = idempotency.NewToken()
					claim(req, idempotency.OutcomeCompleted)
					return nil
				}},
				{"claim again", func(_, again idempotency.ClaimRequest) error {
					claim(again, idempotency.OutcomeClaimed)
					return nil
				}},
				{"release", func(_, again idempotency.ClaimRequest) error { return store.Release(t.Context(), again.Claim) }},
			}
			for _, key := range []string{"warm", "counted"} {
				req, again := keeping(org, key), keeping(org, key+" again")
				for _, step := range steps {
					before := trips.turns.Load()
					if err := step.do(req, again); err != nil {
						t.Fatalf("%s: %v", step.name, err)
					}
					if n := trips.turns.Load() - before; key == "counted" && n != want[name][step.name] {
						t.Errorf("%s: %d round trips, want %d", step.name, n, want[name][step.name])
					}
				}
			}
			wantKept(t, pool, org, 0)
		})
	}
}

// keeping is a claim whose request is to be kept.
func keeping(org uuid.UUID, key string) idempotency.ClaimRequest {
	req := claimRequest(org, key)
	req.Kept = true
	req.Request = &idempotency.KeptRequest{
		Method: http.MethodPost, Target: "/v1/payments/1", Host: "api.example.com",
		Header: map[string][]string{idempotency.HeaderKey: {key}}, Body: []byte(`{"amount":1}`),
	}
	return req
}

// TestRecoveryClaimsNothingElse: a claim for a recovery gets an interrupted attempt whose
// request is kept, or nothing.
func TestRecoveryClaimsNothingElse(t *testing.T) {
	t.Parallel()
	inEachMode(t, func(t *testing.T, mode func(*pgstore.Store) idempotency.Store) {
		pool := pgtest.NewPool(t)
		org := storetest.NewTenant(t, pool)
		plain := storetest.NewStore(t, pool)
		store := mode(plain).(idempotency.RequestStore)
		recovery := func(key string) idempotency.ClaimRequest {
			req := claimRequest(org, key)
			req.Kept, req.Recovery = true, true
			return req
		}
		want := func(req idempotency.ClaimRequest, want idempotency.ClaimOutcome) idempotency.ClaimResult {
			t.Helper()
			result, err := store.Claim(t.Context(), req)
			if err != nil || result.Outcome != want {
				t.Fatalf("%s: outcome %d, %v; want %d", req.Key, result.Outcome, err, want)
			}
			return result
		}
		want(recovery("absent"), idempotency.OutcomeNotInterrupted)
		mustClaim(t, plain, claimRequest(org, "in flight"), idempotency.OutcomeClaimed)
		want(recovery("in flight"), idempotency.OutcomeInFlight)
		done := keeping(org, "completed")
		mustClaim(t, plain, done, idempotency.OutcomeClaimed)
		mustComplete(t, plain, done.Claim)
		want(recovery("completed"), idempotency.OutcomeCompleted)
		other := recovery("completed")
		other.RequestHash = "another"
		want(other, idempotency.OutcomeMismatch)
		mustClaim(t, plain, claimRequest(org, "not kept"), idempotency.OutcomeClaimed)
		interrupted := keeping(org, "interrupted")
		mustClaim(t, plain, interrupted, idempotency.OutcomeClaimed)
		told := keeping(org, "told")
		mustClaim(t, plain, told, idempotency.OutcomeClaimed)
		storetest.Advance(t, pool, org, 2*time.Minute)
		want(recovery("not kept"), idempotency.OutcomeNotInterrupted)

		// A client takes over and is told that it failed: from then on it is the client's.
		told.Token = idempotency.NewToken()
		if n := mustClaim(t, plain, told, idempotency.OutcomeClaimed).Attempt; n != 2 {
			t.Fatalf("attempt %d", n)
		}
		want(recovery("told"), idempotency.OutcomeInFlight)
		if err := plain.Release(t.Context(), told.Claim); err != nil {
			t.Fatal(err)
		}
		want(recovery("told"), idempotency.OutcomeNotInterrupted)

		// A recovery that comes to nothing is followed by another; one that completes is not.
		for attempt := 2; attempt <= 4; attempt++ {
			req := recovery("interrupted")
			result := want(req, idempotency.OutcomeClaimed)
			if _, tx := store.(*pgstore.Store); tx && result.Attempt != attempt {
				t.Errorf("attempt %d, want %d", result.Attempt, attempt)
			}
			if attempt == 4 {
				if err := store.Complete(t.Context(), req.Claim, &idempotency.Record{ResponseStatus: 201}); err != nil {
					t.Fatal(err)
				}
				break
			}
			want(recovery("interrupted"), idempotency.OutcomeInFlight)
			release := req.Claim
			release.Kept = false
			if err := store.Release(t.Context(), release); err != nil {
				t.Fatal(err)
			}
		}
		want(recovery("interrupted"), idempotency.OutcomeCompleted)
		wantKept(t, pool, org, 0)
	})
}

// TestCompletersSideBySide: of many requests of several tenants each is run once, by one
// of the copies that look for them at the same time.
func TestCompletersSideBySide(t *testing.T) {
	t.Parallel()
	inEachMode(t, func(t *testing.T, mode func(*pgstore.Store) idempotency.Store) {
		pool := pgtest.NewPool(t)
		c := newClinic(t, pool, mode, func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, name(r)) })
		var orgs []uuid.UUID
		var keys []string
		for i := range 8 {
			keys = append(keys, fmt.Sprint("key-", i))
		}
		if _, lease := c.mode.(*pgstore.Store); !lease {
			keys = keys[:2] // each holds a connection
		}
		for range 3 {
			org := storetest.NewTenant(t, pool)
			c.interrupt(t, org, keys...)
			orgs = append(orgs, org)
		}
		copies := []*pgstore.Completer{c.completer(t), c.completer(t, pgstore.WithConcurrency(2)), c.completer(t, pgstore.WithConcurrency(1))}
		var total pgstore.CompleterResult
		var mu sync.Mutex
		var wg sync.WaitGroup
		for _, completer := range copies {
			wg.Go(func() {
				for range 3 {
					result, err := completer.Pass(t.Context())
					if err != nil {
						t.Error(err)
					}
					mu.Lock()
					total.Completed += result.Completed
					total.Failed += result.Failed
					mu.Unlock()
				}
			})
		}
		wg.Wait()
		if want := len(orgs) * len(keys); total.Completed != want || total.Failed != 0 {
			t.Errorf("%+v; want %d completed", total, want)
		}
		for _, org := range orgs {
			wantKept(t, pool, org, 0)
			for _, key := range keys {
				c.wantRuns(t, org, key, 1)
				c.wantAnswer(t, org, key, http.StatusOK, org.String()+" "+key, "true")
			}
		}
	})
}

// TestCompleterTriesAgain: after a status that is not storable, after a panic, and after a
// handler that ends its goroutine.
func TestCompleterTriesAgain(t *testing.T) {
	t.Parallel()
	inEachMode(t, func(t *testing.T, mode func(*pgstore.Store) idempotency.Store) {
		pool := pgtest.NewPool(t)
		org := storetest.NewTenant(t, pool)
		runs := 0
		c := newClinic(t, pool, mode, func(w http.ResponseWriter, _ *http.Request) {
			switch runs++; runs {
			case 1:
				w.WriteHeader(http.StatusInternalServerError)
			case 2:
				panic("once")
			case 3:
				panic(http.ErrAbortHandler)
			case 4:
				runtime.Goexit()
			default:
				io.WriteString(w, "at last")
			}
		})
		c.interrupt(t, org, "key")
		for i := range 4 {
			if n := attempts(t, pool, org); n != i {
				t.Errorf("%d attempts are counted, want %d", n, i)
			}
			// A long pause, so that each pass has one try.
			wantPass(t, c.completer(t, pgstore.WithPause(time.Minute)), pgstore.CompleterResult{Failed: 1})
			wantPass(t, c.completer(t, pgstore.WithPause(time.Minute)), pgstore.CompleterResult{})
			storetest.Advance(t, pool, org, time.Minute<<i)
		}
		wantPass(t, c.completer(t), pgstore.CompleterResult{Completed: 1})
		c.wantAnswer(t, org, "key", http.StatusOK, "at last", "true")
	})
}

// TestCompleterGivesUp: after as many attempts as it may have, and says so once, without
// the key; a client that comes back may still take over.
func TestCompleterGivesUp(t *testing.T) {
	t.Parallel()
	inEachMode(t, func(t *testing.T, mode func(*pgstore.Store) idempotency.Store) {
		pool := pgtest.NewPool(t)
		org := storetest.NewTenant(t, pool)
		broken := true
		c := newClinic(t, pool, mode, func(w http.ResponseWriter, _ *http.Request) {
			if broken {
				w.WriteHeader(http.StatusInternalServerError)
			}
		})
		var log bytes.Buffer
		logger := pgstore.WithCompleterLogger(slog.New(slog.NewTextHandler(&log, nil)))
		c.interrupt(t, org, "guessable")
		completer := c.completer(t, pgstore.WithMaxAttempts(2), pgstore.WithPause(time.Minute), logger)
		wantPass(t, completer, pgstore.CompleterResult{Failed: 1})
		storetest.Advance(t, pool, org, time.Minute)
		wantPass(t, completer, pgstore.CompleterResult{Failed: 1, GivenUp: 1})
		storetest.Advance(t, pool, org, time.Hour)
		wantPass(t, completer, pgstore.CompleterResult{})
		c.wantRuns(t, org, "guessable", 2)
		sum := sha256.Sum256([]byte("guessable"))
		line := ""
		for text := range strings.Lines(log.String()) {
			if strings.Contains(text, "level=ERROR") {
				line += text
			}
		}
		for _, want := range []string{"method=POST", "path=/v1/payments/pay%2F7 ", org.String(), "key_hash=" + hex.EncodeToString(sum[:8]), "attempts=2", "status 500"} {
			if strings.Count(line, want) != 1 {
				t.Errorf("want %q once in %q", want, line)
			}
		}
		if strings.Contains(log.String(), "guessable") {
			t.Errorf("the log has the key: %s", log.String())
		}
		broken = false
		c.wantAnswer(t, org, "guessable", http.StatusOK, "", "")
		wantKept(t, pool, org, 0)

		// The process of the last attempt dies as well: the next pass says so.
		c.interrupt(t, org, "nobody left")
		c.exec(t, `UPDATE `+storetest.SchemaOf(t, org).Quoted()+`.idempotency_requests SET attempts = 2`)
		log.Reset()
		wantPass(t, completer, pgstore.CompleterResult{GivenUp: 1})
		wantPass(t, completer, pgstore.CompleterResult{})
		if n := strings.Count(log.String(), "level=ERROR"); n != 1 {
			t.Errorf("%d lines: %s", n, log.String())
		}

		// A client's attempt that dies begins the count anew.
		c.interrupt(t, org, "nobody left")
		wantPass(t, completer, pgstore.CompleterResult{Completed: 1})
	})
}

// TestClientWaitsForTheCompleter: a client that comes back while its request is being run
// again waits for it, and gets its response.
func TestClientWaitsForTheCompleter(t *testing.T) {
	t.Parallel()
	inEachMode(t, func(t *testing.T, mode func(*pgstore.Store) idempotency.Store) {
		pool := pgtest.NewPool(t)
		org := storetest.NewTenant(t, pool)
		running, finish := make(chan struct{}), make(chan struct{})
		c := newClinic(t, pool, mode, func(w http.ResponseWriter, _ *http.Request) {
			close(running)
			<-finish
			io.WriteString(w, "by the completer")
		}, idempotency.WithWait(20*time.Second))
		c.interrupt(t, org, "key")
		var wg sync.WaitGroup
		wg.Go(func() { wantPass(t, c.completer(t), pgstore.CompleterResult{Completed: 1}) })
		<-running
		waiting := make(chan struct{})
		wg.Go(func() {
			close(waiting)
			c.wantAnswer(t, org, "key", http.StatusOK, "by the completer", "true")
		})
		<-waiting
		close(finish)
		wg.Wait()
		c.wantRuns(t, org, "key", 1)
	})
}

// TestClientsRaceTheCompleter: each request is run once after it was interrupted, by the
// client that comes back or by the completer, and the other finds its response.
func TestClientsRaceTheCompleter(t *testing.T) {
	t.Parallel()
	inEachMode(t, func(t *testing.T, mode func(*pgstore.Store) idempotency.Store) {
		pool := pgtest.NewPool(t)
		org := storetest.NewTenant(t, pool)
		c := newClinic(t, pool, mode, func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "made") })
		rounds := 15
		for round := range rounds {
			key := fmt.Sprint("key-", round)
			c.interrupt(t, org, key)
			var wg sync.WaitGroup
			var result pgstore.CompleterResult
			wg.Go(func() {
				var err error
				if result, err = c.completer(t, pgstore.WithPause(time.Hour)).Pass(t.Context()); err != nil {
					t.Error(err)
				}
			})
			wg.Go(func() {
				if w := c.send(org, key); w.Code != http.StatusOK && w.Code != http.StatusConflict {
					t.Errorf("%d %s", w.Code, w.Body)
				}
			})
			wg.Wait()
			if result.Failed != 0 || result.GivenUp != 0 {
				t.Errorf("%+v", result)
			}
			c.wantAnswer(t, org, key, http.StatusOK, "made", "true")
			c.wantRuns(t, org, key, 1)
			wantKept(t, pool, org, 0)
		}
	})
}

// TestCompleterLeavesOthersAlone: requests of a tenant that its directory leads elsewhere,
// and of routes that are not recoverable here.
func TestCompleterLeavesOthersAlone(t *testing.T) {
	t.Parallel()
	pool := pgtest.NewPool(t)
	org, other := storetest.NewTenant(t, pool), storetest.NewTenant(t, pool)
	c := newClinic(t, pool, modes["lease"], func(http.ResponseWriter, *http.Request) {})
	c.interrupt(t, org, "key")
	c.interrupt(t, other, "key")

	elsewhere, err := pgstore.New(pool, only{org, storetest.SchemaOf(t, org)})
	if err != nil {
		t.Fatal(err)
	}
	completer, err := pgstore.NewCompleter(elsewhere, c.handler, pgstore.WithCompleterLogger(slog.New(slog.DiscardHandler)))
	if err != nil {
		t.Fatal(err)
	}
	result, err := completer.Pass(t.Context())
	if result.Completed != 1 || err == nil || !strings.Contains(err.Error(), other.String()) {
		t.Errorf("Pass = %+v, %v; want the tenant of its own completed, and to be told of the other", result, err)
	}
	if n := attempts(t, pool, other); n != 0 {
		t.Errorf("%d attempts are counted for a tenant of another service", n)
	}

	for name, handler := range map[string]http.Handler{
		"another store's": idempotency.Require(idempotency.NewMemoryStore())(http.NotFoundHandler()),
		"another route's": idempotency.Require(c.store, idempotency.WithRecoverable("/v2/"))(http.NotFoundHandler()),
	} {
		var log bytes.Buffer
		completer, err := pgstore.NewCompleter(c.store, handler, pgstore.WithPause(time.Microsecond),
			pgstore.WithCompleterLogger(slog.New(slog.NewTextHandler(&log, nil))))
		if err != nil {
			t.Fatal(err)
		}
		wantPass(t, completer, pgstore.CompleterResult{Skipped: 1})
		if n := attempts(t, pool, other); n != 0 || !strings.Contains(log.String(), "WithRecoverable") {
			t.Errorf("%s: %d attempts, and it says %s", name, n, log.String())
		}
	}
	var log bytes.Buffer
	completer, err = pgstore.NewCompleter(c.store, http.NotFoundHandler(), pgstore.WithCompleterLogger(slog.New(slog.NewTextHandler(&log, nil))))
	if err != nil {
		t.Fatal(err)
	}
	wantPass(t, completer, pgstore.CompleterResult{Skipped: 1})
	if n := attempts(t, pool, other); n != 0 || !strings.Contains(log.String(), "no Require took the request") {
		t.Errorf("another service's: %d attempts, and it says %s", n, log.String())
	}
}

// TestCompleterLeavesMovedAlone: a schema that is being moved is not looked into.
func TestCompleterLeavesMovedAlone(t *testing.T) {
	t.Parallel()
	pool := pgtest.NewPool(t)
	org := storetest.NewTenant(t, pool)
	c := newClinic(t, pool, modes["lease"], func(http.ResponseWriter, *http.Request) {})
	c.interrupt(t, org, "key")
	schema := storetest.SchemaOf(t, org).Quoted()
	if _, err := pool.Exec(t.Context(), `ALTER SCHEMA `+schema+` RENAME TO `+moved.Fence(org)); err != nil {
		t.Fatal(err)
	}
	wantPass(t, c.completer(t), pgstore.CompleterResult{})
	if _, err := pool.Exec(t.Context(), `ALTER SCHEMA `+moved.Fence(org)+` RENAME TO `+schema); err != nil {
		t.Fatal(err)
	}
	wantPass(t, c.completer(t), pgstore.CompleterResult{Completed: 1})
}

// TestCompleterOfOneTenantOfASchema: where tenants share a schema, those that the directory
// does not lead there are left alone.
func TestCompleterOfOneTenantOfASchema(t *testing.T) {
	t.Parallel()
	pool := pgtest.NewPool(t)
	schema := storetest.NewSchema(t, pool, "shared")
	org, other := uuid.New(), uuid.New()
	shared, err := pgstore.New(pool, tenancy.Fixed(schema))
	if err != nil {
		t.Fatal(err)
	}
	mustClaim(t, shared, keeping(org, "key"), idempotency.OutcomeClaimed)
	mustClaim(t, shared, keeping(other, "key"), idempotency.OutcomeClaimed)
	for _, table := range []string{"records SET lease_until = now()", "requests SET next_at = now()"} {
		if _, err := pool.Exec(t.Context(), "UPDATE "+schema.Quoted()+".idempotency_"+table); err != nil {
			t.Fatal(err)
		}
	}
	store, err := pgstore.New(pool, only{org, schema})
	if err != nil {
		t.Fatal(err)
	}
	completer, err := pgstore.NewCompleter(store, idempotency.Require(store, idempotency.WithRecoverable())(http.NotFoundHandler()),
		pgstore.WithCompleterLogger(slog.New(slog.DiscardHandler)))
	if err != nil {
		t.Fatal(err)
	}
	result, err := completer.Pass(t.Context())
	if (result != pgstore.CompleterResult{Completed: 1}) || err == nil || !strings.Contains(err.Error(), other.String()) {
		t.Errorf("Pass = %+v, %v; want the tenant of its own completed, and to be told of the other", result, err)
	}
	var left uuid.UUID
	var attempts int
	if err := pool.QueryRow(t.Context(), "SELECT org_id, attempts FROM "+schema.Quoted()+".idempotency_requests").Scan(&left, &attempts); err != nil || left != other || attempts != 0 {
		t.Errorf("the request of %s is left, after %d attempts, %v; want that of %s, after none", left, attempts, err, other)
	}
}

// TestLongTransactionIsLeftAlone: it has no lease that could lapse, and its lock tells that
// it lives.
func TestLongTransactionIsLeftAlone(t *testing.T) {
	t.Parallel()
	pool := pgtest.NewPool(t)
	org := storetest.NewTenant(t, pool)
	c := newClinic(t, pool, modes["transaction"], func(http.ResponseWriter, *http.Request) {})
	c.mu.Lock()
	c.hang[org.String()+" key"] = true
	c.mu.Unlock()
	c.lost.Go(func() { c.handler.ServeHTTP(httptest.NewRecorder(), newPayment(org, "key")) })
	pid := <-c.hanging
	storetest.Advance(t, pool, org, time.Hour)
	wantPass(t, c.completer(t), pgstore.CompleterResult{})
	wantPass(t, c.completer(t, pgstore.WithMaxAttempts(1)), pgstore.CompleterResult{})
	c.exec(t, `SELECT pg_terminate_backend($1, 10000)`, pid)
	wantPass(t, c.completer(t), pgstore.CompleterResult{Completed: 1})
	c.wantRuns(t, org, "key", 1)
}

// only is a directory of one tenant, which leads all others astray.
type only struct {
	org    uuid.UUID
	schema tenancy.Schema
}

func (d only) Schema(_ context.Context, org uuid.UUID) (tenancy.Schema, error) {
	if org == d.org {
		return d.schema, nil
	}
	return tenancy.Schema{}, tenancy.ErrUnknownTenant
}

// TestKeepingInAnOldSchema: one without migration 4 serves what keeps no request, and says
// what to do about the rest.
func TestKeepingInAnOldSchema(t *testing.T) {
	t.Parallel()
	inEachMode(t, func(t *testing.T, mode func(*pgstore.Store) idempotency.Store) {
		pool := pgtest.NewPool(t)
		org := storetest.NewTenant(t, pool)
		c := newClinic(t, pool, mode, func(http.ResponseWriter, *http.Request) {})
		c.exec(t, `DROP TABLE `+storetest.SchemaOf(t, org).Quoted()+`.idempotency_requests`)
		store := c.mode.(idempotency.RequestStore)
		_, err := store.Claim(t.Context(), keeping(org, "key"))
		if !errors.Is(err, idempotency.ErrStoreRefused) || !strings.Contains(err.Error(), "run migrations.Up") {
			t.Errorf("%v; want to be told to migrate", err)
		}
		req := claimRequest(org, "key")
		if result, err := store.Claim(t.Context(), req); err != nil || result.Outcome != idempotency.OutcomeClaimed {
			t.Errorf("%+v, %v", result, err)
		}
		if err := store.Complete(t.Context(), req.Claim, &idempotency.Record{ResponseStatus: 201}); err != nil {
			t.Error(err)
		}
		wantPass(t, c.completer(t), pgstore.CompleterResult{})
		if _, err := pgstore.Purge(t.Context(), pool, storetest.SchemaOf(t, org), pgstore.PurgeOptions{}); err == nil || !strings.Contains(err.Error(), "run migrations.Up") {
			t.Errorf("Purge: %v; want to be told to migrate", err)
		}
		for name, change := range map[string]func(org uuid.UUID) error{
			"Put":   func(org uuid.UUID) error { return store.Put(t.Context(), &idempotency.Record{OrgID: org, Key: "put"}) },
			"Clear": func(org uuid.UUID) error { return c.store.Clear(t.Context(), org) },
			"Claim": func(org uuid.UUID) error { _, err := store.Claim(t.Context(), keeping(org, "another")); return err },
		} {
			if err := change(org); err == nil || !strings.Contains(err.Error(), "run migrations.Up") || errors.Is(err, tenancy.ErrUnknownTenant) {
				t.Errorf("%s: %v; want to be told to migrate", name, err)
			}
			if err := change(uuid.New()); !errors.Is(err, tenancy.ErrUnknownTenant) {
				t.Errorf("%s without a schema: %v; want an unknown tenant", name, err)
			}
		}
	})
}

// TestRequestConstraints: the database refuses what cannot be a request of the tenant.
func TestRequestConstraints(t *testing.T) {
	t.Parallel()
	pool := pgtest.NewPool(t)
	org, other := storetest.NewTenant(t, pool), storetest.NewTenant(t, pool)
	astray, err := pgstore.New(pool, tenancy.Fixed(storetest.SchemaOf(t, other)))
	if err != nil {
		t.Fatal(err)
	}
	store := storetest.NewStore(t, pool)
	for name, change := range map[string]func(*idempotency.KeptRequest){
		"no method":      func(r *idempotency.KeptRequest) { r.Method = "" },
		"a long target":  func(r *idempotency.KeptRequest) { r.Target = strings.Repeat("x", 1<<20+1) },
		"a long header":  func(r *idempotency.KeptRequest) { r.Header["X"] = []string{strings.Repeat("x", 3<<20)} },
		"long wildcards": func(r *idempotency.KeptRequest) { r.PathValues = map[string]string{"x": strings.Repeat("x", 3<<20)} },
	} {
		req := keeping(org, name)
		change(req.Request)
		if _, err := store.Claim(t.Context(), req); !errors.Is(err, idempotency.ErrStoreRefused) {
			t.Errorf("%s: %v; want an error that wraps ErrStoreRefused", name, err)
		}
	}
	if _, err := astray.Transactional().(idempotency.LeaseStore).Claim(t.Context(), keeping(org, "astray")); !errors.Is(err, idempotency.ErrStoreRefused) || !strings.Contains(err.Error(), "idempotency_requests_tenant_check") {
		t.Errorf("a request of another tenant: %v", err)
	}
	wantKept(t, pool, org, 0)
	wantKept(t, pool, other, 0)
	odd := keeping(org, "odd")
	odd.Request.Target, odd.Request.Host, odd.Request.Body = "/v1?\xff\xfe", "\xff", []byte{0, 255}
	mustClaim(t, store, odd, idempotency.OutcomeClaimed)
	wantKept(t, pool, org, 1)
}

// TestCompleterBehindAPooler: in each mode in which statements are sent without being
// prepared, or prepared without being kept.
func TestCompleterBehindAPooler(t *testing.T) {
	t.Parallel()
	for _, exec := range []pgx.QueryExecMode{pgx.QueryExecModeExec, pgx.QueryExecModeSimpleProtocol, pgx.QueryExecModeCacheDescribe} {
		inEachMode(t, func(t *testing.T, mode func(*pgstore.Store) idempotency.Store) {
			config := pgtest.NewPool(t).Config() // a database of its own: a completer sees to all tenants
			config.ConnConfig.DefaultQueryExecMode = exec
			pool, err := pgxpool.NewWithConfig(t.Context(), config)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(pool.Close)
			org := storetest.NewTenant(t, pool)
			c := newClinic(t, pool, mode, func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "made") })
			c.interrupt(t, org, "key")
			wantPass(t, c.completer(t), pgstore.CompleterResult{Completed: 1})
			c.wantAnswer(t, org, "key", http.StatusOK, "made", "true")
			c.wantRuns(t, org, "key", 1)
		})
	}
}

// TestCompleterRuns: until it is told to stop, when it cancels its handlers, waits for
// them, and gives the attempt back.
func TestCompleterRuns(t *testing.T) {
	t.Parallel()
	inEachMode(t, func(t *testing.T, mode func(*pgstore.Store) idempotency.Store) {
		pool := pgtest.NewPool(t)
		org := storetest.NewTenant(t, pool)
		running := make(chan struct{}, 2)
		c := newClinic(t, pool, mode, func(w http.ResponseWriter, r *http.Request) {
			key, _ := idempotency.Key(r.Context())
			if key == "quick" {
				io.WriteString(w, "made")
				return
			}
			running <- struct{}{}
			<-r.Context().Done()
			if key == "answers" {
				w.WriteHeader(http.StatusServiceUnavailable)
			}
		})
		c.interrupt(t, org, "quick")
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan error)
		go func() {
			done <- c.completer(t, pgstore.WithInterval(10*time.Millisecond), pgstore.WithPause(time.Minute)).Run(ctx)
		}()
		eventually(t, "the first to be completed", func() bool { return kept(t, pool, org) == 0 })
		c.interrupt(t, org, "is silent", "answers")
		<-running
		<-running
		if n := attempts(t, pool, org); n != 2 {
			t.Errorf("%d attempts", n)
		}
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if n := attempts(t, pool, org); n != 0 {
			t.Errorf("%d attempts are counted of a completer that was told to stop, want 0", n)
		}
		c.wantAnswer(t, org, "quick", http.StatusOK, "made", "true")
	})
}

func TestNewCompleterRefusesNonsense(t *testing.T) {
	t.Parallel()
	store := storetest.NewStore(t, pgtest.NewPool(t))
	handler := http.NotFoundHandler()
	if _, err := pgstore.NewCompleter(nil, handler); err == nil || !strings.Contains(err.Error(), "store") {
		t.Errorf("no store: %v", err)
	}
	if _, err := pgstore.NewCompleter(store, nil); err == nil || !strings.Contains(err.Error(), "handler") {
		t.Errorf("no handler: %v", err)
	}
	for want, opt := range map[string]pgstore.CompleterOption{
		"WithInterval": pgstore.WithInterval(0), "WithPause": pgstore.WithPause(-1), "WithConcurrency": pgstore.WithConcurrency(0),
		"WithMaxAttempts": pgstore.WithMaxAttempts(21), "WithMaxAttempts: 0": pgstore.WithMaxAttempts(0),
		"WithCompleterLogger": pgstore.WithCompleterLogger(nil), "option 1 is nil": nil,
	} {
		if _, err := pgstore.NewCompleter(store, handler, opt); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
	}
}
