package idempotency

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"log/slog"
	"time"

	"github.com/google/uuid"
)

// Decision is what [Require] decided about one request. The values are stable:
// dashboards and alerts may name them.
type Decision string

// The decisions. Those marked with an exclamation mark can mean that an effect
// happened, or may happen again, without a record of it: alert on them.
const (
	// DecisionExecuted means that the handler ran and its outcome is stored.
	DecisionExecuted Decision = "executed"
	// DecisionTakenOver means the same, after an earlier attempt was interrupted.
	DecisionTakenOver Decision = "taken_over"
	// DecisionReplayed means that the stored response was sent.
	DecisionReplayed Decision = "replayed"
	// DecisionReleased means that the handler answered with a status that is not
	// storable; a retry runs it again. What it did before is its own affair.
	DecisionReleased Decision = "released"
	// DecisionPanicked (!) means that the handler panicked, or ended its goroutine;
	// a retry runs it again.
	DecisionPanicked Decision = "panicked"
	// DecisionNoOutcome (!) means that the handler returned without a response after
	// its context had been cancelled; a retry runs it again.
	DecisionNoOutcome Decision = "no_outcome"
	// DecisionClientLeft means that the client left before the handler ran; a retry
	// runs it.
	DecisionClientLeft Decision = "client_left"
	// DecisionInFlight means refused: another attempt is running.
	DecisionInFlight Decision = "in_flight"
	// DecisionMismatch means refused: the key belongs to another request.
	DecisionMismatch Decision = "mismatch"
	// DecisionInterrupted (!) means refused: an earlier attempt was interrupted.
	DecisionInterrupted Decision = "interrupted"
	// DecisionNotKept means refused: completed before, but the response was not
	// kept.
	DecisionNotKept Decision = "not_kept"
	// DecisionReplayDenied means refused: [WithReplayCheck] had the last say.
	DecisionReplayDenied Decision = "replay_denied"
	// DecisionMissingKey means refused: the route requires a key.
	DecisionMissingKey Decision = "missing_key"
	// DecisionInvalidKey means refused: the key is malformed.
	DecisionInvalidKey Decision = "invalid_key"
	// DecisionTooLarge means refused: the request's body is too large.
	DecisionTooLarge Decision = "too_large"
	// DecisionUnreadableBody means refused: the request's body could not be read.
	DecisionUnreadableBody Decision = "unreadable_body"
	// DecisionMissingOrg means refused: a key, but no tenant in the context.
	DecisionMissingOrg Decision = "missing_org"
	// DecisionUnknownTenant means refused: the tenant has no place in the store.
	DecisionUnknownTenant Decision = "unknown_tenant"
	// DecisionSuspendedTenant means refused: the tenant is not served at present.
	DecisionSuspendedTenant Decision = "suspended_tenant"
	// DecisionStoreError means refused: the store could not be asked, and the
	// handler did not run.
	DecisionStoreError Decision = "store_error"
	// DecisionAborted means that a function of the user's or of the store panicked
	// before the handler ran.
	DecisionAborted Decision = "aborted"
	// DecisionBypassedNoOrg (!) means that the handler ran unprotected: there was
	// a key, but no tenant in the context.
	DecisionBypassedNoOrg Decision = "bypassed_no_org"
	// DecisionRanUnprotected (!) means that the handler ran unprotected: the store
	// could not be asked, and [WithFailOpen] is set.
	DecisionRanUnprotected Decision = "ran_unprotected"
	// DecisionCompleteFailed (!) means that the handler ran, but its outcome could
	// not be stored; or that it ended the transaction that it ran in itself
	// ([ErrHandlerEnded]), whatever it answered.
	DecisionCompleteFailed Decision = "complete_failed"
	// DecisionRolledBack means that the handler ran in a transaction that was rolled
	// back, with all that it did in it; a retry runs it again.
	DecisionRolledBack Decision = "rolled_back"
	// DecisionReleaseFailed means that a claim could not be released because the
	// store could not be reached; a retry is refused until its lease lapses.
	DecisionReleaseFailed Decision = "release_failed"
	// DecisionLeaseLost (!) means that the handler ran, but another attempt had
	// taken over.
	DecisionLeaseLost Decision = "lease_lost"
	// DecisionNotInterrupted means that a worker found nothing to recover ([Recover]): the
	// request has meanwhile completed, or its attempt was released.
	DecisionNotInterrupted Decision = "not_interrupted"
	// DecisionNotRecoverable means that a request was not run again because its route is
	// none of those of [WithRecoverable], or no longer, or not one of this service at all.
	DecisionNotRecoverable Decision = "not_recoverable"
)

