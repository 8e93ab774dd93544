package idempotency

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/textproto"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/pgidem/pgidem/internal/route"
)

// Defaults of the options that bound a request.
const (
	DefaultMaxRequestBytes  = 1 << 20 // 1 MiB
	DefaultMaxResponseBytes = 1 << 20 // 1 MiB
	DefaultStoreTimeout     = 5 * time.Second
	DefaultReplayHeader     = "Idempotency-Replayed"
)

// Option changes how [Require] behaves. Require panics, with a text that names
// the option, when one is given a value that it cannot work with.
type Option func(*config) error

type config struct {
	domain           string // of keys: empty for those of requests
	methods          []string
	excluded         []string
	exclude          *route.Set // compiled from excluded
	required         []string
	requireKey       *route.Set // compiled from required
	requireKeyAlways bool
	requireOrg       bool
	ttl              time.Duration
	lease            time.Duration
	wait             time.Duration
	storeTimeout     time.Duration
	maxRequestBytes  int64
	maxResponseBytes int
	replayHeader     string
	fingerprint      Fingerprint
	givenFingerprint bool // it is the user's
	scope            func(*http.Request) string
	storable         func(status int) bool
	keepHeader       func(name string) bool
	replayCheck      func(*http.Request, *Record) error
	errorHandler     func(http.ResponseWriter, *http.Request, error)
	describedBy      string
	interrupted      InterruptedPolicy
	failOpen         bool
	detached         bool
	recoverAll       bool
	recovered        []string
	recoverable      *route.Set // compiled from recovered
	recoverHeaders   []string
	logger           *slog.Logger
	observer         func(context.Context, Event)
}

func newConfig(opts []Option) (*config, error) {
	c := &config{
		methods:          unsafeMethods,
		ttl:              DefaultTTL,
		lease:            DefaultLease,
		storeTimeout:     DefaultStoreTimeout,
		maxRequestBytes:  DefaultMaxRequestBytes,
		maxResponseBytes: DefaultMaxResponseBytes,
		replayHeader:     DefaultReplayHeader,
		fingerprint:      requestFingerprint,
		storable:         storableStatus,
		keepHeader:       keepHeader,
		errorHandler:     WriteProblem,
		recoverHeaders:   recoverableHeaders,
		logger:           slog.Default(),
	}
	for i, opt := range opts {
		if opt == nil {
			return nil, fmt.Errorf("idempotency: option %d is nil", i+1)
		}
		if err := opt(c); err != nil {
			return nil, fmt.Errorf("idempotency: %w", err)
		}
	}
	if c.ttl < c.lease {
		return nil, fmt.Errorf("idempotency: WithTTL(%s) is shorter than WithLease(%s): a record would expire while its request runs", c.ttl, c.lease)
	}
	return c, c.checkRecoverable()
}

// WithExclude lets the given routes pass through untouched: login routes, say,
// whose responses hold secrets that must not be stored.
//
// A route is an optional method and a path, in the pattern language of
// [http.ServeMux] without hosts: "POST /v1/auth/login", "/healthz" for any
// method, "/v1/items/{id}" with a wildcard for one segment, and "/public/" for a
// whole subtree. A path is matched only in its clean, plainly encoded form: a
// request for "//v1/auth/login" or "/v1/auth/%6cogin" is not excluded.
//
// Given more than once, the routes add up.
func WithExclude(routes ...string) Option {
	return func(c *config) error {
		c.excluded = append(c.excluded, routes...)
		set, err := compileRoutes("WithExclude", c.excluded)
		c.exclude = set
		return err
	}
}

// WithRequireKey answers 400 to a request without a key on the given routes, in
// the pattern language of [WithExclude], and on every route when none is given.
// Here a path counts as whatever a router might make of it, escapes and unclean
// forms included. By default a request without a key passes through.
//
// Given more than once, the routes add up.
func WithRequireKey(routes ...string) Option {
	return func(c *config) error {
		c.requireKeyAlways = c.requireKeyAlways || len(routes) == 0
		c.required = append(c.required, routes...)
		set, err := compileRoutes("WithRequireKey", c.required)
		c.requireKey = set
		return err
	}
}

