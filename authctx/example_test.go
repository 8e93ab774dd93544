package authctx_test

import (
	"crypto/ed25519"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"strings"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/pgidem/pgidem/authctx"
	"github.com/pgidem/pgidem/tenancy"
)

// A service with one route by which a caller gets a token, and one that needs
// it.
func Example() {
	// A real service reads its key from a file or a secret store.
	private := ed25519.NewKeyFromSeed([]byte("thirty-two bytes of a known seed"))

	mux := http.NewServeMux()
	mux.HandleFunc("POST /v1/auth/login", func(w http.ResponseWriter, r *http.Request) {
		token, err := jwt.NewWithClaims(jwt.SigningMethodEdDSA, jwt.MapClaims{
			"iss":    "https://api.example.com",
			"sub":    "ada",
			"org_id": "0198c0de-0000-7000-8000-00000000ac3e",
			"exp":    time.Now().Add(15 * time.Minute).Unix(),
		}).SignedString(private)
		if err != nil {
			http.Error(w, "cannot sign", http.StatusInternalServerError)
			return
		}
		_, _ = io.WriteString(w, token)
	})
	mux.HandleFunc("POST /v1/payments", func(w http.ResponseWriter, r *http.Request) {
		orgID, _ := tenancy.OrgID(r.Context())
		subject, _ := authctx.Subject(r.Context())
		_, _ = fmt.Fprintf(w, "%s pays for %s", subject, orgID)
	})

	auth, err := authctx.New(
		authctx.WithKey("EdDSA", private.Public()),
		authctx.WithIssuer("https://api.example.com"),
		authctx.WithExclude("POST /v1/auth/login"),
	)
	if err != nil {
		log.Fatal(err)
	}
	server := httptest.NewServer(auth.Middleware(mux))
	defer server.Close()

	post := func(path, token string) (status int, body string) {
		req, err := http.NewRequest(http.MethodPost, server.URL+path, nil)
		if err != nil {
			log.Fatal(err)
		}
		if token != "" {
			req.Header.Set("Authorization", "Bearer "+token)
		}
		resp, err := server.Client().Do(req)
		if err != nil {
			log.Fatal(err)
		}
		content, err := io.ReadAll(resp.Body)
		if err := errors.Join(err, resp.Body.Close()); err != nil {
			log.Fatal(err)
		}
		return resp.StatusCode, strings.TrimSpace(string(content))
	}

	fmt.Println(post("/v1/payments", ""))
	_, token := post("/v1/auth/login", "")
	fmt.Println(post("/v1/payments", token))
	// Output:
	// 401 {"type":"https://www.rfc-editor.org/rfc/rfc6750#section-2.1","title":"No access token","status":401,"detail":"Log in to get an access token, and send it in the Authorization header after the word Bearer.","code":"token_missing"}
	// 200 ada pays for 0198c0de-0000-7000-8000-00000000ac3e
}

// While keys are rotated, tokens that were signed with the old one stay valid.
func ExampleWithKeys() {
	old := ed25519.NewKeyFromSeed([]byte("the seed of the key of last year"))
	current := ed25519.NewKeyFromSeed([]byte("the seed of the key of this year"))
	stolen := ed25519.NewKeyFromSeed([]byte("the seed of a key we do not have"))

	auth, err := authctx.New(authctx.WithKeys("EdDSA", map[string]any{
		"2025": old.Public(),
		"2026": current.Public(),
	}))
	if err != nil {
		log.Fatal(err)
	}
	handler := auth.Middleware(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))

	try := func(kid string, key ed25519.PrivateKey) {
		token := jwt.NewWithClaims(jwt.SigningMethodEdDSA, jwt.MapClaims{
			"org_id": "0198c0de-0000-7000-8000-00000000ac3e",
			"exp":    time.Now().Add(time.Minute).Unix(),
		})
		token.Header["kid"] = kid
		signed, err := token.SignedString(key)
		if err != nil {
			log.Fatal(err)
		}
		r := httptest.NewRequest(http.MethodGet, "/", nil)
		r.Header.Set("Authorization", "Bearer "+signed)
		w := httptest.NewRecorder()
		handler.ServeHTTP(w, r)
		fmt.Println(kid, w.Code)
	}
	try("2025", old)
	try("2026", current)
	try("2026", stolen)
	try("2027", stolen)
	// Output:
	// 2025 200
	// 2026 200
	// 2026 401
	// 2027 401
}

// An error handler that logs what was wrong, of which the caller is told only
// what to do, and then answers as usual.
func ExampleWithErrorHandler() {
	auth, err := authctx.New(
		authctx.WithKey("HS256", []byte("a shared secret, 32 bytes long..")),
		authctx.WithErrorHandler(func(w http.ResponseWriter, r *http.Request, err error) {
			if !errors.Is(err, authctx.ErrNoToken) {
				fmt.Printf("%s %s: %v\n", r.Method, r.URL.Path, err)
			}
			authctx.WriteError(w, r, err)
		}),
	)
	if err != nil {
		log.Fatal(err)
	}
	r := httptest.NewRequest(http.MethodGet, "/v1/payments", nil)
	r.Header.Set("Authorization", "Bearer eyJhbGciOiJub25lIn0.e30.") // {"alg":"none"}
	w := httptest.NewRecorder()
	auth.Middleware(http.NotFoundHandler()).ServeHTTP(w, r)

	fmt.Println(w.Code, w.Header().Get("WWW-Authenticate"))
	// Output:
	// GET /v1/payments: authctx: invalid token: token signature is invalid: signing method none is invalid
	// 401 Bearer realm="api", error="invalid_token", error_description="The access token is not valid here"
}