// Event tells what became of one request that carried, or should have carried,
// an idempotency key.
type Event struct {
	Decision Decision
	// OrgID is the tenant, or [uuid.Nil] where it is not known.
	OrgID uuid.UUID
	// KeyHash is the beginning of the SHA-256 of the key, in hexadecimal, so that
	// events of one key can be told together. The key itself appears nowhere: it
	// may be guessable, and it opens the stored response.
	KeyHash string
	// Method and Path are the request's.
	Method, Path string
	// Status is the HTTP status of the response, or 0 where it is not known. Of an
	// answer that [WithErrorHandler] writes it is the status of the problem.
	Status int
	// Attempt counts the attempts at the key, from 1, where the handler ran
	// under a claim.
	Attempt int
	// Recovered says that it is a request that was interrupted and is run again
	// ([Recover]).
	Recovered bool
	// Reruns counts how often the handler was run again because its transaction had
	// met others.
	Reruns int
	// Claim, Wait, Handler and Complete are how long the store's claim, waiting for
	// another attempt ([WithWait]), the handler, and storing or releasing its outcome
	// took; zero where there was none. That of the handler is from the claim's end.
	Claim, Wait, Handler, Complete time.Duration
	// Instance is that of the [Problem] that was answered, or empty.
	Instance string
	// Err is the error behind the decision, where there is one. It may hold
	// internal detail that no client should see.
	Err error
}

// level is where the default log puts a decision.
func (d Decision) level() slog.Level {
	switch d {
	case DecisionInterrupted, DecisionBypassedNoOrg, DecisionRanUnprotected, DecisionCompleteFailed, DecisionLeaseLost:
		return slog.LevelError
	case DecisionPanicked, DecisionNoOutcome, DecisionRolledBack, DecisionStoreError, DecisionReleaseFailed, DecisionUnknownTenant, DecisionSuspendedTenant, DecisionAborted:
		return slog.LevelWarn
	default:
		return slog.LevelDebug
	}
}

func keyHash(key string) string {
	sum := sha256.Sum256([]byte(key))
	return hex.EncodeToString(sum[:8])
}

// tells reports whether anybody hears of decisions at the level.
func (c *config) tells(ctx context.Context, level slog.Level) bool {
	return c.observer != nil || c.logger.Enabled(ctx, level)
}

// report hands the event of a request with the key to the observer and the log.
func (c *config) report(ctx context.Context, e *Event, key string) {
	level := e.Decision.level()
	if !c.tells(ctx, level) {
		return
	}
	if key != "" {
		e.KeyHash = keyHash(key)
	}
	if c.observer != nil {
		c.observer(ctx, *e)
	}
	if !c.logger.Enabled(ctx, level) {
		return
	}
	attrs := []slog.Attr{
		slog.String("decision", string(e.Decision)),
		slog.String("method", e.Method),
		slog.String("path", e.Path),
		slog.String("org_id", e.OrgID.String()),
		slog.String("key_hash", e.KeyHash),
		slog.Int("status", e.Status),
		slog.Duration("claim", e.Claim),
		slog.Duration("wait", e.Wait),
		slog.Duration("handler", e.Handler),
		slog.Duration("complete", e.Complete),
	}
	if e.Attempt > 0 {
		attrs = append(attrs, slog.Int("attempt", e.Attempt))
	}
	if e.Recovered {
		attrs = append(attrs, slog.Bool("recovered", true))
	}
	if e.Reruns > 0 {
		attrs = append(attrs, slog.Int("reruns", e.Reruns))
	}
	if e.Instance != "" {
		attrs = append(attrs, slog.String("instance", e.Instance))
	}
	if e.Err != nil {
		attrs = append(attrs, slog.String("error", e.Err.Error()))
	}
	c.logger.LogAttrs(ctx, level, "idempotency", attrs...)
}
