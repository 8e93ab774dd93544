package authctx_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"math/big"
	"net/http"
	"strings"
	"sync"
	"testing"

	"github.com/golang-jwt/jwt/v5"

	"github.com/pgidem/pgidem/authctx"
)

// pair is a key to sign with and the one to verify with.
type pair struct{ sign, verify any }

// keyPair makes one pair for each algorithm.
func keyPair(alg string) pair {
	switch alg {
	case "ES256":
		return ecdsaPair(elliptic.P256())
	case "ES384":
		return ecdsaPair(elliptic.P384())
	case "ES512":
		return ecdsaPair(elliptic.P521())
	case "EdDSA":
		public, private, err := ed25519.GenerateKey(rand.Reader)
		must(err)
		return pair{private, public}
	}
	if strings.HasPrefix(alg, "HS") {
		long := []byte(strings.Repeat("0123456789abcdef", 4))
		return pair{long, long}
	}
	private := rsaKey()
	return pair{private, &private.PublicKey}
}

func ecdsaPair(curve elliptic.Curve) pair {
	private, err := ecdsa.GenerateKey(curve, rand.Reader)
	must(err)
	return pair{private, &private.PublicKey}
}

// rsaKey is one for all tests, as it takes long to make.
var rsaKey = sync.OnceValue(func() *rsa.PrivateKey {
	private, err := rsa.GenerateKey(rand.Reader, 2048)
	must(err)
	return private
})

func must(err error) {
	if err != nil {
		panic(err)
	}
}

// publicPEM is what a client may know of an RSA key.
func publicPEM(t *testing.T) []byte {
	t.Helper()
	der, err := x509.MarshalPKIXPublicKey(&rsaKey().PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
}

var algorithms = []string{
	"HS256", "HS384", "HS512", "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA",
}

func TestAlgorithms(t *testing.T) {
	t.Parallel()
	for _, alg := range algorithms {
		t.Run(alg, func(t *testing.T) {
			t.Parallel()
			keys := keyPair(alg)
			auth := newAuth(t, authctx.WithKey(alg, keys.verify))
			serve(auth, bearer(sign(t, alg, keys.sign, claims(nil)))).wantReached(t)

			forged := sign(t, alg, keys.sign, claims(nil))
			header, _, signature := parts(forged)
			_, payload, _ := parts(sign(t, alg, keys.sign, claims(jwt.MapClaims{"sub": "admin"})))
			serve(auth, bearer(header+"."+payload+"."+signature)).wantRefused(t, invalid)

			for _, other := range algorithms {
				if other != alg {
					serve(auth, bearer(sign(t, other, keyPair(other).sign, claims(nil)))).wantRefused(t, invalid)
				}
			}
		})
	}
}

// TestAlgorithmConfusion signs with HMAC and the public key that the service
// verifies RS256 with, in every form in which it might serve as a secret.
func TestAlgorithmConfusion(t *testing.T) {
	t.Parallel()
	public := &rsaKey().PublicKey
	der, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		t.Fatal(err)
	}
	auths := map[string]*authctx.Authenticator{
		"WithKey":  newAuth(t, authctx.WithKey("RS256", public)),
		"WithKeys": newAuth(t, authctx.WithKeys("RS256", map[string]any{"a": public})),
		"WithKeyfunc": newAuth(t, authctx.WithKeyfunc(func(*jwt.Token) (any, error) {
			return public, nil
		}, "RS256", "ES256")),
	}
	for name, auth := range auths {
		for form, asSecret := range map[string][]byte{
			"PEM": publicPEM(t), "DER": der, "PKCS #1": x509.MarshalPKCS1PublicKey(public), "modulus": public.N.Bytes(),
		} {
			t.Run(name+"/"+form, func(t *testing.T) {
				t.Parallel()
				token := sign(t, "HS256", asSecret, claims(nil), map[string]any{"kid": "a"})
				serve(auth, bearer(token)).wantRefused(t, invalid)
			})
		}
	}
}

func TestWithKeys(t *testing.T) {
	t.Parallel()
	older, newer := ecdsaPair(elliptic.P256()), ecdsaPair(elliptic.P256())
	auth := newAuth(t, authctx.WithKeys("ES256", map[string]any{"older": older.verify, "newer": newer.verify}))
	by := func(key any, header map[string]any) *http.Request {
		return bearer(sign(t, "ES256", key, claims(nil), header))
	}

	serve(auth, by(older.sign, map[string]any{"kid": "older"})).wantReached(t)
	serve(auth, by(newer.sign, map[string]any{"kid": "newer"})).wantReached(t)

	for name, r := range map[string]*http.Request{
		"the kid of another key": by(older.sign, map[string]any{"kid": "newer"}),
		"an unknown kid":         by(older.sign, map[string]any{"kid": "oldest"}),
		"an empty kid":           by(older.sign, map[string]any{"kid": ""}),
		"a kid that is a number": by(older.sign, map[string]any{"kid": 1}),
		"a kid that is a list":   by(older.sign, map[string]any{"kid": []string{"older"}}),
		"no kid":                 by(older.sign, nil),
	} {
		t.Run("refuses "+name, func(t *testing.T) {
			t.Parallel()
			serve(auth, r).wantRefused(t, invalid)
		})
	}
}