func compileRoutes(option string, routes []string) (*route.Set, error) {
	set, err := route.Compile(routes...)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", option, err)
	}
	return set, nil
}

// keyRequired reports whether a request without a key is to be refused.
func (c *config) keyRequired(r *http.Request) bool {
	return c.requireKeyAlways || c.requireKey.MatchLoosely(r)
}

// WithRequireOrg answers 401 to a request with a key but no tenant in its
// context. By default it passes through unprotected and is reported as
// [DecisionBypassedNoOrg].
func WithRequireOrg() Option {
	return func(c *config) error {
		c.requireOrg = true
		return nil
	}
}

// WithMethods replaces the methods that keys are honoured on, POST, PUT, PATCH
// and DELETE by default. GET, HEAD, OPTIONS and TRACE are safe (RFC 9110 section
// 9.2.1), always pass through, and cannot be given.
func WithMethods(methods ...string) Option {
	return func(c *config) error {
		if len(methods) == 0 {
			return errors.New("WithMethods: no method given")
		}
		for _, m := range methods {
			switch {
			case !isToken(m):
				return fmt.Errorf("WithMethods: %q is not a method", m)
			case slices.Contains([]string{http.MethodGet, http.MethodHead, http.MethodOptions, http.MethodTrace}, m):
				return fmt.Errorf("WithMethods: %s is a safe method and always passes through", m)
			}
		}
		c.methods = slices.Clone(methods)
		return nil
	}
}

// WithTTL sets how long a completed response is replayed, counted from the claim
// of its key. It must not be shorter than the lease, and should be much longer
// than any handler runs: a record that is completed after its expiry is of no
// use to a retry. Defaults to 24 hours.
func WithTTL(d time.Duration) Option {
	return func(c *config) error {
		c.ttl = d
		return positive("WithTTL", d)
	}
}

// WithLease sets for how long a running request holds its key unless the lease
// is extended, which happens at every third of it until the outcome is stored. After
// a crash retries are refused until the lease has lapsed; a short lease ends that
// sooner and costs more extensions. At least 10 milliseconds; defaults to 30
// seconds.
//
// A process that was paused for longer than the lease has lost the key exactly if
// another attempt has taken it over meanwhile; else it goes on.
func WithLease(d time.Duration) Option {
	return func(c *config) error {
		c.lease = d
		if d < 10*time.Millisecond {
			return fmt.Errorf("WithLease: %s is too short; give at least 10ms", d)
		}
		return nil
	}
}

// WithWait lets a request whose key is in flight wait for the attempt that holds it
// to end, for at most d, and then replays its response; when there is none, because
// the attempt was released or its process died, the waiting request runs the
// handler itself. Only after d is it answered with 409. By default it is at once.
//
// A waiting request holds no connection of the store, but its goroutine and its
// body. Keep d well below the time that clients, proxies and the server
// ([http.Server.WriteTimeout]) give a request; what the store takes to answer a last
// look comes on top of it. With a [WatchStore] it hears of the end as it comes; it also
// looks at least once a second.
func WithWait(d time.Duration) Option {
	return func(c *config) error {
		c.wait = d
		return positive("WithWait", d)
	}
}

// WithStoreTimeout bounds whatever needs the store: claiming a key, storing an
// outcome, releasing a key, looking for the result of a [Step] and storing it, each
// with its retries. After a claim that came to
// nothing, undoing it may take up to half as long again; after an outcome that could not
// be stored, a last try may take a third. Defaults to 5 seconds.
func WithStoreTimeout(d time.Duration) Option {
	return func(c *config) error {
		c.storeTimeout = d
		return positive("WithStoreTimeout", d)
	}
}

// WithMaxRequestBytes bounds the body of a request with a key, which is read
// whole before the handler runs; a larger one is answered with 413. Defaults to
// 1 MiB.
func WithMaxRequestBytes(n int64) Option {
	return func(c *config) error {
		c.maxRequestBytes = n
		return positive("WithMaxRequestBytes", n)
	}
}

