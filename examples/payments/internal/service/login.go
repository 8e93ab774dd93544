package service

import (
	"crypto/sha256"
	"crypto/subtle"
	"net/http"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/google/uuid"
)

const (
	tokenAlgorithm = "EdDSA"
	tokenIssuer    = "https://payments.example"
	tokenAudience  = "https://payments.example/v1"
	tokenLifetime  = time.Hour
)

// The tenants of the example. A real service has a table of them, and migrates
// the schema of each when it signs up.
var (
	North = uuid.MustParse("0a0a0a0a-0000-4000-8000-000000000001")
	South = uuid.MustParse("0b0b0b0b-0000-4000-8000-000000000002")
)

// user is one who may log in, always on behalf of one tenant.
type user struct {
	orgID    uuid.UUID
	password string
}

// users stands in for a table of users. The passwords are in the clear because
// they protect nothing; a real service keeps a slow, salted hash of each (Argon2id
// or bcrypt), limits the rate of attempts, or leaves all this to an identity
// provider, whose tokens authctx verifies just the same.
var users = map[string]user{
	"cashier@north.example": {North, "fake-password-north"},
	"cashier@south.example": {South, "fake-password-south"},
}

// login issues an access token. The org_id in it is the one place from which
// everything else learns who the tenant is.
func (s *Service) login(w http.ResponseWriter, r *http.Request) {
	var credentials struct {
		Email    string `json:"email"`
		Password string `json:"password"`
	}
	// The route is excluded from idempotency.Require, which bounds the bodies of
	// all others.
	r.Body = http.MaxBytesReader(w, r.Body, maxBodyBytes)
	if p := decode(r, &credentials); p != nil {
		writeProblem(w, *p)
		return
	}
	u, known := users[credentials.Email]
	given, wanted := sha256.Sum256([]byte(credentials.Password)), sha256.Sum256([]byte(u.password))
	if subtle.ConstantTimeCompare(given[:], wanted[:]) != 1 || !known {
		writeProblem(w, problem{Status: http.StatusUnauthorized, Code: "login_refused", Detail: "There is no user with this email and this password."})
		return
	}

	now := time.Now()
	token, err := jwt.NewWithClaims(jwt.GetSigningMethod(tokenAlgorithm), jwt.MapClaims{
		"iss":    tokenIssuer,
		"aud":    tokenAudience,
		"sub":    credentials.Email,
		"org_id": u.orgID.String(),
		"iat":    now.Unix(),
		"exp":    now.Add(tokenLifetime).Unix(),
	}).SignedString(s.SigningKey)
	if err != nil {
		s.internalError(w, r, err)
		return
	}
	w.Header().Set("Cache-Control", "no-store")
	writeJSON(w, http.StatusOK, map[string]any{
		"access_token": token,
		"token_type":   "Bearer",
		"expires_in":   int(tokenLifetime.Seconds()),
	})
}
