package routers_test

import (
	"context"
	"io"
	"maps"
	"net/http"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/pgidem/pgidem/idempotency"
)

// timeout is how long anything may take before the test gives it up.
const timeout = 20 * time.Second

// answer is a response, read whole.
type answer struct {
	*http.Response
	body string
}

// post makes a request that must be answered.
func (s *service) post(t *testing.T, path, key, body string) answer {
	t.Helper()
	a, err := s.try(t.Context(), path, key, body)
	if err != nil {
		t.Fatalf("POST %s: %v", path, err)
	}
	if a.ProtoMajor != s.major {
		t.Fatalf("answered over %s, want HTTP/%d", a.Proto, s.major)
	}
	return a
}

// try makes a request that may break off.
func (s *service) try(ctx context.Context, path, key, body string) (answer, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, s.server.URL+path, strings.NewReader(body))
	if err != nil {
		return answer{}, err
	}
	r.Header.Set(idempotency.HeaderKey, key)
	r.Header.Set("X-Org", s.org.String())
	resp, err := s.server.Client().Do(r)
	if err != nil {
		return answer{}, err
	}
	defer resp.Body.Close()
	read, err := io.ReadAll(resp.Body)
	return answer{resp, string(read)}, err
}

func (a answer) replayed() bool { return a.Header.Get("Idempotency-Replayed") == "true" }

func (a answer) want(t *testing.T, status int) {
	t.Helper()
	if a.StatusCode != status {
		t.Fatalf("answer %d %q, want %d", a.StatusCode, a.body, status)
	}
}

// wantFirst checks that a handler's answer is sent, and not stored one.
func (a answer) wantFirst(t *testing.T, status int) {
	t.Helper()
	a.want(t, status)
	if a.replayed() {
		t.Fatal("the answer is a replay")
	}
}

// wantReplayOf checks that an answer is the first one once more.
func (a answer) wantReplayOf(t *testing.T, first answer) {
	t.Helper()
	a.want(t, first.StatusCode)
	if !a.replayed() {
		t.Fatal("the answer is no replay")
	}
	if a.body != first.body {
		t.Errorf("the replay's body is %q, the first one's %q", a.body, first.body)
	}
	if got, want := a.lasting(), first.lasting(); !reflect.DeepEqual(got, want) {
		t.Errorf("the replay's headers are %v\nthe first one's %v", got, want)
	}
}

// lasting are the headers that a replay has in common with the first answer.
func (a answer) lasting() http.Header {
	h := maps.Clone(a.Header)
	delete(h, "Date")
	delete(h, "Idempotency-Replayed")
	if a.ContentLength == -1 || a.Request.URL.Path == "/v1/stream" {
		delete(h, "Content-Length") // whoever streams does not know it yet
	}
	return h
}

// wantProblem checks for an answer of the middleware's own.
func (a answer) wantProblem(t *testing.T, status int, code string) {
	t.Helper()
	a.want(t, status)
	if !strings.Contains(a.body, `"code":"`+code+`"`) {
		t.Fatalf("answer %q, want the problem %q", a.body, code)
	}
}

// within receives from ch, or fails the test.
func within[T any](t *testing.T, what string, ch <-chan T) T {
	t.Helper()
	select {
	case v := <-ch:
		return v
	case <-time.After(timeout):
		t.Fatalf("timed out waiting for %s", what)
		panic("unreachable")
	}
}
