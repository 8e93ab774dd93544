package idempotency_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"time"

	"github.com/google/uuid"

	"github.com/pgidem/pgidem/idempotency"
)

// authenticate stands for the middleware that verifies a caller and puts the
// tenant into the context, such as authctx.
func authenticate(next http.Handler) http.Handler {
	orgID := uuid.MustParse("6f1c2f6e-0d5a-4c8e-9f5e-2f0a3c1d7b42")
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		next.ServeHTTP(w, r.WithContext(idempotency.WithOrgID(r.Context(), orgID)))
	})
}

// send posts a body with an idempotency key and prints what comes back.
func send(h http.Handler, key, body string) {
	r := httptest.NewRequest(http.MethodPost, "/v1/payments", strings.NewReader(body))
	r.Header.Set("Idempotency-Key", key)
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	fmt.Println(w.Code, strings.TrimSpace(w.Body.String()), "replayed:", w.Header().Get("Idempotency-Replayed") == "true")
}

func ExampleRequire() {
	var payments atomic.Int64
	pay := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		amount, _ := io.ReadAll(r.Body)
		w.WriteHeader(http.StatusCreated)
		fmt.Fprintf(w, "payment %d of %s", payments.Add(1), amount)
	})
	protect := idempotency.Require(idempotency.NewMemoryStore())
	h := authenticate(protect(pay))

	send(h, "key-1", "10 EUR")
	send(h, "key-1", "10 EUR") // a retry
	send(h, "key-2", "10 EUR") // a payment of its own
	// Output:
	// 201 payment 1 of 10 EUR replayed: false
	// 201 payment 1 of 10 EUR replayed: true
	// 201 payment 2 of 10 EUR replayed: false
}

func ExampleRequire_options() {
	protect := idempotency.Require(idempotency.NewMemoryStore(),
		idempotency.WithExclude("POST /v1/auth/login", "/public/"),
		idempotency.WithRequireKey("POST /v1/payments"),
		idempotency.WithRequireOrg(),
		idempotency.WithMethods(http.MethodPost, http.MethodPatch),
		idempotency.WithTTL(48*time.Hour),
		idempotency.WithLease(time.Minute),
		idempotency.WithWait(10*time.Second),
		idempotency.WithStoreTimeout(2*time.Second),
		idempotency.WithMaxRequestBytes(64<<10),
		idempotency.WithMaxResponseBytes(256<<10),
		idempotency.WithReplayHeader("X-Replayed"),
		idempotency.WithInterrupted(idempotency.Refuse),
		idempotency.WithDetachedHandler(),
		idempotency.WithDescribedBy("https://api.example.com/docs/idempotency"),
		idempotency.WithLogger(slog.New(slog.DiscardHandler)),
	)
	h := authenticate(protect(http.NotFoundHandler()))
	r := httptest.NewRequest(http.MethodPost, "/v1/payments", nil)
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	var problem idempotency.Problem
	if err := json.Unmarshal(w.Body.Bytes(), &problem); err != nil {
		panic(err)
	}
	fmt.Println(w.Code, problem.Code, "retry:", problem.Retry)
	fmt.Println(problem.Detail)
	fmt.Println(w.Header().Get("Link"))
	// Output:
	// 400 key_missing retry: corrected_request
	// This operation requires an Idempotency-Key header. Send a fresh UUID for each new operation, and the same one again when you retry it.
	// <https://api.example.com/docs/idempotency>; rel="describedby"
}

// Two users of one tenant may choose the same key without meeting.
func ExampleWithScope() {
	protect := idempotency.Require(idempotency.NewMemoryStore(),
		idempotency.WithScope(func(r *http.Request) string { return r.URL.Query().Get("user") }))
	var n atomic.Int64
	h := authenticate(protect(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprint(w, "run ", n.Add(1))
	})))
	for _, user := range []string{"ann", "bob", "ann"} {
		r := httptest.NewRequest(http.MethodPost, "/v1/payments?user="+user, nil)
		r.Header.Set("Idempotency-Key", "key-1")
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		fmt.Println(user, w.Body)
	}
	// Output:
	// ann run 1
	// bob run 2
	// ann run 1
}

// An operator watches for decisions that can mean an effect without a record.
func ExampleWithObserver() {
	protect := idempotency.Require(idempotency.NewMemoryStore(),
		idempotency.WithObserver(func(_ context.Context, e idempotency.Event) {
			fmt.Println(e.Decision, "attempt", e.Attempt, "status", e.Status)
		}))
	h := authenticate(protect(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusBadGateway)
	})))
	send(h, "key-1", "")
	// Output:
	// released attempt 1 status 502
	// 502  replayed: false
}
