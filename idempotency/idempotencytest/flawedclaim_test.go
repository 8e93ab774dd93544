package idempotencytest_test

import (
	"context"
	"time"

	"github.com/pgidem/pgidem/idempotency"
)

// Claim implements [idempotency.LeaseStore].
func (s *flawedStore) Claim(ctx context.Context, req idempotency.ClaimRequest) (idempotency.ClaimResult, error) {
	if err := ctx.Err(); err != nil && s.flaw != "Claim ignores its context" {
		return idempotency.ClaimResult{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	at := s.at(req.OrgID, req.Key)
	r, found := s.rows[at]
	attempt, created, ttl := 1, s.Now(), req.TTL
	if found && !s.absent(r) {
		if outcome := s.outcome(r, req); outcome != idempotency.OutcomeClaimed {
			return idempotency.ClaimResult{Outcome: outcome, Record: s.shown(r, outcome)}, nil
		}
		if s.ours(r, req) && (!req.Recovery || s.flaw != "a repeated recovery is another attempt") {
			if s.flaw == "a repeated claim is another attempt" {
				r.attempt++
			}
			return idempotency.ClaimResult{Outcome: idempotency.OutcomeClaimed, Attempt: r.attempt}, nil
		}
		if s.flaw != "attempt always 1" {
			attempt = r.attempt + 1
		}
		if s.flaw == "a take-over keeps the first claim's times" {
			created, ttl = r.rec.CreatedAt, r.rec.ExpiresAt.Sub(r.rec.CreatedAt)
		}
	}
	if req.Recovery && !s.isInterrupted(at) {
		return idempotency.ClaimResult{Outcome: idempotency.OutcomeNotInterrupted}, nil
	}
	if found && s.absent(r) && s.flaw == "attempts counted on after expiry" {
		attempt = r.attempt + 1
	}
	if s.flaw == "claims an absent key by get-then-insert" && !found || s.flaw == "takes over by get-then-update" && found {
		s.mu.Unlock()
		s.meetAnother()
		s.mu.Lock()
	}
	var steps map[string][]byte
	if found {
		steps = s.inherited(r, !s.absent(r) || s.flaw == "steps outlive a Put")
	}
	if req.Request != nil && (!found || s.flaw != "a take-over keeps no request") {
		s.kept[at] = true
	}
	s.rows[at] = &row{
		token: req.Token, attempt: attempt, steps: steps, leaseUntil: s.Now().Add(s.leaseOf(req)),
		completed: found && r.completed && s.flaw == "a claim of an expired record leaves it completed",
		rec: &idempotency.Record{
			OrgID: req.OrgID, Key: req.Key, RequestHash: req.RequestHash,
			CreatedAt: created, ExpiresAt: created.Add(ttl),
		},
	}
	return idempotency.ClaimResult{Outcome: idempotency.OutcomeClaimed, Attempt: attempt}, nil
}

// ours reports whether the claim has been made already.
func (s *flawedStore) ours(r *row, req idempotency.ClaimRequest) bool {
	switch s.flaw {
	case "a repeated claim is in flight":
		return false
	case "a repeated claim after the lapse is another attempt":
		return r.token == req.Token && !r.completed && !s.lapsed(r)
	case "a repeated claim after the completion runs again":
		return r.token == req.Token
	}
	return r.token == req.Token && !r.completed
}

// outcome returns what a claim gets that finds a row.
func (s *flawedStore) outcome(r *row, req idempotency.ClaimRequest) idempotency.ClaimOutcome {
	mismatch := r.rec.RequestHash != req.RequestHash
	switch s.flaw {
	case "claim ignores the fingerprint":
		mismatch = false
	case "claim compares the fingerprint of completed records only":
		mismatch = mismatch && r.completed
	case "claim compares the fingerprint of claims in progress only":
		mismatch = mismatch && !r.completed
	case "claim compares the fingerprint after the take-over":
		mismatch = mismatch && !s.lapsed(r)
	}
	switch {
	case s.ours(r, req):
		return idempotency.OutcomeClaimed
	case mismatch:
		return idempotency.OutcomeMismatch
	case r.completed:
		return idempotency.OutcomeCompleted
	case !s.lapsed(r):
		return idempotency.OutcomeInFlight
	case req.Interrupted == idempotency.Refuse && s.flaw != "Refuse ignored":
		return idempotency.OutcomeInterrupted
	}
	return idempotency.OutcomeClaimed
}

// shown returns the record that goes with an outcome.
func (s *flawedStore) shown(r *row, outcome idempotency.ClaimOutcome) *idempotency.Record {
	if outcome != idempotency.OutcomeCompleted || s.flaw == "Claim returns no record" {
		return nil
	}
	rec := r.rec.Clone()
	if s.flaw == "Claim returns the record without its headers" {
		rec.ResponseHeaders = nil
	}
	return rec
}

func (s *flawedStore) leaseOf(req idempotency.ClaimRequest) time.Duration {
	if s.flaw == "claims of any lease last 30 seconds" {
		return 30 * time.Second
	}
	return req.Lease
}

// meetAnother waits a moment for another claim that is at the same point, so that
// the two overtake each other whenever there are two.
func (s *flawedStore) meetAnother() {
	select {
	case s.met <- struct{}{}:
	case <-s.met:
	case <-time.After(20 * time.Millisecond):
	}
}
