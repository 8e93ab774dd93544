package authctx

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/google/uuid"

	"github.com/pgidem/pgidem/internal/recovery"
	"github.com/pgidem/pgidem/internal/route"
	"github.com/pgidem/pgidem/tenancy"
)

// Authenticator verifies bearer tokens. Make one with [New]; it does not change
// and is safe for concurrent use.
type Authenticator struct {
	parser        *jwt.Parser
	keyfunc       jwt.Keyfunc
	exclude       *route.Set
	orgClaim      string
	realm         string
	maxTokenBytes int
	writeError    func(http.ResponseWriter, *http.Request, error)
}

// New returns an Authenticator. Exactly one of [WithKey], [WithKeys] and
// [WithKeyfunc] is required. The error names the option that is wrong.
func New(opts ...Option) (*Authenticator, error) {
	c := config{
		orgClaim:      defaultOrgClaim,
		realm:         defaultRealm,
		maxTokenBytes: defaultMaxTokenBytes,
		clock:         time.Now,
		writeError:    WriteError,
	}
	for _, opt := range opts {
		if err := opt(&c); err != nil {
			return nil, fmt.Errorf("authctx: %w", err)
		}
	}
	if c.keyfunc == nil {
		return nil, errors.New("authctx: no key to verify tokens with: give one of WithKey, WithKeys and WithKeyfunc")
	}
	exclude, err := route.Compile(c.exclude...)
	if err != nil {
		return nil, fmt.Errorf("authctx: WithExclude: %w", err)
	}
	return &Authenticator{
		parser: jwt.NewParser(
			jwt.WithValidMethods(c.algs),
			jwt.WithExpirationRequired(),
			jwt.WithIssuer(c.issuer),
			jwt.WithAudience(c.audience...),
			jwt.WithLeeway(c.leeway),
			jwt.WithTimeFunc(c.clock),
			// Refuses base64 with stray bits at its end: another spelling of
			// the same token.
			jwt.WithStrictDecoding(),
		),
		keyfunc:       refuseCritical(c.keyfunc),
		exclude:       exclude,
		orgClaim:      c.orgClaim,
		realm:         c.realm,
		maxTokenBytes: c.maxTokenBytes,
		writeError:    c.writeError,
	}, nil
}

// Middleware calls next for requests with a valid token, with its org_id and
// claims in the context, and for the routes of [WithExclude] as they are. It
// answers all others itself.
//
// A request that is run again because its process died (idempotency.Recovered) has no
// token, for none was kept: it passes with the org_id that it was made with, once it had
// passed here with a token, and without claims. Its context says so, which nothing that
// comes over the network can. Where it brings an Authorization header all the same, that
// is what counts.
func (a *Authenticator) Middleware(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if a.exclude.Match(r) || isRecovered(r) {
			next.ServeHTTP(w, r)
			return
		}
		ctx, err := a.authenticate(r)
		if err != nil {
			a.refuse(w, r, err)
			return
		}
		next.ServeHTTP(w, r.WithContext(ctx))
	})
}

// isRecovered reports whether a worker runs the request again, for the tenant in its
// context.
func isRecovered(r *http.Request) bool {
	orgID, ok := tenancy.OrgID(r.Context())
	return ok && recovery.Is(r.Context(), orgID) && len(r.Header["Authorization"]) == 0
}

// authenticate returns the request's context with the identity of its caller.
func (a *Authenticator) authenticate(r *http.Request) (context.Context, error) {
	token, err := bearerToken(r.Header, a.maxTokenBytes)
	if err != nil {
		return nil, err
	}

	claims := jwt.MapClaims{}
	_, err = a.parser.ParseWithClaims(token, claims, a.keyfunc)
	switch {
	case errors.Is(err, jwt.ErrTokenExpired):
		return nil, fmt.Errorf("%w: %w", ErrTokenExpired, err)
	case err != nil:
		return nil, fmt.Errorf("%w: %w", ErrInvalidToken, err)
	}

	orgID, err := orgIDFrom(claims, a.orgClaim)
	if err != nil {
		return nil, err
	}
	return withClaims(tenancy.WithOrgID(r.Context(), orgID), claims), nil
}

func orgIDFrom(claims jwt.MapClaims, name string) (uuid.UUID, error) {
	claim, ok := claims[name]
	if !ok {
		return uuid.Nil, fmt.Errorf("%w: the claim %q is missing", ErrInvalidOrg, name)
	}
	text, ok := claim.(string)
	if !ok {
		return uuid.Nil, fmt.Errorf("%w: the claim %q is not a string", ErrInvalidOrg, name)
	}
	// uuid.Parse alone also takes URNs, braces and bare digits. An issuer that
	// changes from one form to another should be noticed.
	orgID, err := uuid.Parse(text)
	if err != nil || len(text) != len("00000000-0000-0000-0000-000000000000") {
		return uuid.Nil, fmt.Errorf("%w: the claim %q is not a UUID of 36 characters", ErrInvalidOrg, name)
	}
	if orgID == uuid.Nil {
		return uuid.Nil, fmt.Errorf("%w: the claim %q is the nil UUID", ErrInvalidOrg, name)
	}
	return orgID, nil
}
