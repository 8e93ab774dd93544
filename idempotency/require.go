package idempotency

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"time"

	"github.com/pgidem/pgidem/tenancy"
)

// Require returns middleware that makes requests with an Idempotency-Key safe to
// retry: the same key of the same tenant runs the handler once, and every retry
// gets the first response again. The package documentation has the whole
// contract.
//
// The tenant comes from the request's context, so Require stands behind the
// authentication that puts it there. Where it stands more than once before a
// handler, only the outermost takes part.
//
// Require panics when store is nil or an option cannot work.
func Require(store Store, opts ...Option) func(http.Handler) http.Handler {
	if store == nil {
		panic("idempotency: Require: the store is nil")
	}
	cfg, err := newConfig(opts)
	if err != nil {
		panic(err)
	}
	leases, ok := store.(LeaseStore)
	if !ok {
		leases = newPlainStore(store)
	}
	return func(next http.Handler) http.Handler {
		return &middleware{config: cfg, store: leases, next: next}
	}
}

type middleware struct {
	*config
	store LeaseStore
	next  http.Handler
}

// ServeHTTP implements [http.Handler].
func (m *middleware) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if !slices.Contains(m.methods, r.Method) || m.exclude.Match(r) {
		m.next.ServeHTTP(w, r)
		return
	}
	lines := r.Header[HeaderKey]
	if len(lines) == 0 && !m.keyRequired(r) {
		m.next.ServeHTTP(w, r)
		return
	}
	if _, claimed := Attempt(r.Context()); claimed {
		m.next.ServeHTTP(w, r)
		return
	}
	m.serveKeyed(w, r, lines)
}

// serveKeyed serves a request that has a key, or is refused for want of one.
func (m *middleware) serveKeyed(w http.ResponseWriter, r *http.Request, lines []string) {
	orgID, hasOrg := FromContext(r.Context())
	x := &exchange{middleware: m, w: w, r: r, event: newEvent(r, orgID, "")}
	defer x.report()
	if len(lines) == 0 {
		x.refuse(ErrKeyMissing)
		return
	}
	key, err := parseKey(lines)
	if err != nil {
		x.refuse(err)
		return
	}
	x.key, x.event = key, newEvent(r, orgID, key)
	if !hasOrg {
		x.serveWithoutOrg()
		return
	}
	body, err := x.readBody()
	if err != nil {
		x.refuse(err)
		return
	}
	hash, err := m.fingerprint(r, body)
	if err != nil {
		x.refuse(fmt.Errorf("%w: fingerprint: %w", ErrRequestUnreadable, err))
		return
	}
	x.serveClaiming(body, ClaimRequest{
		Claim:       Claim{OrgID: orgID, Key: m.scoped(key, r), Token: NewToken()},
		RequestHash: hash,
		Lease:       m.lease,
		TTL:         m.ttl,
		Interrupted: m.interrupted,
	})
}

// scoped puts the scope of [WithScope] in front of the key. The byte between them
// can be in no key of a client, so that no key can be made to look scoped.
func (m *middleware) scoped(key string, r *http.Request) string {
	if m.scope == nil {
		return key
	}
	sum := sha256.Sum256([]byte(m.scope(r)))
	return hex.EncodeToString(sum[:16]) + "\x1f" + key
}

// exchange is one request under the middleware and what becomes of it.
type exchange struct {
	*middleware
	w          http.ResponseWriter
	r          *http.Request
	key        string // as the client meant it
	event      *Event
	releaseErr error
}

func (x *exchange) report() {
	if x.releaseErr != nil {
		x.event.Err = errors.Join(x.event.Err, x.releaseErr)
		if x.event.Decision == DecisionReleased {
			x.event.Decision = DecisionReleaseFailed
		}
	}
	x.middleware.report(x.r.Context(), x.event)
}

// refuse answers in the handler's place.
func (x *exchange) refuse(err error) {
	problem, decision := newProblem(err)
	x.answer(problem, decision)
}

func (x *exchange) answer(problem *Problem, decision Decision) {
	x.event.Decision, x.event.Status, x.event.Err = decision, problem.Status, problem.reason
	x.errorHandler(x.w, x.r, problem)
}

func (x *exchange) serveWithoutOrg() {
	if x.requireOrg {
		x.refuse(ErrOrgMissing)
		return
	}
	x.event.Decision = DecisionBypassedNoOrg
	x.next.ServeHTTP(x.w, x.r)
}

