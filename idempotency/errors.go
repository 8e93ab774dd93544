package idempotency

import (
	"errors"
	"fmt"
)

// ErrNotFound is returned by [Store.Get] for a key that has no completed,
// unexpired record.
var ErrNotFound = errors.New("idempotency: record not found")

// ErrLeaseLost is returned by the methods of a [LeaseStore] to an attempt that
// no longer holds its key, and is the cause with which the context of its
// handler is cancelled ([context.Cause]).
var ErrLeaseLost = errors.New("idempotency: lease lost")

// ErrStoreRefused is wrapped by a [LeaseStore]'s error when the store was reached
// and would not take the claim: a constraint was violated, say. Trying again, or
// running the handler without a claim, would be wrong.
var ErrStoreRefused = errors.New("idempotency: store refused")

// ErrRolledBack is wrapped by a [LeaseStore]'s error when an attempt that runs in a
// transaction was rolled back: nothing of it has taken effect.
var ErrRolledBack = errors.New("idempotency: rolled back")

// ErrRerun wraps [ErrRolledBack] for an attempt that failed only because of others
// beside it, by a serialization failure or a deadlock, and may run again at once.
var ErrRerun = fmt.Errorf("%w: it may run again", ErrRolledBack)

// ErrHandlerEnded wraps [ErrStoreRefused] for an attempt whose handler ended the
// transaction that it ran in: what it did may stand, and there is no record of it.
var ErrHandlerEnded = fmt.Errorf("%w: the handler ended its transaction by a statement of its own; leave that to the store", ErrStoreRefused)

// ErrNoStreaming is what a handler gets that flushes or hijacks while it runs in a
// transaction: nothing may reach the client before the commit.
var ErrNoStreaming = errors.New("idempotency: a handler in a transaction cannot stream: return the response whole, or wrap this route with a store that is not transactional")

// What [Step] and [ChildKey] wrap.
var (
	// ErrNoClaim is wrapped outside a handler that runs under a claim: the request has no
	// key, or no tenant, or passes through, or its handler has returned.
	ErrNoClaim = errors.New("idempotency: no claim: pass the context of a handler that idempotency.Require runs for a request with a key, and refuse requests without one by WithRequireKey and WithRequireOrg")
	// ErrNoSteps is wrapped where the store is not a [StepStore].
	ErrNoSteps = errors.New("idempotency: the store keeps no steps: use pgstore.Store, a MemoryStore or another StepStore")
	// ErrStepInvalid is wrapped for a step that cannot be one: because of its name, of the
	// type of its result, or of a call of it from within itself.
	ErrStepInvalid = errors.New("idempotency: invalid step")
	// ErrStepNotKept is wrapped when the function of a step has had its effect and its
	// result could not be stored. A later attempt will run the function again.
	ErrStepNotKept = errors.New("idempotency: the step has run, and its result was not kept")
)

// The reasons for which [Require] answers a request itself. The error that it
// hands to [WithErrorHandler] is a [*Problem] that wraps one of them, or
// [ErrLeaseLost], [tenancy.ErrUnknownTenant] or [tenancy.ErrSuspendedTenant].
var (
	// ErrKeyMissing means that a route of [WithRequireKey] was called without a key.
	ErrKeyMissing = errors.New("idempotency: key missing")
	// ErrKeyInvalid means that there are two key lines, or the key is empty, too long, of
	// the wrong bytes, or malformed.
	ErrKeyInvalid = errors.New("idempotency: key invalid")
	// ErrKeyReused means that the key belongs to a request with another fingerprint.
	ErrKeyReused = errors.New("idempotency: key reused for another request")
	// ErrInFlight means that the same request is being processed at this moment.
	ErrInFlight = errors.New("idempotency: request in flight")
	// ErrInterrupted means that an earlier attempt was interrupted, and its outcome is
	// unknown; see [WithInterrupted].
	ErrInterrupted = errors.New("idempotency: outcome of an earlier attempt unknown")
	// ErrNotKept means that the request completed before, but its response was not kept.
	ErrNotKept = errors.New("idempotency: response not kept")
	// ErrReplayDenied means that [WithReplayCheck] refused to show a stored response.
	ErrReplayDenied = errors.New("idempotency: replay denied")
	// ErrNoOutcome means that the handler returned without a response after its context
	// had been cancelled.
	ErrNoOutcome = errors.New("idempotency: handler gave up without an outcome")
	// ErrNotCommitted means that the handler ran in a transaction that could not be
	// committed, or of which it could not be found out whether it was.
	ErrNotCommitted = errors.New("idempotency: not committed")
	// ErrOrgMissing means that there is a key but no tenant in the context, and
	// [WithRequireOrg] is set.
	ErrOrgMissing = errors.New("idempotency: no tenant in the context")
	// ErrRequestTooLarge means that the body is larger than [WithMaxRequestBytes] allows.
	ErrRequestTooLarge = errors.New("idempotency: request body too large")
	// ErrRequestUnreadable means that the body could not be read to its end.
	ErrRequestUnreadable = errors.New("idempotency: request body unreadable")
	// ErrStoreUnavailable means that the store could not be asked whether the request ran
	// before.
	ErrStoreUnavailable = errors.New("idempotency: store unavailable")
)
