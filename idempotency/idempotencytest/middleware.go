package idempotencytest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/pgidem/pgidem/idempotency"
	"github.com/pgidem/pgidem/tenancy"
)

// TestMiddleware runs the contract between [idempotency.Require] and its clients,
// over real HTTP, against the stores that newStore returns. A store without
// leases is tested with what one process can promise.
func TestMiddleware(t *testing.T, newStore func(t testing.TB) idempotency.Store, opts ...Option) {
	s := newSuite(newStore, opts)
	for name, test := range map[string]func(*testing.T, *fixture){
		"SafeMethodsPassThrough":       testSafeMethodsPassThrough,
		"OtherMethodsPassThrough":      testOtherMethodsPassThrough,
		"ExcludedRoutesPassThrough":    testExcludedRoutesPassThrough,
		"NoKeyPassesThrough":           testNoKeyPassesThrough,
		"RequiredKey":                  testRequiredKey,
		"InvalidKeys":                  testInvalidKeys,
		"QuotedAndBareAreOneKey":       testQuotedAndBareAreOneKey,
		"NoOrgPassesThrough":           testNoOrgPassesThrough,
		"RequiredOrg":                  testRequiredOrg,
		"RequestTooLarge":              testRequestTooLarge,
		"RequestBodyReachesHandler":    testRequestBodyReachesHandler,
		"Replay":                       testReplay,
		"ReplayOfNothing":              testReplayOfNothing,
		"ReplayHeaderRenamed":          testReplayHeaderRenamed,
		"OuterHeadersAreNotStored":     testOuterHeadersAreNotStored,
		"SecretHeadersAreNotStored":    testSecretHeadersAreNotStored,
		"Mismatch":                     testMismatch,
		"InFlight":                     testInFlight,
		"MismatchInFlight":             testMismatchInFlight,
		"TenantsShareNoKeys":           testTenantsShareNoKeys,
		"ScopesShareNoKeys":            testScopesShareNoKeys,
		"StatusesThatAreNotStored":     testStatusesThatAreNotStored,
		"PanicReleases":                testPanicReleases,
		"LargeResponse":                testLargeResponse,
		"ResponseAtTheBound":           testResponseAtTheBound,
		"StreamedResponse":             testStreamedResponse,
		"StreamedPastTheBound":         testStreamedPastTheBound,
		"HijackedResponse":             testHijackedResponse,
		"InformationalResponses":       testInformationalResponses,
		"SecondWriteHeaderIsIgnored":   testSecondWriteHeaderIsIgnored,
		"CopyIsRecorded":               testCopyIsRecorded,
		"Trailers":                     testTrailers,
		"WriteAfterReturn":             testWriteAfterReturn,
		"NothingSentBeforeStored":      testNothingSentBeforeStored,
		"ClientLeavesMidHandler":       testClientLeavesMidHandler,
		"SilentReturnAfterCancel":      testSilentReturnAfterCancel,
		"DetachedHandler":              testDetachedHandler,
		"ExpiredRecordRunsAgain":       testExpiredRecordRunsAgain,
		"ConcurrentDuplicates":         testConcurrentDuplicates,
		"NestedRequireIsOne":           testNestedRequireIsOne,
		"ReplayCheck":                  testReplayCheck,
		"StreamBrokenOff":              testStreamBrokenOff,
		"FlushBeforeBody":              testFlushBeforeBody,
		"NestedRequireOfAnotherKey":    testNestedRequireOfAnotherKey,
		"LongFingerprint":              testLongFingerprint,
		"ErrorHandler":                 testErrorHandler,
		"WaitOfAnyStore":               testWaitOfPlainStore,
		"ProblemDetailsOfFailedClaims": testStoreDownAtGet,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(t, s.fixture(t))
		})
	}
	if _, ok := newStore(t).(idempotency.LeaseStore); !ok {
		return
	}
	for name, test := range map[string]func(*testing.T, *leaseFixture){
		"TakeOver":                testTakeOver,
		"InterruptedRefused":      testInterruptedRefused,
		"LeaseIsExtended":         testLeaseIsExtended,
		"LostLeaseCancelsHandler": testLostLeaseCancelsHandler,
		"StoreDownAtClaim":        testStoreDownAtClaim,
		"FailOpen":                testFailOpen,
		"StoreDownAtCompletion":   testStoreDownAtCompletion,
		"StoreBackForCompletion":  testStoreBackForCompletion,
		"StoreDownAtRelease":      testStoreDownAtRelease,
		"ClaimAnswerLost":         testClaimAnswerLost,
		"ClientLeavesDuringClaim": testClientLeavesDuringClaim,
		"UnknownTenant":           testUnknownTenant,
		"TakeOverThatFails":       testTakeOverThatFails,
		"LeaseLostAtRelease":      testLeaseLostAtRelease,
		"LeaseKeptToTheEnd":       testLeaseKeptToTheEnd,
		"HungCompletion":          testHungCompletion,
		"StoreRefuses":            testStoreRefuses,
		"LateHeaders":             testLateHeaders,
		"WaitReplays":             testWaitReplays,
		"WaitTimesOut":            testWaitTimesOut,
		"WaitRunsAfterRelease":    testWaitRunsAfterRelease,
		"WaitTakesOver":           testWaitTakesOver,
		"WaiterLeaves":            testWaiterLeaves,
		"WaitStoreDown":           testWaitStoreDown,
		"Watch":                   testWatch,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := s.fixture(t)
			test(t, &leaseFixture{fixture: f, leases: f.store.(idempotency.LeaseStore)})
		})
	}
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

func testSafeMethodsPassThrough(t *testing.T, f *fixture) {
	s := f.serve(t, create())
	for i, method := range []string{http.MethodGet, http.MethodHead, http.MethodOptions, http.MethodTrace} {
		s.do(t, call{method: method, key: "k"})
		if a := s.do(t, call{method: method, key: "k"}); a.replayed() {
			t.Errorf("%s was replayed", method)
		}
		s.wantRuns(t, int64(2*i+2))
	}
	s.wantDecisions(t)
}

func testOtherMethodsPassThrough(t *testing.T, f *fixture) {
	s := f.serve(t, create(), idempotency.WithMethods(http.MethodPatch))
	s.do(t, call{method: http.MethodPost, key: "k"})
	s.do(t, call{method: http.MethodPost, key: "k"})
	s.wantRuns(t, 2)
	s.do(t, call{method: http.MethodPatch, key: "k"})
	s.do(t, call{method: http.MethodPatch, key: "k"})
	s.wantRuns(t, 3)
}

func testExcludedRoutesPassThrough(t *testing.T, f *fixture) {
	s := f.serve(t, create(), idempotency.WithExclude("POST /v1/auth/login"), idempotency.WithExclude("/public/"))
	for _, path := range []string{"/v1/auth/login", "/v1/auth/login", "/public/a/b", "/public/a/b"} {
		if a := s.do(t, call{path: path, key: strings.Repeat("not a valid key", 20)}); a.StatusCode != http.StatusCreated {
			t.Fatalf("%s: %d %s", path, a.StatusCode, a.body)
		}
	}
	s.wantRuns(t, 4)
	s.do(t, call{method: http.MethodPut, path: "/v1/auth/login", key: "k"}) // another method is another route
	if a := s.do(t, call{method: http.MethodPut, path: "/v1/auth/login", key: "k"}); !a.replayed() {
		t.Fatal("another method of an excluded path passed through")
	}
}

func testNoKeyPassesThrough(t *testing.T, f *fixture) {
	s := f.serve(t, create())
	s.do(t, call{})
	s.do(t, call{})
	s.wantRuns(t, 2)
	s.wantDecisions(t)
}