func TestWithKeyfunc(t *testing.T) {
	t.Parallel()
	ec, ed := ecdsaPair(elliptic.P256()), keyPair("EdDSA")
	returns := func(key any, err error) jwt.Keyfunc {
		return func(*jwt.Token) (any, error) { return key, err }
	}
	token := sign(t, "ES256", ec.sign, claims(nil))

	for name, tt := range map[string]struct {
		key  any
		algs []string
	}{
		"a key":                  {ec.verify, []string{"ES256"}},
		"several algorithms":     {ec.verify, []string{"EdDSA", "RS256", "ES256"}},
		"a set of keys":          {jwt.VerificationKeySet{Keys: []jwt.VerificationKey{ecdsaPair(elliptic.P256()).verify, ec.verify}}, []string{"ES256"}},
		"a set of several types": {jwt.VerificationKeySet{Keys: []jwt.VerificationKey{ed.verify, nil, ec.verify}}, []string{"ES256", "EdDSA"}},
	} {
		t.Run("accepts "+name, func(t *testing.T) {
			t.Parallel()
			serve(newAuth(t, authctx.WithKeyfunc(returns(tt.key, nil), tt.algs...)), bearer(token)).wantReached(t)
		})
	}

	for name, key := range map[string]any{
		"no key":                          nil,
		"another key":                     ecdsaPair(elliptic.P256()).verify,
		"a key of another algorithm":      ed.verify,
		"a key on another curve":          ecdsaPair(elliptic.P384()).verify,
		"a secret":                        secret,
		"a private key":                   ec.sign,
		"a set of no keys":                jwt.VerificationKeySet{},
		"a set without one that is apt":   jwt.VerificationKeySet{Keys: []jwt.VerificationKey{ed.verify, secret}},
		"a set without one that is right": jwt.VerificationKeySet{Keys: []jwt.VerificationKey{ecdsaPair(elliptic.P256()).verify}},
	} {
		t.Run("refuses "+name, func(t *testing.T) {
			t.Parallel()
			serve(newAuth(t, authctx.WithKeyfunc(returns(key, nil), "ES256")), bearer(token)).wantRefused(t, invalid)
		})
	}

	t.Run("refuses a weak key", func(t *testing.T) {
		t.Parallel()
		weak := []byte("password")
		for _, key := range []any{weak, jwt.VerificationKeySet{Keys: []jwt.VerificationKey{weak}}} {
			auth := newAuth(t, authctx.WithKeyfunc(returns(key, nil), "HS256"))
			serve(auth, bearer(sign(t, "HS256", weak, claims(nil)))).wantRefused(t, invalid)
		}
	})

	t.Run("is not asked about other algorithms", func(t *testing.T) {
		t.Parallel()
		auth := newAuth(t, authctx.WithKeyfunc(func(t *jwt.Token) (any, error) {
			panic("asked about " + t.Method.Alg())
		}, "ES256"))
		serve(auth, bearer(sign(t, "EdDSA", ed.sign, claims(nil)))).wantRefused(t, invalid)
		serve(auth, bearer(sign(t, "none", jwt.UnsafeAllowNoneSignatureType, claims(nil)))).wantRefused(t, invalid)
	})

	t.Run("its error can be had", func(t *testing.T) {
		t.Parallel()
		unreachable := errors.New("https://id.example.com/jwks.json: connection refused")
		auth := newAuth(t,
			authctx.WithKeyfunc(returns(nil, unreachable), "ES256"),
			authctx.WithErrorHandler(func(w http.ResponseWriter, r *http.Request, err error) {
				if errors.Is(err, unreachable) && errors.Is(err, authctx.ErrInvalidToken) {
					w.WriteHeader(http.StatusServiceUnavailable)
				}
			}))
		if res := serve(auth, bearer(token)); res.reached != nil || res.Code != http.StatusServiceUnavailable {
			t.Errorf("status %d", res.Code)
		}

		res := serve(newAuth(t, authctx.WithKeyfunc(returns(nil, unreachable), "ES256")), bearer(token))
		res.wantRefused(t, invalid)
		if strings.Contains(res.Body.String(), "jwks") {
			t.Errorf("the answer repeats the error: %s", res.Body)
		}
	})
}

