package authctx

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/golang-jwt/jwt/v5"
)

// WithKey accepts tokens that are signed with one algorithm and one key; a kid
// in their header is ignored. The algorithm (RFC 7518 section 3.1, RFC 8037)
// decides what the key must be:
//
//	HS256, HS384, HS512         []byte of at least 32, 48 or 64 bytes (RFC 7518 section 3.2)
//	RS256, RS384, RS512         *rsa.PublicKey of at least 2048 bits (section 3.3)
//	PS256, PS384, PS512         *rsa.PublicKey of at least 2048 bits (section 3.5)
//	ES256, ES384, ES512         *ecdsa.PublicKey on P-256, P-384 or P-521 (section 3.4)
//	EdDSA                       ed25519.PublicKey
//
// Any other key is an error, and so are any other algorithm, "none" among them,
// and a second source of keys. With an HMAC algorithm, whoever can verify a
// token can also make one; prefer the others between parties.
func WithKey(alg string, key any) Option {
	key = own(key)
	return func(c *config) error {
		if err := checkKey(alg, key); err != nil {
			return fmt.Errorf("WithKey: %w", err)
		}
		return c.setKeys("WithKey", []string{alg}, func(*jwt.Token) (any, error) { return key, nil })
	}
}

// WithKeys accepts tokens that are signed with one algorithm and the key that
// the kid in their header names (RFC 7515 section 4.1.4), so that keys can be
// rotated: add the new key everywhere, sign with it, and take the old one out
// when its last token has expired. A token with an unknown kid or none is
// refused.
//
// The algorithm and the keys are as for [WithKey]. It is an error to give no
// keys, or an empty kid.
func WithKeys(alg string, keys map[string]any) Option {
	keys = maps.Clone(keys)
	for kid := range keys {
		keys[kid] = own(keys[kid])
	}
	return func(c *config) error {
		if len(keys) == 0 {
			return errors.New("WithKeys: there are no keys")
		}
		for kid, key := range keys {
			if kid == "" {
				return errors.New("WithKeys: a kid is empty")
			}
			if err := checkKey(alg, key); err != nil {
				return fmt.Errorf("WithKeys: kid %q: %w", kid, err)
			}
		}
		return c.setKeys("WithKeys", []string{alg}, func(t *jwt.Token) (any, error) {
			kid, _ := t.Header["kid"].(string)
			key, ok := keys[kid]
			if !ok {
				return nil, errors.New("kid is missing or unknown")
			}
			return key, nil
		})
	}
}

// WithKeyfunc accepts tokens that are signed with one of the algorithms and the
// key that find returns, for libraries that keep the keys of a JWKS endpoint.
// Their header and claims are not verified when find sees them. It must be safe
// for concurrent use.
//
// A key must suit the token's algorithm as it does for [WithKey]; of a
// [jwt.VerificationKeySet] the keys that suit are tried. The error of find
// refuses the request as [ErrInvalidToken] and can be had from it with
// [errors.Is], for a [WithErrorHandler] that answers an unreachable endpoint
// with 503, say.
//
// It is an error to give no find or no algorithm, an unknown one, or HMAC
// algorithms together with others, where a public key might be taken for a
// secret (RFC 8725 section 2.1).
func WithKeyfunc(find jwt.Keyfunc, algs ...string) Option {
	algs = slices.Clone(algs)
	return func(c *config) error {
		if find == nil {
			return errors.New("WithKeyfunc: there is no function")
		}
		if len(algs) == 0 {
			return errors.New("WithKeyfunc: no algorithm is pinned; name those that the issuer signs with")
		}
		for _, alg := range algs {
			if _, ok := keyChecks[alg]; !ok {
				return fmt.Errorf("WithKeyfunc: %w", unknownAlgorithm(alg))
			}
			if isHMAC(alg) != isHMAC(algs[0]) {
				return fmt.Errorf("WithKeyfunc: %s and %s: HMAC algorithms cannot be mixed with others", algs[0], alg)
			}
		}
		return c.setKeys("WithKeyfunc", algs, func(t *jwt.Token) (any, error) {
			found, err := find(t)
			if err != nil {
				return nil, err
			}
			return suitable(t.Method.Alg(), found)
		})
	}
}

func (c *config) setKeys(option string, algs []string, keyfunc jwt.Keyfunc) error {
	if c.keyfunc != nil {
		return fmt.Errorf("%s: the keys are set already; give one of WithKey, WithKeys and WithKeyfunc, once", option)
	}
	c.algs, c.keyfunc = algs, keyfunc
	return nil
}

