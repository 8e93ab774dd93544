package authctx_test

import (
	"encoding/base64"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/google/uuid"

	"github.com/pgidem/pgidem/authctx"
	"github.com/pgidem/pgidem/tenancy"
)

func TestToken(t *testing.T) {
	t.Parallel()
	at := func(d time.Duration) int64 { return now.Add(d).Unix() }
	header, payload, signature := parts(good(t))

	t.Run("accepts", func(t *testing.T) {
		t.Parallel()
		for name, tt := range map[string]struct {
			change jwt.MapClaims
			opts   []authctx.Option
		}{
			"a second before exp":               {jwt.MapClaims{"exp": at(time.Second)}, nil},
			"nbf in the past":                   {jwt.MapClaims{"nbf": at(-time.Second)}, nil},
			"nbf now":                           {jwt.MapClaims{"nbf": at(0)}, nil},
			"iat in the future":                 {jwt.MapClaims{"iat": at(time.Minute)}, nil},
			"exp within the leeway":             {jwt.MapClaims{"exp": at(-9 * time.Second)}, []authctx.Option{authctx.WithLeeway(10 * time.Second)}},
			"nbf within the leeway":             {jwt.MapClaims{"nbf": at(10 * time.Second)}, []authctx.Option{authctx.WithLeeway(10 * time.Second)}},
			"any issuer":                        {jwt.MapClaims{"iss": "https://id.example.com"}, nil},
			"the issuer":                        {jwt.MapClaims{"iss": "https://id.example.com"}, []authctx.Option{authctx.WithIssuer("https://id.example.com")}},
			"any audience":                      {jwt.MapClaims{"aud": "https://api.example.com"}, nil},
			"the audience":                      {jwt.MapClaims{"aud": "https://api.example.com"}, []authctx.Option{authctx.WithAudience("https://api.example.com")}},
			"one audience of its several":       {jwt.MapClaims{"aud": []string{"a", "b"}}, []authctx.Option{authctx.WithAudience("b")}},
			"one audience of the first option":  {jwt.MapClaims{"aud": "a"}, []authctx.Option{authctx.WithAudience("a"), authctx.WithAudience("b")}},
			"one audience of the second option": {jwt.MapClaims{"aud": "b"}, []authctx.Option{authctx.WithAudience("a"), authctx.WithAudience("b")}},
		} {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				serve(newHS256(t, tt.opts...), bearer(sign(t, "HS256", secret, claims(tt.change)))).wantReached(t)
			})
		}
	})

	t.Run("refuses", func(t *testing.T) {
		t.Parallel()
		issuer := []authctx.Option{authctx.WithIssuer("https://id.example.com")}
		audience := []authctx.Option{authctx.WithAudience("https://api.example.com")}
		for name, tt := range map[string]struct {
			change jwt.MapClaims
			opts   []authctx.Option
			want   refusal
		}{
			"exp in the past":           {jwt.MapClaims{"exp": at(-time.Second)}, nil, expired},
			"exp now":                   {jwt.MapClaims{"exp": at(0)}, nil, expired},
			"exp beyond the leeway":     {jwt.MapClaims{"exp": at(-10 * time.Second)}, []authctx.Option{authctx.WithLeeway(10 * time.Second)}, expired},
			"no exp":                    {jwt.MapClaims{"exp": nil}, nil, invalid},
			"exp zero":                  {jwt.MapClaims{"exp": 0}, nil, invalid},
			"exp not a number":          {jwt.MapClaims{"exp": "tomorrow"}, nil, invalid},
			"nbf in the future":         {jwt.MapClaims{"nbf": at(time.Second)}, nil, invalid},
			"nbf not a number":          {jwt.MapClaims{"nbf": "yesterday"}, nil, invalid},
			"nbf beyond the leeway":     {jwt.MapClaims{"nbf": at(11 * time.Second)}, []authctx.Option{authctx.WithLeeway(10 * time.Second)}, invalid},
			"another issuer":            {jwt.MapClaims{"iss": "https://evil.example.com"}, issuer, invalid},
			"an issuer with a slash":    {jwt.MapClaims{"iss": "https://id.example.com/"}, issuer, invalid},
			"no issuer":                 {nil, issuer, invalid},
			"another audience":          {jwt.MapClaims{"aud": "https://other.example.com"}, audience, invalid},
			"other audiences":           {jwt.MapClaims{"aud": []string{"a", "b"}}, audience, invalid},
			"no audience":               {nil, audience, invalid},
			"an empty list of audience": {jwt.MapClaims{"aud": []string{}}, audience, invalid},
		} {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				serve(newHS256(t, tt.opts...), bearer(sign(t, "HS256", secret, claims(tt.change)))).wantRefused(t, tt.want)
			})
		}

		// A secret that is right and a header that is not.
		for name, members := range map[string]map[string]any{
			"crit":        {"crit": []string{"exp"}},
			"crit, empty": {"crit": []string{}},
		} {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				serve(newHS256(t), bearer(sign(t, "HS256", secret, claims(nil), members))).wantRefused(t, invalid)
			})
		}

		encode := base64.RawURLEncoding.EncodeToString
		for name, token := range map[string]string{
			"not a token":             "null",
			"two parts":               header + "." + payload,
			"four parts":              header + "." + payload + "." + signature + ".",
			"no signature":            header + "." + payload + ".",
			"another payload":         header + "." + encode([]byte(`{"org_id":"`+uuid.NewString()+`"}`)) + "." + signature,
			"header null":             encode([]byte(`null`)) + "." + payload + "." + signature,
			"payload null":            header + "." + encode([]byte(`null`)) + "." + signature,
			"payload no object":       header + "." + encode([]byte(`[]`)) + "." + signature,
			"padding":                 header + "." + payload + "." + signature + "=",
			"another spelling of it":  header + "." + payload + "." + respell(signature),
			"another secret":          sign(t, "HS256", []byte("another secret, also of 32 bytes"), claims(nil)),
			"another secret, expired": sign(t, "HS256", []byte("another secret, also of 32 bytes"), claims(jwt.MapClaims{"exp": at(-time.Hour)})),
			"another hash":            sign(t, "HS512", secret, claims(nil)),
			"alg none":                sign(t, "none", jwt.UnsafeAllowNoneSignatureType, claims(nil)),
			"alg None":                encode([]byte(`{"alg":"None"}`)) + "." + payload + ".",
			"alg in lower case":       encode([]byte(`{"alg":"hs256"}`)) + "." + payload + "." + signature,
			"no alg":                  encode([]byte(`{"typ":"JWT"}`)) + "." + payload + "." + signature,
		} {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				serve(newHS256(t), bearer(token)).wantRefused(t, invalid)
			})
		}
	})

	t.Run("size", func(t *testing.T) {
		t.Parallel()
		token := good(t)
		serve(newHS256(t, authctx.WithMaxTokenBytes(len(token))), bearer(token)).wantReached(t)
		serve(newHS256(t, authctx.WithMaxTokenBytes(len(token)-1)), bearer(token)).wantRefused(t, invalid)

		long := sign(t, "HS256", secret, claims(jwt.MapClaims{"roles": strings.Repeat("r", 8<<10)}))
		serve(newHS256(t), bearer(long)).wantRefused(t, invalid)
		serve(newHS256(t, authctx.WithMaxTokenBytes(0)), bearer(long)).wantRefused(t, invalid)
		serve(newHS256(t, authctx.WithMaxTokenBytes(16<<10)), bearer(long)).wantReached(t)
	})
}