func testRequiredKey(t *testing.T, f *fixture) {
	items := f.serve(t, create(), idempotency.WithRequireKey("POST /v1/items/{id}"))
	for _, path := range []string{"/v1/items/7", "/v1/items/7;", "/v1/items/7%25", "/v1/items/7%5c", "/v1/items/7%2f8", "/v1/items/%01"} {
		items.do(t, call{path: path}).wantProblem(t, http.StatusBadRequest, "key_missing")
	}
	s := f.serve(t, create(), idempotency.WithRequireKey("POST /v1/payments"))
	for _, path := range []string{"", "/v1/p%61yments", "//v1/payments", "/v1/x/../payments"} {
		s.do(t, call{path: path}).wantProblem(t, http.StatusBadRequest, "key_missing")
	}
	s.do(t, call{path: "/v1/other"}).want(t, http.StatusCreated, `{"id":1}`)
	s.do(t, call{key: "k"}).want(t, http.StatusCreated, `{"id":2}`)
	missing := idempotency.DecisionMissingKey
	s.wantDecisions(t, missing, missing, missing, missing, idempotency.DecisionExecuted)

	everywhere := f.serve(t, create(), idempotency.WithRequireKey())
	everywhere.do(t, call{path: "/any/where"}).wantProblem(t, http.StatusBadRequest, "key_missing")
	everywhere.do(t, call{method: http.MethodGet}).want(t, http.StatusCreated, `{"id":1}`)
}

func testInvalidKeys(t *testing.T, f *fixture) {
	s := f.serve(t, create())
	for name, lines := range map[string][]string{
		"two lines":              {"a", "b"},
		"two equal lines":        {"a", "a"},
		"empty":                  {""},
		"blank":                  {"  "},
		"too long":               {strings.Repeat("k", 256)},
		"quoted and too long":    {`"` + strings.Repeat("k", 256) + `"`},
		"tab":                    {"a\tb"},
		"byte above ASCII":       {"caf\xc3\xa9"},
		"quoted empty":           {`""`},
		"quote never closed":     {`"a`},
		"quoted and more":        {`"a" b`},
		"list of quoted":         {`"a", "b"`},
		"quoted bad escape":      {`"a\b"`},
		"quoted control":         {"\"a\tb\""},
		"quoted byte over ASCII": {"\"caf\xc3\xa9\""},
	} {
		a := s.do(t, call{header: http.Header{idempotency.HeaderKey: lines}})
		if a.StatusCode != http.StatusBadRequest {
			t.Errorf("%s: %d %s, want 400", name, a.StatusCode, a.body)
			continue
		}
		a.wantProblem(t, http.StatusBadRequest, "key_invalid")
		if !strings.Contains(a.body, "This one will not do: ") {
			t.Errorf("%s: the problem does not say what is wrong: %s", name, a.body)
		}
	}
	s.wantRuns(t, 0)
	for name, key := range map[string]string{
		"longest": strings.Repeat("k", 255), "punctuation": "~!@#$%^&*()_+-=[]{}|;:',./<>? x", "comma": "a,b",
	} {
		if a := s.do(t, call{key: key}); a.StatusCode != http.StatusCreated {
			t.Errorf("%s: %d %s, want 201", name, a.StatusCode, a.body)
		}
	}
}

func testQuotedAndBareAreOneKey(t *testing.T, f *fixture) {
	s := f.serve(t, func(_ http.ResponseWriter, r *http.Request) {
		if key, ok := idempotency.Key(r.Context()); key != `key"1` || !ok {
			t.Errorf("the handler's key is %q, %t", key, ok)
		}
	})
	for i, key := range []string{`key"1`, `"key\"1"`, `"key\"1";v=1`} {
		if a := s.do(t, call{key: key}); a.replayed() != (i > 0) {
			t.Errorf("key %s: replayed is %t", key, a.replayed())
		}
	}
	s.wantRuns(t, 1)
}

func testNoOrgPassesThrough(t *testing.T, f *fixture) {
	s := f.serve(t, create())
	c := call{key: "k", header: http.Header{}}
	for range 2 {
		r := s.request(t, c)
		r.Header.Del("X-Org")
		resp, err := s.server.Client().Do(r)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
	}
	s.wantRuns(t, 2)
	s.wantDecisions(t, idempotency.DecisionBypassedNoOrg, idempotency.DecisionBypassedNoOrg)
}

func testRequiredOrg(t *testing.T, f *fixture) {
	s := f.serve(t, create(), idempotency.WithRequireOrg())
	r := s.request(t, call{key: "k"})
	r.Header.Set("X-Org", uuid.Nil.String()) // the nil UUID is no tenant
	resp, err := s.server.Client().Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, _ := io.ReadAll(resp.Body)
	answer{resp, string(body)}.wantProblem(t, http.StatusUnauthorized, "org_missing")
	if resp.Header.Get("WWW-Authenticate") == "" {
		t.Error("401 without WWW-Authenticate")
	}
	s.wantRuns(t, 0)
}

func testRequestTooLarge(t *testing.T, f *fixture) {
	s := f.serve(t, create(), idempotency.WithMaxRequestBytes(10))
	s.do(t, call{key: "a", body: "0123456789"}).want(t, http.StatusCreated, `{"id":1}`)
	s.do(t, call{key: "b", body: "0123456789!"}).wantProblem(t, http.StatusRequestEntityTooLarge, "request_too_large")
	s.do(t, call{key: "c", stream: io.LimitReader(strings.NewReader("0123456789!"), 11)}).
		wantProblem(t, http.StatusRequestEntityTooLarge, "request_too_large")
	s.do(t, call{body: "0123456789!"}).want(t, http.StatusCreated, `{"id":2}`) // no key, no bound
	s.do(t, call{key: "b", body: "0123456789"}).want(t, http.StatusCreated, `{"id":3}`)
}

func testRequestBodyReachesHandler(t *testing.T, f *fixture) {
	s := f.serve(t, func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err == nil {
			err = r.Body.Close()
		}
		fmt.Fprintf(w, "%s %v %d", body, err, r.ContentLength)
	})
	s.do(t, call{key: "a", body: "hello"}).want(t, http.StatusOK, "hello <nil> 5")
	s.do(t, call{key: "b", stream: io.LimitReader(strings.NewReader("hello"), 5)}).want(t, http.StatusOK, "hello <nil> -1")
	s.do(t, call{key: "c"}).want(t, http.StatusOK, " <nil> 0")
}

func testReplay(t *testing.T, f *fixture) {
	s := f.serve(t, func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Content-Type", "text/plain; charset=utf-8")
		h["X-Many"] = []string{"b", "a", "b"}
		h.Set("Etag", `"1"`)
		w.WriteHeader(http.StatusAccepted)
		io.WriteString(w, "part one, ")
		w.Write([]byte("part two\x00\xff"))
	})
	first := s.do(t, call{key: "k", body: "x"})
	first.want(t, http.StatusAccepted, "part one, part two\x00\xff")
	if first.replayed() {
		t.Error("the first response says that it is a replay")
	}
	for range 3 {
		again := s.do(t, call{key: "k", body: "x"})
		again.want(t, http.StatusAccepted, first.body)
		if !again.replayed() {
			t.Error("a replay does not say that it is one")
		}
		again.Header.Del("Idempotency-Replayed")
		first.Header.Del("Date")
		again.Header.Del("Date")
		if fmt.Sprint(first.Header) != fmt.Sprint(again.Header) {
			t.Errorf("headers differ:\n got %v\nwant %v", again.Header, first.Header)
		}
		if again.ContentLength != int64(len(first.body)) || first.ContentLength != again.ContentLength {
			t.Errorf("Content-Length %d, then %d", first.ContentLength, again.ContentLength)
		}
	}
	s.wantRuns(t, 1)
	s.wantDecisions(t, idempotency.DecisionExecuted, idempotency.DecisionReplayed, idempotency.DecisionReplayed, idempotency.DecisionReplayed)
}

// testReplayOfNothing: a handler need not write, and what it set is kept.
func testReplayOfNothing(t *testing.T, f *fixture) {
	for name, h := range map[string]http.HandlerFunc{
		"200": func(w http.ResponseWriter, r *http.Request) { w.Header().Set("X-Set", "yes") },
		"204": func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("X-Set", "yes")
			w.WriteHeader(http.StatusNoContent)
			if _, err := w.Write([]byte("x")); !errors.Is(err, http.ErrBodyNotAllowed) {
				t.Errorf("Write after 204: %v", err)
			}
		},
		"304": func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("X-Set", "yes")
			w.WriteHeader(http.StatusNotModified)
		},
	} {
		s := f.serve(t, h)
		for i := range 2 {
			a := s.do(t, call{key: name})
			if fmt.Sprint(a.StatusCode) != name || a.body != "" || a.Header.Get("X-Set") != "yes" || a.replayed() != (i == 1) {
				t.Errorf("%s: answer %d: %d %q %v", name, i, a.StatusCode, a.body, a.Header)
			}
		}
		s.wantRuns(t, 1)
	}
}

