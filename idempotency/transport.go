package idempotency

import (
	"cmp"
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"

	"github.com/dunglas/httpsfv"
	"github.com/google/uuid"
)

// Transport is an [http.RoundTripper] for the clients of a service: it puts an
// Idempotency-Key on each unsafe request that has none. It does not retry; it
// makes it safe that something else does. The zero value is ready for use, by many
// goroutines at once; the fields must not be changed after that.
//
// A request alone does not tell a retry from a second operation that looks the
// same, and a guess would be expensive: two equal payments under one key are paid
// once. So the caller says what one operation is, in one of three ways.
//
// Where the retries happen inside, one round trip of Transport is one operation, and
// all its retries have the same key:
//
//	client := &http.Client{Transport: &idempotency.Transport{Base: retrying}}
//
// Where they happen outside, in a client that calls Transport for each try, one
// context is one operation:
//
//	ctx = idempotency.WithFreshOutgoingKey(ctx) // or WithOutgoingKey(ctx, paymentID)
//	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, body)
//
// Or the request has its key before the retrying client gets it. Transport passes on
// untouched what has an Idempotency-Key entry in its Header, whatever its value:
//
//	req.Header.Set(idempotency.HeaderKey, paymentID)
//
// Without any of them a retry from outside has a key of its own, and the handler runs
// again. The key of a request that a handler serves, which [Key] returns, is never
// handed on: it names another operation.
//
// Where a redirect repeats the request (307 and 308), [http.Client] makes a round
// trip for each hop, with a key of its own unless the context or the Header gives
// one. Then all hops have the same, and a service behind [Require] that has stored
// the redirect under it answers the next path with 422, since a key belongs to one
// path: ask for the final address, or let the redirecting route pass with
// [WithExclude].
//
// Use it for services that honour the header. [http.Transport] takes the header for
// the promise that they do: it repeats such a request by itself when a kept-alive
// connection breaks before any byte of a response, if the request has no body or a
// GetBody.
type Transport struct {
	// Base makes the round trips, with a copy of each request that gets a key.
	// Defaults to [http.DefaultTransport]; a Transport that takes the place of
	// that one needs a Base.
	Base http.RoundTripper
	// Methods are those whose requests get a key. Defaults to POST, PUT, PATCH and
	// DELETE, like [WithMethods].
	Methods []string
	// NewKey makes a key that was never used before: 1 to 255 bytes of printable
	// ASCII. It may be called from many goroutines at once. Defaults to a random UUID
	// (RFC 9562 section 5.4), which no other client hits upon or guesses.
	NewKey func() string
}

// unsafeMethods are the methods that keys are for.
var unsafeMethods = []string{http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete}

// RoundTrip implements [http.RoundTripper]. Where it adds a key, the request that the
// response refers to is the copy that has it. An error that wraps [ErrKeyInvalid]
// means that nothing was sent, because the key that the context or NewKey gave is
// one that [Require] would refuse.
func (t *Transport) RoundTrip(r *http.Request) (*http.Response, error) {
	if _, ok := r.Header[HeaderKey]; ok || !t.addsKeyTo(r.Method) {
		return t.base().RoundTrip(r)
	}
	line, err := t.keyLine(r.Context())
	if err != nil {
		if r.Body != nil {
			_ = r.Body.Close() // a RoundTripper closes the body, also on errors
		}
		return nil, err
	}
	keyed := r.Clone(r.Context()) // a RoundTripper does not modify the caller's request
	if keyed.Header == nil {
		keyed.Header = make(http.Header, 1)
	}
	keyed.Header[HeaderKey] = []string{line}
	return t.base().RoundTrip(keyed)
}

// CloseIdleConnections calls the method of that name of Base, if it has one, so that
// [http.Client.CloseIdleConnections] works through a Transport.
func (t *Transport) CloseIdleConnections() {
	if base, ok := t.base().(interface{ CloseIdleConnections() }); ok {
		base.CloseIdleConnections()
	}
}

