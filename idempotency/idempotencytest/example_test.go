package idempotencytest_test

import (
	"context"
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
	"github.com/pgidem/pgidem/idempotency/idempotencytest"
)

var exampleOrg = uuid.MustParse("6f1c2f6e-0d5a-4c8e-9f5e-2f0a3c1d7b42")

// payments is a service behind the middleware, which counts what it does.
func payments(store idempotency.Store) http.Handler {
	var n atomic.Int64
	pay := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "payment ", n.Add(1)) })
	h := idempotency.Require(store)(pay)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { // in place of authentication
		h.ServeHTTP(w, r.WithContext(idempotency.WithOrgID(r.Context(), exampleOrg)))
	})
}

func pay(h http.Handler, key string) string {
	r := httptest.NewRequest(http.MethodPost, "/v1/payments", nil)
	r.Header.Set(idempotency.HeaderKey, key)
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w.Body.String()
}

// Nobody waits a day for a record to expire.
func ExampleNewMemoryStore() {
	store := idempotencytest.NewMemoryStore()
	service := payments(store)
	fmt.Println(pay(service, "key-1"))
	fmt.Println(pay(service, "key-1"))
	store.Advance(idempotency.DefaultTTL)
	fmt.Println(pay(service, "key-1"))
	// Output:
	// payment 1
	// payment 1
	// payment 2
}

func ExampleNewClock() {
	clock := idempotencytest.NewClock()
	store := idempotency.NewMemoryStoreWithClock(clock.Now)
	ctx := context.Background()
	if err := store.Put(ctx, &idempotency.Record{OrgID: exampleOrg, Key: "key-1", ResponseStatus: 200}); err != nil {
		panic(err)
	}
	clock.Advance(25 * time.Hour)
	_, err := store.Get(ctx, exampleOrg, "key-1")
	fmt.Println(errors.Is(err, idempotency.ErrNotFound))
	// Output: true
}

// A test that knows nothing of keys makes two payments by asking twice.
func ExampleClient() {
	server := httptest.NewServer(payments(idempotency.NewMemoryStore()))
	defer server.Close()
	client := idempotencytest.Client(server.Client())
	for range 2 {
		resp, err := client.Post(server.URL+"/v1/payments", "text/plain", strings.NewReader("10 EUR"))
		if err != nil {
			panic(err)
		}
		body, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		fmt.Printf("%s\n", body)
	}
	// Output:
	// payment 1
	// payment 2
}

// Tests that share a store and an org begin with a clean slate.
func ExampleClear() {
	t := &fakeT{ctx: context.Background()} // the test's own t
	store := idempotency.NewMemoryStore()
	service := payments(store)
	fmt.Println(pay(service, "key-1"))
	fmt.Println(pay(service, "key-1"))
	idempotencytest.Clear(t, store, exampleOrg)
	fmt.Println(pay(service, "key-1"))
	// Output:
	// payment 1
	// payment 1
	// payment 2
}
