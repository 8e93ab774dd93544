package service

import (
	"context"
	"time"

	"github.com/google/uuid"

	"github.com/pgidem/pgidem/chaos/history"
	"github.com/pgidem/pgidem/idempotency"
)

// tracer notes each call of a store, and passes the points around it.
type tracer struct {
	idempotency.StepStore
	log     *history.Log
	process string
	points  *points
}

// whole is what a store can do beyond that, if there is no bug in it.
type whole interface {
	idempotency.WatchStore
	idempotency.RequestStore
}

// trace returns the store with each of its calls noted. It can watch, and keeps requests,
// if the store does.
func trace(store idempotency.StepStore, s *payments) idempotency.Store {
	t := &tracer{StepStore: store, log: s.log, process: s.config.Process, points: s.points}
	if all, ok := store.(whole); ok {
		return wholeTracer{t, all}
	}
	return t
}

type wholeTracer struct {
	*tracer
	whole whole
}

// KeepsRequests implements [idempotency.RequestStore].
func (wholeTracer) KeepsRequests() {}

// Watch implements [idempotency.WatchStore].
func (t wholeTracer) Watch(orgID uuid.UUID, key string) (ended <-chan struct{}, stop func(), err error) {
	return t.whole.Watch(orgID, key)
}

// begin notes that a call begins, and returns a function that notes its end.
func (t *tracer) begin(ctx context.Context, kind string, c idempotency.Claim, about history.Event) (end func(error, history.Event)) {
	note := func(e history.Event, done bool, err error) {
		e.T, e.Process, e.Kind, e.Done = history.Now(), t.process, kind, done
		e.Request, e.Org, e.Key, e.Token = requestID(ctx), c.OrgID.String(), c.Key, c.Token.String()
		if err != nil {
			e.Err = err.Error()
		}
		t.log.Write(e)
	}
	note(about, false, nil)
	return func(err error, e history.Event) { note(e, true, err) }
}

// outcomes are the names of what may come of a claim.
var outcomes = map[idempotency.ClaimOutcome]string{
	idempotency.OutcomeClaimed:        "claimed",
	idempotency.OutcomeCompleted:      "completed",
	idempotency.OutcomeInFlight:       "in flight",
	idempotency.OutcomeMismatch:       "mismatch",
	idempotency.OutcomeInterrupted:    "interrupted",
	idempotency.OutcomeNotInterrupted: "not interrupted",
}

// Claim implements [idempotency.LeaseStore].
func (t *tracer) Claim(ctx context.Context, req idempotency.ClaimRequest) (idempotency.ClaimResult, error) {
	t.points.pass(BeforeClaim)
	end := t.begin(ctx, history.ClaimCall, req.Claim, history.Event{})
	result, err := t.StepStore.Claim(ctx, req)
	end(err, history.Event{Outcome: outcomes[result.Outcome], Attempt: result.Attempt})
	if err == nil && result.Outcome == idempotency.OutcomeClaimed {
		t.points.pass(AfterClaim)
	}
	return result, err
}

// Complete implements [idempotency.LeaseStore].
func (t *tracer) Complete(ctx context.Context, c idempotency.Claim, rec *idempotency.Record) error {
	t.points.pass(BeforeCommit)
	about := history.Event{Result: string(rec.ResponseBody)}
	end := t.begin(ctx, history.CompleteCall, c, about)
	err := t.StepStore.Complete(ctx, c, rec)
	end(err, about)
	if err == nil {
		t.points.pass(AfterCommit)
	}
	return err
}

// Release implements [idempotency.LeaseStore].
func (t *tracer) Release(ctx context.Context, c idempotency.Claim) error {
	end := t.begin(ctx, history.ReleaseCall, c, history.Event{})
	err := t.StepStore.Release(ctx, c)
	end(err, history.Event{})
	return err
}

// Extend implements [idempotency.LeaseStore].
func (t *tracer) Extend(ctx context.Context, c idempotency.Claim, lease time.Duration) error {
	end := t.begin(ctx, history.ExtendCall, c, history.Event{})
	err := t.StepStore.Extend(ctx, c, lease)
	end(err, history.Event{})
	return err
}

// LoadStep implements [idempotency.StepStore].
func (t *tracer) LoadStep(ctx context.Context, c idempotency.Claim, name string) (result []byte, found bool, err error) {
	end := t.begin(ctx, history.LoadCall, c, history.Event{Step: name})
	result, found, err = t.StepStore.LoadStep(ctx, c, name)
	end(err, history.Event{Step: name, Found: found, Result: string(result)})
	return result, found, err
}

// SaveStep implements [idempotency.StepStore].
func (t *tracer) SaveStep(ctx context.Context, c idempotency.Claim, name string, result []byte) (stored []byte, err error) {
	end := t.begin(ctx, history.SaveCall, c, history.Event{Step: name, Result: string(result)})
	stored, err = t.StepStore.SaveStep(ctx, c, name, result)
	end(err, history.Event{Step: name, Result: string(stored)})
	return stored, err
}