// refuseCritical refuses tokens with the header crit, as RFC 7515 section
// 4.1.11 demands of those who do not understand an extension. Package jwt
// leaves the check to its users.
func refuseCritical(find jwt.Keyfunc) jwt.Keyfunc {
	return func(t *jwt.Token) (any, error) {
		if _, ok := t.Header["crit"]; ok {
			return nil, errors.New("the header crit names extensions, and none is supported")
		}
		return find(t)
	}
}

// suitable returns what a key function found, or that part of it that a
// signature of the algorithm may be verified with.
func suitable(alg string, found any) (any, error) {
	set, ok := found.(jwt.VerificationKeySet)
	if !ok {
		return found, checkKey(alg, found)
	}
	var fit jwt.VerificationKeySet
	for _, key := range set.Keys {
		if checkKey(alg, key) == nil {
			fit.Keys = append(fit.Keys, key)
		}
	}
	return fit, nil
}

// own returns a key that its giver cannot change any more: one who wipes a
// secret after use must not leave a verifier whose secret is known to be zeros.
func own(key any) any {
	switch k := key.(type) {
	case []byte:
		return bytes.Clone(k)
	case ed25519.PublicKey:
		return ed25519.PublicKey(bytes.Clone(k))
	default:
		return key
	}
}

// keyChecks has the algorithms that may be pinned. Each takes keys of one Go
// type, and no type serves both HMAC and another algorithm, so that a public
// key never becomes a secret.
var keyChecks = map[string]func(key any) error{
	"HS256": checkSecret(32),
	"HS384": checkSecret(48),
	"HS512": checkSecret(64),
	"RS256": checkRSA,
	"RS384": checkRSA,
	"RS512": checkRSA,
	"PS256": checkRSA,
	"PS384": checkRSA,
	"PS512": checkRSA,
	"ES256": checkECDSA(elliptic.P256()),
	"ES384": checkECDSA(elliptic.P384()),
	"ES512": checkECDSA(elliptic.P521()),
	"EdDSA": checkEd25519,
}

func isHMAC(alg string) bool { return strings.HasPrefix(alg, "HS") }

func checkKey(alg string, key any) error {
	check, ok := keyChecks[alg]
	if !ok {
		return unknownAlgorithm(alg)
	}
	if err := check(key); err != nil {
		return fmt.Errorf("key for %s: %w", alg, err)
	}
	return nil
}

func unknownAlgorithm(alg string) error {
	return fmt.Errorf("algorithm %q is not one of %s", alg, strings.Join(slices.Sorted(maps.Keys(keyChecks)), ", "))
}

func checkSecret(minBytes int) func(any) error {
	return func(key any) error {
		secret, ok := key.([]byte)
		switch {
		case !ok:
			return fmt.Errorf("%T, want []byte", key)
		case bytes.Contains(secret, []byte("-----BEGIN ")):
			return errors.New("a PEM block is no secret; parse it, and pin the algorithm of the key in it")
		case len(secret) < minBytes:
			return fmt.Errorf("%d bytes, want at least %d random ones", len(secret), minBytes)
		}
		return nil
	}
}

const minRSABits = 2048

func checkRSA(key any) error {
	public, ok := key.(*rsa.PublicKey)
	switch {
	case !ok:
		return fmt.Errorf("%T, want *rsa.PublicKey", key)
	case public == nil || public.N == nil:
		return errors.New("empty *rsa.PublicKey")
	case public.N.BitLen() < minRSABits:
		return fmt.Errorf("%d bits, want at least %d", public.N.BitLen(), minRSABits)
	}
	return nil
}

func checkECDSA(curve elliptic.Curve) func(any) error {
	return func(key any) error {
		public, ok := key.(*ecdsa.PublicKey)
		switch {
		case !ok:
			return fmt.Errorf("%T, want *ecdsa.PublicKey", key)
		case public == nil || public.Curve == nil:
			return errors.New("empty *ecdsa.PublicKey")
		case public.Curve != curve:
			return fmt.Errorf("curve %s, want %s", public.Curve.Params().Name, curve.Params().Name)
		}
		if _, err := public.Bytes(); err != nil {
			return fmt.Errorf("not a point of the curve: %w", err)
		}
		return nil
	}
}

func checkEd25519(key any) error {
	public, ok := key.(ed25519.PublicKey)
	switch {
	case !ok:
		return fmt.Errorf("%T, want ed25519.PublicKey", key)
	case len(public) != ed25519.PublicKeySize:
		return fmt.Errorf("%d bytes, want %d", len(public), ed25519.PublicKeySize)
	}
	return nil
}
