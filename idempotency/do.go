package idempotency

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"slices"

	"github.com/google/uuid"

	"github.com/pgidem/pgidem/internal/route"
)

// Outcome says what [Do] did: one of the decisions.
type Outcome = Decision

// Do runs fn once for a key of a tenant, without HTTP: for the consumer of a queue that
// delivers a message more than once, or for a job that several machines start. A repeated
// call returns what the first one returned, as JSON carries it, and does not run fn.
//
// It is [Require] in another form, with the same records: fn has the claim's context,
// with [Key], [Attempt] and the transaction of a transactional store; its lease is
// extended while it runs; and what it returns is stored, as JSON, before Do returns it.
// An error of fn is returned as it is and not stored, and the next call runs fn again.
// So is a panic.
//
// The fingerprint tells calls apart that must not share a key, a hash of the message say;
// it may be empty. Keys of Do and keys of requests never meet, whatever clients choose.
// Of the options, those that concern a request or a response over HTTP have no effect.
//
// Where fn did not run, or its result could not be stored, the error wraps one of this
// package's reasons: [ErrInFlight] while another call runs fn (see [WithWait]),
// [ErrKeyReused] under another fingerprint, [ErrInterrupted], [ErrNotKept] for a result
// over [WithMaxResponseBytes], [ErrStoreUnavailable], [ErrLeaseLost], [ErrNotCommitted],
// [ErrNoOutcome] when ctx ended first, [ErrOrgMissing] for the nil UUID,
// [tenancy.ErrUnknownTenant], [tenancy.ErrSuspendedTenant], [ErrKeyInvalid]. A message that
// met [ErrInFlight], [ErrStoreUnavailable], [ErrLeaseLost], [ErrNotCommitted] or
// [ErrNoOutcome] is to be delivered again; one that met [tenancy.ErrSuspendedTenant], once
// the tenant is served again.
// The Outcome tells in any case what happened; [DecisionCompleteFailed] comes with the
// result and no error: fn ran, and a later call may run it again.
//
// It panics when the store is nil or an option cannot work, as Require does.
func Do[T any](ctx context.Context, store Store, orgID uuid.UUID, key, fingerprint string, fn func(context.Context) (T, error), opts ...Option) (T, Outcome, error) {
	call := &doCall[T]{fn: fn, header: make(http.Header)}
	opts = append(slices.Clone(opts),
		WithRequireOrg(),
		WithMethods(http.MethodPost),
		WithFingerprint(func(*http.Request, []byte) (string, error) { return "do:" + fingerprint, nil }),
		WithStorable(func(status int) bool { return status == http.StatusOK }),
		WithErrorHandler(func(_ http.ResponseWriter, _ *http.Request, err error) { call.refused = err }),
		withoutHTTP(&call.outcome),
	)
	protect := Require(store, opts...) // which panics at what cannot work
	line, err := formatKey(key)
	if err != nil {
		var zero T
		return zero, DecisionInvalidKey, err
	}
	r := (&http.Request{
		Method: http.MethodPost, URL: &url.URL{Path: doPath}, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: http.Header{HeaderKey: {line}}, Body: http.NoBody,
	}).WithContext(WithOrgID(ctx, orgID))
	protect(call).ServeHTTP(call, r)
	return call.result()
}

// doPath stands for a path in events, where there is none.
const doPath = "/"

// doDomain keeps keys of [Do] apart from those that clients choose.
const doDomain = "do"

// withoutHTTP takes back what options say of requests that are none, and notes the
// decision, beside what an observer of the user's does.
func withoutHTTP(outcome *Outcome) Option {
	return func(c *config) error {
		c.domain, c.exclude, c.requireKeyAlways = doDomain, &route.Set{}, false
		c.recoverAll, c.recovered = false, nil
		next := c.observer
		c.observer = func(ctx context.Context, e Event) {
			*outcome = e.Decision
			if next != nil {
				next(ctx, e)
			}
		}
		return nil
	}
}

// doCall is one call of [Do]: the handler, and the writer of its response.
type doCall[T any] struct {
	fn      func(context.Context) (T, error)
	header  http.Header
	body    bytes.Buffer
	outcome Outcome
	ran     bool  // fn has returned a value, which is then this call's own
	value   T     // of fn
	failed  error // of fn
	refused error // by the middleware
}

// ServeHTTP implements [http.Handler].
func (d *doCall[T]) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	d.ran, d.failed = false, nil // it may be run again
	value, err := d.fn(r.Context())
	if err != nil {
		d.failed = err
		w.WriteHeader(http.StatusInternalServerError)
		return
	}
	body, err := json.Marshal(value)
	if err != nil {
		d.failed = fmt.Errorf("idempotency: Do: the result cannot be stored: %w", err)
		w.WriteHeader(http.StatusInternalServerError)
		return
	}
	d.ran, d.value = true, value
	w.Write(body)
}

// Header implements [http.ResponseWriter].
func (d *doCall[T]) Header() http.Header { return d.header }

// WriteHeader implements [http.ResponseWriter].
func (d *doCall[T]) WriteHeader(int) {}

// Write implements [http.ResponseWriter].
func (d *doCall[T]) Write(p []byte) (int, error) { return d.body.Write(p) }

func (d *doCall[T]) result() (T, Outcome, error) {
	var zero T
	switch { // what an attempt returned that was rolled back does not count
	case d.refused != nil:
		return zero, d.outcome, d.refused
	case d.outcome == DecisionReplayed:
	case d.failed != nil:
		return zero, d.outcome, d.failed
	case d.outcome == DecisionLeaseLost:
		return zero, d.outcome, ErrLeaseLost
	case d.ran:
		return d.value, d.outcome, nil
	}
	var value T
	if err := json.Unmarshal(d.body.Bytes(), &value); err != nil {
		return zero, d.outcome, fmt.Errorf("idempotency: Do: the stored result is not of this type: %w", err)
	}
	return value, d.outcome, nil
}