func testReplayHeaderRenamed(t *testing.T, f *fixture) {
	s := f.serve(t, create(), idempotency.WithReplayHeader("x-replay"))
	s.do(t, call{key: "k"})
	if a := s.do(t, call{key: "k"}); a.Header.Get("X-Replay") != "true" || a.replayed() {
		t.Errorf("headers %v", a.Header)
	}
}

// testOuterHeadersAreNotStored: what outer middleware sets belongs to each
// request, and is neither stored nor doubled.
func testOuterHeadersAreNotStored(t *testing.T, f *fixture) {
	n := 0
	require := idempotency.Require(f.store)
	inner := require(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Add("Vary", "Accept")
		w.Header().Set("Cache-Control", "private")
		w.Header().Del("X-Removed")
		io.WriteString(w, w.Header().Get("X-Request-Id"))
	}))
	s := f.serveRaw(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n++
		w.Header().Set("X-Request-Id", fmt.Sprint("request-", n))
		w.Header().Set("Vary", "Origin")
		w.Header().Set("Cache-Control", "no-cache")
		w.Header().Set("X-Removed", "yes")
		inner.ServeHTTP(w, r)
	}))
	for i := 1; i <= 2; i++ {
		a := s.do(t, call{key: "k"})
		a.want(t, http.StatusOK, "request-1")
		got := fmt.Sprint(a.Header["X-Request-Id"], a.Header["Vary"], a.Header["Cache-Control"], a.Header["X-Removed"])
		if want := fmt.Sprintf("[request-%d] [Origin Accept] [private] []", i); got != want {
			t.Errorf("answer %d: %s, want %s", i, got, want)
		}
	}
}

// serveRaw starts a service without middleware of its own.
func (f *fixture) serveRaw(t *testing.T, h http.Handler) *service {
	s := f.serve(t, func(http.ResponseWriter, *http.Request) {})
	s.server.Config.Handler = withOrg(h)
	return s
}

func testSecretHeadersAreNotStored(t *testing.T, f *fixture) {
	secret := []string{"Set-Cookie", "Authorization", "Www-Authenticate", "Keep-Alive", "Upgrade", "X-Hop"}
	s := f.serve(t, func(w http.ResponseWriter, r *http.Request) {
		for _, name := range secret {
			w.Header().Set(name, "secret")
		}
		w.Header()["set-cookie"] = []string{"secret"} // straight into the map
		w.Header()["WWW-Authenticate"] = []string{"secret"}
		w.Header().Set("Connection", "x-hop")
		w.Header().Set("X-Kept", "yes")
		w.Header().Set("Date", "Thu, 01 Jan 1970 00:00:00 GMT")
	})
	s.do(t, call{key: "k"})
	again := s.do(t, call{key: "k"})
	for _, name := range append(secret, "Connection") {
		if v, ok := again.Header[name]; ok {
			t.Errorf("%s came back as %q", name, v)
		}
	}
	if again.Header.Get("X-Kept") != "yes" || strings.Contains(again.Header.Get("Date"), "1970") {
		t.Errorf("headers %v", again.Header)
	}

	s = f.serve(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-A", "a")
		w.Header().Set("X-B", "b")
	}, idempotency.WithHeaders(func(name string) bool { return name == "X-A" }))
	s.do(t, call{key: "only A"})
	again = s.do(t, call{key: "only A"})
	if again.Header.Get("X-A") != "a" || again.Header.Get("X-B") != "" {
		t.Errorf("headers %v", again.Header)
	}
}

func testMismatch(t *testing.T, f *fixture) {
	s := f.serve(t, create())
	base := call{key: "k", path: "/v1/payments?a=1", body: `{"amount":1}`}
	s.do(t, base).want(t, http.StatusCreated, `{"id":1}`)
	for name, change := range map[string]func(*call){
		"method": func(c *call) { c.method = http.MethodPut },
		"path":   func(c *call) { c.path = "/v1/refunds?a=1" },
		"query":  func(c *call) { c.path = "/v1/payments?a=2" },
		"body":   func(c *call) { c.body = `{"amount":2}` },
		"none":   func(c *call) { c.body = "" },
	} {
		c := base
		change(&c)
		a := s.do(t, c)
		if a.StatusCode != http.StatusUnprocessableEntity {
			t.Errorf("other %s: %d %s", name, a.StatusCode, a.body)
			continue
		}
		a.wantProblem(t, http.StatusUnprocessableEntity, "key_reused")
	}
	base.header = http.Header{"X-Trace": {"another"}} // headers are no part of the fingerprint
	if a := s.do(t, base); !a.replayed() {
		t.Errorf("a retry with another header: %d %s", a.StatusCode, a.body)
	}
	s.wantRuns(t, 1)
}

func testInFlight(t *testing.T, f *fixture) {
	g := newGate()
	s := f.serve(t, g.ServeHTTP)
	first := s.background(t, call{key: "k"})
	within(t, "the handler to begin", g.begun)
	a := s.do(t, call{key: "k"})
	a.wantProblem(t, http.StatusConflict, "in_flight")
	if a.Header.Get("Retry-After") != "1" {
		t.Errorf("Retry-After %q", a.Header.Get("Retry-After"))
	}
	close(g.open)
	within(t, "the first answer", first).want(t, http.StatusCreated, "made")
	s.do(t, call{key: "k"}).want(t, http.StatusCreated, "made")
	s.wantRuns(t, 1)
	s.wantDecisions(t, idempotency.DecisionInFlight, idempotency.DecisionExecuted, idempotency.DecisionReplayed)
}

func testMismatchInFlight(t *testing.T, f *fixture) {
	g := newGate()
	s := f.serve(t, g.ServeHTTP)
	first := s.background(t, call{key: "k", body: "1"})
	within(t, "the handler to begin", g.begun)
	s.do(t, call{key: "k", body: "2"}).wantProblem(t, http.StatusUnprocessableEntity, "key_reused")
	close(g.open)
	within(t, "the first answer", first)
}

func testTenantsShareNoKeys(t *testing.T, f *fixture) {
	s := f.serve(t, create())
	other := f.newTenant(t, f.store)
	s.do(t, call{key: "k", body: "1"}).want(t, http.StatusCreated, `{"id":1}`)
	s.do(t, call{key: "k", body: "2", org: other}).want(t, http.StatusCreated, `{"id":2}`)
	s.do(t, call{key: "k", body: "1"}).want(t, http.StatusCreated, `{"id":1}`)
	s.do(t, call{key: "k", body: "2", org: other}).want(t, http.StatusCreated, `{"id":2}`)
	s.wantRuns(t, 2)
}

func testScopesShareNoKeys(t *testing.T, f *fixture) {
	s := f.serve(t, create(), idempotency.WithScope(func(r *http.Request) string { return r.Header.Get("X-User") }))
	as := func(user string) call { return call{key: "k", header: http.Header{"X-User": {user}}} }
	s.do(t, as("ann")).want(t, http.StatusCreated, `{"id":1}`)
	s.do(t, as("bob")).want(t, http.StatusCreated, `{"id":2}`)
	s.do(t, as("ann")).want(t, http.StatusCreated, `{"id":1}`)
	s.wantRuns(t, 2)
}

