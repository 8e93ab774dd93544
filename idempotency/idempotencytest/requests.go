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

func testMismatchInFlight(t *testing.T, f *fixture) {
	g := newGate()
	s := f.serve(t, g.ServeHTTP)
	first := s.background(t, call{key: "k", body: "1"})
	within(t, "the handler to begin", g.begun)
	s.do(t, call{key: "k", body: "2"}).wantProblem(t, http.StatusUnprocessableEntity, "key_reused")
	close(g.open)
	within(t, "the first answer", first)
}

// testLongFingerprint: how long a fingerprint of the user's is makes no difference.
func testLongFingerprint(t *testing.T, f *fixture) {
	s := f.serve(t, create(), idempotency.WithFingerprint(func(_ *http.Request, body []byte) (string, error) {
		return strings.Repeat("the same for all ", 300) + string(body), nil
	}))
	s.do(t, call{key: "k", body: "a"}).want(t, http.StatusCreated, `{"id":1}`)
	s.do(t, call{key: "k", body: "a"}).want(t, http.StatusCreated, `{"id":1}`)
	s.do(t, call{key: "k", body: "b"}).wantProblem(t, http.StatusUnprocessableEntity, "key_reused")
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
