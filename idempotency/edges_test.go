package idempotency_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"mime/multipart"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/pgidem/pgidem/idempotency"
)

// The tests of this file reach what the suites cannot: stores that break their own
// contract, and steps in an order that no client can bring about.

// oddStore is a MemoryStore some of whose answers are replaced.
type oddStore struct {
	*idempotency.MemoryStore
	claim    func(idempotency.ClaimResult, error) (idempotency.ClaimResult, error)
	complete func(error) error
	release  func(error) error
}

func (s *oddStore) Claim(ctx context.Context, req idempotency.ClaimRequest) (idempotency.ClaimResult, error) {
	result, err := s.MemoryStore.Claim(ctx, req)
	if s.claim != nil {
		return s.claim(result, err)
	}
	return result, err
}

func (s *oddStore) Complete(ctx context.Context, c idempotency.Claim, rec *idempotency.Record) error {
	err := s.MemoryStore.Complete(ctx, c, rec)
	if s.complete != nil {
		return s.complete(err)
	}
	return err
}

func (s *oddStore) Release(ctx context.Context, c idempotency.Claim) error {
	err := s.MemoryStore.Release(ctx, c)
	if s.release != nil {
		return s.release(err)
	}
	return err
}

func newOddStore() *oddStore { return &oddStore{MemoryStore: idempotency.NewMemoryStore()} }

func TestUnknownClaimOutcomeIsNoClaim(t *testing.T) {
	t.Parallel()
	store := newOddStore()
	store.claim = func(idempotency.ClaimResult, error) (idempotency.ClaimResult, error) {
		return idempotency.ClaimResult{Outcome: 99}, nil
	}
	runs := 0
	h := idempotency.Require(store, idempotency.WithFailOpen())(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { runs++ }))
	w := httptest.NewRecorder()
	h.ServeHTTP(w, request(t, "k", ""))
	if w.Code != http.StatusServiceUnavailable || runs != 0 {
		t.Errorf("%d, %d runs; want 503 and none", w.Code, runs)
	}
}

// TestReleaseWhoseAnswerWasLost: what was released by a first try, whose answer did
// not arrive, is lost to the second; that is no fault.
func TestReleaseWhoseAnswerWasLost(t *testing.T) {
	t.Parallel()
	store := newOddStore()
	tries := 0
	store.release = func(err error) error {
		if tries++; tries == 1 {
			return errors.New("answer lost")
		}
		return err
	}
	observe, got := decisions()
	h := idempotency.Require(store, observe)(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusBadGateway) }))
	h.ServeHTTP(httptest.NewRecorder(), request(t, "k", ""))
	if tries != 2 || fmt.Sprint(*got) != "[released]" {
		t.Errorf("%d tries, decisions %v; want 2 and a release", tries, *got)
	}
}

// TestStreamWhoseLeaseWasLost: what has been sent cannot be taken back; the operator
// is told.
func TestStreamWhoseLeaseWasLost(t *testing.T) {
	t.Parallel()
	store := newOddStore()
	store.complete = func(error) error { return idempotency.ErrLeaseLost }
	observe, got := decisions()
	h := idempotency.Require(store, observe)(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprint(w, "streamed ")
		w.(http.Flusher).Flush()
		fmt.Fprint(w, "to its end")
	}))
	w := httptest.NewRecorder()
	h.ServeHTTP(w, request(t, "k", ""))
	if w.Code != http.StatusOK || w.Body.String() != "streamed to its end" || fmt.Sprint(*got) != "[lease_lost]" {
		t.Errorf("%d %q, decisions %v", w.Code, w.Body, *got)
	}
}