func testStatusesThatAreNotStored(t *testing.T, f *fixture) {
	status := func(w http.ResponseWriter, r *http.Request) {
		var code int
		fmt.Sscanf(r.URL.Path, "/%d", &code)
		w.WriteHeader(code)
		fmt.Fprint(w, code)
	}
	s := f.serve(t, status)
	for _, code := range []int{500, 501, 503, 599, 401, 403, 408, 425, 429} {
		for range 2 {
			if a := s.do(t, call{key: fmt.Sprint(code), path: fmt.Sprint("/", code)}); a.StatusCode != code || a.body != fmt.Sprint(code) || a.replayed() {
				t.Errorf("%d: got %d %q, replayed %t", code, a.StatusCode, a.body, a.replayed())
			}
		}
	}
	s.wantRuns(t, 18)
	for _, code := range []int{200, 302, 400, 404, 409, 410, 422, 451} {
		client := s.server.Client()
		client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
		for i := range 2 {
			if a := s.do(t, call{key: fmt.Sprint(code), path: fmt.Sprint("/", code)}); a.StatusCode != code || a.replayed() != (i == 1) {
				t.Errorf("%d: got %d, replayed %t", code, a.StatusCode, a.replayed())
			}
		}
	}
	all := f.serve(t, status, idempotency.WithStorable(func(int) bool { return true }))
	all.do(t, call{key: "all", path: "/500"})
	if a := all.do(t, call{key: "all", path: "/500"}); !a.replayed() {
		t.Error("WithStorable did not replace the rule")
	}
}

func testPanicReleases(t *testing.T, f *fixture) {
	ends := map[string]func(http.ResponseWriter){
		"/panic":           func(http.ResponseWriter) { panic("on purpose") },
		"/panic-nil":       func(http.ResponseWriter) { panic(nil) },
		"/abort":           func(http.ResponseWriter) { panic(http.ErrAbortHandler) },
		"/after-a-write":   func(w http.ResponseWriter) { io.WriteString(w, "half"); panic(errors.New("on purpose")) },
		"/after-a-flush":   func(w http.ResponseWriter) { io.WriteString(w, "half"); w.(http.Flusher).Flush(); panic("x") },
		"/goexit":          func(http.ResponseWriter) { runtime.Goexit() },
		"/invalid-status":  func(w http.ResponseWriter) { w.WriteHeader(42) },
		"/negative-status": func(w http.ResponseWriter) { w.WriteHeader(-1) },
	}
	var ended sync.Map
	s := f.serve(t, func(w http.ResponseWriter, r *http.Request) {
		if _, again := ended.LoadOrStore(r.URL.Path, true); !again {
			ends[r.URL.Path](w)
		}
		io.WriteString(w, "done")
	})
	// Go's client repeats a request that has a key by itself when a connection that
	// it used before breaks; here each request is to be one request.
	s.server.Client().Transport.(*http.Transport).DisableKeepAlives = true
	for path := range ends {
		// How a broken connection looks to the client is net/http's affair, and
		// after Goexit it does not even break: what counts is the retry.
		patience := 20 * time.Second
		if path == "/goexit" {
			patience = time.Second
		}
		ctx, giveUp := context.WithTimeout(context.Background(), patience)
		if a, err := s.try(t, call{key: path, path: path, ctx: ctx}); err == nil {
			t.Errorf("%s: the client got %d %q; want a connection that breaks", path, a.StatusCode, a.body)
		}
		giveUp()
		eventually(t, "the release after "+path, func() bool {
			a := s.do(t, call{key: path, path: path})
			return a.StatusCode == http.StatusOK && a.body == "done"
		})
	}
	s.wantRuns(t, int64(2*len(ends)))
	s.mu.Lock()
	defer s.mu.Unlock()
	released := 0
	for _, e := range s.events {
		if e.Decision == idempotency.DecisionPanicked {
			released++
		}
	}
	if released != len(ends) {
		t.Errorf("%d panics reported, want %d", released, len(ends))
	}
}

func testLargeResponse(t *testing.T, f *fixture) {
	big := strings.Repeat("x", 3000)
	s := f.serve(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Size", "big")
		w.WriteHeader(http.StatusAccepted)
		for part := range slices.Chunk([]byte(big), 700) {
			w.Write(part)
		}
	}, idempotency.WithMaxResponseBytes(1000))
	first := s.do(t, call{key: "k"})
	first.want(t, http.StatusAccepted, big)
	if first.Header.Get("X-Size") != "big" {
		t.Errorf("headers %v", first.Header)
	}
	again := s.do(t, call{key: "k"})
	again.wantProblem(t, http.StatusConflict, "response_not_kept")
	if !strings.Contains(again.body, `"original_status":202`) {
		t.Errorf("problem %s; want the original status", again.body)
	}
	s.wantRuns(t, 1)
	s.wantDecisions(t, idempotency.DecisionExecuted, idempotency.DecisionNotKept)

	failing := f.serve(t, func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(http.StatusBadGateway)
		io.WriteString(w, big)
	}, idempotency.WithMaxResponseBytes(1000))
	failing.do(t, call{key: "failing"}).want(t, http.StatusBadGateway, big)
	failing.do(t, call{key: "failing"}).want(t, http.StatusBadGateway, big) // not storable, however large
	failing.wantRuns(t, 2)
}

func testResponseAtTheBound(t *testing.T, f *fixture) {
	s := f.serve(t, func(w http.ResponseWriter, r *http.Request) {
		n := len(r.URL.Path) - 1
		io.WriteString(w, strings.Repeat("x", n/2))
		io.WriteString(w, strings.Repeat("x", n-n/2))
	}, idempotency.WithMaxResponseBytes(100))
	at, over := "/"+strings.Repeat("p", 100), "/"+strings.Repeat("p", 101)
	s.do(t, call{key: "at", path: at}).want(t, http.StatusOK, at2x(at))
	if a := s.do(t, call{key: "at", path: at}); !a.replayed() || a.body != at2x(at) {
		t.Errorf("at the bound: %d %q", a.StatusCode, a.body)
	}
	s.do(t, call{key: "over", path: over}).want(t, http.StatusOK, at2x(over))
	s.do(t, call{key: "over", path: over}).wantProblem(t, http.StatusConflict, "response_not_kept")
}

func at2x(path string) string { return strings.Repeat("x", len(path)-1) }

func testStreamedResponse(t *testing.T, f *fixture) {
	more := make(chan struct{})
	s := f.serve(t, func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(http.StatusAccepted)
		io.WriteString(w, "<p>first ")
		if err := http.NewResponseController(w).Flush(); err != nil {
			t.Errorf("Flush: %v", err)
		}
		w.Header().Set("X-Late", "too late")
		<-more
		io.WriteString(w, "second")
		w.(http.Flusher).Flush()
	})
	resp, err := s.server.Client().Do(s.request(t, call{key: "k"}))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	begin := make([]byte, len("<p>first "))
	if _, err := io.ReadFull(resp.Body, begin); err != nil || resp.StatusCode != http.StatusAccepted {
		t.Fatalf("before the handler went on: %d %q, %v", resp.StatusCode, begin, err)
	}
	close(more)
	rest, err := io.ReadAll(resp.Body)
	if string(rest) != "second" || err != nil {
		t.Fatalf("rest %q, %v", rest, err)
	}
	var again answer
	eventually(t, "the record of a streamed response", func() bool {
		again = s.do(t, call{key: "k"})
		return again.StatusCode != http.StatusConflict
	})
	again.want(t, http.StatusAccepted, "<p>first second")
	if again.Header.Get("Content-Type") != resp.Header.Get("Content-Type") || again.Header.Get("X-Late") != "" {
		t.Errorf("replayed headers %v, first %v", again.Header, resp.Header)
	}
	s.wantRuns(t, 1)
}

func testStreamedPastTheBound(t *testing.T, f *fixture) {
	s := f.serve(t, func(w http.ResponseWriter, r *http.Request) {
		for range 10 {
			io.WriteString(w, "0123456789")
			w.(http.Flusher).Flush()
		}
	}, idempotency.WithMaxResponseBytes(55))
	s.do(t, call{key: "k"}).want(t, http.StatusOK, strings.Repeat("0123456789", 10))
	eventually(t, "the tombstone", func() bool {
		return strings.Contains(s.do(t, call{key: "k"}).body, "response_not_kept")
	})
	s.wantRuns(t, 1)
}

