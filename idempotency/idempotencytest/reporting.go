package idempotencytest

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"

	"github.com/google/uuid"

	"github.com/pgidem/pgidem/idempotency"
)

// testProblemDetails: every answer of the middleware's own has all that RFC 9457 and
// a person need.
func testProblemDetails(t *testing.T, f *fixture) {
	g := newGate()
	s := f.serve(t, g.ServeHTTP, idempotency.WithMaxRequestBytes(10), idempotency.WithRequireKey(),
		idempotency.WithDescribedBy("https://example.org/keys"))
	first := s.background(t, call{key: "k"})
	within(t, "the handler to begin", g.begun)
	instances := make(map[string]bool)
	for code, c := range map[string]struct {
		call   call
		status int
		retry  idempotency.Advice
	}{
		"key_missing":       {call{}, http.StatusBadRequest, idempotency.RetryCorrected},
		"key_invalid":       {call{key: `"`}, http.StatusBadRequest, idempotency.RetryCorrected},
		"request_too_large": {call{key: "l", body: "more than ten bytes"}, http.StatusRequestEntityTooLarge, idempotency.RetryCorrected},
		"key_reused":        {call{key: "k", body: "other"}, http.StatusUnprocessableEntity, idempotency.RetryNewKey},
		"in_flight":         {call{key: "k"}, http.StatusConflict, idempotency.RetrySameKey},
	} {
		a := s.do(t, c.call)
		a.wantProblem(t, c.status, code)
		var p idempotency.Problem
		if err := json.Unmarshal([]byte(a.body), &p); err != nil {
			t.Fatalf("%s: %v in %s", code, err, a.body)
		}
		if p.Type == "" || p.Title == "" || p.Detail == "" || p.Status != c.status || p.Retry != c.retry {
			t.Errorf("problem %+v", p)
		}
		if _, err := uuid.Parse(p.Instance); err != nil || instances[p.Instance] {
			t.Errorf("%s: instance %q; want a UUID of its own", code, p.Instance)
		}
		instances[p.Instance] = true
		want := ""
		if p.RetryAfter > 0 {
			want = fmt.Sprint(p.RetryAfter)
		}
		if got := a.Header.Get("Retry-After"); got != want {
			t.Errorf("%s: Retry-After %q, and %d in the body", code, got, p.RetryAfter)
		}
		if a.Header.Get("Cache-Control") != "no-store" || a.Header.Get("Link") != `<https://example.org/keys>; rel="describedby"` {
			t.Errorf("%s: headers %v", code, a.Header)
		}
	}
	close(g.open)
	within(t, "the first answer", first).want(t, http.StatusCreated, "made")
	eventually(t, "the events", func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return len(s.events) == len(instances)+1
	})
	for _, e := range s.events {
		if instances[e.Instance] != (e.Decision != idempotency.DecisionExecuted) {
			t.Errorf("decision %q with instance %q", e.Decision, e.Instance)
		}
	}
}

// testEvents: one event for each request with a key, which tells the tenant and the
// key apart from others and gives neither away.
func testEvents(t *testing.T, f *fixture) {
	s := f.serve(t, create())
	const key = "a-secret-key"
	s.do(t, call{}) // none for this
	s.do(t, call{key: key})
	s.do(t, call{key: key})
	s.do(t, call{key: key, body: "other"})
	s.do(t, call{key: "another"})
	events := s.wantEvents(t, idempotency.DecisionExecuted, idempotency.DecisionReplayed, idempotency.DecisionMismatch, idempotency.DecisionExecuted)
	for i, e := range events {
		if e.OrgID != f.org || e.Method != http.MethodPost || e.Path != "/v1/payments" || e.Claim <= 0 || e.Wait != 0 {
			t.Errorf("event %+v", e)
		}
		if ran := i == 0 || i == 3; ran != (e.Handler > 0) || ran != (e.Complete > 0) || ran != (e.Attempt == 1) {
			t.Errorf("event %+v, and the handler ran: %t", e, ran)
		}
		if want := []int{201, 201, 422, 201}[i]; e.Status != want {
			t.Errorf("event %d: status %d, want %d", i, e.Status, want)
		}
		if strings.Contains(fmt.Sprintf("%+v", e), key) || len(e.KeyHash) != 16 || (e.KeyHash == events[0].KeyHash) != (i < 3) {
			t.Errorf("event %d shows the key, or not which: %+v", i, e)
		}
	}
}

// testRetriesMeetReleases: requests of one key come in while attempts at it are
// released; each runs or is told that another does.
func testRetriesMeetReleases(t *testing.T, f *fixture) {
	s := f.serve(t, func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(http.StatusBadGateway)
		io.WriteString(w, "not today")
	})
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 25 {
				a, err := s.try(t, call{key: "k"})
				switch {
				case err != nil:
					t.Error(err)
				case a.StatusCode == http.StatusBadGateway && a.body == "not today":
				case a.StatusCode == http.StatusConflict && strings.Contains(a.body, `"in_flight"`):
				default:
					t.Errorf("answer %d %s", a.StatusCode, a.body)
				}
			}
		})
	}
	wg.Wait()
	if s.runs.Load() == 0 {
		t.Error("nobody ran")
	}
}
