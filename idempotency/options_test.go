package idempotency_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/pgidem/pgidem/idempotency"
	"github.com/pgidem/pgidem/tenancy"
)

// TestBadOptionsPanic: a value that cannot work is found when the service is
// wired, and the text names the option.
func TestBadOptionsPanic(t *testing.T) {
	t.Parallel()
	store := idempotency.NewMemoryStore()
	for name, opt := range map[string]idempotency.Option{
		"WithExclude":                 idempotency.WithExclude("no slash"),
		"WithExclude(host)":           idempotency.WithExclude("POST example.org/login"),
		"WithRequireKey":              idempotency.WithRequireKey("/a/../b"),
		"WithMethods":                 idempotency.WithMethods(),
		"WithMethods(GET)":            idempotency.WithMethods("POST", "GET"),
		"WithMethods(space)":          idempotency.WithMethods("PO ST"),
		"WithMethods(empty)":          idempotency.WithMethods(""),
		"WithTTL":                     idempotency.WithTTL(0),
		"WithTTL(under the lease)":    idempotency.WithTTL(time.Second),
		"WithLease":                   idempotency.WithLease(time.Millisecond),
		"WithWait":                    idempotency.WithWait(0),
		"WithDescribedBy":             idempotency.WithDescribedBy(""),
		"WithDescribedBy(space)":      idempotency.WithDescribedBy("https://example.org/a b"),
		"WithDescribedBy(bracket)":    idempotency.WithDescribedBy("https://example.org/a>; rel=x"),
		"WithDescribedBy(query)":      idempotency.WithDescribedBy(`https://example.org/?q=<b>; rel="next", <y`),
		"WithDescribedBy(quote)":      idempotency.WithDescribedBy(`x:a"b`),
		"WithDescribedBy(letter)":     idempotency.WithDescribedBy("/?\u00e9"),
		"WithReplayHeader(framing)":   idempotency.WithReplayHeader("transfer-encoding"),
		"WithReplayHeader(content)":   idempotency.WithReplayHeader("Content-Type"),
		"WithReplayHeader(location)":  idempotency.WithReplayHeader("location"),
		"WithReplayHeader(hop)":       idempotency.WithReplayHeader("Connection"),
		"WithDescribedBy(control)":    idempotency.WithDescribedBy("/a\r\nX: y"),
		"WithStoreTimeout":            idempotency.WithStoreTimeout(-1),
		"WithMaxRequestBytes":         idempotency.WithMaxRequestBytes(0),
		"WithMaxResponseBytes":        idempotency.WithMaxResponseBytes(0),
		"WithReplayHeader":            idempotency.WithReplayHeader("a b"),
		"WithReplayHeader(empty)":     idempotency.WithReplayHeader(""),
		"WithFingerprint":             idempotency.WithFingerprint(nil),
		"WithScope":                   idempotency.WithScope(nil),
		"WithStorable":                idempotency.WithStorable(nil),
		"WithHeaders":                 idempotency.WithHeaders(nil),
		"WithReplayCheck":             idempotency.WithReplayCheck(nil),
		"WithErrorHandler":            idempotency.WithErrorHandler(nil),
		"WithInterrupted":             idempotency.WithInterrupted(7),
		"WithLogger":                  idempotency.WithLogger(nil),
		"WithObserver":                idempotency.WithObserver(nil),
		"option 1 is nil (no option)": nil,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			defer func() {
				option, _, _ := strings.Cut(name, "(")
				if p := recover(); p == nil || !strings.Contains(fmt.Sprint(p), strings.TrimSpace(option)) {
					t.Errorf("panic %v; want one that names the option", p)
				}
			}()
			idempotency.Require(store, opt)
		})
	}
	defer func() {
		if p := recover(); p == nil || !strings.Contains(fmt.Sprint(p), "store is nil") {
			t.Errorf("panic %v; want one about the store", p)
		}
	}()
	idempotency.Require(nil)
}

func TestEmptyExclusionExcludesNothing(t *testing.T) {
	t.Parallel()
	runs := 0
	h := idempotency.Require(idempotency.NewMemoryStore(), idempotency.WithExclude())(
		http.HandlerFunc(func(http.ResponseWriter, *http.Request) { runs++ }))
	for range 2 {
		h.ServeHTTP(httptest.NewRecorder(), request(t, "k", ""))
	}
	if runs != 1 {
		t.Errorf("the handler ran %d times, want once", runs)
	}
}