func testHijackedResponse(t *testing.T, f *fixture) {
	s := f.serve(t, func(w http.ResponseWriter, r *http.Request) {
		conn, rw, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Errorf("Hijack: %v", err)
			return
		}
		defer conn.Close()
		if _, err := w.Write([]byte("x")); !errors.Is(err, http.ErrHijacked) {
			t.Errorf("Write after Hijack: %v", err)
		}
		io.WriteString(rw, "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nConnection: close\r\n\r\nraw")
		rw.Flush()
	})
	s.do(t, call{key: "k"}).want(t, http.StatusOK, "raw")
	eventually(t, "the tombstone", func() bool {
		return strings.Contains(s.do(t, call{key: "k"}).body, "response_not_kept")
	})
	s.wantRuns(t, 1)
}

func testInformationalResponses(t *testing.T, f *fixture) {
	s := f.serve(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Link", "</style.css>; rel=preload")
		w.WriteHeader(http.StatusEarlyHints)
		w.Header().Del("Link")
		w.WriteHeader(http.StatusProcessing)
		w.WriteHeader(http.StatusCreated)
		io.WriteString(w, "made")
	})
	for i := range 2 {
		a := s.do(t, call{key: "k"})
		a.want(t, http.StatusCreated, "made")
		if a.replayed() != (i == 1) || a.Header.Get("Link") != "" {
			t.Errorf("answer %d: %v", i, a.Header)
		}
	}
}

func testSecondWriteHeaderIsIgnored(t *testing.T, f *fixture) {
	s := f.serve(t, func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(http.StatusCreated)
		w.Header().Set("X-Late", "too late")
		w.WriteHeader(http.StatusInternalServerError)
		io.WriteString(w, "made")
		w.WriteHeader(http.StatusInternalServerError)
	})
	for i := range 2 {
		a := s.do(t, call{key: "k"})
		a.want(t, http.StatusCreated, "made")
		if a.replayed() != (i == 1) || a.Header.Get("X-Late") != "" {
			t.Errorf("answer %d: %v", i, a.Header)
		}
	}
}

func testCopyIsRecorded(t *testing.T, f *fixture) {
	s := f.serve(t, func(w http.ResponseWriter, r *http.Request) {
		if _, ok := w.(io.ReaderFrom); ok {
			t.Error("the writer has a ReadFrom of its own")
		}
		io.Copy(w, strings.NewReader("copied"))
	})
	for range 2 {
		s.do(t, call{key: "k"}).want(t, http.StatusOK, "copied")
	}
	s.wantRuns(t, 1)
}

func testTrailers(t *testing.T, f *fixture) {
	s := f.serve(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Trailer", "X-Announced")
		io.WriteString(w, "body")
		w.Header().Set("X-Announced", "1")
		w.Header().Set(http.TrailerPrefix+"X-Unannounced", "2")
	})
	first := s.do(t, call{key: "k"})
	first.want(t, http.StatusOK, "body")
	if first.Trailer.Get("X-Announced") != "1" || first.Trailer.Get("X-Unannounced") != "2" {
		t.Errorf("trailers %v", first.Trailer)
	}
	again := s.do(t, call{key: "k"})
	again.want(t, http.StatusOK, "body")
	if len(again.Trailer) != 0 || again.Header.Get("Trailer") != "" || again.Header.Get("X-Announced") != "" {
		t.Errorf("replay with trailers %v and headers %v", again.Trailer, again.Header)
	}
}

func testWriteAfterReturn(t *testing.T, f *fixture) {
	done, late := make(chan struct{}), make(chan error, 3)
	s := f.serve(t, func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, "in time")
		go func() {
			<-done
			_, err := w.Write([]byte("late"))
			late <- err
			_, err = io.WriteString(w, "late")
			late <- err
			late <- http.NewResponseController(w).Flush()
		}()
	})
	s.do(t, call{key: "k"}).want(t, http.StatusOK, "in time")
	close(done)
	for range 3 {
		if err := within(t, "the late write", late); err == nil {
			t.Error("a write after the handler returned succeeded")
		}
	}
	s.do(t, call{key: "k"}).want(t, http.StatusOK, "in time")
}

// testNothingSentBeforeStored: a response that reached the client is one that a
// retry will get.
func testNothingSentBeforeStored(t *testing.T, f *fixture) {
	leases, ok := f.store.(idempotency.LeaseStore)
	if !ok {
		return // the same path, through the adapter; faults cannot be put into it from here
	}
	completing, storeIt := make(chan struct{}), make(chan struct{})
	var once sync.Once
	store := &faultyStore{LeaseStore: leases, complete: func(_ context.Context, real func() error) error {
		once.Do(func() { close(completing) })
		<-storeIt
		return real()
	}}
	s := f.serveOver(t, store, create())
	answers := s.background(t, call{key: "k"})
	within(t, "the completion", completing)
	select {
	case a := <-answers:
		t.Fatalf("the client got %d %q before it was stored", a.StatusCode, a.body)
	case <-time.After(50 * time.Millisecond): // long enough for a response on loopback, had it been sent
	}
	close(storeIt)
	within(t, "the answer", answers).want(t, http.StatusCreated, `{"id":1}`)
}

func testClientLeavesMidHandler(t *testing.T, f *fixture) {
	begun, ended := make(chan struct{}, 1), make(chan struct{})
	s := f.serve(t, func(w http.ResponseWriter, r *http.Request) {
		begun <- struct{}{}
		<-r.Context().Done()
		w.WriteHeader(http.StatusCreated)
		io.WriteString(w, "made all the same")
		close(ended)
	})
	ctx, leave := context.WithCancel(context.Background())
	go func() {
		<-begun
		leave()
	}()
	if _, err := s.try(t, call{key: "k", ctx: ctx}); err == nil {
		t.Fatal("the client got an answer after it left")
	}
	within(t, "the handler's end", ended)
	eventually(t, "the record", func() bool { return s.do(t, call{key: "k"}).replayed() })
	s.do(t, call{key: "k"}).want(t, http.StatusCreated, "made all the same")
	s.wantRuns(t, 1)
}

func testSilentReturnAfterCancel(t *testing.T, f *fixture) {
	begun := make(chan struct{}, 1)
	var first sync.Once
	s := f.serve(t, func(w http.ResponseWriter, r *http.Request) {
		silent := false
		first.Do(func() { silent = true })
		if silent {
			begun <- struct{}{}
			<-r.Context().Done()
			w.Header().Set("X-Half", "done")
			return
		}
		io.WriteString(w, "made")
	})
	ctx, leave := context.WithCancel(context.Background())
	go func() {
		<-begun
		leave()
	}()
	if _, err := s.try(t, call{key: "k", ctx: ctx}); err == nil {
		t.Fatal("the client got an answer after it left")
	}
	eventually(t, "the release", func() bool {
		a := s.do(t, call{key: "k"})
		return a.StatusCode == http.StatusOK && a.body == "made"
	})
	s.wantRuns(t, 2)
}

func testDetachedHandler(t *testing.T, f *fixture) {
	begun, leaving := make(chan struct{}, 1), make(chan struct{})
	errs := make(chan error, 1)
	s := f.serve(t, func(w http.ResponseWriter, r *http.Request) {
		begun <- struct{}{}
		<-leaving
		errs <- r.Context().Err()
		io.WriteString(w, "made")
	}, idempotency.WithDetachedHandler())
	ctx, leave := context.WithCancel(context.Background())
	go func() {
		<-begun
		leave()
	}()
	s.try(t, call{key: "k", ctx: ctx})
	close(leaving)
	if err := within(t, "the handler", errs); err != nil {
		t.Errorf("the handler's context ended: %v", err)
	}
	eventually(t, "the record", func() bool { return s.do(t, call{key: "k"}).replayed() })
	s.wantRuns(t, 1)
}

func testExpiredRecordRunsAgain(t *testing.T, f *fixture) {
	s := f.serve(t, create(), idempotency.WithTTL(f.span()), idempotency.WithLease(min(f.span(), idempotency.DefaultLease)))
	s.do(t, call{key: "k", body: "1"}).want(t, http.StatusCreated, `{"id":1}`)
	if _, ok := f.store.(idempotency.LeaseStore); !ok {
		return // the expiry of a plain store is taken from this process's clock, which no test can move
	}
	f.pass(t)
	s.do(t, call{key: "k", body: "2"}).want(t, http.StatusCreated, `{"id":2}`)
	if a := s.do(t, call{key: "k", body: "2"}); !a.replayed() {
		t.Error("the second record was not replayed")
	}
}

