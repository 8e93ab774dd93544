package idempotency

import (
	"context"
	"encoding/json"
	"fmt"
	"reflect"
	"sync"
	"unicode"
	"unicode/utf8"
)

// MaxStepName is the most bytes that the name of a [Step] or of a [ChildKey] may have.
const MaxStepName = 128

// Step runs fn once for the request and the name, and keeps its result: any later call
// with the name, in this attempt or in one after a crash, gets the stored result
// without running fn. Wrap in it each effect outside the database whose happening must
// not be forgotten, and hand the service that has the effect a [ChildKey]:
//
//	charge, err := idempotency.Step(ctx, "charge", func(ctx context.Context) (Charge, error) {
//		key, err := idempotency.ChildKey(ctx, "charge")
//		if err != nil {
//			return Charge{}, err
//		}
//		return payments.Charge(ctx, key, amount)
//	})
//
// An error of fn is returned as it is, and nothing is stored: the next call runs fn
// again. The result is stored as JSON, and what Step returns has always been through it.
// A name is 1 to [MaxStepName] bytes of UTF-8 without control characters, and means one
// effect, whatever else the request does. Calls with one name wait for each other, and
// those with different names run side by side; fn must not call Step with its own name.
//
// Steps belong to the request: to its tenant, scope, key and fingerprint. They are kept
// until its record expires ([WithTTL]), and a key that is used anew after that starts
// without them. An attempt that ends without an outcome leaves its steps to the next.
// Where a store runs the handler in a transaction ([ClaimResult.Transaction]), a step is
// committed at once, beside the transaction, and outlives its end.
//
// Step keeps a result from being forgotten; it cannot make fn and the storing of its
// result one. A process that dies between the two leaves an effect that the next attempt
// has again, unless the other side knows it by its child key.
//
// Before fn runs, the error wraps
//   - [ErrNoClaim] outside a handler that [Require] runs under a claim,
//   - [ErrNoSteps] where the store keeps no steps,
//   - [ErrStepInvalid] for a name that cannot be one, or a T that JSON cannot carry,
//   - [ErrLeaseLost] where another attempt has taken over,
//   - the cause of ctx's end, if it has ended, or else what is wrong with the store.
//
// After fn has returned without an error, it wraps [ErrStepNotKept] where the result
// could not be stored, within the time of [WithStoreTimeout] and whether or not ctx has
// ended: the effect has happened, and the handler should fail. It wraps [ErrLeaseLost] as
// well where another attempt has taken over meanwhile; that may have had the effect too.
// A stored result that does not fit T gives [ErrStepInvalid].
func Step[T any](ctx context.Context, name string, fn func(context.Context) (T, error)) (T, error) {
	var value T
	_, s, err := stepsOf(ctx, name)
	if err == nil {
		err = checkResult(reflect.TypeFor[T]())
	}
	if err != nil {
		return value, fmt.Errorf("idempotency: step %.200q: %w", name, err)
	}
	var own error // of fn
	result, err := s.once(ctx, name, ErrStepNotKept, func(ctx context.Context) ([]byte, error) {
		if value, own = fn(ctx); own != nil {
			return nil, own
		}
		result, err := json.Marshal(value)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrStepNotKept, err)
		}
		return result, nil
	})
	if own != nil {
		return value, own
	}
	var stored T // and not on top of what fn returned
	if err == nil {
		if err = json.Unmarshal(result, &stored); err == nil {
			return stored, nil
		}
		err = fmt.Errorf("%w: the stored result does not fit %s: %w", ErrStepInvalid, reflect.TypeFor[T](), err)
	}
	var zero T
	return zero, fmt.Errorf("idempotency: step %q: %w", name, err)
}

// stepsOf returns what Step and ChildKey need of the attempt that they run under.
func stepsOf(ctx context.Context, name string) (*claimed, *steps, error) {
	c := claimOf(ctx)
	switch {
	case c == nil || c.steps == nil:
		return nil, nil, ErrNoClaim
	case c.steps.store == nil:
		return nil, nil, ErrNoSteps
	}
	return c, c.steps, checkStepName(name)
}

