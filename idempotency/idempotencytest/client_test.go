package idempotencytest_test

import (
	"net/http"
	"testing"

	"github.com/pgidem/pgidem/idempotency"
	"github.com/pgidem/pgidem/idempotency/idempotencytest"
)

// seen is a RoundTripper that keeps what it gets, and answers with nothing.
type seen struct {
	requests []*http.Request
	closed   bool
}

func (s *seen) RoundTrip(r *http.Request) (*http.Response, error) {
	s.requests = append(s.requests, r)
	return &http.Response{StatusCode: http.StatusNoContent, Body: http.NoBody, Request: r}, nil
}

func (s *seen) CloseIdleConnections() { s.closed = true }

func TestClientIsACopy(t *testing.T) {
	t.Parallel()
	transport := &seen{}
	base := &http.Client{Transport: transport, CheckRedirect: func(*http.Request, []*http.Request) error { return nil }}
	client := idempotencytest.Client(base)
	resp, err := client.Post("http://service.test/", "text/plain", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if len(transport.requests) != 1 || transport.requests[0].Header.Get(idempotency.HeaderKey) == "" {
		t.Errorf("requests %v; want one with a key", transport.requests)
	}
	if base.Transport != transport || client == base || client.CheckRedirect == nil {
		t.Error("want a copy of the client, with another transport, and the client as it was")
	}
	client.CloseIdleConnections()
	if !transport.closed {
		t.Error("the idle connections of the transport were not closed")
	}
	if c := idempotencytest.Client(nil); c == http.DefaultClient || http.DefaultClient.Transport != nil || c.Transport == nil {
		t.Error("want a copy of the default client, and the default client as it was")
	}
}