func testConcurrentDuplicates(t *testing.T, f *fixture) {
	s := f.serve(t, create())
	for round := range 5 {
		var wg sync.WaitGroup
		for range 20 {
			wg.Go(func() {
				a, err := s.try(t, call{key: fmt.Sprint("k", round)})
				if err != nil {
					t.Error(err)
					return
				}
				if a.StatusCode != http.StatusCreated && a.StatusCode != http.StatusConflict {
					t.Errorf("answer %d %s", a.StatusCode, a.body)
				}
				if want := fmt.Sprintf(`{"id":%d}`, round+1); a.StatusCode == http.StatusCreated && a.body != want {
					t.Errorf("answer %s, want %s", a.body, want)
				}
			})
		}
		wg.Wait()
		s.wantRuns(t, int64(round+1))
	}
}

func testNestedRequireIsOne(t *testing.T, f *fixture) {
	inner := idempotency.Require(f.store)(create())
	s := f.serve(t, inner.ServeHTTP)
	for range 2 {
		s.do(t, call{key: "k"}).want(t, http.StatusCreated, `{"id":1}`)
	}
	s.wantRuns(t, 1)
}

func testReplayCheck(t *testing.T, f *fixture) {
	s := f.serve(t, create(), idempotency.WithReplayCheck(func(r *http.Request, rec *idempotency.Record) error {
		switch {
		case rec.ResponseStatus != http.StatusCreated || string(rec.ResponseBody) != `{"id":1}`:
			t.Errorf("asked about %+v", rec)
		case r.Header.Get("X-Role") == "gone":
			return errBroken
		case r.Header.Get("X-Role") == "teapot":
			return &idempotency.Problem{Type: "about:blank", Status: http.StatusTeapot, Code: "teapot"}
		}
		return nil
	}))
	as := func(role string) call { return call{key: "k", header: http.Header{"X-Role": {role}}} }
	s.do(t, as("gone")).want(t, http.StatusCreated, `{"id":1}`) // nothing to replay yet
	s.do(t, as("clerk")).want(t, http.StatusCreated, `{"id":1}`)
	denied := s.do(t, as("gone"))
	denied.wantProblem(t, http.StatusForbidden, "replay_denied")
	if strings.Contains(denied.body, errBroken.Error()) {
		t.Errorf("the problem shows what is behind it: %s", denied.body)
	}
	s.do(t, as("teapot")).wantProblem(t, http.StatusTeapot, "teapot")
	s.wantRuns(t, 1)
	s.wantDecisions(t, idempotency.DecisionExecuted, idempotency.DecisionReplayed,
		idempotency.DecisionReplayDenied, idempotency.DecisionReplayDenied)
}

func testErrorHandler(t *testing.T, f *fixture) {
	s := f.serve(t, create(), idempotency.WithErrorHandler(func(w http.ResponseWriter, r *http.Request, err error) {
		var p *idempotency.Problem
		if !errors.As(err, &p) || !errors.Is(err, idempotency.ErrKeyReused) {
			t.Errorf("error %v", err)
			return
		}
		http.Error(w, p.Code, http.StatusTeapot)
	}))
	s.do(t, call{key: "k", body: "1"})
	s.do(t, call{key: "k", body: "2"}).want(t, http.StatusTeapot, "key_reused\n")
}

// testStoreDownAtGet: a plain store that cannot be asked is no empty one.
func testStoreDownAtGet(t *testing.T, f *fixture) {
	s := f.serveOver(t, brokenPlain{}, create())
	for range 2 { // and the claim in the process is given up
		a := s.do(t, call{key: "k"})
		a.wantProblem(t, http.StatusServiceUnavailable, "store_unavailable")
		if strings.Contains(a.body, errBroken.Error()) {
			t.Errorf("the problem shows what is behind it: %s", a.body)
		}
	}
	s.wantRuns(t, 0)
}

var errBroken = errors.New("broken on purpose")

type brokenPlain struct{}

func (brokenPlain) Get(context.Context, uuid.UUID, string) (*idempotency.Record, error) {
	return nil, errBroken
}
func (brokenPlain) Put(context.Context, *idempotency.Record) error { return errBroken }

// withLease sets a lease of the length that pass lets pass.
func (f *fixture) withLease() idempotency.Option { return idempotency.WithLease(f.span()) }

// testTakeOver: the process of the first attempt hangs past its lease, a retry
// takes over, and the late first attempt can store nothing and is told so.
func testTakeOver(t *testing.T, f *leaseFixture) {
	g := newGate()
	stuck := &faultyStore{LeaseStore: f.leases, extend: func(context.Context, func() error) error { return errBroken }}
	first := f.serveOver(t, stuck, g.ServeHTTP, f.withLease(), idempotency.WithDetachedHandler())
	late := first.background(t, call{key: "k"})
	within(t, "the handler to begin", g.begun)
	f.pass(t)

	second := f.serve(t, func(w http.ResponseWriter, r *http.Request) {
		n, _ := idempotency.Attempt(r.Context())
		fmt.Fprint(w, "attempt ", n)
	})
	second.do(t, call{key: "k"}).want(t, http.StatusOK, "attempt 2")
	second.wantDecisions(t, idempotency.DecisionTakenOver)

	close(g.open)
	a := within(t, "the late attempt", late)
	a.wantProblem(t, http.StatusConflict, "lease_lost")
	first.wantDecisions(t, idempotency.DecisionLeaseLost)
	first.do(t, call{key: "k"}).want(t, http.StatusOK, "attempt 2")
}

func testInterruptedRefused(t *testing.T, f *leaseFixture) {
	s := f.serve(t, create(), idempotency.WithInterrupted(idempotency.Refuse))
	// An attempt whose process died: claimed as the middleware claims, and left.
	g := newGate()
	dead := &faultyStore{LeaseStore: f.leases,
		extend:   func(context.Context, func() error) error { return nil },
		complete: func(context.Context, func() error) error { return nil },
	}
	d := f.serveOver(t, dead, g.ServeHTTP, f.withLease())
	close(g.open)
	d.do(t, call{key: "k"})
	s.do(t, call{key: "k"}).wantProblem(t, http.StatusConflict, "in_flight")
	f.pass(t)
	for range 2 {
		s.do(t, call{key: "k"}).wantProblem(t, http.StatusConflict, "interrupted")
	}
	s.wantRuns(t, 0)
	s.wantDecisions(t, idempotency.DecisionInFlight, idempotency.DecisionInterrupted, idempotency.DecisionInterrupted)
}

func testLeaseIsExtended(t *testing.T, f *leaseFixture) {
	g := newGate()
	extended := make(chan struct{}, 1000)
	store := &faultyStore{LeaseStore: f.leases, extend: func(_ context.Context, real func() error) error {
		err := real()
		if err == nil {
			extended <- struct{}{}
		}
		return err
	}}
	s := f.serveOver(t, store, g.ServeHTTP, idempotency.WithLease(1500*time.Millisecond))
	first := s.background(t, call{key: "k"})
	within(t, "the handler to begin", g.begun)
	for range 4 { // more than a lease's worth
		within(t, "an extension", extended)
	}
	s.do(t, call{key: "k"}).wantProblem(t, http.StatusConflict, "in_flight")
	close(g.open)
	within(t, "the answer", first).want(t, http.StatusCreated, "made")
	s.wantRuns(t, 1)
}

func testLostLeaseCancelsHandler(t *testing.T, f *leaseFixture) {
	store := &faultyStore{LeaseStore: f.leases, extend: func(context.Context, func() error) error {
		return fmt.Errorf("told so: %w", idempotency.ErrLeaseLost)
	}}
	causes := make(chan error, 1)
	s := f.serveOver(t, store, func(w http.ResponseWriter, r *http.Request) {
		<-r.Context().Done()
		causes <- context.Cause(r.Context())
	}, idempotency.WithLease(30*time.Millisecond))
	s.do(t, call{key: "k"}).wantProblem(t, http.StatusConflict, "lease_lost")
	if cause := within(t, "the cause", causes); !errors.Is(cause, idempotency.ErrLeaseLost) {
		t.Errorf("cause %v", cause)
	}

	cutOff := &faultyStore{LeaseStore: f.leases, extend: func(context.Context, func() error) error { return errBroken }}
	s = f.serveOver(t, cutOff, func(w http.ResponseWriter, r *http.Request) { <-r.Context().Done() },
		idempotency.WithLease(30*time.Millisecond))
	s.do(t, call{key: "cut off"}).wantProblem(t, http.StatusConflict, "lease_lost")
}