func parts(token string) (header, payload, signature string) {
	header, rest, _ := strings.Cut(token, ".")
	payload, signature, _ = strings.Cut(rest, ".")
	return header, payload, signature
}

// respell sets the unused bits at the end of a base64 text of 32 bytes, which a
// lax decoder ignores.
func respell(signature string) string {
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
	last := len(signature) - 1
	return signature[:last] + string(alphabet[strings.IndexByte(alphabet, signature[last])|1])
}

func TestOrgClaim(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		claim string
		value any
		opts  []authctx.Option
	}{
		"by default":         {"org_id", acme.String(), nil},
		"in upper case":      {"org_id", strings.ToUpper(acme.String()), nil},
		"renamed":            {"https://example.com/tenant", acme.String(), []authctx.Option{authctx.WithOrgClaim("https://example.com/tenant")}},
		"renamed to nothing": {"org_id", acme.String(), []authctx.Option{authctx.WithOrgClaim("")}},
	} {
		t.Run("accepts it "+name, func(t *testing.T) {
			t.Parallel()
			c := claims(jwt.MapClaims{"org_id": nil, tt.claim: tt.value})
			res := serve(newHS256(t, tt.opts...), bearer(sign(t, "HS256", secret, c)))
			res.wantReached(t)
			if orgID, ok := tenancy.OrgID(res.reached.Context()); !ok || orgID != acme {
				t.Errorf("OrgID: %v, %v", orgID, ok)
			}
		})
	}

	digits := strings.ReplaceAll(acme.String(), "-", "")
	for name, value := range map[string]any{
		"missing":           nil,
		"empty":             "",
		"a number":          42,
		"a list":            []string{acme.String()},
		"an object":         map[string]string{"id": acme.String()},
		"no UUID":           "acme",
		"the nil UUID":      uuid.Nil.String(),
		"a URN":             "urn:uuid:" + acme.String(),
		"in braces":         "{" + acme.String() + "}",
		"bare digits":       digits,
		"spaced":            " " + acme.String() + " ",
		"cut short":         acme.String()[:35],
		"too long":          acme.String() + "0",
		"of 36 other bytes": strings.Repeat("z", 36),
		"hyphens misplaced": digits[:16] + "----" + digits[16:],
	} {
		t.Run("refuses it "+name, func(t *testing.T) {
			t.Parallel()
			token := sign(t, "HS256", secret, claims(jwt.MapClaims{"org_id": value}))
			serve(newHS256(t), bearer(token)).wantRefused(t, noOrg)
		})
	}

	t.Run("refuses another name than the one set", func(t *testing.T) {
		t.Parallel()
		serve(newHS256(t, authctx.WithOrgClaim("tenant")), bearer(good(t))).wantRefused(t, noOrg)
	})
}
