package authctx_test

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/google/uuid"

	"github.com/pgidem/pgidem/authctx"
	"github.com/pgidem/pgidem/tenancy"
)

var (
	// now is the time in all tests.
	now    = time.Date(2026, time.March, 1, 12, 0, 0, 0, time.UTC)
	acme   = uuid.MustParse("0198c0de-0000-7000-8000-00000000ac3e")
	secret = []byte("a secret of 32 bytes for HS256!!")
)

func clock() time.Time { return now }

// claims returns those of a good token, with changes; nil takes one out.
func claims(changes jwt.MapClaims) jwt.MapClaims {
	c := jwt.MapClaims{
		"sub":    "user-1",
		"org_id": acme.String(),
		"exp":    now.Add(time.Hour).Unix(),
	}
	for name, value := range changes {
		if value == nil {
			delete(c, name)
			continue
		}
		c[name] = value
	}
	return c
}

// sign makes a token. The header gets the extra members.
func sign(t testing.TB, alg string, key any, c jwt.MapClaims, header ...map[string]any) string {
	t.Helper()
	token := jwt.NewWithClaims(jwt.GetSigningMethod(alg), c)
	for _, members := range header {
		for name, value := range members {
			token.Header[name] = value
		}
	}
	signed, err := token.SignedString(key)
	if err != nil {
		t.Fatalf("sign with %s: %v", alg, err)
	}
	return signed
}

// good is a token that an Authenticator made by newHS256 accepts.
func good(t testing.TB) string { return sign(t, "HS256", secret, claims(nil)) }

// newHS256 returns an Authenticator with the clock and the secret of the tests.
func newHS256(t testing.TB, opts ...authctx.Option) *authctx.Authenticator {
	t.Helper()
	return newAuth(t, append([]authctx.Option{authctx.WithKey("HS256", secret)}, opts...)...)
}

func newAuth(t testing.TB, opts ...authctx.Option) *authctx.Authenticator {
	t.Helper()
	auth, err := authctx.New(append([]authctx.Option{authctx.WithClock(clock)}, opts...)...)
	if err != nil {
		t.Fatal(err)
	}
	return auth
}

// result is what became of one request.
type result struct {
	*httptest.ResponseRecorder
	reached *http.Request // as the handler got it, or nil
}

func serve(auth *authctx.Authenticator, r *http.Request) result {
	res := result{ResponseRecorder: httptest.NewRecorder()}
	auth.Middleware(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		res.reached = r
	})).ServeHTTP(res, r)
	return res
}

// request has one Authorization line for each of the values.
func request(authorization ...string) *http.Request {
	r := httptest.NewRequest(http.MethodPost, "/v1/payments", nil)
	for _, value := range authorization {
		r.Header.Add("Authorization", value)
	}
	return r
}

func bearer(token string) *http.Request { return request("Bearer " + token) }

// refusal is the part of an answer that callers decide by.
type refusal struct {
	status          int
	code, challenge string
}

var (
	missing   = refusal{401, "token_missing", `Bearer realm="api"`}
	malformed = refusal{400, "authorization_malformed", `Bearer realm="api", error="invalid_request", error_description="Malformed Authorization header"`}
	invalid   = refusal{401, "token_invalid", `Bearer realm="api", error="invalid_token", error_description="The access token is not valid here"`}
	expired   = refusal{401, "token_expired", `Bearer realm="api", error="invalid_token", error_description="The access token has expired"`}
	noOrg     = refusal{401, "org_invalid", `Bearer realm="api", error="invalid_token", error_description="The access token names no organisation"`}
)

func (res result) wantRefused(t *testing.T, want refusal) {
	t.Helper()
	if res.reached != nil {
		t.Fatal("the request reached the handler")
	}
	if res.Code != want.status {
		t.Errorf("status %d, want %d", res.Code, want.status)
	}
	var body struct {
		Type, Title, Detail, Code string
		Status                    int
	}
	if err := json.Unmarshal(res.Body.Bytes(), &body); err != nil {
		t.Fatalf("body %q: %v", res.Body, err)
	}
	if body.Code != want.code {
		t.Errorf("code %q, want %q", body.Code, want.code)
	}
	if body.Status != want.status {
		t.Errorf("status in the body %d, want %d", body.Status, want.status)
	}
	if body.Title == "" || body.Detail == "" || !strings.HasPrefix(body.Type, "https://www.rfc-editor.org/rfc/") {
		t.Errorf("incomplete problem: %s", res.Body)
	}
	for name, value := range map[string]string{
		"WWW-Authenticate": want.challenge,
		"Content-Type":     "application/problem+json",
		"Cache-Control":    "no-store",
	} {
		if got := res.Header().Values(name); len(got) != 1 || got[0] != value {
			t.Errorf("%s: %q, want %q", name, got, value)
		}
	}
}

func (res result) wantReached(t *testing.T) {
	t.Helper()
	if res.reached == nil {
		t.Fatalf("the request did not reach the handler: %d %s", res.Code, res.Body)
	}
}