// TestRecordWithoutAStatus: one that was written by Put need not have one.
func TestRecordWithoutAStatus(t *testing.T) {
	t.Parallel()
	store := idempotency.NewMemoryStore()
	r := request(t, "k", "")
	hash, err := idempotency.RequestFingerprint(r, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := store.Put(t.Context(), &idempotency.Record{OrgID: orgA, Key: "k", RequestHash: hash, ResponseBody: []byte("imported")}); err != nil {
		t.Fatal(err)
	}
	w := httptest.NewRecorder()
	idempotency.Require(store)(http.NotFoundHandler()).ServeHTTP(w, r)
	if w.Code != http.StatusOK || w.Body.String() != "imported" {
		t.Errorf("%d %q", w.Code, w.Body)
	}
}

// bareWriter has no headers, and nothing but the three methods.
type bareWriter struct{ body strings.Builder }

func (w *bareWriter) Header() http.Header         { return nil }
func (w *bareWriter) WriteHeader(int)             {}
func (w *bareWriter) Write(p []byte) (int, error) { return w.body.Write(p) }

func TestHijackAndFlushOutOfTurn(t *testing.T) {
	t.Parallel()
	var kept http.ResponseWriter
	errs := make(chan error, 1)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		idempotency.Require(idempotency.NewMemoryStore())(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			kept = w
			conn, _, err := http.NewResponseController(w).Hijack()
			if err != nil {
				t.Errorf("Hijack: %v", err)
				return
			}
			conn.Close()
			errs <- http.NewResponseController(w).Flush()
		})).ServeHTTP(w, r.WithContext(idempotency.WithOrgID(r.Context(), orgA)))
	}))
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, server.URL, nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Idempotency-Key", "k")
	if resp, err := server.Client().Do(r); err == nil {
		resp.Body.Close()
	}
	server.Close()
	if err := <-errs; !errors.Is(err, http.ErrHijacked) {
		t.Errorf("Flush after Hijack: %v", err)
	}
	if _, _, err := http.NewResponseController(kept).Hijack(); err == nil {
		t.Error("Hijack after the handler returned succeeded")
	}
}

// TestCloseNotify: frameworks that still ask for it are told when the handler's
// context ends.
func TestCloseNotify(t *testing.T) {
	t.Parallel()
	ctx, leave := context.WithCancel(t.Context())
	h := idempotency.Require(idempotency.NewMemoryStore())(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		gone := w.(http.CloseNotifier).CloseNotify() //nolint:staticcheck // deprecated, and asked for all the same
		select {
		case <-gone:
			t.Error("told before the client left")
		default:
		}
		leave()
		<-gone
	}))
	h.ServeHTTP(httptest.NewRecorder(), request(t, "k", "").WithContext(idempotency.WithOrgID(ctx, orgA)))
}

func TestWriterWithoutHeaders(t *testing.T) {
	t.Parallel()
	w := &bareWriter{}
	h := idempotency.Require(idempotency.NewMemoryStore())(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header()["X-A"] = nil
		fmt.Fprint(w, w.Header().Get("X-None"), "written")
		panic(http.ErrAbortHandler)
	}))
	defer func() {
		if p := recover(); p != http.ErrAbortHandler { //nolint:errorlint // the very value
			t.Errorf("panic %v", p)
		}
		if w.body.Len() != 0 {
			t.Errorf("%q was sent for a handler that panicked", &w.body)
		}
	}()
	h.ServeHTTP(w, request(t, "k", ""))
}

// TestNilBody: a request that was made in the process may have none.
func TestNilBody(t *testing.T) {
	t.Parallel()
	r := request(t, "k", "")
	r.Body = nil
	w := httptest.NewRecorder()
	idempotency.Require(idempotency.NewMemoryStore())(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, "no body: ", r.Body == nil)
	})).ServeHTTP(w, r)
	if w.Body.String() != "no body: true" {
		t.Errorf("%d %q", w.Code, w.Body)
	}
}

// brokenWriter loses its client in the middle of a response.
type brokenWriter struct {
	*httptest.ResponseRecorder
	broken bool
}

func (w *brokenWriter) Write(p []byte) (int, error) {
	if w.broken {
		return 0, errors.New("broken pipe")
	}
	return w.ResponseRecorder.Write(p)
}

// TestHalfAStreamIsNotReplayed: whether a write failed or the client is known to be gone.
func TestHalfAStreamIsNotReplayed(t *testing.T) {
	t.Parallel()
	for name, lose := range map[string]func(w *brokenWriter, leave func()){
		"a write failed":     func(w *brokenWriter, _ func()) { w.broken = true },
		"the client is gone": func(_ *brokenWriter, leave func()) { leave() },
	} {
		ctx, leave := context.WithCancel(t.Context())
		defer leave()
		w := &brokenWriter{ResponseRecorder: httptest.NewRecorder()}
		h := idempotency.Require(idempotency.NewMemoryStore())(http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) {
			fmt.Fprint(rw, "half")
			rw.(http.Flusher).Flush()
			lose(w, leave)
			fmt.Fprint(rw, "and half")
		}))
		h.ServeHTTP(w, request(t, "k", "").WithContext(idempotency.WithOrgID(ctx, orgA)))
		again := httptest.NewRecorder()
		h.ServeHTTP(again, request(t, "k", ""))
		if again.Code != http.StatusConflict || !strings.Contains(again.Body.String(), "response_not_kept") {
			t.Errorf("%s: a retry got %d %s", name, again.Code, again.Body)
		}
	}
}

