package authctx

import (
	"fmt"
	"net/http"
	"strings"

	"github.com/golang-jwt/jwt/v5"
)

// bearerToken takes the token from the Authorization header (RFC 6750 section
// 2.1). Whatever is not exactly one credential is refused, since a proxy in
// front may have looked at another one.
//
// The errors do not repeat the header: a caller that forgets the word Bearer
// sends its token where the scheme should be.
func bearerToken(header http.Header, maxBytes int) (string, error) {
	lines := header.Values("Authorization")
	switch len(lines) {
	case 0:
		return "", fmt.Errorf("%w: no Authorization header", ErrNoToken)
	case 1:
	default:
		return "", fmt.Errorf("%w: %d of them", ErrMalformedHeader, len(lines))
	}

	scheme, token, _ := strings.Cut(lines[0], " ")
	token = strings.Trim(token, " ")
	switch {
	case !strings.EqualFold(scheme, "Bearer"):
		return "", fmt.Errorf("%w: the Authorization header has another scheme", ErrNoToken)
	case token == "":
		return "", fmt.Errorf("%w: nothing after the scheme", ErrMalformedHeader)
	case len(token) > maxBytes:
		return "", fmt.Errorf("%w: %w: %d bytes, at most %d are allowed", ErrInvalidToken, jwt.ErrTokenMalformed, len(token), maxBytes)
	case strings.ContainsAny(token, " \t,"):
		return "", fmt.Errorf("%w: more than one token", ErrMalformedHeader)
	}
	return token, nil
}