func testStoreDownAtClaim(t *testing.T, f *leaseFixture) {
	store := &faultyStore{
		LeaseStore: f.leases,
		claim: func(context.Context, func() (idempotency.ClaimResult, error)) (idempotency.ClaimResult, error) {
			return idempotency.ClaimResult{}, errBroken
		},
		release: func(context.Context, func() error) error { return errBroken },
	}
	s := f.serveOver(t, store, create())
	a := s.do(t, call{key: "k"})
	a.wantProblem(t, http.StatusServiceUnavailable, "store_unavailable")
	if a.Header.Get("Retry-After") == "" || strings.Contains(a.body, errBroken.Error()) {
		t.Errorf("answer %v %s", a.Header, a.body)
	}
	s.wantRuns(t, 0)
	s.wantDecisions(t, idempotency.DecisionStoreError)
}

func testFailOpen(t *testing.T, f *leaseFixture) {
	store := &faultyStore{LeaseStore: f.leases, claim: func(context.Context, func() (idempotency.ClaimResult, error)) (idempotency.ClaimResult, error) {
		return idempotency.ClaimResult{}, errBroken
	}}
	s := f.serveOver(t, store, func(w http.ResponseWriter, r *http.Request) { io.Copy(w, r.Body) }, idempotency.WithFailOpen())
	s.do(t, call{key: "k", body: "echo"}).want(t, http.StatusOK, "echo")
	s.wantDecisions(t, idempotency.DecisionRanUnprotected)
}

func testStoreDownAtCompletion(t *testing.T, f *leaseFixture) {
	store := &faultyStore{LeaseStore: f.leases, complete: func(context.Context, func() error) error { return errBroken }}
	s := f.serveOver(t, store, create(), idempotency.WithStoreTimeout(2*time.Second), f.withLease())
	s.do(t, call{key: "k"}).want(t, http.StatusCreated, `{"id":1}`)
	s.wantDecisions(t, idempotency.DecisionCompleteFailed)
	s.do(t, call{key: "k"}).wantProblem(t, http.StatusConflict, "in_flight") // the lease decides
	f.pass(t)
	s.do(t, call{key: "k"}).want(t, http.StatusCreated, `{"id":2}`)
}

func testStoreBackForCompletion(t *testing.T, f *leaseFixture) {
	tries := 0
	store := &faultyStore{LeaseStore: f.leases, complete: func(_ context.Context, real func() error) error {
		if tries++; tries < 3 {
			return errBroken
		}
		return real()
	}}
	s := f.serveOver(t, store, create())
	s.do(t, call{key: "k"}).want(t, http.StatusCreated, `{"id":1}`)
	if a := s.do(t, call{key: "k"}); !a.replayed() {
		t.Errorf("a retry got %d %s", a.StatusCode, a.body)
	}
	s.wantDecisions(t, idempotency.DecisionExecuted, idempotency.DecisionReplayed)
}

func testStoreDownAtRelease(t *testing.T, f *leaseFixture) {
	store := &faultyStore{LeaseStore: f.leases, release: func(context.Context, func() error) error { return errBroken }}
	s := f.serveOver(t, store, func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(http.StatusBadGateway) })
	s.do(t, call{key: "k"}).want(t, http.StatusBadGateway, "")
	s.wantDecisions(t, idempotency.DecisionReleaseFailed)
}

// testClaimAnswerLost: the claim took effect, but its answer did not arrive. It is
// finished by asking again or, if that fails as well, undone: no row without an
// owner stays behind.
func testClaimAnswerLost(t *testing.T, f *leaseFixture) {
	for name, c := range map[string]struct {
		errs []error // of the first tries, all of which take effect
		want int
	}{
		"never":                    {nil, 201},
		"once":                     {[]error{errBroken}, 201},
		"twice":                    {[]error{errBroken, errBroken}, 503},
		"once, and then refused":   {[]error{errBroken, idempotency.ErrStoreRefused}, 503},
		"once, and then suspended": {[]error{errBroken, tenancy.ErrUnknownTenant}, 403},
	} {
		tries := 0
		store := &faultyStore{LeaseStore: f.leases, claim: func(_ context.Context, real func() (idempotency.ClaimResult, error)) (idempotency.ClaimResult, error) {
			result, err := real()
			if tries++; tries <= len(c.errs) {
				return idempotency.ClaimResult{}, c.errs[tries-1]
			}
			return result, err
		}}
		s := f.serveOver(t, store, create())
		key := name
		if a := s.do(t, call{key: key}); a.StatusCode != c.want {
			t.Errorf("lost %s: %d %s, want %d", name, a.StatusCode, a.body, c.want)
		}
		s.do(t, call{key: key}).want(t, http.StatusCreated, `{"id":1}`)
		s.wantRuns(t, 1)
	}
}

func testClientLeavesDuringClaim(t *testing.T, f *leaseFixture) {
	ctx, leave := context.WithCancel(context.Background())
	var gone sync.Once
	store := &faultyStore{LeaseStore: f.leases}
	var s *service
	seen := make(chan error, 1)
	store.claim = func(ctx context.Context, real func() (idempotency.ClaimResult, error)) (idempotency.ClaimResult, error) {
		gone.Do(func() {
			leave()
			// The server notices that the client is gone; the claim goes on.
			select {
			case <-ctx.Done():
				seen <- ctx.Err()
			case <-time.After(100 * time.Millisecond):
				seen <- nil
			}
		})
		return real()
	}
	s = f.serveOver(t, store, create())
	s.try(t, call{key: "k", ctx: ctx})
	if err := within(t, "the claim", seen); err != nil {
		t.Errorf("the claim's context ended with the client: %v", err)
	}
	eventually(t, "an answer", func() bool {
		a := s.do(t, call{key: "k"})
		return a.StatusCode == http.StatusCreated && a.body == `{"id":1}`
	})
}

func testUnknownTenant(t *testing.T, f *leaseFixture) {
	store := &faultyStore{LeaseStore: f.leases, claim: func(context.Context, func() (idempotency.ClaimResult, error)) (idempotency.ClaimResult, error) {
		return idempotency.ClaimResult{}, fmt.Errorf("no schema: %w", tenancy.ErrUnknownTenant)
	}}
	for _, opts := range [][]idempotency.Option{nil, {idempotency.WithFailOpen()}} { // unknown is not down
		s := f.serveOver(t, store, create(), opts...)
		s.do(t, call{key: "k"}).wantProblem(t, http.StatusForbidden, "unknown_tenant")
		s.wantRuns(t, 0)
		s.wantDecisions(t, idempotency.DecisionUnknownTenant)
	}
}

// testTakeOverThatFails: an attempt that finds out nothing about the interrupted one
// before it must not make the next think that it is the first.
func testTakeOverThatFails(t *testing.T, f *leaseFixture) {
	req := f.request("k") // of a process that died
	s := f.serve(t, func(w http.ResponseWriter, r *http.Request) {
		n, _ := idempotency.Attempt(r.Context())
		if n < 4 {
			w.WriteHeader(http.StatusBadGateway)
		}
		fmt.Fprint(w, "attempt ", n)
	}, idempotency.WithFingerprint(func(*http.Request, []byte) (string, error) { return req.RequestHash, nil }))
	f.claim(t, req, idempotency.OutcomeClaimed)
	f.pass(t)
	for attempt := 2; attempt < 4; attempt++ {
		s.do(t, call{key: "k"}).want(t, http.StatusBadGateway, fmt.Sprint("attempt ", attempt))
	}
	s.do(t, call{key: "k"}).want(t, http.StatusOK, "attempt 4")
	s.wantDecisions(t, idempotency.DecisionReleased, idempotency.DecisionReleased, idempotency.DecisionTakenOver)
}

