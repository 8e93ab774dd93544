package service

import (
	"encoding/json"
	"errors"
	"io"
	"net/http"
)

// problem is an error response (RFC 9457) in the form that authctx and
// idempotency use too, so that clients meet one kind only.
type problem struct {
	Type   string  `json:"type"`
	Title  string  `json:"title"`
	Status int     `json:"status"`
	Detail string  `json:"detail"`
	Code   string  `json:"code"` // a stable name for programs
	Errors []fault `json:"errors,omitempty"`
}

// fault is what is wrong with one field of a request.
type fault struct {
	Field  string `json:"field"`
	Detail string `json:"detail"`
}

func writeProblem(w http.ResponseWriter, p problem) {
	p.Type, p.Title = "about:blank", http.StatusText(p.Status)
	w.Header().Set("Content-Type", "application/problem+json")
	write(w, p.Status, p)
}

func writeJSON(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json")
	write(w, status, body)
}

func write(w http.ResponseWriter, status int, body any) {
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(body) // the client may have gone away
}

// internalError answers 500 and tells the log why; the client gets no detail.
func (s *Service) internalError(w http.ResponseWriter, r *http.Request, err error) {
	s.Logger.ErrorContext(r.Context(), "request failed", "method", r.Method, "path", r.URL.Path, "error", err)
	writeProblem(w, problem{Status: http.StatusInternalServerError, Code: "internal", Detail: "Something went wrong here. Repeat the request unchanged."})
}

// decode reads the body, which must be one JSON object with known fields only, or
// returns what is wrong with it.
func decode(r *http.Request, into any) *problem {
	body := json.NewDecoder(r.Body)
	body.DisallowUnknownFields()
	err := body.Decode(into)
	if err == nil {
		if _, err = body.Token(); errors.Is(err, io.EOF) {
			return nil
		}
	}
	var wrongType *json.UnmarshalTypeError
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &tooLarge):
		return &problem{Status: http.StatusRequestEntityTooLarge, Code: "body_too_large", Detail: "The body is too large."}
	case errors.As(err, &wrongType) && wrongType.Field != "":
		return &problem{
			Status: http.StatusBadRequest, Code: "body_malformed", Detail: "Correct the fields under errors.",
			Errors: []fault{{Field: wrongType.Field, Detail: "This is a " + wrongType.Value + ", which is the wrong type or out of range."}},
		}
	}
	return &problem{Status: http.StatusBadRequest, Code: "body_malformed", Detail: "Send one JSON object with the fields of this operation, and nothing else."}
}