// request is a POST of orgA with a key.
func request(t testing.TB, key, body string) *http.Request {
	t.Helper()
	ctx := idempotency.WithOrgID(t.Context(), orgA)
	r := httptest.NewRequestWithContext(ctx, http.MethodPost, "/v1/payments", strings.NewReader(body))
	r.Header.Set("Idempotency-Key", key)
	return r
}

func TestFingerprintReplaced(t *testing.T) {
	t.Parallel()
	failing := errors.New("not JSON at all")
	runs := 0
	h := idempotency.Require(idempotency.NewMemoryStore(),
		idempotency.WithFingerprint(func(r *http.Request, body []byte) (string, error) {
			if len(body) == 0 {
				return "", failing
			}
			return string(bytes.ToLower(body)), nil
		}))(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { runs++ }))
	for body, want := range map[string]int{"ABC": 200, "abc": 200, "": 400} {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, request(t, "k", body))
		if w.Code != want {
			t.Errorf("%q: %d, want %d", body, w.Code, want)
		}
		if want == 400 && (strings.Contains(w.Body.String(), failing.Error()) || !strings.Contains(w.Body.String(), "request_unreadable")) {
			t.Errorf("%q: problem %s", body, w.Body)
		}
	}
	if runs != 1 {
		t.Errorf("the handler ran %d times, want once", runs)
	}
}

// errReader breaks off like the body of a client that goes away.
type errReader struct{}

func (errReader) Read([]byte) (int, error) { return 0, io.ErrUnexpectedEOF }

func TestUnreadableBody(t *testing.T) {
	t.Parallel()
	var decisions []idempotency.Decision
	h := idempotency.Require(idempotency.NewMemoryStore(),
		idempotency.WithObserver(func(_ context.Context, e idempotency.Event) { decisions = append(decisions, e.Decision) }),
	)(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("the handler ran") }))
	r := request(t, "k", "")
	r.Body = io.NopCloser(errReader{})
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	if w.Code != http.StatusBadRequest || !strings.Contains(w.Body.String(), "request_unreadable") {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	if fmt.Sprint(decisions) != "[unreadable_body]" {
		t.Errorf("decisions %v", decisions)
	}
}

func TestEventsAndLog(t *testing.T) {
	t.Parallel()
	var log bytes.Buffer
	var events []idempotency.Event
	h := idempotency.Require(idempotency.NewMemoryStore(),
		idempotency.WithLogger(slog.New(slog.NewJSONHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))),
		idempotency.WithObserver(func(_ context.Context, e idempotency.Event) { events = append(events, e) }),
	)(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusCreated) }))
	const key = "a-secret-key"
	h.ServeHTTP(httptest.NewRecorder(), request(t, key, "1"))
	h.ServeHTTP(httptest.NewRecorder(), request(t, key, "2"))
	h.ServeHTTP(httptest.NewRecorder(), request(t, key, "1").WithContext(t.Context()))

	if len(events) != 3 {
		t.Fatalf("%d events, want 3", len(events))
	}
	first, second, third := events[0], events[1], events[2]
	switch {
	case first.Decision != idempotency.DecisionExecuted, first.OrgID != orgA, first.Attempt != 1, first.Status != http.StatusCreated,
		first.Claim <= 0, first.Handler <= 0, first.Complete <= 0, first.Err != nil, first.Method != "POST", first.Path != "/v1/payments":
		t.Errorf("first event %+v", first)
	case second.Decision != idempotency.DecisionMismatch, second.KeyHash != first.KeyHash, len(first.KeyHash) != 16,
		second.Status != http.StatusUnprocessableEntity, !errors.Is(second.Err, idempotency.ErrKeyReused):
		t.Errorf("second event %+v", second)
	case third.Decision != idempotency.DecisionBypassedNoOrg:
		t.Errorf("third event %+v", third)
	}
	if strings.Contains(log.String(), key) {
		t.Errorf("the log shows the key: %s", log.String())
	}
	var lines []map[string]any
	for line := range strings.Lines(log.String()) {
		var m map[string]any
		if err := json.Unmarshal([]byte(line), &m); err != nil {
			t.Fatal(err)
		}
		lines = append(lines, m)
	}
	if len(lines) != 3 || lines[0]["decision"] != "executed" || lines[0]["level"] != "DEBUG" || lines[2]["level"] != "ERROR" ||
		lines[0]["attempt"] != 1.0 || lines[0]["error"] != nil || lines[1]["error"] != idempotency.ErrKeyReused.Error() || lines[1]["instance"] != second.Instance {
		t.Errorf("log %s", log.String())
	}
}

