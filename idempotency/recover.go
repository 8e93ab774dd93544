package idempotency

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"runtime/debug"

	"github.com/google/uuid"

	"github.com/pgidem/pgidem/internal/recovery"
)

// InterruptedRequest is a request that a [RequestStore] has kept, and whose attempt was
// interrupted.
type InterruptedRequest struct {
	OrgID uuid.UUID
	// Key and RequestHash are those of the record, as stored: scope and fingerprint are
	// not computed again.
	Key         string
	RequestHash string
	Request     KeptRequest
}

// KeyHash returns what the events of the request have for [Event.KeyHash].
func (it InterruptedRequest) KeyHash() string {
	key, err := parseKey(it.Request.Header[HeaderKey])
	if err != nil {
		return ""
	}
	return keyHash(key)
}

// Recover runs an interrupted request again, through the handler of the service, and
// returns what the [Require] in it decided: [DecisionTakenOver] when the request has
// completed ([DecisionExecuted] where the interrupted attempt had left no record, as in a
// transaction). The response goes nowhere but into the record, where the client that
// comes back finds it. It is for workers of stores, as pgstore.Completer.
//
// The handler is what Require with [WithRecoverable] returned, or a router with
// authentication in front of it that lets requests through for which [Recovered] reports
// true. It gets the request that was kept: without a client's address, without the
// headers that were not kept, and with nothing that the original context held but the
// tenant's org_id. Values are those of ctx; when ctx ends, the handler is cancelled as by
// a client that leaves.
//
// A request that is in flight again ([DecisionInFlight]) or has meanwhile completed or
// been released ([DecisionNotInterrupted]) is none to be recovered, and gives no error.
// Any other decision, which leaves the request without an outcome, comes with an error
// that says why: that the handler panicked, which Recover recovers from; that its status
// is not storable; that what stands in front of Require ended the request, and the decision
// is empty; or that the request never came to Require ([DecisionNotRecoverable]), as in a
// service that does not have its route.
func Recover(ctx context.Context, handler http.Handler, it InterruptedRequest) (outcome Outcome, err error) {
	if handler == nil {
		return "", errors.New("idempotency: recover: the handler is nil")
	}
	if it.OrgID == uuid.Nil {
		return "", errors.New("idempotency: recover: the request has no org_id")
	}
	if _, err := parseKey(it.Request.Header[HeaderKey]); err != nil {
		return "", fmt.Errorf("idempotency: recover: the request was not kept by Require: %w", err)
	}
	attempt := &recovery.Attempt{OrgID: it.OrgID, Key: it.Key, RequestHash: it.RequestHash}
	r, err := it.Request.request(recovery.With(WithOrgID(ctx, it.OrgID), attempt))
	if err != nil {
		return "", err
	}
	panicked := runRecovered(handler, r)

	taken, decision, status, err := attempt.Result()
	outcome = Outcome(decision)
	switch {
	case panicked != nil:
		return outcome, fmt.Errorf("idempotency: recover: %w", panicked)
	case !taken:
		return DecisionNotRecoverable, fmt.Errorf("idempotency: recover %s %s: no Require took the request: give the handler that Require returned, and let a request through whatever stands in front of it when idempotency.Recovered reports true",
			r.Method, r.URL.Path)
	case decision == "":
		return "", fmt.Errorf("idempotency: recover %s %s: what stands in front of Require returned before it: let recovered requests run to their end", r.Method, r.URL.Path)
	}
	switch outcome {
	case DecisionExecuted, DecisionTakenOver, DecisionInFlight, DecisionNotInterrupted:
		return outcome, nil
	}
	if err == nil {
		err = fmt.Errorf("the handler answered with status %d", status)
	}
	return outcome, fmt.Errorf("idempotency: recover: %s: %w", outcome, err)
}

// Recovered reports whether a request is one that was interrupted and is run again, by
// [Recover], for the tenant in its context. Authentication of a service's own lets it
// through with the org_id that it has: it was authenticated when it came, and its
// credentials were not kept. Nothing that a client sends makes it true. A request that
// brings credentials all the same, one that a handler makes of its own say, should be
// judged by them.
//
// It reports true in the handler as well.
func Recovered(ctx context.Context) bool {
	orgID, ok := FromContext(ctx)
	return ok && recovery.Is(ctx, orgID)
}

// runRecovered serves the request, and returns the panic of its handler as an error.
func runRecovered(handler http.Handler, r *http.Request) (err error) {
	defer func() {
		switch p := recover(); p {
		case nil:
		case http.ErrAbortHandler:
			err = errors.New("the handler aborted the response")
		default:
			err = fmt.Errorf("the handler panicked: %v\n%s", p, debug.Stack())
		}
	}()
	handler.ServeHTTP(&discard{header: make(http.Header)}, r)
	return nil
}

// newServerRequest returns a request as a server would make it of these parts.
func newServerRequest(ctx context.Context, method, target string, body []byte) (*http.Request, error) {
	u, err := url.ParseRequestURI(target)
	if err != nil {
		return nil, fmt.Errorf("idempotency: recover: the target of the request: %w", err)
	}
	r := &http.Request{
		Method: method, URL: u, RequestURI: target, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: make(http.Header), Body: http.NoBody, ContentLength: int64(len(body)),
	}
	if len(body) > 0 {
		r.Body = io.NopCloser(bytes.NewReader(body))
	}
	return r.WithContext(ctx), nil
}

// discard is the ResponseWriter of a request whose client is not there. It takes a Flush
// and has nothing to hijack.
type discard struct{ header http.Header }

// Header implements [http.ResponseWriter].
func (d *discard) Header() http.Header { return d.header }

// WriteHeader implements [http.ResponseWriter].
func (d *discard) WriteHeader(int) {}

// Write implements [http.ResponseWriter].
func (d *discard) Write(p []byte) (int, error) { return len(p), nil }

// Flush implements [http.Flusher].
func (d *discard) Flush() {}
