package idempotencytest_test

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/pgidem/pgidem/idempotency"
)

// pause gives the lock away for long enough for others to come in between.
func (s *flawedStore) pause() {
	s.mu.Unlock()
	time.Sleep(2 * time.Millisecond)
	s.mu.Lock()
}

// Complete implements [idempotency.LeaseStore].
func (s *flawedStore) Complete(ctx context.Context, c idempotency.Claim, rec *idempotency.Record) error {
	if err := ctx.Err(); err != nil && s.flaw != "Complete ignores its context" {
		return err
	}
	if s.flaw == "Complete changes the caller's record" {
		rec.RequestHash = "changed"
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	rows := s.held(c, s.flaw == "token not checked at Complete", s.flaw == "Complete ignores the org")
	for _, r := range rows {
		if r.completed && s.flaw == "Complete not repeatable" || s.lapsed(r) && s.flaw == "Complete refused after the lapse" {
			return s.lost()
		}
		outcome := rec.Clone()
		outcome.OrgID, outcome.Key = r.rec.OrgID, r.rec.Key
		if s.flaw != "Complete takes the fingerprint from the record" {
			outcome.RequestHash = r.rec.RequestHash
		}
		if s.flaw != "Complete takes CreatedAt from the record" {
			outcome.CreatedAt = r.rec.CreatedAt
		}
		if s.flaw != "Complete takes ExpiresAt from the record" {
			outcome.ExpiresAt = r.rec.ExpiresAt
		}
		if s.flaw == "Complete looks and then writes" {
			s.pause()
		}
		if s.flaw == "Complete counts the times from the completion" {
			outcome.CreatedAt, outcome.ExpiresAt = s.Now(), s.Now().Add(r.rec.ExpiresAt.Sub(r.rec.CreatedAt))
		}
		if s.flaw == "Complete keeps the caller's slices" {
			outcome.ResponseBody, outcome.ResponseHeaders, outcome.AppendedHeaders = rec.ResponseBody, rec.ResponseHeaders, rec.AppendedHeaders
		}
		if c.Kept && s.flaw != "Complete leaves the request" {
			delete(s.kept, s.at(c.OrgID, c.Key))
		}
		s.rows[s.at(r.rec.OrgID, r.rec.Key)] = r // whatever is there now
		r.rec, r.completed = s.stored(outcome), true
	}
	if len(rows) == 0 {
		return s.lost()
	}
	return nil
}

// Release implements [idempotency.LeaseStore].
func (s *flawedStore) Release(ctx context.Context, c idempotency.Claim) error {
	if err := ctx.Err(); err != nil && s.flaw != "Release ignores its context" {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	rows := s.held(c, s.flaw == "token not checked at Release", s.flaw == "Release ignores the org")
	for _, r := range rows {
		if s.flaw == "Release looks and then writes" {
			s.pause()
		}
		if c.Kept && s.flaw != "Release leaves the request" || s.flaw == "Release of a recovery forgets the request" {
			delete(s.kept, s.at(c.OrgID, c.Key))
		}
		switch {
		case s.lapsed(r) && s.flaw == "Release refused after the lapse":
			return s.lost()
		case r.completed && s.flaw != "Release deletes a completed record":
			return s.lost()
		case s.flaw == "Release does nothing":
		case s.flaw == "Release of a first attempt only ends its lease":
			r.leaseUntil, r.token = s.Now(), idempotency.NewToken()
		case r.attempt > 1 && s.flaw != "Release after a take-over forgets the attempts", s.keeps(r):
			if s.flaw != "Release after a take-over leaves the lease" {
				r.leaseUntil = s.Now()
			}
			if s.flaw != "Release after a take-over leaves the token" {
				r.token = idempotency.NewToken()
			}
		default:
			delete(s.rows, s.at(r.rec.OrgID, r.rec.Key))
		}
	}
	if len(rows) == 0 {
		return s.lost()
	}
	return nil
}

// Extend implements [idempotency.LeaseStore].
func (s *flawedStore) Extend(ctx context.Context, c idempotency.Claim, lease time.Duration) error {
	if err := ctx.Err(); err != nil && s.flaw != "Extend ignores its context" {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	rows := s.held(c, s.flaw == "token not checked at Extend", s.flaw == "Extend ignores the org")
	for _, r := range rows {
		until := s.Now().Add(lease)
		if s.flaw == "Extend looks and then writes" {
			s.pause()
		}
		switch {
		case r.completed && s.flaw != "Extend of a completed record succeeds":
			return s.lost()
		case s.lapsed(r) && s.flaw == "Extend refused after the lapse":
			return s.lost()
		case s.flaw == "Extend does nothing":
		case s.flaw == "Extend counts from the end of the lease":
			r.leaseUntil = r.leaseUntil.Add(lease)
		case s.flaw == "Extend never shortens" && until.Before(r.leaseUntil):
		default:
			r.leaseUntil = until
		}
	}
	if len(rows) == 0 {
		return s.lost()
	}
	return nil
}

// held returns the row that c holds; where a flaw has it so, also rows that it
// does not.
func (s *flawedStore) held(c idempotency.Claim, anyToken, anyOrg bool) (rows []*row) {
	for at, r := range s.rows {
		ours := at == s.at(c.OrgID, c.Key) || anyOrg && at.key == c.Key
		if ours && (anyToken || r.token == c.Token) {
			rows = append(rows, r)
		}
	}
	return rows
}

func (s *flawedStore) lost() error {
	if s.flaw == "ErrLeaseLost not wrapped" {
		return errors.New(idempotency.ErrLeaseLost.Error())
	}
	return fmt.Errorf("flawed: %w", idempotency.ErrLeaseLost)
}