func TestKeysAreCopied(t *testing.T) {
	t.Parallel()
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	wiped := []byte(strings.Clone(string(secret)))
	kept := map[string]any{"a": wiped}
	byKey := newAuth(t, authctx.WithKey("HS256", wiped))
	byKid := newAuth(t, authctx.WithKeys("HS256", kept))
	byEd := newAuth(t, authctx.WithKey("EdDSA", public))
	clear(wiped)
	clear(kept)
	clear(public)

	kid := map[string]any{"kid": "a"}
	serve(byKey, bearer(good(t))).wantReached(t)
	serve(byKid, bearer(sign(t, "HS256", secret, claims(nil), kid))).wantReached(t)
	serve(byEd, bearer(sign(t, "EdDSA", private, claims(nil)))).wantReached(t)
	serve(byKey, bearer(sign(t, "HS256", make([]byte, 32), claims(nil)))).wantRefused(t, invalid)
	serve(byKid, bearer(sign(t, "HS256", make([]byte, 32), claims(nil), kid))).wantRefused(t, invalid)
}

func TestNewRefusesKeys(t *testing.T) {
	t.Parallel()
	ec := ecdsaPair(elliptic.P256())
	otherCurve := *ecdsaPair(elliptic.P384()).verify.(*ecdsa.PublicKey)
	otherCurve.Curve = elliptic.P256()
	short := &rsa.PublicKey{N: new(big.Int).Lsh(big.NewInt(1), 2046), E: 65537}

	for name, tt := range map[string]struct {
		alg  string
		key  any
		want string
	}{
		"none":                      {"none", jwt.UnsafeAllowNoneSignatureType, `algorithm "none"`},
		"no algorithm":              {"", secret, `algorithm ""`},
		"an algorithm's lower case": {"hs256", secret, `algorithm "hs256"`},
		"an encryption algorithm":   {"RSA-OAEP", &rsaKey().PublicKey, "is not one of ES256"},
		"nil":                       {"HS256", nil, "<nil>, want []byte"},
		"a secret as a string":      {"HS256", string(secret), "string, want []byte"},
		"a short secret":            {"HS256", secret[:31], "31 bytes, want at least 32"},
		"a short secret, HS384":     {"HS384", make([]byte, 47), "at least 48"},
		"a short secret, HS512":     {"HS512", make([]byte, 63), "at least 64"},
		"no secret":                 {"HS256", []byte{}, "0 bytes"},
		"a PEM file as a secret":    {"HS256", publicPEM(t), "PEM block"},
		"a public key as a secret":  {"HS256", keyPair("EdDSA").verify, "ed25519.PublicKey, want []byte"},
		"a secret for RSA":          {"RS256", secret, "[]uint8, want *rsa.PublicKey"},
		"a PEM file for RSA":        {"RS256", publicPEM(t), "want *rsa.PublicKey"},
		"a private RSA key":         {"RS256", rsaKey(), "*rsa.PrivateKey, want *rsa.PublicKey"},
		"an RSA key by value":       {"PS256", rsaKey().PublicKey, "rsa.PublicKey, want *rsa.PublicKey"},
		"an RSA key that is nil":    {"PS384", (*rsa.PublicKey)(nil), "empty"},
		"an RSA key without parts":  {"PS512", &rsa.PublicKey{}, "empty"},
		"an RSA key of 2047 bits":   {"RS512", short, "2047 bits, want at least 2048"},
		"a secret for ECDSA":        {"ES256", secret, "want *ecdsa.PublicKey"},
		"an RSA key for ECDSA":      {"ES256", &rsaKey().PublicKey, "want *ecdsa.PublicKey"},
		"another curve":             {"ES384", ec.verify, "curve P-256, want P-384"},
		"another curve, ES512":      {"ES512", ec.verify, "want P-521"},
		"an ECDSA key that is nil":  {"ES256", (*ecdsa.PublicKey)(nil), "empty"},
		"an ECDSA key, no curve":    {"ES256", &ecdsa.PublicKey{}, "empty"},
		"a point off the curve":     {"ES256", &otherCurve, "not a point"},
		"an ECDSA key for EdDSA":    {"EdDSA", ec.verify, "want ed25519.PublicKey"},
		"a private Ed25519 key":     {"EdDSA", keyPair("EdDSA").sign, "ed25519.PrivateKey, want"},
		"bytes for EdDSA":           {"EdDSA", make([]byte, 32), "want ed25519.PublicKey"},
		"a short Ed25519 key":       {"EdDSA", ed25519.PublicKey(make([]byte, 31)), "31 bytes, want 32"},
		"a crypto.PublicKey":        {"EdDSA", crypto.PublicKey(nil), "want ed25519.PublicKey"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			wantNewError(t, "WithKey: ", tt.want, authctx.WithKey(tt.alg, tt.key))
			wantNewError(t, `WithKeys: kid "b": `, tt.want, authctx.WithKeys(tt.alg, map[string]any{"b": tt.key}))
		})
	}
}
