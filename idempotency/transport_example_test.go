package idempotency_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"

	"github.com/pgidem/pgidem/idempotency"
)

// flakyPayments starts a service that makes the first payment and then loses the
// connection before its client has the answer.
func flakyPayments() *httptest.Server {
	var requests, made atomic.Int64
	protect := idempotency.Require(idempotency.NewMemoryStore())
	h := authenticate(protect(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		amount, _ := io.ReadAll(r.Body)
		w.WriteHeader(http.StatusCreated)
		fmt.Fprintf(w, "payment %d of %s", made.Add(1), amount)
	})))
	return httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if requests.Add(1) == 1 {
			h.ServeHTTP(httptest.NewRecorder(), r)
			panic(http.ErrAbortHandler)
		}
		h.ServeHTTP(w, r)
	}))
}

// twice is a transport that tries once more after an error.
type twice struct{ base http.RoundTripper }

func (t twice) RoundTrip(r *http.Request) (*http.Response, error) {
	again := r.Clone(r.Context())
	resp, err := t.base.RoundTrip(r)
	if err == nil || r.GetBody == nil {
		return resp, err
	}
	fmt.Println("no answer; once more")
	if again.Body, err = r.GetBody(); err != nil {
		return nil, err
	}
	return t.base.RoundTrip(again)
}

// Around a transport that retries, each request of the client is one operation.
func ExampleTransport() {
	service := flakyPayments()
	defer service.Close()
	client := &http.Client{Transport: &idempotency.Transport{Base: twice{service.Client().Transport}}}

	for range 2 {
		resp, err := client.Post(service.URL, "text/plain", strings.NewReader("10 EUR"))
		if err != nil {
			fmt.Println(err)
			return
		}
		body, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		fmt.Println(string(body), "replayed:", resp.Header.Get("Idempotency-Replayed") == "true")
	}
	// Output:
	// no answer; once more
	// payment 1 of 10 EUR replayed: true
	// payment 2 of 10 EUR replayed: false
}

// Where the loop of retries is outside, a context makes its requests one operation.
func ExampleWithFreshOutgoingKey() {
	service := flakyPayments()
	defer service.Close()
	client := &http.Client{Transport: &idempotency.Transport{Base: service.Client().Transport}}

	ctx := idempotency.WithFreshOutgoingKey(context.Background())
	for try := 1; try <= 3; try++ {
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, service.URL, strings.NewReader("10 EUR"))
		if err != nil {
			fmt.Println(err)
			return
		}
		resp, err := client.Do(req)
		if err != nil {
			fmt.Println("try", try, "had no answer")
			continue
		}
		body, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		fmt.Println("try", try, "had", string(body))
		break
	}
	// Output:
	// try 1 had no answer
	// try 2 had payment 1 of 10 EUR
}

// What is known by a name that outlives a crash has it as its key: whoever asks again
// finds what was asked before.
func ExampleWithOutgoingKey() {
	runs := 0
	protect := idempotency.Require(idempotency.NewMemoryStore())
	server := httptest.NewServer(authenticate(protect(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		runs++
		fmt.Fprint(w, "payment ", runs)
	}))))
	defer server.Close()
	client := &http.Client{Transport: &idempotency.Transport{Base: server.Client().Transport}}
	defer client.CloseIdleConnections()
	pay := func(orderID string) {
		ctx := idempotency.WithOutgoingKey(context.Background(), orderID)
		r, err := http.NewRequestWithContext(ctx, http.MethodPost, server.URL, nil)
		if err != nil {
			panic(err)
		}
		resp, err := client.Do(r)
		if err != nil {
			panic(err)
		}
		defer resp.Body.Close()
		body, _ := io.ReadAll(resp.Body)
		fmt.Printf("%s\n", body)
	}
	pay("order-17")
	pay("order-17") // by another process, say, that takes up what this one left
	pay("order-18")
	// Output:
	// payment 1
	// payment 1
	// payment 2
}
