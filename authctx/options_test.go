package authctx_test

import (
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/pgidem/pgidem/authctx"
)

// wantNewError wants New to refuse the options with an error that begins with
// the name of the option and contains the text.
func wantNewError(t *testing.T, option, text string, opts ...authctx.Option) {
	t.Helper()
	auth, err := authctx.New(opts...)
	if err == nil {
		t.Fatal("New succeeded")
	}
	if auth != nil {
		t.Error("New returned an Authenticator with its error")
	}
	if !strings.HasPrefix(err.Error(), "authctx: "+option) || !strings.Contains(err.Error(), text) {
		t.Errorf("error %q, want one about %q that says %q", err, option, text)
	}
}

func TestNewRefuses(t *testing.T) {
	t.Parallel()
	key := authctx.WithKey("HS256", secret)
	keys := authctx.WithKeys("HS256", map[string]any{"a": secret})
	find := func(*jwt.Token) (any, error) { return secret, nil }

	for name, tt := range map[string]struct {
		opts         []authctx.Option
		option, text string
	}{
		"no key":                    {nil, "no key", "WithKey, WithKeys and WithKeyfunc"},
		"two keys":                  {[]authctx.Option{key, key}, "WithKey: ", "already"},
		"a key and keys":            {[]authctx.Option{key, keys}, "WithKeys: ", "already"},
		"keys and a function":       {[]authctx.Option{keys, authctx.WithKeyfunc(find, "HS256")}, "WithKeyfunc: ", "already"},
		"keys that are nil":         {[]authctx.Option{authctx.WithKeys("HS256", nil)}, "WithKeys: ", "no keys"},
		"an empty kid":              {[]authctx.Option{authctx.WithKeys("HS256", map[string]any{"": secret})}, "WithKeys: ", "kid is empty"},
		"no function":               {[]authctx.Option{authctx.WithKeyfunc(nil, "HS256")}, "WithKeyfunc: ", "no function"},
		"a function, no algorithm":  {[]authctx.Option{authctx.WithKeyfunc(find)}, "WithKeyfunc: ", "no algorithm is pinned"},
		"a function and none":       {[]authctx.Option{authctx.WithKeyfunc(find, "ES256", "none")}, "WithKeyfunc: ", `algorithm "none"`},
		"HMAC and RSA":              {[]authctx.Option{authctx.WithKeyfunc(find, "HS256", "RS256")}, "WithKeyfunc: ", "HS256 and RS256"},
		"EdDSA and HMAC":            {[]authctx.Option{authctx.WithKeyfunc(find, "EdDSA", "HS512")}, "WithKeyfunc: ", "EdDSA and HS512"},
		"an empty issuer":           {[]authctx.Option{key, authctx.WithIssuer("")}, "WithIssuer: ", "empty"},
		"no audience":               {[]authctx.Option{key, authctx.WithAudience()}, "WithAudience: ", "none"},
		"an empty audience":         {[]authctx.Option{key, authctx.WithAudience("a", "")}, "WithAudience: ", "empty"},
		"a negative leeway":         {[]authctx.Option{key, authctx.WithLeeway(-time.Nanosecond)}, "WithLeeway: ", "-1ns"},
		"a long leeway":             {[]authctx.Option{key, authctx.WithLeeway(5*time.Minute + 1)}, "WithLeeway: ", "5m0s"},
		"a negative size":           {[]authctx.Option{key, authctx.WithMaxTokenBytes(-1)}, "WithMaxTokenBytes: ", "negative"},
		"a realm with a line break": {[]authctx.Option{key, authctx.WithRealm("a\r\nSet-Cookie: b")}, "WithRealm: ", "ASCII"},
		"a realm beyond ASCII":      {[]authctx.Option{key, authctx.WithRealm("caf\u00e9")}, "WithRealm: ", "ASCII"},
		"a realm with DEL":          {[]authctx.Option{key, authctx.WithRealm("a\x7f")}, "WithRealm: ", "ASCII"},
		"a malformed route":         {[]authctx.Option{key, authctx.WithExclude("/healthz", "post /login")}, "WithExclude: ", `"post /login"`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			wantNewError(t, tt.option, tt.text, tt.opts...)
		})
	}
}

func TestNewDefaults(t *testing.T) {
	t.Parallel()

	t.Run("the longest leeway", func(t *testing.T) {
		t.Parallel()
		newHS256(t, authctx.WithLeeway(5*time.Minute))
	})

	t.Run("the clock is that of the machine", func(t *testing.T) {
		t.Parallel()
		auth := newHS256(t, authctx.WithClock(nil))
		current := claims(jwt.MapClaims{"exp": time.Now().Add(time.Hour).Unix()})
		past := claims(jwt.MapClaims{"exp": time.Now().Add(-time.Hour).Unix()})
		serve(auth, bearer(sign(t, "HS256", secret, current))).wantReached(t)
		serve(auth, bearer(sign(t, "HS256", secret, past))).wantRefused(t, expired)
	})

	t.Run("of an option given twice the last one counts", func(t *testing.T) {
		t.Parallel()
		auth := newHS256(t, authctx.WithIssuer("a"), authctx.WithIssuer("b"))
		serve(auth, bearer(sign(t, "HS256", secret, claims(jwt.MapClaims{"iss": "b"})))).wantReached(t)
		serve(auth, bearer(sign(t, "HS256", secret, claims(jwt.MapClaims{"iss": "a"})))).wantRefused(t, invalid)
	})

	t.Run("slices are copied", func(t *testing.T) {
		t.Parallel()
		audience, routes := []string{"a"}, []string{"/open"}
		options := []authctx.Option{authctx.WithAudience(audience...), authctx.WithExclude(routes...)}
		audience[0], routes[0] = "b", "/"
		auth := newHS256(t, options...)
		serve(auth, bearer(sign(t, "HS256", secret, claims(jwt.MapClaims{"aud": "b"})))).wantRefused(t, invalid)
		serve(auth, to("GET /open")).wantReached(t)
	})
}
