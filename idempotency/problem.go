package idempotency

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"

	"github.com/pgidem/pgidem/tenancy"
)

// Advice tells a client what to do after a [Problem].
type Advice string

const (
	// RetrySameKey says to send the same request again with the same key.
	RetrySameKey Advice = "same_key"
	// RetryNewKey says that this key is spent: send the request with a new one.
	RetryNewKey Advice = "new_key"
	// RetryCorrected says that the request is at fault: correct it first.
	RetryCorrected Advice = "corrected_request"
	// RetryNever says that repeating the request may repeat its effect: find out by
	// other means what became of it.
	RetryNever Advice = "never"
)

// Problem is an answer that [Require] gives itself, an RFC 9457 problem detail.
// Everything in it may be shown to the client. It is an error that wraps the
// reason, one of this package's sentinels, and what caused it.
type Problem struct {
	// Type points at the section of draft-ietf-httpapi-idempotency-key-header-07
	// that rules the case, or is "about:blank".
	Type string `json:"type"`
	// Title is the same for all problems of one Code.
	Title string `json:"title"`
	// Status is the HTTP status.
	Status int `json:"status"`
	// Detail helps the person who reads it to mend the case at hand.
	Detail string `json:"detail"`
	// Code is a stable name for programs.
	Code string `json:"code"`
	// Retry is what the client should do next.
	Retry Advice `json:"retry"`
	// RetryAfter is how many seconds to wait before a retry, as in the Retry-After
	// header. Zero means that there is no advice.
	RetryAfter int `json:"retry_after,omitempty"`
	// OriginalStatus is the status of the response that was not kept.
	OriginalStatus int `json:"original_status,omitempty"`
	// Instance names this one occurrence: a URN with a random UUID (RFC 9562), which
	// the [Event] of the request and its line in the log carry as well.
	Instance string `json:"instance,omitempty"`
	// DescribedBy is the reference of [WithDescribedBy], for the Link header.
	DescribedBy string `json:"-"`

	reason error
}

// Error implements error.
func (p *Problem) Error() string {
	if p.reason == nil { // made by someone else
		return p.Title
	}
	return p.reason.Error()
}

// Unwrap returns the reason.
func (p *Problem) Unwrap() error { return p.reason }

const (
	draft         = "https://datatracker.ietf.org/doc/html/draft-ietf-httpapi-idempotency-key-header-07"
	draftSyntax   = draft + "#section-2.1"
	draftUnique   = draft + "#section-2.2"
	draftEnforce  = draft + "#section-2.6"
	draftErrors   = draft + "#section-2.7"
	noDescription = "about:blank" // RFC 9457 section 4.2.1: the title is that of the status
)

