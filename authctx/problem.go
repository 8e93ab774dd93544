package authctx

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
)

// problem is the answer to a refused request (RFC 9457 section 3). All texts
// are fixed: nothing from the request, the keys or an error gets into it.
type problem struct {
	Type   string `json:"type"`
	Title  string `json:"title"`
	Status int    `json:"status"`
	Detail string `json:"detail"`
	Code   string `json:"code"`

	// oauthError is the error code of RFC 6750 section 3.1; a caller that sent
	// no token is told none.
	oauthError string
}

var (
	tokenMissing = problem{
		Type:   "https://www.rfc-editor.org/rfc/rfc6750#section-2.1",
		Title:  "No access token",
		Status: http.StatusUnauthorized,
		Detail: "Log in to get an access token, and send it in the Authorization header after the word Bearer.",
		Code:   "token_missing",
	}
	headerMalformed = problem{
		Type:       "https://www.rfc-editor.org/rfc/rfc6750#section-2.1",
		Title:      "Malformed Authorization header",
		Status:     http.StatusBadRequest,
		Detail:     "Send exactly one Authorization header, with the word Bearer, a space and one token.",
		Code:       "authorization_malformed",
		oauthError: "invalid_request",
	}
	tokenInvalid = problem{
		Type:       "https://www.rfc-editor.org/rfc/rfc6750#section-3.1",
		Title:      "The access token is not valid here",
		Status:     http.StatusUnauthorized,
		Detail:     "Log in again and repeat the request with the new access token. If that is refused too, it was issued for another service or is not valid yet.",
		Code:       "token_invalid",
		oauthError: "invalid_token",
	}
	tokenExpired = problem{
		Type:       "https://www.rfc-editor.org/rfc/rfc7519#section-4.1.4",
		Title:      "The access token has expired",
		Status:     http.StatusUnauthorized,
		Detail:     "Refresh the access token or log in again, and repeat the request with the new one.",
		Code:       "token_expired",
		oauthError: "invalid_token",
	}
	orgInvalid = problem{
		Type:       "https://www.rfc-editor.org/rfc/rfc7519#section-4.3",
		Title:      "The access token names no organisation",
		Status:     http.StatusUnauthorized,
		Detail:     "Log in as a member of an organisation and repeat the request with the new access token.",
		Code:       "org_invalid",
		oauthError: "invalid_token",
	}
)

func problemOf(err error) problem {
	switch {
	case errors.Is(err, ErrNoToken):
		return tokenMissing
	case errors.Is(err, ErrMalformedHeader):
		return headerMalformed
	case errors.Is(err, ErrTokenExpired):
		return tokenExpired
	case errors.Is(err, ErrInvalidOrg):
		return orgInvalid
	default:
		return tokenInvalid
	}
}

// WriteError answers a refused request with a problem (RFC 9457): 400 for
// [ErrMalformedHeader] and 401 for every other error. Its member code is one of
// token_missing, authorization_malformed, token_invalid, token_expired and
// org_invalid, and detail tells the caller what to do next. It is what
// [WithErrorHandler] replaces, for handlers that do more besides.
func WriteError(w http.ResponseWriter, _ *http.Request, err error) {
	p := problemOf(err)
	w.Header().Set("Content-Type", "application/problem+json")
	w.WriteHeader(p.Status)
	_ = json.NewEncoder(w).Encode(p) // the client may have gone away
}

// refuse sets what every refusal must have and leaves the rest to the error
// handler.
func (a *Authenticator) refuse(w http.ResponseWriter, r *http.Request, err error) {
	w.Header().Set("WWW-Authenticate", challenge(a.realm, problemOf(err)))
	w.Header().Set("Cache-Control", "no-store")
	a.writeError(w, r, err)
}

// challenge is the value of WWW-Authenticate (RFC 6750 section 3). The titles
// consist of characters that error_description may have.
func challenge(realm string, p problem) string {
	c := `Bearer realm="` + quoter.Replace(realm) + `"`
	if p.oauthError != "" {
		c += fmt.Sprintf(`, error="%s", error_description="%s"`, p.oauthError, p.Title)
	}
	return c
}

// quoter escapes the text of a quoted-string (RFC 9110 section 5.6.4).
var quoter = strings.NewReplacer(`\`, `\\`, `"`, `\"`)