func checkStepName(name string) error {
	switch {
	case name == "":
		return fmt.Errorf("%w: the name is empty", ErrStepInvalid)
	case len(name) > MaxStepName:
		return fmt.Errorf("%w: the name has %d bytes, and may have %d", ErrStepInvalid, len(name), MaxStepName)
	case !utf8.ValidString(name):
		return fmt.Errorf("%w: the name is not UTF-8", ErrStepInvalid)
	}
	for _, r := range name {
		if unicode.IsControl(r) {
			return fmt.Errorf("%w: the name has the control character %U", ErrStepInvalid, r)
		}
	}
	return nil
}

// steps are those of one attempt.
type steps struct {
	store StepStore // nil where the store keeps none
	claim Claim
	calls storeCalls

	mu     sync.Mutex
	ended  bool // the handler has
	byName map[string]*step
}

// step is one name's. Only the call whose turn it is touches the result.
type step struct {
	turn   chan struct{} // holds one: the call that is at it
	result []byte
	kept   bool // result is in the store
}

// end refuses what a goroutine that the handler left behind would still begin.
func (s *steps) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ended = true
}

func (s *steps) at(name string) (*step, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended {
		return nil, fmt.Errorf("%w: its handler has returned", ErrNoClaim)
	}
	st, ok := s.byName[name]
	if !ok {
		st = &step{turn: make(chan struct{}, 1)}
		if s.byName == nil {
			s.byName = make(map[string]*step)
		}
		s.byName[name] = st
	}
	return st, nil
}

// once returns the stored result of the name, or runs the function, whose error it
// returns as it is, and stores what that returned. A result that could not be stored
// gives an error that wraps unkept, and is not lost for this attempt: the next call tries
// to store it again.
func (s *steps) once(ctx context.Context, name string, unkept error, run func(context.Context) ([]byte, error)) ([]byte, error) {
	if isInside(ctx, s, name) {
		return nil, fmt.Errorf("%w: it is called from within itself", ErrStepInvalid)
	}
	st, err := s.at(name)
	if err != nil {
		return nil, err
	}
	select {
	case st.turn <- struct{}{}:
		defer func() { <-st.turn }()
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	if st.kept {
		return st.result, nil
	}
	if st.result == nil {
		stored, found, err := s.load(name)
		switch {
		case err != nil:
			return nil, err
		case found:
			st.result, st.kept = stored, true
			return st.result, nil
		case ctx.Err() != nil:
			return nil, context.Cause(ctx) // an effect must not begin for an attempt that is over
		}
		result, err := run(context.WithValue(ctx, insideKey{}, &inside{s, name, ctx}))
		if err != nil {
			return nil, err
		}
		st.result = result
	}
	stored, err := s.save(name, st.result)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", unkept, err)
	}
	st.result, st.kept = stored, true
	return st.result, nil
}

func (s *steps) load(name string) (result []byte, found bool, err error) {
	const tries = 3 // nothing has happened yet that would be worth a longer wait
	err, _ = s.calls.persist(tries, func(ctx context.Context) error {
		result, found, err = s.store.LoadStep(ctx, s.claim, name)
		return err
	})
	return result, found, err
}

func (s *steps) save(name string, result []byte) (stored []byte, err error) {
	err, _ = s.calls.persist(manyTries, func(ctx context.Context) error {
		stored, err = s.store.SaveStep(ctx, s.claim, name, result)
		return err
	})
	return stored, err
}

type insideKey struct{}

// inside is a step whose function is running, and the context that it was called with,
// which may lead to another.
type inside struct {
	steps *steps
	name  string
	outer context.Context
}

// isInside reports whether the step would wait for itself.
func isInside(ctx context.Context, s *steps, name string) bool {
	for {
		in, ok := ctx.Value(insideKey{}).(*inside)
		if !ok {
			return false
		}
		if in.steps == s && in.name == name {
			return true
		}
		ctx = in.outer
	}
}