// problems says what each reason is to the client.
var problems = []struct {
	reason   error
	problem  Problem
	decision Decision
}{
	{ErrKeyMissing, Problem{
		Type: draftErrors, Title: "Idempotency-Key is missing", Status: http.StatusBadRequest, Code: "key_missing", Retry: RetryCorrected,
		Detail: "This operation requires an Idempotency-Key header. Send a fresh UUID for each new operation, and the same one again when you retry it.",
	}, DecisionMissingKey},
	{ErrKeyInvalid, Problem{
		Type: draftSyntax, Title: "Idempotency-Key is invalid", Status: http.StatusBadRequest, Code: "key_invalid", Retry: RetryCorrected,
		Detail: "Send one Idempotency-Key header with 1 to 255 printable ASCII characters, such as a UUID.",
	}, DecisionInvalidKey},
	{ErrKeyReused, Problem{
		Type: draftUnique, Title: "Idempotency-Key is already used", Status: http.StatusUnprocessableEntity, Code: "key_reused", Retry: RetryNewKey,
		Detail: "This key belongs to a request with another method, path, query or body. Use a new key for a new operation, and repeat a request unchanged when you retry it.",
	}, DecisionMismatch},
	{ErrInFlight, Problem{
		Type: draftErrors, Title: "A request is outstanding for this Idempotency-Key", Status: http.StatusConflict, Code: "in_flight", Retry: RetrySameKey, RetryAfter: 1,
		Detail: "The same request is being processed at this moment. Repeat it unchanged, with the same key, after the time that Retry-After gives; you will get its response then.",
	}, DecisionInFlight},
	{ErrInterrupted, Problem{
		Type: draftEnforce, Title: "The outcome of an earlier attempt is unknown", Status: http.StatusConflict, Code: "interrupted", Retry: RetryNever,
		Detail: "An earlier attempt at this request was interrupted, and whether it took effect is not known. Look up what became of it before you send the operation again with a new key.",
	}, DecisionInterrupted},
	{ErrNotKept, Problem{
		Type: draftEnforce, Title: "The request completed, but its response was not kept", Status: http.StatusConflict, Code: "response_not_kept", Retry: RetryNever,
		Detail: "This request was processed before and will not be processed again. Its response was too large or of a kind that cannot be kept; look up the result by other means.",
	}, DecisionNotKept},
	{ErrReplayDenied, Problem{
		Type: noDescription, Title: http.StatusText(http.StatusForbidden), Status: http.StatusForbidden, Code: "replay_denied", Retry: RetryCorrected,
		Detail: "This request was processed before, and you may no longer see its response. Use credentials that may.",
	}, DecisionReplayDenied},
	{ErrLeaseLost, Problem{
		Type: draftEnforce, Title: "Another attempt has taken over", Status: http.StatusConflict, Code: "lease_lost", Retry: RetrySameKey, RetryAfter: 1,
		Detail: "This attempt took so long that another one took the request over. Repeat it unchanged, with the same key; you will get the response that counts.",
	}, DecisionLeaseLost},
	{ErrNoOutcome, Problem{
		Type: noDescription, Title: http.StatusText(http.StatusServiceUnavailable), Status: http.StatusServiceUnavailable, Code: "no_outcome", Retry: RetrySameKey, RetryAfter: 1,
		Detail: "Processing was cut short and has no outcome. Repeat the request unchanged, with the same key.",
	}, DecisionNoOutcome},
	{ErrNotCommitted, Problem{
		Type: noDescription, Title: http.StatusText(http.StatusServiceUnavailable), Status: http.StatusServiceUnavailable, Code: "not_committed", Retry: RetrySameKey, RetryAfter: 1,
		Detail: "Processing could not be brought to its end. Repeat the request unchanged, with the same key; should it have taken effect after all, you will get its response.",
	}, DecisionRolledBack},
	{ErrNoStreaming, Problem{
		Type: noDescription, Title: http.StatusText(http.StatusInternalServerError), Status: http.StatusInternalServerError, Code: "no_streaming", Retry: RetrySameKey,
		Detail: "This operation is not set up rightly, and nothing was processed. Tell the operator of this service.",
	}, DecisionRolledBack},
	{ErrOrgMissing, Problem{
		Type: noDescription, Title: http.StatusText(http.StatusUnauthorized), Status: http.StatusUnauthorized, Code: "org_missing", Retry: RetryCorrected,
		Detail: "An Idempotency-Key is only honoured for an organisation. Authenticate with credentials of one.",
	}, DecisionMissingOrg},
	{tenancy.ErrUnknownTenant, Problem{
		Type: noDescription, Title: http.StatusText(http.StatusForbidden), Status: http.StatusForbidden, Code: "unknown_tenant", Retry: RetryCorrected,
		Detail: "The organisation of these credentials is not set up here. Ask the operator of this service to do so.",
	}, DecisionUnknownTenant},
	{tenancy.ErrSuspendedTenant, Problem{
		Type: noDescription, Title: http.StatusText(http.StatusForbidden), Status: http.StatusForbidden, Code: "suspended_tenant", Retry: RetrySameKey,
		Detail: "The organisation of these credentials is not served at present. Once it is, repeat the request unchanged, with the same key; the operator of this service can say when.",
	}, DecisionSuspendedTenant},
	{ErrRequestTooLarge, Problem{
		Type: noDescription, Title: http.StatusText(http.StatusRequestEntityTooLarge), Status: http.StatusRequestEntityTooLarge, Code: "request_too_large", Retry: RetryCorrected,
		Detail: "The body is larger than requests with an Idempotency-Key may be. Send a smaller one.",
	}, DecisionTooLarge},
	{ErrRequestUnreadable, Problem{
		Type: noDescription, Title: http.StatusText(http.StatusBadRequest), Status: http.StatusBadRequest, Code: "request_unreadable", Retry: RetrySameKey,
		Detail: "The body ended early or could not be understood; nothing was processed. Send the request again.",
	}, DecisionUnreadableBody},
	{ErrStoreUnavailable, Problem{
		Type: noDescription, Title: http.StatusText(http.StatusServiceUnavailable), Status: http.StatusServiceUnavailable, Code: "store_unavailable", Retry: RetrySameKey, RetryAfter: 1,
		Detail: "Whether this request ran before cannot be found out at the moment, so it was not processed. Repeat it unchanged, with the same key, after the time that Retry-After gives.",
	}, DecisionStoreError},
}