// readBody reads the request's body whole, within the bound.
func (x *exchange) readBody() ([]byte, error) {
	if x.r.Body == nil || x.r.Body == http.NoBody {
		return nil, nil
	}
	if x.r.ContentLength > x.maxRequestBytes {
		return nil, fmt.Errorf("%w: %d bytes announced, %d allowed", ErrRequestTooLarge, x.r.ContentLength, x.maxRequestBytes)
	}
	var buf bytes.Buffer
	if x.r.ContentLength > 0 {
		buf.Grow(int(x.r.ContentLength) + bytes.MinRead)
	}
	_, err := buf.ReadFrom(http.MaxBytesReader(x.w, x.r.Body, x.maxRequestBytes))
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &tooLarge):
		return nil, fmt.Errorf("%w: more than the %d bytes allowed", ErrRequestTooLarge, tooLarge.Limit)
	case err != nil:
		return nil, fmt.Errorf("%w: %w", ErrRequestUnreadable, err)
	}
	return buf.Bytes(), nil
}

// request returns the request as the handler is to see it.
func (x *exchange) request(ctx context.Context, body []byte) *http.Request {
	r := x.r.WithContext(ctx)
	if r.Body != nil && r.Body != http.NoBody {
		r.Body = io.NopCloser(bytes.NewReader(body))
	}
	return r
}

// storeContext is the context of one step with the store. The request's
// cancellation has no part in it: the outcome of a request whose client left is
// stored all the same.
func (x *exchange) storeContext() (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(x.r.Context()), x.storeTimeout)
}

func (x *exchange) serveClaiming(body []byte, req ClaimRequest) {
	asked := time.Now()
	result, err := x.claim(req)
	x.event.Claim = time.Since(asked)
	if err != nil {
		x.serveUnclaimed(body, err)
		return
	}
	switch result.Outcome {
	case OutcomeClaimed:
		x.serveClaimed(body, req.Claim, result.Attempt, asked)
	case OutcomeCompleted:
		x.serveCompleted(result.Record)
	case OutcomeInFlight:
		x.refuse(ErrInFlight)
	case OutcomeMismatch:
		x.refuse(ErrKeyReused)
	case OutcomeInterrupted:
		x.refuse(ErrInterrupted)
	default:
		x.serveUnclaimed(body, fmt.Errorf("store answered with claim outcome %d", result.Outcome))
	}
}

// claim claims the key. After an error it makes sure, as far as the store can be
// reached, that no claim without an owner stays behind.
func (x *exchange) claim(req ClaimRequest) (ClaimResult, error) {
	ctx, cancel := x.storeContext()
	defer cancel()
	result, err := x.store.Claim(ctx, req)
	if err == nil || errors.Is(err, tenancy.ErrUnknownTenant) {
		return result, err
	}
	undo, cancel := x.storeContext()
	defer cancel()
	if undoErr := x.store.Release(undo, req.Claim); undoErr != nil && !errors.Is(undoErr, ErrLeaseLost) {
		err = fmt.Errorf("%w; undoing the claim: %w", err, undoErr)
	}
	return ClaimResult{}, err
}

// serveUnclaimed serves a request for which the store could not be asked.
func (x *exchange) serveUnclaimed(body []byte, err error) {
	switch {
	case errors.Is(err, tenancy.ErrUnknownTenant):
		x.refuse(err)
	case x.failOpen:
		x.event.Decision, x.event.Err = DecisionRanUnprotected, err
		x.next.ServeHTTP(x.w, x.request(x.r.Context(), body))
	default:
		x.refuse(fmt.Errorf("%w: %w", ErrStoreUnavailable, err))
	}
}

// serveCompleted serves a retry of a request that has completed.
func (x *exchange) serveCompleted(rec *Record) {
	if x.replayCheck != nil {
		if err := x.replayCheck(x.r, rec); err != nil {
			x.answer(replayDenied(err), DecisionReplayDenied)
			return
		}
	}
	if rec.Tombstone {
		problem, decision := newProblem(ErrNotKept)
		problem.OriginalStatus = rec.ResponseStatus
		x.answer(problem, decision)
		return
	}
	x.replay(rec)
}

// replay sends the stored response.
func (x *exchange) replay(rec *Record) {
	status := rec.ResponseStatus
	if status == 0 {
		status = http.StatusOK // written by Put without one; net/http's default as well
	}
	x.event.Decision, x.event.Status = DecisionReplayed, status
	h := x.w.Header()
	replayHeaders(h, rec)
	h.Set(x.replayHeader, "true")
	setContentLength(h, x.r.Method, status, len(rec.ResponseBody))
	x.w.WriteHeader(status)
	if len(rec.ResponseBody) > 0 {
		x.w.Write(rec.ResponseBody)
	}
}