// TestHijackAfterTheHead: what the handler had written goes out before the connection
// does, as with net/http.
func TestHijackAfterTheHead(t *testing.T) {
	t.Parallel()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		idempotency.Require(idempotency.NewMemoryStore())(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "3")
			w.Header().Set("Connection", "close")
			w.WriteHeader(http.StatusCreated)
			conn, rw, err := http.NewResponseController(w).Hijack()
			if err != nil {
				t.Errorf("Hijack: %v", err)
				return
			}
			defer conn.Close()
			fmt.Fprint(rw, "raw")
			rw.Flush()
		})).ServeHTTP(w, r.WithContext(idempotency.WithOrgID(r.Context(), orgA)))
	}))
	defer server.Close()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, server.URL, nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Idempotency-Key", "k")
	resp, err := server.Client().Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if body, err := io.ReadAll(resp.Body); resp.StatusCode != http.StatusCreated || string(body) != "raw" {
		t.Errorf("%d %q, %v", resp.StatusCode, body, err)
	}
}

// TestProblemOfTheReplayCheck: it is answered as it is, and a status that it lacks is made
// up for.
func TestProblemOfTheReplayCheck(t *testing.T) {
	t.Parallel()
	for _, p := range []idempotency.Problem{{Title: "No", DescribedBy: "/why"}, {Title: "Gone", Status: http.StatusGone, DescribedBy: "/why", Instance: "/this"}} {
		h := idempotency.Require(idempotency.NewMemoryStore(), idempotency.WithDescribedBy("/docs"),
			idempotency.WithReplayCheck(func(*http.Request, *idempotency.Record) error { return &p }))(http.NotFoundHandler())
		h.ServeHTTP(httptest.NewRecorder(), request(t, "k", ""))
		w := httptest.NewRecorder()
		h.ServeHTTP(w, request(t, "k", ""))
		want := p.Status
		if want == 0 {
			want = http.StatusForbidden
		}
		if w.Code != want || w.Header().Get("Link") != `</why>; rel="describedby"` || !strings.Contains(w.Body.String(), p.Title) {
			t.Errorf("%d %v %s", w.Code, w.Header(), w.Body)
		}
	}
}

// TestUnprotectedHandlersAreTimed: an operator sees how long they took as well.
func TestUnprotectedHandlersAreTimed(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		store idempotency.Store
		ctx   context.Context
	}{
		"no tenant": {idempotency.NewMemoryStore(), t.Context()},
		"no store":  {downStore{idempotency.NewMemoryStore()}, idempotency.WithOrgID(t.Context(), orgA)},
	} {
		var event idempotency.Event
		h := idempotency.Require(c.store, idempotency.WithFailOpen(), idempotency.WithObserver(func(_ context.Context, e idempotency.Event) { event = e }))(
			http.HandlerFunc(func(http.ResponseWriter, *http.Request) { time.Sleep(time.Millisecond) }))
		h.ServeHTTP(httptest.NewRecorder(), request(t, "k", "").WithContext(c.ctx))
		if event.Handler < time.Millisecond {
			t.Errorf("%s: %+v", name, event)
		}
	}
}

// failingPut is a plain store whose records cannot be written.
type failingPut struct{ getPut }

func (failingPut) Put(context.Context, *idempotency.Record) error {
	return fmt.Errorf("%w: on purpose", idempotency.ErrStoreRefused)
}

// TestPlainStoreEdges: leases of a plain store live and die in this process.
func TestPlainStoreEdges(t *testing.T) {
	t.Parallel()
	observe, got := decisions()
	ok := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "done") })
	w := httptest.NewRecorder()
	idempotency.Require(failingPut{getPut{idempotency.NewMemoryStore()}}, observe)(ok).ServeHTTP(w, request(t, "k", ""))
	if w.Body.String() != "done" || fmt.Sprint(*got) != "[complete_failed]" {
		t.Errorf("%q, decisions %v", w.Body, *got)
	}

	// A handler of several leases keeps its claim.
	store := getPut{idempotency.NewMemoryStore()}
	const lease = 60 * time.Millisecond
	slow := idempotency.Require(store, idempotency.WithLease(lease))(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		select {
		case <-time.After(4 * lease):
			fmt.Fprint(w, "slow")
		case <-r.Context().Done():
		}
	}))
	w = httptest.NewRecorder()
	slow.ServeHTTP(w, request(t, "slow", ""))
	if w.Body.String() != "slow" {
		t.Errorf("%d %q", w.Code, w.Body)
	}
}

func TestClearSeesCancelledContext(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := idempotency.NewMemoryStore().Clear(ctx, uuid.New()); !errors.Is(err, context.Canceled) {
		t.Errorf("Clear with a cancelled context: %v", err)
	}
}