// replayDenied returns the problem that an error of [WithReplayCheck] is.
func replayDenied(err error) *Problem {
	p := &Problem{}
	if errors.As(err, &p) && p != nil {
		own := *p
		p = &own
		if !isError(p.Status) {
			p.Status = http.StatusForbidden
		}
	} else {
		p, _ = newProblem(ErrReplayDenied, nil)
	}
	p.reason = fmt.Errorf("%w: %w", ErrReplayDenied, err)
	return p
}

// isError reports whether a status tells of an error, RFC 9110 section 15.
func isError(status int) bool { return status >= 400 && status <= 599 }

// newProblem returns the problem that a reason is to the client, and the decision
// that it amounts to. The cause, which may be nil, becomes part of the error and is
// not shown, but for what is wrong with a key.
func newProblem(reason, cause error) (*Problem, Decision) {
	for _, known := range problems {
		if known.reason != reason { //nolint:errorlint // the reason itself, whatever its cause may wrap
			continue
		}
		p := known.problem
		p.reason = reason
		switch {
		case cause == nil:
		case errors.Is(cause, reason):
			p.reason = cause
		default:
			p.reason = fmt.Errorf("%w: %w", reason, cause)
		}
		if reason == ErrKeyInvalid && cause != nil { //nolint:errorlint // as above
			what, _ := strings.CutPrefix(cause.Error(), ErrKeyInvalid.Error()+": ")
			p.Detail += " This one will not do: " + what + "."
		}
		return &p, known.decision
	}
	panic("idempotency: a reason without a problem: " + reason.Error())
}

// WriteProblem writes err as application/problem+json (RFC 9457). It is the
// default of [WithErrorHandler]; a handler of your own may call it for the
// errors that it does not treat itself. An error that is not a [*Problem] is
// written as a plain 500 problem without its text.
func WriteProblem(w http.ResponseWriter, _ *http.Request, err error) {
	p := &Problem{
		Type: noDescription, Title: http.StatusText(http.StatusInternalServerError), Status: http.StatusInternalServerError, Code: "internal", Retry: RetrySameKey,
		Detail: "Something went wrong here. Repeat the request unchanged, with the same key.",
	}
	if own := (*Problem)(nil); errors.As(err, &own) && own != nil {
		p = own
		if !isError(p.Status) {
			fixed := *own
			p, fixed.Status = &fixed, http.StatusInternalServerError
		}
	}
	body, _ := json.Marshal(p) // strings and numbers alone cannot fail
	body = append(body, '\n')

	h := w.Header()
	if p.RetryAfter > 0 {
		h.Set("Retry-After", strconv.Itoa(p.RetryAfter))
	}
	if p.Status == http.StatusUnauthorized {
		h.Set("WWW-Authenticate", "Bearer") // RFC 9110 section 11.6.1: a 401 carries a challenge
	}
	if p.DescribedBy != "" {
		h.Add("Link", "<"+p.DescribedBy+`>; rel="describedby"`) // beside those of outer middleware
	}
	h.Set("Cache-Control", "no-store")
	h.Set("Content-Type", "application/problem+json")
	if !isEncoded(h) {
		h.Set("Content-Length", strconv.Itoa(len(body)))
	}
	w.WriteHeader(p.Status)
	w.Write(body)
}
