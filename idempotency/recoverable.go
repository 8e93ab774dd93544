package idempotency

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"net/textproto"
	"slices"
	"strings"
)

// recoverableHeaders are kept with a request unless [WithRecoverableHeaders] says
// otherwise.
var recoverableHeaders = []string{
	// What the body is, and what the response is to be.
	"Content-Type", "Content-Encoding", "Content-Language", "Content-Digest", "Accept", "Accept-Language", "Prefer",
	// Conditions: a handler that checks them must check them again.
	"If-Match", "If-None-Match", "If-Modified-Since", "If-Unmodified-Since",
	// What ties the second run to the first in traces and logs.
	"Traceparent", "Tracestate", "X-Request-Id",
}

// secretHeaders hold what must not lie in a table.
var secretHeaders = []string{"Authorization", "Proxy-Authorization", "Cookie", "Set-Cookie", "X-Api-Key", "X-Auth-Token"}

// WithRecoverable keeps the requests of the given routes, in the pattern language of
// [WithExclude] and matched as [WithRequireKey] matches them, and of every route when
// none is given, while they are in progress: method, path and query, host, the headers of
// [WithRecoverableHeaders] and the body, in the table of the tenant. A worker of the
// store, pgstore.Completer, then runs those again whose process died, and a client that
// comes back finds the response. By default no request is kept.
//
// It is for handlers that may run again, and says so for the routes it names: a
// recovered request runs at least once more, as a retry of the client would, and so does
// one whose response was sent but could not be stored ([DecisionCompleteFailed]), or which
// ran unprotected ([WithFailOpen]) after a claim that stands, its answer lost. A client that
// got 503 because the store went down during the claim ([DecisionStoreError]) or the release
// ([DecisionReleaseFailed]) may find that its request has run without it. What must not
// happen twice belongs in a [Step], behind a [ChildKey], or in a transaction of the store
// (pgstore.Store.Transactional). [Attempt] tells the handler which run it is, except in a
// transaction, where what ran before has left nothing; [Recovered] tells it in both.
//
// What is kept is gone when the request completes, when its attempt is released (the
// client has been told, and decides), and with the record; a claim without it that takes
// over ends it too. The headers that are kept hold
// no credentials, so what stands in front of Require must let a recovered request
// through: authctx does, and other authentication asks [Recovered].
//
// Services that share a tenant's schema must name their routes here, each its own: none
// runs a request again of a route that it does not keep.
//
// It takes a [RequestStore], as pgstore.Store is one, and cannot be had together with
// [WithInterrupted]([Refuse]); Require panics otherwise. [Do] ignores it. Given more than
// once, the routes add up.
func WithRecoverable(routes ...string) Option {
	return func(c *config) error {
		c.recoverAll = c.recoverAll || len(routes) == 0
		c.recovered = append(c.recovered, routes...)
		set, err := compileRoutes("WithRecoverable", c.recovered)
		c.recoverable = set
		return err
	}
}

// WithRecoverableHeaders replaces the list of the request headers that [WithRecoverable]
// keeps besides Idempotency-Key. Name what the handlers read; whatever else the client
// sent is missing when its request is run again. Defaults to
//
//   - Content-Type, Content-Encoding, Content-Language, Content-Digest, Accept,
//     Accept-Language and Prefer, which say what the body is and what the response is to be;
//   - If-Match, If-None-Match, If-Modified-Since and If-Unmodified-Since, which a handler
//     that checks them must check again;
//   - Traceparent, Tracestate and X-Request-Id, which tie the second run to the first.
//
// Headers that hold credentials (Authorization, Cookie, Proxy-Authorization, X-Api-Key,
// X-Auth-Token) cannot be given, because they must not lie in a table; neither can those
// that belong to one message or one connection (Content-Length, Host and the hop-by-hop
// headers of RFC 9110 section 7.6.1). With no name, Idempotency-Key alone is kept.
func WithRecoverableHeaders(names ...string) Option {
	return func(c *config) error {
		kept := make([]string, 0, len(names))
		for _, name := range names {
			canonical := textproto.CanonicalMIMEHeaderKey(name)
			switch {
			case !isToken(name):
				return fmt.Errorf("WithRecoverableHeaders: %q is not a header name", name)
			case slices.Contains(secretHeaders, canonical):
				return fmt.Errorf("WithRecoverableHeaders: %s holds credentials, which must not lie in a table; let a request through for which idempotency.Recovered reports true instead", canonical)
			case isFraming(canonical), !keepHeader(canonical), canonical == "Host", canonical == "Expect":
				return fmt.Errorf("WithRecoverableHeaders: %s belongs to one message or one connection, and cannot be sent again", canonical)
			}
			kept = append(kept, canonical)
		}
		c.recoverHeaders = kept
		return nil
	}
}

