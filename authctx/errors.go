package authctx

import (
	"errors"
	"fmt"
)

// The errors of a refused request, as [WithErrorHandler] gets them. They are
// wrapped with what was wrong, which may come from package jwt: its errors work
// with [errors.Is] too. Neither this package nor jwt puts the token or a key into
// them.
var (
	// ErrNoToken says that the request has no Authorization header, or one of
	// another scheme than Bearer. The caller should log in: 401.
	ErrNoToken = errors.New("authctx: no bearer token")

	// ErrMalformedHeader says that there are several Authorization headers, or
	// that the one is not the word Bearer and one token. The caller has a bug:
	// 400.
	ErrMalformedHeader = errors.New("authctx: malformed Authorization header")

	// ErrInvalidToken says that the token is malformed or too large, is signed
	// with another key or algorithm, has the wrong issuer or audience, lacks
	// exp, or is not yet valid: 401.
	ErrInvalidToken = errors.New("authctx: invalid token")

	// ErrTokenExpired says that the signature is right and exp has passed: 401.
	// It wraps [ErrInvalidToken].
	ErrTokenExpired = fmt.Errorf("%w: expired", ErrInvalidToken)

	// ErrInvalidOrg says that the token is valid, but that its org_id is
	// missing or not the UUID of a tenant: 401. It wraps [ErrInvalidToken].
	ErrInvalidOrg = fmt.Errorf("%w: no org_id", ErrInvalidToken)
)
