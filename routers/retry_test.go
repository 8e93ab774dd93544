package routers_test

import (
	"io"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/hashicorp/go-retryablehttp"

	"github.com/pgidem/pgidem/idempotency"
	"github.com/pgidem/pgidem/internal/pgtest"
	"github.com/pgidem/pgidem/internal/storetest"
)

// The caller names the key once, and its client library does the rest.
func TestARetryingClientGetsTheAnswerItLost(t *testing.T) {
	t.Parallel()
	pool := pgtest.NewPool(t)
	var requests atomic.Int64
	lost := httptest.NewRecorder()
	losesTheFirstAnswer := func(w *work, idempotent wrapper) http.Handler {
		routes := serveMux(w, idempotent)
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if requests.Add(1) > 1 {
				routes.ServeHTTP(w, r)
				return
			}
			routes.ServeHTTP(lost, r)
			panic(http.ErrAbortHandler) // net/http cuts the connection
		})
	}
	s := serve(t, losesTheFirstAnswer, storetest.NewStore(t, pool), storetest.NewTenant(t, pool), 1)

	client := retryablehttp.NewClient()
	client.HTTPClient = s.server.Client()
	client.Logger = nil
	client.RetryWaitMin, client.RetryWaitMax = time.Millisecond, 10*time.Millisecond
	r, err := retryablehttp.NewRequestWithContext(t.Context(), http.MethodPost, s.server.URL+"/v1/payments/7", []byte("12.00"))
	if err != nil {
		t.Fatal(err)
	}
	key := uuid.NewString()
	r.Header.Set(idempotency.HeaderKey, key)
	r.Header.Set("X-Org", s.org.String())
	resp, err := client.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}

	if a := (answer{resp, string(body)}); !a.replayed() || a.StatusCode != http.StatusCreated || a.body != lost.Body.String() {
		t.Errorf("answer %d %q, replayed: %t; want the lost one again, %d %q", a.StatusCode, a.body, a.replayed(), lost.Code, lost.Body)
	}
	if n := requests.Load(); n != 2 {
		t.Errorf("%d requests, want 2", n)
	}
	s.wantRuns(t, key, 1)
}
