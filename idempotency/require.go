package idempotency

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"net/http"
	"slices"
	"sync/atomic"
	"time"

	"github.com/google/uuid"

	"github.com/pgidem/pgidem/internal/recovery"
	"github.com/pgidem/pgidem/tenancy"
)

// Require returns middleware that makes requests with an Idempotency-Key safe to
// retry: the same key of the same tenant runs the handler once, and every retry
// gets the first response again. The package documentation has the whole
// contract.
//
// The tenant comes from the request's context, so Require stands behind the
// authentication that puts it there. Where it stands more than once before a
// handler, only the outermost takes part in a request; a request with another key
// that the handler makes of it, an item of a batch say, is a request of its own.
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
	if _, ok := store.(RequestStore); !ok && cfg.keepsRequests() {
		panic("idempotency: WithRecoverable: the store keeps no requests: use pgstore.Store, or another RequestStore")
	}
	return func(next http.Handler) http.Handler {
		return &middleware{config: cfg, store: leases, next: next, leases: newLeaseKeepers(leases, cfg)}
	}
}

type middleware struct {
	*config
	store  LeaseStore
	next   http.Handler
	leases *leaseKeepers
	deaf   atomic.Bool // the store cannot tell when attempts end, and the log says so
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
	m.serveKeyed(w, r, lines)
}

// serveKeyed serves a request that has a key, or is refused for want of one.
func (m *middleware) serveKeyed(w http.ResponseWriter, r *http.Request, lines []string) {
	orgID, hasOrg := FromContext(r.Context())
	x := &exchange{middleware: m, w: w, r: r, event: newEvent(r, orgID, "")}
	defer x.report()
	if len(lines) == 0 {
		x.refuse(ErrKeyMissing, nil)
		return
	}
	key, err := parseKey(lines)
	if err != nil {
		x.refuse(ErrKeyInvalid, err)
		return
	}
	if outer, ok := r.Context().Value(claimedKey{}).(claimed); ok && m.domain == "" && outer.domain == "" && outer.orgID == orgID && outer.key == key {
		x.event = nil // the outer Require reports
		m.next.ServeHTTP(w, r)
		return
	}
	x.key, x.event = key, newEvent(r, orgID, key)
	if x.recovery = m.recovering(r); x.recovery != nil {
		x.event.Recovered = true
		x.serveRecovery()
		return
	}
	if !hasOrg {
		x.serveWithoutOrg()
		return
	}
	body, reason, err := x.readBody()
	if reason != nil {
		x.refuse(reason, err)
		return
	}
	hash, err := m.fingerprint(r, body)
	if err != nil {
		x.refuse(ErrRequestUnreadable, fmt.Errorf("fingerprint: %w", err))
		return
	}
	kept := m.keep(r, body)
	x.serveClaiming(body, ClaimRequest{
		Claim:       Claim{OrgID: orgID, Key: m.scoped(key, r), Token: NewToken(), Kept: kept != nil},
		RequestHash: bounded(hash),
		Lease:       m.lease,
		TTL:         m.ttl,
		Interrupted: m.interrupted,
		Request:     kept,
	})
}

// scoped puts the scope of [WithScope], and the domain where there is one, in front of
// the key. The byte between them can be in no key of a client, so that no key can be
// made to look scoped.
func (m *middleware) scoped(key string, r *http.Request) string {
	scope := ""
	switch {
	case m.scope != nil:
		scope = m.scope(r)
	case m.domain == "":
		return key
	}
	if m.domain != "" {
		scope = m.domain + "\x00" + scope
	}
	sum := sha256.Sum256([]byte(scope))
	return hex.EncodeToString(sum[:16]) + "\x1f" + key
}

// exchange is one request under the middleware and what becomes of it.
type exchange struct {
	*middleware
	w          http.ResponseWriter
	r          *http.Request
	key        string            // as the client meant it
	recovery   *recovery.Attempt // nil but where a worker runs the request again
	event      *Event
	releaseErr error
	keeper     *leaseKeeper // of the claim; nil without a lease
}

func (x *exchange) report() {
	if x.event == nil {
		return
	}
	if x.releaseErr != nil {
		x.event.Err = errors.Join(x.event.Err, x.releaseErr)
		switch {
		case errors.Is(x.releaseErr, ErrLeaseLost):
			x.event.Decision = DecisionLeaseLost
		case errors.Is(x.releaseErr, ErrHandlerEnded):
			x.event.Decision = DecisionCompleteFailed
		case x.event.Decision == DecisionReleased, x.event.Decision == DecisionClientLeft:
			x.event.Decision = DecisionReleaseFailed
		}
	}
	if x.recovery != nil {
		x.recovery.End(string(x.event.Decision), x.event.Status, x.event.Err)
	}
	x.middleware.report(x.r.Context(), x.event)
}