// serveClaimed runs the handler under the claim, and sees to it that the claim
// ends, however the handler does.
func (x *exchange) serveClaimed(body []byte, c Claim, attempt int, asked time.Time) {
	x.event.Attempt = attempt
	ctx := x.r.Context()
	if x.detached {
		ctx = context.WithoutCancel(ctx)
	}
	if ctx.Err() != nil { // the client left while the claim was under way
		x.release(c)
		x.refuse(ErrNoOutcome)
		return
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	keeper := keepLease(context.WithoutCancel(ctx), x.store, c, asked, x.lease, x.storeTimeout, cancel)
	rec := newRecorder(x.w, x.r.Method, x.maxResponseBytes)

	started := time.Now()
	returned := false
	defer func() {
		if returned {
			return
		}
		// A panic or runtime.Goexit goes on from here: nothing recovers it.
		x.event.Handler = time.Since(started)
		keeper.stop()
		rec.abandon()
		x.event.Decision = DecisionReleased
		x.release(c)
	}()
	x.next.ServeHTTP(rec, x.request(withClaimed(ctx, claimed{x.key, attempt}), body))
	returned = true
	x.event.Handler = time.Since(started)
	keeper.stop()

	if rec.silent() && ctx.Err() != nil {
		rec.abandon()
		x.release(c)
		x.refuse(noOutcome(ctx))
		return
	}
	rec.close()
	// The handler may have had its effect: unless end gets to say otherwise, for
	// the panic of a rule of the user's, this is what must be known.
	x.event.Decision = DecisionCompleteFailed
	x.end(c, rec)
}

// noOutcome says why the handler gave up.
func noOutcome(ctx context.Context) error {
	if cause := context.Cause(ctx); errors.Is(cause, ErrLeaseLost) {
		return ErrLeaseLost
	}
	return ErrNoOutcome
}

// end stores the outcome of a handler that has returned, and only then sends its
// response, if it was not sent already.
func (x *exchange) end(c Claim, rec *recorder) {
	x.event.Status = rec.status
	if !rec.hijacked && !x.storable(rec.status) {
		x.event.Decision = DecisionReleased
		x.release(c)
		rec.finish()
		return
	}
	x.event.Decision = DecisionExecuted
	if x.event.Attempt > 1 {
		x.event.Decision = DecisionTakenOver
	}
	err := x.complete(c, x.record(c, rec))
	switch {
	case err == nil:
		rec.finish()
	case errors.Is(err, ErrLeaseLost) && !rec.sent && !rec.hijacked:
		// The response that counts is another attempt's. To send this one would
		// be to tell two clients two stories.
		rec.abandon()
		x.refuse(err)
	default:
		x.event.Decision, x.event.Err = DecisionCompleteFailed, err
		if errors.Is(err, ErrLeaseLost) {
			x.event.Decision = DecisionLeaseLost
		}
		rec.finish()
	}
}

// record makes the record of a response.
func (x *exchange) record(c Claim, rec *recorder) *Record {
	record := &Record{OrgID: c.OrgID, Key: c.Key, ResponseStatus: rec.status}
	if rec.hijacked || rec.truncated {
		record.Tombstone = true
		return record
	}
	record.ResponseHeaders, record.AppendedHeaders = x.handlerHeaders(rec.outer, rec.final)
	record.ResponseBody = rec.body
	return record
}

// complete stores the outcome. A fault of the store is tried again within the
// store timeout: the handler has run, and a record is worth the wait.
func (x *exchange) complete(c Claim, record *Record) error {
	started := time.Now()
	defer func() { x.event.Complete = time.Since(started) }()
	ctx, cancel := x.storeContext()
	defer cancel()
	const firstPause, maxPause = 20 * time.Millisecond, 500 * time.Millisecond
	for pause := firstPause; ; pause = min(2*pause, maxPause) {
		err := x.store.Complete(ctx, c, record)
		if err == nil || errors.Is(err, ErrLeaseLost) || errors.Is(err, tenancy.ErrUnknownTenant) {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(pause):
		}
	}
}

// release ends the claim without an outcome. That it could not is reported, and
// ends by itself when the lease lapses.
func (x *exchange) release(c Claim) {
	started := time.Now()
	defer func() { x.event.Complete = time.Since(started) }()
	ctx, cancel := x.storeContext()
	defer cancel()
	x.releaseErr = x.store.Release(ctx, c)
}