func TestWriteProblem(t *testing.T) {
	t.Parallel()
	w := httptest.NewRecorder()
	idempotency.WriteProblem(w, nil, errors.New("internal detail"))
	if w.Code != http.StatusInternalServerError || strings.Contains(w.Body.String(), "internal detail") || !json.Valid(w.Body.Bytes()) {
		t.Errorf("%d %s", w.Code, w.Body)
	}

	var problem idempotency.Problem
	var event idempotency.Event
	h := idempotency.Require(idempotency.NewMemoryStore(), idempotency.WithRequireKey(), idempotency.WithDescribedBy("/docs#keys"),
		idempotency.WithObserver(func(_ context.Context, e idempotency.Event) { event = e }))(http.NotFoundHandler())
	r := request(t, "", "")
	r.Header.Del("Idempotency-Key")
	w = httptest.NewRecorder()
	w.Header().Set("Link", "</next>; rel=\"next\"") // outer middleware's
	h.ServeHTTP(w, r)
	if err := json.Unmarshal(w.Body.Bytes(), &problem); err != nil {
		t.Fatal(err)
	}
	if problem.Status != 400 || problem.Code != "key_missing" || problem.Retry != idempotency.RetryCorrected ||
		!strings.HasSuffix(problem.Type, "#section-2.7") || problem.Title == "" || problem.Detail == "" {
		t.Errorf("problem %+v", problem)
	}
	if _, err := uuid.Parse(problem.Instance); err != nil || !strings.HasPrefix(problem.Instance, "urn:uuid:") || event.Instance != problem.Instance {
		t.Errorf("instance %q in the problem, %q in the event", problem.Instance, event.Instance)
	}
	if links := fmt.Sprint(w.Header()["Link"]); links != `[</next>; rel="next" </docs#keys>; rel="describedby"]` {
		t.Errorf("Link %s", links)
	}
	if w.Header().Get("Content-Length") != fmt.Sprint(w.Body.Len()) || w.Header().Get("Cache-Control") != "no-store" {
		t.Errorf("headers %v", w.Header())
	}
}

// TestOneOrgForAllPackages: the org_id that tenancy carries is the one that
// idempotency sees, and the other way round.
func TestOneOrgForAllPackages(t *testing.T) {
	t.Parallel()
	if org, ok := idempotency.FromContext(tenancy.WithOrgID(t.Context(), orgA)); org != orgA || !ok {
		t.Errorf("FromContext = %v, %t", org, ok)
	}
	if org, ok := tenancy.OrgID(idempotency.WithOrgID(t.Context(), orgA)); org != orgA || !ok {
		t.Errorf("OrgID = %v, %t", org, ok)
	}
	if _, ok := idempotency.Attempt(t.Context()); ok {
		t.Error("an attempt outside any handler")
	}
	if _, ok := idempotency.Key(t.Context()); ok {
		t.Error("a key outside any handler")
	}
}

// TestPassThroughIsUntouched: without a key the handler gets the very writer and
// request that the server made, at no cost.
func TestPassThroughIsUntouched(t *testing.T) {
	var gotW http.ResponseWriter
	var gotR *http.Request
	h := idempotency.Require(idempotency.NewMemoryStore(), idempotency.WithExclude("/login"), idempotency.WithRequireKey("/pay"))(
		http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { gotW, gotR = w, r }))
	w, r := httptest.NewRecorder(), httptest.NewRequest(http.MethodPost, "/v1/payments", nil)
	if n := testing.AllocsPerRun(100, func() { h.ServeHTTP(w, r) }); n != 0 {
		t.Errorf("%v allocations, want 0", n)
	}
	if gotW != http.ResponseWriter(w) || gotR != r {
		t.Error("the handler got another writer or request")
	}
}
