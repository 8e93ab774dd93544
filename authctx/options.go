package authctx

import (
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

const (
	defaultOrgClaim      = "org_id"
	defaultRealm         = "api"
	defaultMaxTokenBytes = 8 << 10

	maxLeeway = 5 * time.Minute
)

// Option configures [New]. Given twice, an option that takes a list adds to it,
// and of another the last one counts. The zero value of an option's argument
// means its default, but not where that would drop a check that was asked for:
// an empty issuer, audience or key is an error.
type Option func(*config) error

type config struct {
	algs          []string
	keyfunc       jwt.Keyfunc
	issuer        string
	audience      []string
	leeway        time.Duration
	clock         func() time.Time
	orgClaim      string
	exclude       []string
	realm         string
	maxTokenBytes int
	writeError    func(http.ResponseWriter, *http.Request, error)
}

// WithIssuer requires the claim iss (RFC 7519 section 4.1.1) to be this very
// string. By default it is not checked. An empty issuer is an error.
func WithIssuer(issuer string) Option {
	return func(c *config) error {
		if issuer == "" {
			return errors.New("WithIssuer: the issuer is empty; leave the option out to accept any")
		}
		c.issuer = issuer
		return nil
	}
}

// WithAudience requires the claim aud (RFC 7519 section 4.1.3) to have at least
// one of the audiences. By default it is not checked, and then a token that the
// same issuer made for another service is accepted here: set it wherever the
// issuer serves more than this one. It is an error to give none, or an empty
// one.
func WithAudience(audience ...string) Option {
	audience = slices.Clone(audience)
	return func(c *config) error {
		if len(audience) == 0 || slices.Contains(audience, "") {
			return errors.New("WithAudience: an audience is empty, or there is none; leave the option out to accept any")
		}
		c.audience = append(c.audience, audience...)
		return nil
	}
}

// WithLeeway accepts a token that long after its exp and before its nbf, for
// clocks that disagree. Defaults to 0; a few seconds help with issuers that set
// nbf to the present. Less than 0 and more than 5 minutes are errors (RFC 7519
// section 4.1.4: "usually no more than a few minutes").
func WithLeeway(leeway time.Duration) Option {
	return func(c *config) error {
		if leeway < 0 || leeway > maxLeeway {
			return fmt.Errorf("WithLeeway: %v is not between 0 and %v", leeway, maxLeeway)
		}
		c.leeway = leeway
		return nil
	}
}

// WithClock replaces the clock that exp and nbf are compared with, in tests.
// Defaults to [time.Now].
func WithClock(now func() time.Time) Option {
	return func(c *config) error {
		c.clock = now
		if now == nil {
			c.clock = time.Now
		}
		return nil
	}
}

// WithOrgClaim takes the org_id from the claim of that name, at the top level
// of the token. Defaults to "org_id".
func WithOrgClaim(name string) Option {
	return func(c *config) error {
		c.orgClaim = name
		if name == "" {
			c.orgClaim = defaultOrgClaim
		}
		return nil
	}
}

// WithExclude lets requests on the routes through without any check of a token:
// the routes by which a caller gets one, and health checks. Their context has
// no org_id and no claims from here, even when they carry a token. By default
// there are none.
//
// A route is a pattern of [net/http.ServeMux], "[METHOD ]PATH", without a host:
//
//	"POST /v1/auth/login"   one method and one path
//	"/healthz"              any method
//	"GET /v1/plans/{id}"    {id} is exactly one segment; GET includes HEAD
//	"/v1/public/"           everything below, and /v1/public/ itself
//	"/v1/auth/{$}"          exactly /v1/auth/
//	"/static/{rest...}"     the same as "/static/"
//	"OPTIONS /"             CORS preflights, which never carry a token
//
// Unlike ServeMux, which cleans paths and redirects, it takes a request only at
// its word: one whose path has "//", a segment "." or "..", an unusual encoding
// ("/l%6Fgin", "%2F"), or, decoded, a control character, "%", a backslash or a
// semicolon, is on no route and needs a token. A pattern that is malformed or
// could match nothing is an error.
func WithExclude(routes ...string) Option {
	routes = slices.Clone(routes)
	return func(c *config) error {
		c.exclude = append(c.exclude, routes...)
		return nil
	}
}

// WithMaxTokenBytes bounds the length of a token; a longer one is refused
// before anything of it is decoded. Defaults to 8 KiB (8192). Less than 0 is an
// error.
func WithMaxTokenBytes(n int) Option {
	return func(c *config) error {
		if n < 0 {
			return fmt.Errorf("WithMaxTokenBytes: %d is negative", n)
		}
		c.maxTokenBytes = n
		if n == 0 {
			c.maxTokenBytes = defaultMaxTokenBytes
		}
		return nil
	}
}

// WithRealm names the protection space in the WWW-Authenticate challenge (RFC
// 9110 section 11.5). Defaults to "api". Other than printable ASCII characters
// are an error.
func WithRealm(realm string) Option {
	return func(c *config) error {
		if strings.ContainsFunc(realm, func(r rune) bool { return r < ' ' || r > '~' }) {
			return fmt.Errorf("WithRealm: %q has other than printable ASCII characters", realm)
		}
		c.realm = realm
		if realm == "" {
			c.realm = defaultRealm
		}
		return nil
	}
}

// WithErrorHandler replaces [WriteError], which answers refused requests. The
// handler must write the status and the body; the headers WWW-Authenticate and
// Cache-Control are set already. To log and answer as usual, call WriteError
// from it.
//
// The error is one of this package's, and may tell more than a caller should
// know: do not send its text.
func WithErrorHandler(handler func(w http.ResponseWriter, r *http.Request, err error)) Option {
	return func(c *config) error {
		c.writeError = handler
		if handler == nil {
			c.writeError = WriteError
		}
		return nil
	}
}