// testLeaseLostAtRelease: that another attempt has taken over is the operator's to
// know also where the handler has nothing to store.
func testLeaseLostAtRelease(t *testing.T, f *leaseFixture) {
	g := make(chan struct{})
	begun := make(chan struct{}, 1)
	stuck := &faultyStore{LeaseStore: f.leases, extend: func(context.Context, func() error) error { return nil }}
	first := f.serveOver(t, stuck, func(w http.ResponseWriter, r *http.Request) {
		begun <- struct{}{}
		<-g
		w.WriteHeader(http.StatusBadGateway)
	}, f.withLease())
	late := first.background(t, call{key: "k"})
	within(t, "the handler to begin", begun)
	f.pass(t)
	f.serve(t, create()).do(t, call{key: "k"}).want(t, http.StatusCreated, `{"id":1}`)
	close(g)
	within(t, "the late answer", late).want(t, http.StatusBadGateway, "")
	first.wantDecisions(t, idempotency.DecisionLeaseLost)
}

// testLeaseKeptToTheEnd: the key is held while the outcome is being stored, however
// long that takes.
func testLeaseKeptToTheEnd(t *testing.T, f *leaseFixture) {
	extended := make(chan struct{}, 1000)
	handled := make(chan struct{})
	var once sync.Once
	store := &faultyStore{
		LeaseStore: f.leases,
		extend: func(_ context.Context, real func() error) error {
			defer func() { extended <- struct{}{} }()
			return real()
		},
		complete: func(ctx context.Context, real func() error) error {
			once.Do(func() { close(handled) })
			for range 4 { // more than a lease's worth
				select {
				case <-extended:
				case <-ctx.Done():
					return ctx.Err()
				}
			}
			return real()
		},
	}
	s := f.serveOver(t, store, create(), idempotency.WithLease(1500*time.Millisecond), idempotency.WithStoreTimeout(time.Minute))
	first := s.background(t, call{key: "k"})
	within(t, "the completion", handled)
	within(t, "the answer", first).want(t, http.StatusCreated, `{"id":1}`)
	s.do(t, call{key: "k"}).want(t, http.StatusCreated, `{"id":1}`)
	s.wantRuns(t, 1)
}

// testHungCompletion: a connection that hangs uses up its own time, and not that of
// the next one.
func testHungCompletion(t *testing.T, f *leaseFixture) {
	tries := 0
	store := &faultyStore{LeaseStore: f.leases, complete: func(ctx context.Context, real func() error) error {
		if tries++; tries == 1 {
			<-ctx.Done()
			return ctx.Err()
		}
		return real()
	}}
	s := f.serveOver(t, store, create(), idempotency.WithStoreTimeout(3*time.Second))
	s.do(t, call{key: "k"}).want(t, http.StatusCreated, `{"id":1}`)
	s.wantDecisions(t, idempotency.DecisionExecuted)
}

// testStoreRefuses: a store that was reached and said no is not one that is down,
// and what its error wraps besides does not decide what the client is told.
func testStoreRefuses(t *testing.T, f *leaseFixture) {
	for _, cause := range []error{
		fmt.Errorf("%w: a constraint", idempotency.ErrStoreRefused),
		fmt.Errorf("odd: %w: %w", idempotency.ErrInFlight, idempotency.ErrStoreRefused),
	} {
		store := &faultyStore{LeaseStore: f.leases, claim: func(context.Context, func() (idempotency.ClaimResult, error)) (idempotency.ClaimResult, error) {
			return idempotency.ClaimResult{}, cause
		}}
		s := f.serveOver(t, store, create(), idempotency.WithFailOpen())
		s.do(t, call{key: "k"}).wantProblem(t, http.StatusServiceUnavailable, "store_unavailable")
		s.wantRuns(t, 0)
		s.wantDecisions(t, idempotency.DecisionStoreError)
	}
}

// testLateHeaders: a goroutine that outlives its handler and sets headers while the
// outcome is stored disturbs nobody.
func testLateHeaders(t *testing.T, f *leaseFixture) {
	completing, set := make(chan struct{}), make(chan struct{})
	var once sync.Once
	store := &faultyStore{LeaseStore: f.leases, complete: func(_ context.Context, real func() error) error {
		once.Do(func() { close(completing) })
		<-set
		return real()
	}}
	s := f.serveOver(t, store, func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, "done")
		go func() {
			defer close(set)
			<-completing
			w.Header().Set("X-Late", "late")
			w.Header().Set(http.TrailerPrefix+"X-Late", "late")
		}()
	})
	a := s.do(t, call{key: "k"})
	a.want(t, http.StatusOK, "done")
	if a.Header.Get("X-Late") != "" || len(a.Trailer) != 0 {
		t.Errorf("headers %v, trailers %v", a.Header, a.Trailer)
	}
}

// testStreamBrokenOff: half a stream is no response to be repeated.
func testStreamBrokenOff(t *testing.T, f *fixture) {
	sent := make(chan struct{})
	s := f.serve(t, func(w http.ResponseWriter, r *http.Request) {
		for range 1000 {
			io.WriteString(w, "row\n")
			w.(http.Flusher).Flush()
			select {
			case sent <- struct{}{}:
			case <-r.Context().Done():
				return
			}
		}
	})
	ctx, leave := context.WithCancel(context.Background())
	go func() {
		<-sent
		<-sent
		leave()
	}()
	s.try(t, call{key: "k", ctx: ctx})
	eventually(t, "the tombstone", func() bool {
		a := s.do(t, call{key: "k"})
		if a.replayed() {
			t.Fatalf("%d bytes of a stream were replayed as if they were all", len(a.body))
		}
		return strings.Contains(a.body, "response_not_kept")
	})
	s.wantRuns(t, 1)
}

func testFlushBeforeBody(t *testing.T, f *fixture) {
	s := f.serve(t, func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(http.StatusOK)
		w.(http.Flusher).Flush()
		io.WriteString(w, "<p>late")
	})
	first := s.do(t, call{key: "k"})
	eventually(t, "the record", func() bool { return s.do(t, call{key: "k"}).replayed() })
	again := s.do(t, call{key: "k"})
	if fmt.Sprint(first.Header["Content-Type"]) != fmt.Sprint(again.Header["Content-Type"]) || again.body != first.body {
		t.Errorf("first %v %q, then %v %q", first.Header, first.body, again.Header, again.body)
	}
}

// testNestedRequireOfAnotherKey: the items of a batch are requests of their own.
func testNestedRequireOfAnotherKey(t *testing.T, f *fixture) {
	var items sync.Map
	item := idempotency.Require(f.store)(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		key, _ := idempotency.Key(r.Context())
		if _, again := items.LoadOrStore(key, true); again {
			t.Errorf("item %q ran twice", key)
		}
	}))
	s := f.serve(t, func(w http.ResponseWriter, r *http.Request) {
		for _, key := range []string{"item-1", "item-2", "item-1"} {
			sub := r.Clone(r.Context())
			sub.Header.Set(idempotency.HeaderKey, key)
			item.ServeHTTP(discard{http.Header{}}, sub)
		}
	})
	s.do(t, call{key: "batch"}).want(t, http.StatusOK, "")
	s.wantRuns(t, 1)
}

// discard is a ResponseWriter for what nobody reads.
type discard struct{ header http.Header }

func (d discard) Header() http.Header         { return d.header }
func (d discard) Write(p []byte) (int, error) { return len(p), nil }
func (d discard) WriteHeader(int)             {}

// testLongFingerprint: how long a fingerprint of the user's is makes no difference.
func testLongFingerprint(t *testing.T, f *fixture) {
	s := f.serve(t, create(), idempotency.WithFingerprint(func(_ *http.Request, body []byte) (string, error) {
		return strings.Repeat(string(body), 5000), nil
	}))
	s.do(t, call{key: "k", body: "a"}).want(t, http.StatusCreated, `{"id":1}`)
	s.do(t, call{key: "k", body: "a"}).want(t, http.StatusCreated, `{"id":1}`)
	s.do(t, call{key: "k", body: "b"}).wantProblem(t, http.StatusUnprocessableEntity, "key_reused")
}