func (t *Transport) base() http.RoundTripper {
	if t.Base == nil {
		return http.DefaultTransport
	}
	return t.Base
}

func (t *Transport) addsKeyTo(method string) bool {
	methods := t.Methods
	if len(methods) == 0 {
		methods = unsafeMethods
	}
	return slices.Contains(methods, cmp.Or(method, http.MethodGet)) // which an empty method means
}

// keyLine returns the header line for a request under ctx.
func (t *Transport) keyLine(ctx context.Context) (string, error) {
	switch k := ctx.Value(outgoingKey{}).(type) {
	case string:
		line, err := formatKey(k)
		if err != nil {
			return "", fmt.Errorf("%w; give WithOutgoingKey a key of 1 to %d printable ASCII characters", err, maxKeyBytes)
		}
		return line, nil
	case *freshKey:
		return k.keyLine(t.newKeyLine)
	default:
		return t.newKeyLine()
	}
}

func (t *Transport) newKeyLine() (string, error) {
	newKey := t.NewKey
	if newKey == nil {
		newKey = uuid.NewString
	}
	line, err := formatKey(newKey())
	if err != nil {
		return "", fmt.Errorf("%w; let Transport.NewKey return 1 to %d printable ASCII characters", err, maxKeyBytes)
	}
	return line, nil
}

// outgoingKey is apart from what [Key] reads, so that a handler that calls another
// service under the context of its request does not hand on the key it was called with.
type outgoingKey struct{}

// WithOutgoingKey returns a context whose requests, sent through a [Transport], have
// the given key: the requests of one operation, however often and by whichever client
// they are retried. Any key of 1 to 255 bytes of printable ASCII will do; Transport
// quotes it where it has to. Under any other key its round trips return an error.
//
// A key that the operation is known by, such as the id of the payment to be made, is
// there again after the caller has crashed, and a random one is not: a handler whose
// own retries are to find what it has asked of another service takes such a key.
//
// The key holds for every request under the context. Give each operation a context of
// its own, from this function or [WithFreshOutgoingKey]; the innermost counts.
func WithOutgoingKey(ctx context.Context, key string) context.Context {
	return context.WithValue(ctx, outgoingKey{}, key)
}

// WithFreshOutgoingKey returns a context whose requests, sent through a [Transport],
// share one fresh key, in place of one that ctx may carry already. The first of them
// has it made, by the NewKey of its Transport. It is for an operation whose retries
// are made outside of Transport; as with [WithOutgoingKey], each operation needs a
// context of its own.
func WithFreshOutgoingKey(ctx context.Context) context.Context {
	return context.WithValue(ctx, outgoingKey{}, new(freshKey))
}

// freshKey is a key that is made when it is first needed.
type freshKey struct {
	mu   sync.Mutex
	line string
}

// keyLine keeps what newLine returns, but for errors: the next request asks again.
func (k *freshKey) keyLine(newLine func() (string, error)) (string, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.line != "" {
		return k.line, nil
	}
	line, err := newLine()
	if err != nil {
		return "", err
	}
	k.line = line
	return line, nil
}

// formatKey returns the header line that parseKey reads the key from: the bare form,
// since many services know no other and take quotes for a part of the key, or the
// quoted one where the bare form means something else, because it begins with a quote
// or because the space around a field's value is no part of it (RFC 9110 section 5.5).
func formatKey(key string) (string, error) {
	quoted, err := httpsfv.Marshal(httpsfv.NewItem(key))
	if err != nil {
		return "", fmt.Errorf("%w: it is not printable ASCII", ErrKeyInvalid)
	}
	if _, err := parseKey([]string{quoted}); err != nil {
		return "", err
	}
	if key[0] == '"' || strings.Trim(key, " ") != key {
		return quoted, nil
	}
	return key, nil
}