// KeptRequest is a request as a [RequestStore] keeps it, to be run again by [Recover].
type KeptRequest struct {
	Method string
	// Target is the path and query as [Require] saw them, in their encoded form.
	Target string
	Host   string
	// Pattern and PathValues are what the [http.ServeMux] in front of Require, if there
	// is one, has matched ([http.Request.Pattern], [http.Request.PathValue]).
	Pattern    string
	PathValues map[string]string
	// Header has the headers of [WithRecoverableHeaders] and Idempotency-Key, in
	// canonical form.
	Header map[string][]string
	Body   []byte
}

// maxKeptHead bounds what a request is kept with besides its body; it is the default of
// [http.Server.MaxHeaderBytes].
const maxKeptHead = http.DefaultMaxHeaderBytes

// checkRecoverable reports what does not go together with [WithRecoverable].
func (c *config) checkRecoverable() error {
	if c.keepsRequests() && c.interrupted == Refuse {
		return errors.New("idempotency: WithRecoverable runs interrupted requests again, which WithInterrupted(Refuse) forbids: choose one; a Require around each group of routes may choose for itself")
	}
	return nil
}

// keepsRequests reports whether the requests of some routes are kept.
func (c *config) keepsRequests() bool { return c.recoverAll || len(c.recovered) > 0 }

// isRecoverable reports whether a request is to be kept, and may be run again.
func (c *config) isRecoverable(r *http.Request) bool {
	return c.recoverAll || c.recoverable.MatchLoosely(r)
}

// keep returns the request as it is to be kept, or nil where it is not.
func (c *config) keep(r *http.Request, body []byte) *KeptRequest {
	if !c.keepsRequests() || !c.isRecoverable(r) {
		return nil
	}
	kept := &KeptRequest{
		Method: r.Method, Target: r.URL.RequestURI(), Host: r.Host, Pattern: r.Pattern,
		Header: make(map[string][]string), Body: body,
	}
	size := len(kept.Target) + len(kept.Host) + len(kept.Pattern)
	for _, name := range append([]string{HeaderKey}, c.recoverHeaders...) {
		if values, ok := r.Header[name]; ok {
			kept.Header[name] = values
			for _, value := range values {
				size += len(name) + len(value)
			}
		}
	}
	for _, name := range wildcards(r.Pattern) {
		if kept.PathValues == nil {
			kept.PathValues = make(map[string]string)
		}
		value := r.PathValue(name)
		kept.PathValues[name] = value
		size += len(name) + len(value)
	}
	if size > maxKeptHead {
		c.logger.LogAttrs(r.Context(), slog.LevelWarn, "idempotency: a request is not kept, because its path and headers are too large; it runs, and will not be recovered",
			slog.String("method", r.Method), slog.Int("bytes", size))
		return nil
	}
	return kept
}

// wildcards returns the names of the wildcards in a pattern of [http.ServeMux].
func wildcards(pattern string) (names []string) {
	for {
		_, rest, found := strings.Cut(pattern, "{")
		if !found {
			return names
		}
		var name string
		name, pattern, _ = strings.Cut(rest, "}")
		if name = strings.TrimSuffix(name, "..."); name != "" && name != "$" {
			names = append(names, name)
		}
	}
}

// request returns the request that was kept, ready to be served.
func (k *KeptRequest) request(ctx context.Context) (*http.Request, error) {
	r, err := newServerRequest(ctx, k.Method, k.Target, k.Body)
	if err != nil {
		return nil, err
	}
	r.Host, r.Pattern = k.Host, k.Pattern
	for name, values := range k.Header {
		r.Header[name] = slices.Clone(values)
	}
	for _, name := range slices.Sorted(maps.Keys(k.PathValues)) {
		r.SetPathValue(name, k.PathValues[name])
	}
	return r, nil
}
