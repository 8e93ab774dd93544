package authctx

import (
	"context"

	"github.com/golang-jwt/jwt/v5"
)

type claimsKey struct{}

func withClaims(ctx context.Context, claims jwt.MapClaims) context.Context {
	return context.WithValue(ctx, claimsKey{}, claims)
}

// Claims returns the claims of the token that the middleware verified. It
// reports false where it verified none, as on the routes of [WithExclude].
//
// The map belongs to the request and is shared by all who read it: do not
// change it. Numbers are float64.
func Claims(ctx context.Context) (jwt.MapClaims, bool) {
	claims, ok := ctx.Value(claimsKey{}).(jwt.MapClaims)
	return claims, ok
}

// Subject returns the claim sub of the verified token, which names the caller
// among those of its issuer (RFC 7519 section 4.1.2). It reports false where
// there is no token, or where sub is missing, empty or not a string; a token
// need not have one.
func Subject(ctx context.Context) (string, bool) {
	claims, _ := Claims(ctx)
	subject, _ := claims["sub"].(string)
	return subject, subject != ""
}
