package authctx_test

import (
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/pgidem/pgidem/authctx"
)

func TestErrorHandler(t *testing.T) {
	t.Parallel()

	// errorFor returns what the handler is told about the request.
	errorFor := func(t *testing.T, r *http.Request) error {
		t.Helper()
		var got error
		res := serve(newHS256(t, authctx.WithErrorHandler(func(w http.ResponseWriter, _ *http.Request, err error) {
			got = err
			w.WriteHeader(http.StatusTeapot)
		})), r)
		if res.reached != nil || res.Code != http.StatusTeapot || res.Body.Len() != 0 {
			t.Errorf("status %d, body %q, reached %v", res.Code, res.Body, res.reached != nil)
		}
		if res.Header().Get("WWW-Authenticate") == "" || res.Header().Get("Cache-Control") != "no-store" {
			t.Errorf("headers %v", res.Header())
		}
		return got
	}

	sentinels := []error{
		authctx.ErrNoToken, authctx.ErrMalformedHeader, authctx.ErrInvalidToken, authctx.ErrTokenExpired, authctx.ErrInvalidOrg,
		jwt.ErrTokenMalformed, jwt.ErrTokenSignatureInvalid, jwt.ErrTokenExpired, jwt.ErrTokenRequiredClaimMissing, jwt.ErrTokenNotValidYet,
	}
	for name, tt := range map[string]struct {
		request *http.Request
		want    []error
	}{
		"no token":  {request(), []error{authctx.ErrNoToken}},
		"two":       {request("Bearer a", "Bearer b"), []error{authctx.ErrMalformedHeader}},
		"malformed": {bearer("a.b.c"), []error{authctx.ErrInvalidToken, jwt.ErrTokenMalformed}},
		"too large": {bearer(strings.Repeat("a", 9<<10)), []error{authctx.ErrInvalidToken, jwt.ErrTokenMalformed}},
		"forged": {
			bearer(sign(t, "HS256", []byte("x"), claims(nil))),
			[]error{authctx.ErrInvalidToken, jwt.ErrTokenSignatureInvalid},
		},
		"expired": {
			bearer(sign(t, "HS256", secret, claims(jwt.MapClaims{"exp": now.Unix()}))),
			[]error{authctx.ErrInvalidToken, authctx.ErrTokenExpired, jwt.ErrTokenExpired},
		},
		"no exp": {
			bearer(sign(t, "HS256", secret, claims(jwt.MapClaims{"exp": nil}))),
			[]error{authctx.ErrInvalidToken, jwt.ErrTokenRequiredClaimMissing},
		},
		"early": {
			bearer(sign(t, "HS256", secret, claims(jwt.MapClaims{"nbf": now.Add(time.Hour).Unix()}))),
			[]error{authctx.ErrInvalidToken, jwt.ErrTokenNotValidYet},
		},
		"no org": {
			bearer(sign(t, "HS256", secret, claims(jwt.MapClaims{"org_id": nil}))),
			[]error{authctx.ErrInvalidToken, authctx.ErrInvalidOrg},
		},
	} {
		t.Run("gets the error: "+name, func(t *testing.T) {
			t.Parallel()
			err := errorFor(t, tt.request)
			for _, sentinel := range sentinels {
				want := slices.Contains(tt.want, sentinel)
				if got := errors.Is(err, sentinel); got != want {
					t.Errorf("errors.Is(%v, %v) is %v, want %v", err, sentinel, got, want)
				}
			}
		})
	}

	t.Run("the error does not repeat a token", func(t *testing.T) {
		t.Parallel()
		token := sign(t, "HS256", []byte("x"), claims(nil))
		for _, value := range []string{token, "Bearer " + token, "Bearer " + token + " " + token} {
			err := errorFor(t, request(value))
			for part := range strings.SplitSeq(token, ".") {
				if strings.Contains(err.Error(), part) {
					t.Errorf("the error for %.12q... repeats a part of the token: %v", value, err)
				}
			}
		}
	})

	t.Run("may answer as usual", func(t *testing.T) {
		t.Parallel()
		var logged error
		res := serve(newHS256(t, authctx.WithErrorHandler(func(w http.ResponseWriter, r *http.Request, err error) {
			logged = err
			authctx.WriteError(w, r, err)
		})), request())
		res.wantRefused(t, missing)
		if !errors.Is(logged, authctx.ErrNoToken) {
			t.Errorf("logged %v", logged)
		}
	})

	t.Run("nil means the usual answer", func(t *testing.T) {
		t.Parallel()
		serve(newHS256(t, authctx.WithErrorHandler(nil)), request()).wantRefused(t, missing)
	})

	t.Run("answers an unknown error with 401", func(t *testing.T) {
		t.Parallel()
		w := httptest.NewRecorder()
		authctx.WriteError(w, request(), errors.New("pq: password of the key store"))
		if w.Code != http.StatusUnauthorized || strings.Contains(w.Body.String(), "password") {
			t.Errorf("%d %s", w.Code, w.Body)
		}
	})
}

func TestRealm(t *testing.T) {
	t.Parallel()
	for realm, want := range map[string]string{
		"":              `Bearer realm="api"`,
		"payments":      `Bearer realm="payments"`,
		`say "hi" \o/`:  `Bearer realm="say \"hi\" \\o/"`,
		`a", error="x"`: `Bearer realm="a\", error=\"x\""`,
	} {
		t.Run(fmt.Sprintf("%q", realm), func(t *testing.T) {
			t.Parallel()
			res := serve(newHS256(t, authctx.WithRealm(realm)), request())
			if got := res.Header().Get("WWW-Authenticate"); got != want {
				t.Errorf("WWW-Authenticate: %s, want %s", got, want)
			}
		})
	}
}