// refuse answers in the handler's place, for one of this package's reasons. What
// caused it is for the operator's eyes.
func (x *exchange) refuse(reason, cause error) {
	x.answer(newProblem(reason, cause))
}

func (x *exchange) answer(problem *Problem, decision Decision) {
	problem.DescribedBy = cmp.Or(problem.DescribedBy, x.describedBy)
	if problem.Instance == "" {
		problem.Instance = uuid.New().URN()
	}
	x.event.Decision, x.event.Status, x.event.Err = decision, problem.Status, problem.reason
	x.event.Instance = problem.Instance
	x.errorHandler(x.w, x.r, problem)
}

func (x *exchange) serveWithoutOrg() {
	if x.requireOrg {
		x.refuse(ErrOrgMissing, nil)
		return
	}
	x.event.Decision = DecisionBypassedNoOrg
	x.runUnprotected(x.r)
}

// runUnprotected runs the handler without a claim, on the client's own writer.
func (x *exchange) runUnprotected(r *http.Request) {
	started := time.Now()
	defer func() { x.event.Handler = time.Since(started) }()
	x.next.ServeHTTP(x.w, r)
}

// readBody reads the request's body whole, within the bound, or says for which of
// this package's reasons it could not.
func (x *exchange) readBody() (body []byte, reason, cause error) {
	if x.r.Body == nil || x.r.Body == http.NoBody {
		return nil, nil, nil
	}
	if x.r.ContentLength > x.maxRequestBytes {
		return nil, ErrRequestTooLarge, fmt.Errorf("%d bytes announced, %d allowed", x.r.ContentLength, x.maxRequestBytes)
	}
	const believed = 64 << 10 // of what a client announces, before it has sent anything
	var buf bytes.Buffer
	buf.Grow(int(min(max(x.r.ContentLength, 0), believed)) + bytes.MinRead)
	_, err := buf.ReadFrom(http.MaxBytesReader(x.w, x.r.Body, x.maxRequestBytes))
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &tooLarge):
		return nil, ErrRequestTooLarge, fmt.Errorf("more than the %d bytes allowed", tooLarge.Limit)
	case err != nil:
		return nil, ErrRequestUnreadable, err
	}
	return buf.Bytes(), nil, nil
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
func (x *exchange) storeContext(timeout time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(x.r.Context()), timeout)
}

// manyTries are as many as the store timeout allows.
const manyTries = math.MaxInt

// persist does one step with the store, at most tries times within the store
// timeout, until it succeeds or fails for good. No try may use up the time of the
// others: a connection that hangs is not the next one. It returns the last error,
// and whether an earlier try may have taken effect without its answer arriving.
func (x *exchange) persist(tries int, step func(context.Context) error) (err error, unsure bool) {
	return x.persistPatiently(x.storeTimeout/time.Duration(min(tries, 3)), tries, step)
}

// persistPatiently is persist with tries that may take as long as the patience.
func (x *exchange) persistPatiently(patience time.Duration, tries int, step func(context.Context) error) (err error, unsure bool) {
	ctx, cancel := x.storeContext(x.storeTimeout)
	defer cancel()
	const firstPause, maxPause = 20 * time.Millisecond, 500 * time.Millisecond
	for pause := firstPause; ; pause = min(2*pause, maxPause) {
		one, done := context.WithTimeout(ctx, patience)
		err = step(one)
		done()
		if err == nil || isFinal(err) {
			return err, unsure
		}
		if tries--; tries == 0 {
			return err, true
		}
		unsure = true
		select {
		case <-ctx.Done():
			return err, true
		case <-time.After(pause):
		}
	}
}

// isFinal reports whether an error of the store is an answer, and not a fault that
// may pass.
func isFinal(err error) bool {
	return errors.Is(err, ErrLeaseLost) || errors.Is(err, ErrRolledBack) || errors.Is(err, ErrStoreRefused) ||
		errors.Is(err, tenancy.ErrUnknownTenant)
}

// serveClaiming claims the key and serves the request by what came of that: once,
// unless a transaction met others, and the store says that it may run again.
func (x *exchange) serveClaiming(body []byte, req ClaimRequest) {
	const firstPause, maxPause = 4 * time.Millisecond, 128 * time.Millisecond
	for pause := firstPause; x.serveOnce(body, req); pause = min(2*pause, maxPause) {
		req.Rerun++
		x.event.Reruns++
		time.Sleep(rand.N(pause)) // so that those who met do not meet again
	}
}

