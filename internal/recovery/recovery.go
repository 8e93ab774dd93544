// Package recovery marks the context of a request that is run again because its process
// died, so that package idempotency, which makes such requests, and package authctx,
// which lets them through, know one without knowing each other.
//
// Nothing that comes over the network can carry the mark.
package recovery

import (
	"context"
	"sync"

	"github.com/google/uuid"
)

// Attempt is one recovery of a request: what the middleware that protects the request
// must know of it, and what became of it there. It is safe for concurrent use.
type Attempt struct {
	OrgID       uuid.UUID
	Key         string // as stored
	RequestHash string

	mu       sync.Mutex
	taken    bool
	decision string
	status   int
	err      error
}

type contextKey struct{}

// With returns a context that carries the attempt.
func With(ctx context.Context, a *Attempt) context.Context {
	return context.WithValue(ctx, contextKey{}, a)
}

// From returns the attempt that ctx carries, or nil.
func From(ctx context.Context) *Attempt {
	a, _ := ctx.Value(contextKey{}).(*Attempt)
	return a
}

// Is reports whether ctx carries an attempt for the tenant.
func Is(ctx context.Context, orgID uuid.UUID) bool {
	a := From(ctx)
	return a != nil && orgID != uuid.Nil && a.OrgID == orgID
}

// Take reports whether the caller is the first to take the attempt, and so the one who
// carries it out.
func (a *Attempt) Take() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	first := !a.taken
	a.taken = true
	return first
}

// End says what became of the attempt.
func (a *Attempt) End(decision string, status int, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.decision, a.status, a.err = decision, status, err
}

// Result returns whether somebody took the attempt, and what they said of its end; the
// decision is empty where it has none.
func (a *Attempt) Result() (taken bool, decision string, status int, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.taken, a.decision, a.status, a.err
}
