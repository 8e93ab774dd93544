package idempotencytest_test

import (
	"bytes"
	"context"

	"github.com/pgidem/pgidem/idempotency"
)

// stepsOf returns the row in which a claim may load and save steps.
func (s *flawedStore) stepsOf(c idempotency.Claim, anyToken bool) (*row, error) {
	rows := s.held(c, anyToken, s.flaw == "steps ignore the org")
	if len(rows) == 0 || rows[0].completed && s.flaw != "a completed record takes steps" {
		return nil, s.lost()
	}
	return rows[0], nil
}

func (s *flawedStore) stepName(name string) string {
	if s.flaw == "step names trimmed" {
		return string(bytes.TrimSpace([]byte(name)))
	}
	return name
}

// LoadStep implements [idempotency.StepStore].
func (s *flawedStore) LoadStep(ctx context.Context, c idempotency.Claim, name string) (result []byte, found bool, err error) {
	if err := ctx.Err(); err != nil && s.flaw != "LoadStep ignores its context" {
		return nil, false, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	r, err := s.stepsOf(c, s.flaw == "token not checked at LoadStep")
	if err != nil {
		return nil, false, err
	}
	result, found = r.steps[s.stepName(name)]
	return result, found, nil
}

// SaveStep implements [idempotency.StepStore].
func (s *flawedStore) SaveStep(ctx context.Context, c idempotency.Claim, name string, result []byte) (stored []byte, err error) {
	if err := ctx.Err(); err != nil && s.flaw != "SaveStep ignores its context" {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	r, err := s.stepsOf(c, s.flaw == "token not checked at SaveStep")
	if err != nil {
		return nil, err
	}
	name = s.stepName(name)
	stored, found := r.steps[name]
	if s.flaw == "SaveStep looks and then writes" {
		s.pause()
	}
	switch {
	case found && s.flaw == "SaveStep returns what it was given":
		return result, nil
	case found && s.flaw != "the last step saved wins":
		return stored, nil
	}
	if s.flaw != "SaveStep keeps the caller's result" {
		result = bytes.Clone(result)
	}
	if r.steps == nil {
		r.steps = make(map[string][]byte)
	}
	r.steps[name] = result
	return result, nil
}

// inherited returns the steps that a claim of the row finds.
func (s *flawedStore) inherited(r *row, sameLife bool) map[string][]byte {
	switch s.flaw {
	case "a take-over loses the steps":
		return nil
	case "steps outlive their record":
		return r.steps
	case "steps keep their first expiry":
		if sameLife && r.attempt > 1 {
			return nil
		}
	}
	if !sameLife {
		return nil
	}
	return r.steps
}

// keeps reports whether a release leaves the row for its steps.
func (s *flawedStore) keeps(r *row) bool {
	return len(r.steps) > 0 && s.flaw != "Release forgets the steps"
}