// WithMaxResponseBytes bounds the response bodies that are kept. A larger one is
// passed through to the client, and a tombstone is stored in its place: a retry
// is answered with 409 and the original status. Defaults to 1 MiB.
//
// A response is held in memory until its outcome is stored, up to the bound; in a transaction
// the whole of it, whatever its size, since nothing may be sent before the commit.
func WithMaxResponseBytes(n int) Option {
	return func(c *config) error {
		c.maxResponseBytes = n
		return positive("WithMaxResponseBytes", n)
	}
}

func positive[N ~int | ~int64](option string, n N) error {
	if n <= 0 {
		return fmt.Errorf("%s: %v is not positive", option, n)
	}
	return nil
}

// WithReplayHeader renames the header that is set to "true" on a replayed
// response. Defaults to "Idempotency-Replayed".
//
// A browser shows it to a script of another origin only when it is named in
// Access-Control-Expose-Headers.
func WithReplayHeader(name string) Option {
	return func(c *config) error {
		if !isToken(name) {
			return fmt.Errorf("WithReplayHeader: %q is not a header name", name)
		}
		c.replayHeader = textproto.CanonicalMIMEHeaderKey(name)
		if isFraming(c.replayHeader) || !keepHeader(c.replayHeader) || hasMeaning(c.replayHeader) {
			return fmt.Errorf("WithReplayHeader: %s has a meaning of its own; choose another name", c.replayHeader)
		}
		return nil
	}
}

// hasMeaning reports whether a header means something to clients or to HTTP already.
func hasMeaning(name string) bool {
	for _, prefix := range []string{"Content-", "Accept", "Access-Control-", "If-", "Sec-"} {
		if strings.HasPrefix(name, prefix) {
			return true
		}
	}
	switch name {
	case HeaderKey, "Age", "Allow", "Cache-Control", "Cookie", "Etag", "Expires", "Host", "Last-Modified", "Link",
		"Location", "Pragma", "Range", "Retry-After", "Server", "Strict-Transport-Security", "Vary", "Via", "Warning":
		return true
	}
	return false
}

// WithFingerprint replaces the fingerprint by which a retry is told from another
// request that reuses its key; [CanonicalJSON] is a ready one. Defaults to SHA-256
// over method, path, raw query and body.
func WithFingerprint(f Fingerprint) Option {
	return func(c *config) error {
		c.fingerprint, c.givenFingerprint = f, true
		return notNil("WithFingerprint", f == nil)
	}
}

// WithScope narrows keys further than to their tenant: two requests of one tenant
// share a key only when the function returns the same for both. Return the user,
// say, so that no user can meet another's responses. By default keys are shared
// by the whole tenant, and by all services that share its schema.
func WithScope(scope func(*http.Request) string) Option {
	return func(c *config) error {
		c.scope = scope
		return notNil("WithScope", scope == nil)
	}
}

// WithStorable replaces the rule which final statuses are stored and replayed. A
// response of any other status is sent and forgotten, and a retry runs the
// handler again. By default every status under 500 is storable but 401, 403,
// 408, 425 and 429, which tell of the moment rather than of the request.
//
// What the router itself answers counts as well where Require stands around it:
// [http.ServeMux] redirects an unclean path with 307, and a client that follows with
// the same key is then told that it reuses the key. Stand Require around the routes
// instead, or leave such statuses out here, if your clients send unclean paths.
func WithStorable(storable func(status int) bool) Option {
	return func(c *config) error {
		c.storable = storable
		return notNil("WithStorable", storable == nil)
	}
}

func storableStatus(status int) bool {
	switch status {
	case http.StatusUnauthorized, http.StatusForbidden, http.StatusRequestTimeout,
		http.StatusTooEarly, http.StatusTooManyRequests:
		return false
	}
	return status < http.StatusInternalServerError
}

