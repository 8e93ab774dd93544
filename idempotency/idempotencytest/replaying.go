package idempotencytest

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/pgidem/pgidem/idempotency"
)

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

func testExpiredRecordRunsAgain(t *testing.T, f *fixture) {
	s := f.serve(t, create(), idempotency.WithTTL(f.span()), idempotency.WithLease(min(f.span(), idempotency.DefaultLease)))
	s.do(t, call{key: "k", body: "1"}).want(t, http.StatusCreated, `{"id":1}`)
	if _, ok := f.store.(idempotency.LeaseStore); !ok && f.advance != nil {
		return // the expiry of a plain store is taken from this process's clock, which no test can move
	}
	f.pass(t)
	s.do(t, call{key: "k", body: "2"}).want(t, http.StatusCreated, `{"id":2}`)
	if a := s.do(t, call{key: "k", body: "2"}); !a.replayed() {
		t.Error("the second record was not replayed")
	}
}