func (x *exchange) serveOnce(body []byte, req ClaimRequest) (again bool) {
	asked := time.Now()
	result, err := x.claim(req)
	x.event.Claim = time.Since(asked)
	if err == nil && result.Outcome == OutcomeInFlight && x.wait > 0 && x.recovery == nil {
		result, asked, err = x.await(req)
		if err != nil && !errors.Is(err, tenancy.ErrUnknownTenant) {
			x.refuse(ErrStoreUnavailable, err) // not even WithFailOpen runs beside an attempt in flight
			return false
		}
	}
	if err != nil {
		x.serveUnclaimed(body, err)
		return false
	}
	if x.recovery != nil && result.Outcome != OutcomeClaimed {
		x.notRecovered(result.Outcome)
		return false
	}
	switch result.Outcome {
	case OutcomeClaimed:
		return x.serveClaimed(body, req.Claim, result, asked)
	case OutcomeCompleted:
		x.serveCompleted(result.Record)
	case OutcomeInFlight:
		x.refuse(ErrInFlight, nil)
		if x.r.Context().Err() != nil {
			x.event.Decision = DecisionClientLeft
		}
	case OutcomeMismatch:
		x.refuse(ErrKeyReused, nil)
	case OutcomeInterrupted:
		x.refuse(ErrInterrupted, nil)
	default:
		x.serveUnclaimed(body, fmt.Errorf("%w: it answered with claim outcome %d", ErrStoreRefused, result.Outcome))
	}
	return false
}

// claim claims the key. A claim whose answer was lost is finished, by asking again
// with the same token, or else undone, as far as the store can be reached: no claim
// without an owner stays behind.
func (x *exchange) claim(req ClaimRequest) (result ClaimResult, err error) {
	err, unsure := x.persist(2, func(ctx context.Context) error {
		result, err = x.store.Claim(ctx, req)
		return err
	})
	if err == nil || isFinal(err) && !unsure {
		return result, err
	}
	undo, cancel := x.storeContext(x.storeTimeout / 2)
	defer cancel()
	if undoErr := x.store.Release(undo, x.releasing(req.Claim)); undoErr != nil && !errors.Is(undoErr, ErrLeaseLost) {
		err = fmt.Errorf("%w; undoing the claim: %w", err, undoErr)
	}
	return ClaimResult{}, err
}