// TestForeignProblem: one that a ReplayCheck of the user's made reads as its title.
func TestForeignProblem(t *testing.T) {
	t.Parallel()
	p := &idempotency.Problem{Title: "Gone fishing", Status: http.StatusGone}
	if p.Error() != "Gone fishing" || p.Unwrap() != nil {
		t.Errorf("%q, %v", p.Error(), p.Unwrap())
	}
	var seen error
	h := idempotency.Require(idempotency.NewMemoryStore(), idempotency.WithRequireKey(),
		idempotency.WithErrorHandler(func(_ http.ResponseWriter, _ *http.Request, err error) { seen = err }))(http.NotFoundHandler())
	r := request(t, "", "")
	r.Header.Del("Idempotency-Key")
	h.ServeHTTP(httptest.NewRecorder(), r)
	if seen == nil || seen.Error() != idempotency.ErrKeyMissing.Error() {
		t.Errorf("error %v", seen)
	}
}

// TestBrokenJSONIsComparedByteForByte: wherever it breaks off.
func TestBrokenJSONIsComparedByteForByte(t *testing.T) {
	t.Parallel()
	for _, broken := range []string{`[1,`, `{"a"`, `{"a":`, `{"a":[`, `{"\ud800":1}`, `{"a":"\ud800"}`, `[`, `{`, `{1:2}`, `[1 2]`} {
		if form, err := idempotency.AppendCanonical(nil, []byte(broken)); err == nil {
			t.Errorf("%s has the canonical form %q", broken, form)
		}
	}
}

// TestUploadsAreRemoved: the files of a form that the handler parsed go with the request.
func TestUploadsAreRemoved(t *testing.T) {
	t.Parallel()
	var body bytes.Buffer
	form := multipart.NewWriter(&body)
	part, err := form.CreateFormFile("file", "file")
	if err != nil {
		t.Fatal(err)
	}
	part.Write(bytes.Repeat([]byte("x"), 1<<16))
	form.Close()
	var name string
	h := idempotency.Require(idempotency.NewMemoryStore())(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		if err := r.ParseMultipartForm(1); err != nil { // all but a byte to a file
			t.Error(err)
			return
		}
		file, err := r.MultipartForm.File["file"][0].Open()
		if err != nil {
			t.Error(err)
			return
		}
		defer file.Close()
		if f, ok := file.(*os.File); ok {
			name = f.Name()
		}
	}))
	r := request(t, "k", body.String())
	r.Header.Set("Content-Type", form.FormDataContentType())
	h.ServeHTTP(httptest.NewRecorder(), r)
	if name == "" {
		t.Fatal("the form was not parsed into a file")
	}
	if _, err := os.Stat(name); !os.IsNotExist(err) {
		t.Errorf("%s is left behind: %v", name, err)
		os.Remove(name)
	}
}

// TestProblemsOfOthers: whatever a Problem says of its status, a client gets an error.
func TestProblemsOfOthers(t *testing.T) {
	t.Parallel()
	for _, status := range []int{0, 42, 204} {
		w := httptest.NewRecorder()
		idempotency.WriteProblem(w, nil, &idempotency.Problem{Title: "odd", Status: status})
		if w.Code != http.StatusInternalServerError {
			t.Errorf("status %d was written as %d", status, w.Code)
		}
	}
	h := idempotency.Require(idempotency.NewMemoryStore(), idempotency.WithReplayCheck(func(*http.Request, *idempotency.Record) error {
		return (*idempotency.Problem)(nil)
	}))(http.NotFoundHandler())
	h.ServeHTTP(httptest.NewRecorder(), request(t, "k", ""))
	w := httptest.NewRecorder()
	h.ServeHTTP(w, request(t, "k", ""))
	if w.Code != http.StatusForbidden {
		t.Errorf("a nil Problem: %d", w.Code)
	}
}

// TestHijackThatFailsSendsNothing: what the handler then writes is held back as ever.
func TestHijackThatFailsSendsNothing(t *testing.T) {
	t.Parallel()
	store := newOddStore()
	store.complete = func(error) error { return idempotency.ErrLeaseLost }
	h := idempotency.Require(store)(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusCreated)
		if _, _, err := http.NewResponseController(w).Hijack(); err == nil {
			t.Error("a recorder was hijacked")
		}
		fmt.Fprint(w, "made")
	}))
	w := httptest.NewRecorder()
	h.ServeHTTP(w, request(t, "k", ""))
	if w.Code != http.StatusConflict || !strings.Contains(w.Body.String(), "lease_lost") {
		t.Errorf("%d %s", w.Code, w.Body)
	}
}
