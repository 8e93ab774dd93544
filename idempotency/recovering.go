package idempotency

import (
	"errors"
	"net/http"

	"github.com/pgidem/pgidem/internal/recovery"
)

// errOtherTenant refuses a recovered request that comes with another tenant than it was
// made with.
var errOtherTenant = errors.New("idempotency: the tenant in the context is not the one of the request that is recovered: let requests through as they are for which idempotency.Recovered reports true")

// errNotRecoverable refuses a request whose route is not to be recovered.
var errNotRecoverable = errors.New("idempotency: the route is none of those of WithRecoverable here, or its store keeps no requests: give the handler that keeps the request, or let it expire")

// recovering returns the recovery that the request is, or nil where it is an ordinary
// one: one that a handler makes while it is recovered itself is.
func (m *middleware) recovering(r *http.Request) *recovery.Attempt {
	attempt := recovery.From(r.Context())
	if attempt == nil || m.domain != "" {
		return nil
	}
	if nested := claimOf(r.Context()) != nil; nested || !attempt.Take() {
		return nil
	}
	return attempt
}

// serveRecovery runs an interrupted request again, under the key and the fingerprint of
// its record.
func (x *exchange) serveRecovery() {
	if orgID, _ := FromContext(x.r.Context()); orgID != x.recovery.OrgID {
		x.event.Decision, x.event.Err = DecisionMissingOrg, errOtherTenant
		return
	}
	if _, ok := x.store.(RequestStore); !ok || !x.isRecoverable(x.r) {
		x.event.Decision, x.event.Err = DecisionNotRecoverable, errNotRecoverable
		return
	}
	body, reason, err := x.readBody(nil)
	if reason != nil {
		x.refuse(reason, err)
		return
	}
	x.serveClaiming(body, &ClaimRequest{
		Claim:       Claim{OrgID: x.recovery.OrgID, Key: x.recovery.Key, Token: NewToken(), Kept: true},
		RequestHash: x.recovery.RequestHash,
		Lease:       x.lease,
		TTL:         x.ttl,
		Recovery:    true,
	})
}

// notRecovered notes why a recovery did not get the key. Nobody is there to be told.
func (x *exchange) notRecovered(outcome ClaimOutcome) {
	switch outcome {
	case OutcomeInFlight:
		x.event.Decision = DecisionInFlight
	case OutcomeMismatch:
		x.event.Decision, x.event.Err = DecisionMismatch, ErrKeyReused
	case OutcomeCompleted, OutcomeNotInterrupted:
		x.event.Decision = DecisionNotInterrupted
	case OutcomeInterrupted:
		x.event.Decision, x.event.Err = DecisionInterrupted, ErrInterrupted
	default:
		x.event.Decision, x.event.Err = DecisionStoreError, ErrStoreRefused
	}
}

// releasing returns the claim as it is to be released: a request that is recovered is
// kept for the next try.
func (x *exchange) releasing(c Claim) Claim {
	if x.recovery != nil {
		c.Kept = false
	}
	return c
}