// serveUnclaimed serves a request for which the store could not be asked.
func (x *exchange) serveUnclaimed(body []byte, err error) {
	switch {
	case errors.Is(err, tenancy.ErrUnknownTenant):
		x.refuse(tenancy.ErrUnknownTenant, err)
	case x.failOpen && !isFinal(err) && x.recovery == nil:
		x.event.Decision, x.event.Err = DecisionRanUnprotected, err
		x.runUnprotected(x.request(x.r.Context(), body))
	default:
		x.refuse(ErrStoreUnavailable, err)
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
		problem, decision := newProblem(ErrNotKept, nil)
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
	encoded := isEncoded(h)
	replayHeaders(h, rec)
	h.Set(x.replayHeader, "true")
	if !encoded {
		setContentLength(h, x.r.Method, status, len(rec.ResponseBody))
	}
	x.w.WriteHeader(status)
	if len(rec.ResponseBody) > 0 {
		x.w.Write(rec.ResponseBody)
	}
}

// serveClaimed runs the handler under the claim, and sees to it that the claim
// ends, however the handler does. It reports whether the attempt was rolled back and
// is to run again; then nothing has been sent.
func (x *exchange) serveClaimed(body []byte, c Claim, result ClaimResult, asked time.Time) (again bool) {
	x.event.Attempt = result.Attempt
	inTx := result.Transaction != nil
	ctx := x.r.Context()
	if x.detached {
		ctx = context.WithoutCancel(ctx)
	}
	if ctx.Err() != nil { // the client left while the claim was under way
		x.release(c)
		x.refuse(ErrNoOutcome, nil)
		x.event.Decision = DecisionClientLeft
		return false
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	if !inTx {
		// The lease is kept until the outcome is stored, and not just until there is one.
		x.keeper = x.leases.keep(context.WithoutCancel(ctx), c, asked, cancel)
		defer x.keeper.stop()
	}
	rec := newRecorder(ctx, x.w, x.r.Method, x.maxResponseBytes, inTx)

	stepStore, _ := x.store.(StepStore)
	kept := &steps{store: stepStore, claim: c, persist: x.persist}
	defer kept.end()
	started := time.Now()
	returned := false
	defer func() {
		if returned {
			return
		}
		// A panic or runtime.Goexit goes on from here: nothing recovers it.
		x.event.Handler = time.Since(started)
		rec.abandon()
		x.event.Decision = DecisionPanicked
		x.release(c)
	}()
	r := x.request(withClaimed(ctx, claimed{c.OrgID, x.domain, x.key, result.Attempt, result.Transaction, kept}), body)
	defer removeUploads(r)
	x.next.ServeHTTP(rec, r)
	returned = true
	kept.end()
	x.event.Handler = time.Since(started)

	if cause := context.Cause(ctx); cause != nil && rec.silent() {
		rec.abandon()
		x.release(c)
		if errors.Is(cause, ErrLeaseLost) {
			x.refuse(ErrLeaseLost, nil)
			return false
		}
		x.refuse(ErrNoOutcome, nil)
		return false
	}
	rec.close(ctx.Err() != nil || x.r.Context().Err() != nil)
	if rec.triedToStream() {
		rec.abandon()
		x.release(c)
		x.refuse(ErrNoStreaming, nil)
		return false
	}
	// The handler may have had its effect: unless end gets to say otherwise, for
	// the panic of a rule of the user's, this is what must be known.
	x.event.Decision = DecisionCompleteFailed
	return x.end(c, rec, inTx)
}

// removeUploads does for a copy of the request what net/http does for the request
// itself: it removes the files that a multipart form was parsed into.
func removeUploads(r *http.Request) {
	if r.MultipartForm != nil {
		_ = r.MultipartForm.RemoveAll()
	}
}

// end stores the outcome of a handler that has returned, and only then sends its
// response, if it was not sent already. It reports whether the attempt was rolled
// back and is to run again.
func (x *exchange) end(c Claim, rec *recorder, inTx bool) (again bool) {
	x.event.Status = rec.status
	if !rec.hijacked && !x.storable(rec.status) {
		x.event.Decision = DecisionReleased
		if inTx {
			x.event.Decision = DecisionRolledBack
		}
		if again := x.release(c); again {
			rec.abandon()
			return true
		}
		rec.finish()
		return false
	}
	err := x.complete(c, x.record(c, rec), inTx)
	switch {
	case errors.Is(err, ErrRerun):
		rec.abandon()
		return true
	case err == nil:
		x.event.Decision = DecisionExecuted
		if x.event.Attempt > 1 {
			x.event.Decision = DecisionTakenOver
		}
		rec.finish()
	case errors.Is(err, ErrLeaseLost) && !rec.sent && !rec.hijacked:
		// The response that counts is another attempt's. To send this one would
		// be to tell two clients two stories.
		rec.abandon()
		x.refuse(ErrLeaseLost, err)
	case inTx:
		// What the handler did has gone with the transaction, and so must its response;
		// or whether it was committed could not be found out, which a retry will.
		rec.abandon()
		x.refuse(ErrNotCommitted, err)
		if !errors.Is(err, ErrRolledBack) {
			x.event.Decision = DecisionCompleteFailed
		}
	default:
		x.event.Err = err
		if errors.Is(err, ErrLeaseLost) {
			x.event.Decision = DecisionLeaseLost
		}
		rec.finish()
	}
	return false
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

// complete stores the outcome. A fault of the store is tried again for as long as
// the store timeout lasts: the handler has run, and a record is worth the wait.
//
// A commit that takes long is under way more likely than lost, and to break it off would be
// to break it off each time; the rest of the time is for finding out what became of it.
func (x *exchange) complete(c Claim, record *Record, inTx bool) error {
	started := time.Now()
	defer func() { x.event.Complete = time.Since(started) }()
	patience := x.storeTimeout / 3
	if inTx {
		patience *= 2
	}
	store := func(ctx context.Context) error { return x.store.Complete(ctx, c, record) }
	err, _ := x.persistPatiently(patience, manyTries, store)
	if err == nil || isFinal(err) {
		return err
	}
	// The time may have gone by while the process was paused, and the store be well: then
	// the outcome can be stored yet, or the response that counts is another attempt's.
	last, cancel := x.storeContext(x.storeTimeout / 3)
	defer cancel()
	err = store(last)
	if err != nil && !isFinal(err) && x.keeper != nil && x.keeper.wasTold() {
		// Not stored as far as is known, and another attempt may have its own: the store has
		// said so, though to the one who extends the lease.
		return fmt.Errorf("%w: %w", ErrLeaseLost, err)
	}
	return err
}

// release ends the claim without an outcome. That it could not is reported, and
// ends by itself when the lease lapses. It reports whether the attempt came to nothing
// only because of others beside it, and may run again.
func (x *exchange) release(c Claim) (again bool) {
	started := time.Now()
	defer func() { x.event.Complete = time.Since(started) }()
	c = x.releasing(c)
	err, unsure := x.persist(3, func(ctx context.Context) error { return x.store.Release(ctx, c) })
	switch {
	case unsure && errors.Is(err, ErrLeaseLost): // an earlier try did it, and its answer was lost
	case errors.Is(err, ErrRolledBack): // as it was to be
		return errors.Is(err, ErrRerun)
	default:
		x.releaseErr = err
	}
	return false
}