func TestIdentity(t *testing.T) {
	t.Parallel()
	c := claims(jwt.MapClaims{"scope": "payments:write"})

	t.Run("is in the context", func(t *testing.T) {
		t.Parallel()
		res := serve(newHS256(t), bearer(sign(t, "HS256", secret, c)))
		res.wantReached(t)
		ctx := res.reached.Context()
		if orgID, ok := tenancy.OrgID(ctx); !ok || orgID != acme {
			t.Errorf("OrgID: %v, %v", orgID, ok)
		}
		if subject, ok := authctx.Subject(ctx); !ok || subject != "user-1" {
			t.Errorf("Subject: %q, %v", subject, ok)
		}
		if got, ok := authctx.Claims(ctx); !ok || got["scope"] != "payments:write" {
			t.Errorf("Claims: %v, %v", got, ok)
		}
	})

	t.Run("leaves the request as it was", func(t *testing.T) {
		t.Parallel()
		r := bearer(sign(t, "HS256", secret, c))
		res := serve(newHS256(t), r)
		res.wantReached(t)
		if _, ok := tenancy.OrgID(r.Context()); ok {
			t.Error("the org_id is in the context of the incoming request")
		}
		if res.reached.Header.Get("Authorization") != r.Header.Get("Authorization") {
			t.Error("the handler does not get the Authorization header")
		}
	})

	t.Run("is absent without the middleware", func(t *testing.T) {
		t.Parallel()
		if got, ok := authctx.Claims(t.Context()); ok || got != nil {
			t.Errorf("Claims: %v, %v", got, ok)
		}
		if subject, ok := authctx.Subject(t.Context()); ok || subject != "" {
			t.Errorf("Subject: %q, %v", subject, ok)
		}
	})

	for name, sub := range map[string]any{"missing": nil, "empty": "", "not a string": 7} {
		t.Run("subject "+name, func(t *testing.T) {
			t.Parallel()
			res := serve(newHS256(t), bearer(sign(t, "HS256", secret, claims(jwt.MapClaims{"sub": sub}))))
			res.wantReached(t)
			if subject, ok := authctx.Subject(res.reached.Context()); ok || subject != "" {
				t.Errorf("Subject: %q, %v", subject, ok)
			}
		})
	}

	t.Run("of concurrent requests stays apart", func(t *testing.T) {
		t.Parallel()
		auth := newHS256(t)
		var wg sync.WaitGroup
		for range 8 {
			orgID := uuid.New()
			token := sign(t, "HS256", secret, claims(jwt.MapClaims{"org_id": orgID.String()}))
			wg.Go(func() {
				for range 50 {
					res := serve(auth, bearer(token))
					if res.reached == nil {
						t.Errorf("refused: %s", res.Body)
						return
					}
					if got, _ := tenancy.OrgID(res.reached.Context()); got != orgID {
						t.Errorf("OrgID %v, want %v", got, orgID)
					}
					if res := serve(auth, request()); res.reached != nil {
						t.Error("a request without a token reached the handler")
					}
				}
			})
		}
		wg.Wait()
	})
}

func TestAuthorizationHeader(t *testing.T) {
	t.Parallel()
	token := good(t)

	for name, value := range map[string]string{
		"as in the RFC":      "Bearer " + token,
		"lower case":         "bearer " + token,
		"upper case":         "BEARER " + token,
		"several spaces":     "Bearer   " + token,
		"a space at its end": "Bearer " + token + " ",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			serve(newHS256(t), request(value)).wantReached(t)
		})
	}

	for name, tt := range map[string]struct {
		values []string
		want   refusal
	}{
		"none":                   {nil, missing},
		"empty":                  {[]string{""}, missing},
		"another scheme":         {[]string{"Basic dXNlcjpwYXNz"}, missing},
		"a scheme like it":       {[]string{"BearerX " + token}, missing},
		"a token alone":          {[]string{token}, missing},
		"a tab after the scheme": {[]string{"Bearer\t" + token}, missing},
		"the scheme alone":       {[]string{"Bearer"}, malformed},
		"a scheme and spaces":    {[]string{"Bearer  "}, malformed},
		"two tokens":             {[]string{"Bearer " + token + " " + token}, malformed},
		"two folded into one":    {[]string{"Bearer " + token + ", Bearer " + token}, malformed},
		"a comma":                {[]string{"Bearer " + token + ","}, malformed},
		"two lines":              {[]string{"Bearer " + token, "Bearer " + token}, malformed},
		"two lines, one Basic":   {[]string{"Bearer " + token, "Basic dXNlcjpwYXNz"}, malformed},
		"two lines, one empty":   {[]string{"", "Bearer " + token}, malformed},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			serve(newHS256(t), request(tt.values...)).wantRefused(t, tt.want)
		})
	}

	t.Run("a token in the query does not count", func(t *testing.T) {
		t.Parallel()
		r := httptest.NewRequest(http.MethodGet, "/v1/payments?access_token="+token, nil)
		serve(newHS256(t), r).wantRefused(t, missing)
	})

	t.Run("a token in the form does not count", func(t *testing.T) {
		t.Parallel()
		r := httptest.NewRequest(http.MethodPost, "/v1/payments", strings.NewReader("access_token="+token))
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		serve(newHS256(t), r).wantRefused(t, missing)
	})

	t.Run("a token in a cookie does not count", func(t *testing.T) {
		t.Parallel()
		r := request()
		r.AddCookie(&http.Cookie{Name: "access_token", Value: token})
		serve(newHS256(t), r).wantRefused(t, missing)
	})
}