// WithHeaders replaces the rule which of the headers that the handler set are
// stored; names come in canonical form. By default all are but Date, Set-Cookie,
// Authorization, WWW-Authenticate and the hop-by-hop headers (RFC 9110 section
// 7.6.1). Content-Length, Transfer-Encoding and trailers belong to one message
// and are never stored, whatever the rule says.
func WithHeaders(keep func(name string) bool) Option {
	return func(c *config) error {
		c.keepHeader = keep
		return notNil("WithHeaders", keep == nil)
	}
}

// WithReplayCheck asks the function before each replay, for what may have changed
// since the response was stored: permissions that were revoked, say. It must not
// change the record, which may be shared. When it returns an error the response is
// not sent: an error that is a [*Problem] is answered as it is, any other with 403.
// By default nothing is asked.
func WithReplayCheck(check func(r *http.Request, rec *Record) error) Option {
	return func(c *config) error {
		c.replayCheck = check
		return notNil("WithReplayCheck", check == nil)
	}
}

// WithErrorHandler replaces the writer of the responses that [Require] makes
// itself. The error is a [*Problem], which says which status and headers are due
// and wraps the reason. Defaults to [WriteProblem].
func WithErrorHandler(handler func(w http.ResponseWriter, r *http.Request, err error)) Option {
	return func(c *config) error {
		c.errorHandler = handler
		return notNil("WithErrorHandler", handler == nil)
	}
}

// uriBytes are the bytes that a URI reference is made of, RFC 3986 section 2.
const uriBytes = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~:/?#[]@!$&'()*+,;=%"

// WithDescribedBy puts a link to the service's own documentation on the problems
// that [Require] answers, as a Link header with the relation "describedby" (RFC 8288;
// draft-ietf-httpapi-idempotency-key-header-07 section 2.7 shows it). The reference
// is a URI, absolute or relative to the request's. By default there is none.
func WithDescribedBy(reference string) Option {
	return func(c *config) error {
		c.describedBy = reference
		if _, err := url.Parse(reference); err != nil || reference == "" || strings.Trim(reference, uriBytes) != "" {
			return fmt.Errorf("WithDescribedBy: %q is not a URI reference in its encoded form", reference)
		}
		return nil
	}
}

func notNil(option string, isNil bool) error {
	if isNil {
		return fmt.Errorf("%s: the function is nil", option)
	}
	return nil
}

// WithInterrupted sets what a request gets that finds an earlier attempt of
// itself interrupted: in progress, with a lapsed lease, because its process died.
// Defaults to [Rerun].
func WithInterrupted(policy InterruptedPolicy) Option {
	return func(c *config) error {
		c.interrupted = policy
		if policy != Rerun && policy != Refuse {
			return fmt.Errorf("WithInterrupted: %d is neither Rerun nor Refuse", policy)
		}
		return nil
	}
}

// WithFailOpen runs the handler unprotected when the store cannot be asked, where
// the default is to answer 503: availability before safety. Each such request is
// reported as [DecisionRanUnprotected]. A store that was reached and refused, with
// [ErrStoreRefused], is answered with 503 all the same.
func WithFailOpen() Option {
	return func(c *config) error {
		c.failOpen = true
		return nil
	}
}

// WithDetachedHandler keeps the handler's context alive when the client goes
// away, so that it runs to its end. By default the context is cancelled, as
// net/http does; the outcome is stored in both cases.
func WithDetachedHandler() Option {
	return func(c *config) error {
		c.detached = true
		return nil
	}
}

// WithLogger sets where decisions are logged: at level Error those that can mean
// an effect without a record, at Warn those that need an operator, and the rest
// at Debug. [DecisionPanicked] and [DecisionNoOutcome], which every service meets at
// times, are at Warn. Defaults to [slog.Default] as it is when Require is called.
func WithLogger(logger *slog.Logger) Option {
	return func(c *config) error {
		c.logger = logger
		return notNil("WithLogger", logger == nil)
	}
}

// WithObserver calls the function with one [Event] for each request that carried,
// or should have carried, a key, after its response was written. It is called by
// the request's goroutine and should not block.
func WithObserver(observer func(context.Context, Event)) Option {
	return func(c *config) error {
		c.observer = observer
		return notNil("WithObserver", observer == nil)
	}
}
