package idempotency_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"time"

	"github.com/google/uuid"

	"github.com/pgidem/pgidem/idempotency"
)

// The second of two requests waits for the first and gets its response.
func ExampleWithWait() {
	started, finish := make(chan struct{}), make(chan struct{})
	pay := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		close(started)
		<-finish
		fmt.Fprint(w, "paid")
	})
	protect := idempotency.Require(idempotency.NewMemoryStore(), idempotency.WithWait(10*time.Second))
	h := authenticate(protect(pay))

	first := make(chan struct{})
	go func() {
		defer close(first)
		send(h, "key-1", "10 EUR")
	}()
	<-started
	second := make(chan string)
	go func() {
		r := httptest.NewRequest(http.MethodPost, "/v1/payments", strings.NewReader("10 EUR"))
		r.Header.Set("Idempotency-Key", "key-1")
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		second <- fmt.Sprint(w.Code, " ", w.Body, " replayed: ", w.Header().Get("Idempotency-Replayed"))
	}()
	close(finish)
	<-first
	fmt.Println(<-second)
	// Output:
	// 200 paid replayed: false
	// 200 paid replayed: true
}

// A retry that a client builds anew, with its members in another order, is the same
// request.
func ExampleWithFingerprint() {
	protect := idempotency.Require(idempotency.NewMemoryStore(), idempotency.WithFingerprint(idempotency.CanonicalJSON))
	h := authenticate(protect(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "paid") })))
	send(h, "key-1", `{"amount": 10, "currency": "EUR"}`)
	send(h, "key-1", `{"currency":"EUR","amount":1e1}`)
	// Output:
	// 200 paid replayed: false
	// 200 paid replayed: true
}

// A 404 that may not be one for long is not kept, so a retry looks again.
func ExampleWithStorable() {
	protect := idempotency.Require(idempotency.NewMemoryStore(),
		idempotency.WithStorable(func(status int) bool { return status < 500 && status != http.StatusNotFound }))
	var tries atomic.Int64
	h := authenticate(protect(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if tries.Add(1) == 1 {
			w.WriteHeader(http.StatusNotFound)
			return
		}
		fmt.Fprint(w, "found")
	})))
	send(h, "key-1", "")
	send(h, "key-1", "")
	send(h, "key-1", "")
	// Output:
	// 404  replayed: false
	// 200 found replayed: false
	// 200 found replayed: true
}

// A header that tells of one response alone is not repeated in another.
func ExampleWithHeaders() {
	protect := idempotency.Require(idempotency.NewMemoryStore(),
		idempotency.WithHeaders(func(name string) bool { return name != "X-Took" && name != "Set-Cookie" }))
	h := authenticate(protect(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("X-Took", "81ms")
		w.Header().Set("Location", "/v1/payments/1")
		w.WriteHeader(http.StatusCreated)
	})))
	for range 2 {
		r := httptest.NewRequest(http.MethodPost, "/v1/payments", nil)
		r.Header.Set("Idempotency-Key", "key-1")
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		fmt.Printf("%q %q\n", w.Header().Get("Location"), w.Header().Get("X-Took"))
	}
	// Output:
	// "/v1/payments/1" "81ms"
	// "/v1/payments/1" ""
}

// A service with a form of its own for errors keeps it, and leaves the rest to
// [idempotency.WriteProblem].
func ExampleWithErrorHandler() {
	protect := idempotency.Require(idempotency.NewMemoryStore(),
		idempotency.WithErrorHandler(func(w http.ResponseWriter, r *http.Request, err error) {
			var problem *idempotency.Problem
			if !errors.As(err, &problem) || !errors.Is(err, idempotency.ErrKeyReused) {
				idempotency.WriteProblem(w, r, err)
				return
			}
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(problem.Status)
			_ = json.NewEncoder(w).Encode(map[string]string{"error": problem.Code})
		}))
	h := authenticate(protect(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "paid") })))
	send(h, "key-1", "10 EUR")
	send(h, "key-1", "20 EUR")
	// Output:
	// 200 paid replayed: false
	// 422 {"error":"key_reused"} replayed: false
}

// Who may no longer see a response does not get it from the store either.
func ExampleWithReplayCheck() {
	revoked := false
	protect := idempotency.Require(idempotency.NewMemoryStore(),
		idempotency.WithReplayCheck(func(r *http.Request, rec *idempotency.Record) error {
			if revoked {
				return errors.New("the token was revoked")
			}
			return nil
		}))
	h := authenticate(protect(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "paid") })))
	for range 2 {
		r := httptest.NewRequest(http.MethodPost, "/v1/payments", nil)
		r.Header.Set("Idempotency-Key", "key-1")
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		fmt.Println(w.Code)
		revoked = true
	}
	// Output:
	// 200
	// 403
}

// downStore cannot be reached.
type downStore struct{ idempotency.Store }

func (downStore) Get(context.Context, uuid.UUID, string) (*idempotency.Record, error) {
	return nil, errors.New("connection refused")
}

// A service that would rather act twice than not at all runs its handlers while the
// store cannot be reached, and its operators are told of each time.
func ExampleWithFailOpen() {
	protect := idempotency.Require(downStore{idempotency.NewMemoryStore()},
		idempotency.WithFailOpen(),
		idempotency.WithObserver(func(_ context.Context, e idempotency.Event) { fmt.Println(e.Decision) }),
	)
	h := authenticate(protect(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.Copy(w, r.Body) })))
	send(h, "key-1", "10 EUR")
	// Output:
	// ran_unprotected
	// 200 10 EUR replayed: false
}

// A handler whose effect takes long goes on when its client has left.
func ExampleWithDetachedHandler() {
	protect := idempotency.Require(idempotency.NewMemoryStore(), idempotency.WithDetachedHandler())
	ctx, leave := context.WithCancel(context.Background())
	h := authenticate(protect(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		leave()
		fmt.Fprint(w, "handler cancelled: ", r.Context().Err() != nil)
	})))
	r := httptest.NewRequestWithContext(ctx, http.MethodPost, "/v1/payments", nil)
	r.Header.Set("Idempotency-Key", "key-1")
	h.ServeHTTP(httptest.NewRecorder(), r)
	send(h, "key-1", "")
	// Output:
	// 200 handler cancelled: false replayed: true
}
