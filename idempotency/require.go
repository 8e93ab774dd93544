package idempotency

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
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
		steps, _ := leases.(StepStore)
		return &middleware{config: cfg, store: leases, memory: inProcess(store), stepStore: steps, next: next, leases: newLeaseKeepers(leases, cfg)}
	}
}

type middleware struct {
	*config
	store     LeaseStore
	memory    *MemoryStore // the store where it is one, see inProcess
	stepStore StepStore    // the store where it is one
	next      http.Handler
	leases    *leaseKeepers
	deaf      atomic.Bool // the store cannot tell when attempts end, and the log says so
}

// ServeHTTP implements [http.Handler].
func (m *middleware) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	lines := r.Header[HeaderKey]
	if len(lines) == 0 && m.requireKey == nil && !m.requireKeyAlways {
		m.next.ServeHTTP(w, r) // whatever the method and the route
		return
	}
	if !slices.Contains(m.methods, r.Method) || m.exclude.Match(r) || len(lines) == 0 && !m.keyRequired(r) {
		m.next.ServeHTTP(w, r)
		return
	}
	m.serveKeyed(w, r, lines)
}

// serveKeyed serves a request that has a key, or is refused for want of one.
func (m *middleware) serveKeyed(w http.ResponseWriter, r *http.Request, lines []string) {
	orgID, hasOrg := FromContext(r.Context())
	x := &exchange{middleware: m, w: w, r: r}
	x.event = Event{Decision: DecisionAborted, OrgID: orgID, Method: r.Method, Path: r.URL.Path}
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
	if outer := claimOf(r.Context()); outer != nil && m.domain == "" && outer.domain == "" && outer.orgID == orgID && outer.key == key {
		x.isInner = true
		m.next.ServeHTTP(w, r)
		return
	}
	x.key = key
	if x.recovery = m.recovering(r); x.recovery != nil {
		x.event.Recovered = true
		x.serveRecovery()
		return
	}
	if !hasOrg {
		x.serveWithoutOrg()
		return
	}
	var hashed *bodyHash
	if !m.givenFingerprint {
		hashed = newBodyHash(r)
	}
	body, reason, err := x.readBody(hashed)
	if reason != nil {
		x.refuse(reason, err)
		return
	}
	hash, ok := hashed.fingerprint()
	if !ok {
		hash, err = m.fingerprint(r, slices.Clip(body))
	}
	if err != nil {
		x.refuse(ErrRequestUnreadable, fmt.Errorf("fingerprint: %w", err))
		return
	}
	kept := m.keep(r, slices.Clip(body))
	x.serveClaiming(body, &ClaimRequest{
		Claim:       Claim{OrgID: orgID, Key: m.scoped(key, r), Token: m.newToken(), Kept: kept != nil},
		RequestHash: bounded(hash),
		Lease:       m.term(),
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

// term is how long a claim holds unless it is extended.
func (m *middleware) term() time.Duration {
	if m.memory != nil {
		return forever
	}
	return m.lease
}

// newToken returns a token for one attempt. Those of a [MemoryStore] are seen by nobody
// outside of this process, and the runtime's own generator, which is seeded by the system's
// and much faster, does for them.
func (m *middleware) newToken() (t Token) {
	if m.memory == nil {
		return NewToken()
	}
	binary.NativeEndian.PutUint64(t[:8], rand.Uint64())
	binary.NativeEndian.PutUint64(t[8:], rand.Uint64())
	return t
}

// exchange is one request under the middleware and what becomes of it. Nothing that outlives
// the request refers to it, so that it costs no memory but on the stack.
type exchange struct {
	*middleware
	w          http.ResponseWriter
	r          *http.Request
	key        string            // as the client meant it
	recovery   *recovery.Attempt // nil but where a worker runs the request again
	event      Event
	isInner    bool // the outer Require reports
	releaseErr error
	began      time.Time     // when the claim was first asked for
	lapped     time.Duration // when the last step ended, from then
	keeper     *leaseKeeper  // of the claim; nil without a lease
	kept       *memoryRecord // that was claimed or is completed, where the store is a MemoryStore
	emptied    *[]byte       // of bodies, what the request's buffer came in
	readers    int           // of the body that handlers have been given, and that have not ended
	settled    bool          // the claim on a MemoryStore has been completed or released, or is another's
}

func (x *exchange) report() {
	if x.isInner {
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
	x.middleware.report(x.r.Context(), &x.event, x.key)
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

// attempt is what one run of the handler needs, in one piece of memory. Goroutines that the
// handler leaves behind may hold it for longer than the request lasts.
type attempt struct {
	ctx      lazyContext
	claimed  claimed
	recorder recorder
	body     bodyReader
	steps    steps
}

// storeCalls make the calls of the store for one request.
type storeCalls struct {
	r       *http.Request
	timeout time.Duration // of the store
}

func (x *exchange) calls() storeCalls { return storeCalls{x.r, x.storeTimeout} }

// context is the context of one step with the store. The request's
// cancellation has no part in it: the outcome of a request whose client left is
// stored all the same.
func (c storeCalls) context(timeout time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(c.r.Context()), timeout)
}

// manyTries are as many as the store timeout allows.
const manyTries = math.MaxInt

// persist does one step with the store, at most tries times within the store
// timeout, until it succeeds or fails for good. No try may use up the time of the
// others: a connection that hangs is not the next one. It returns the last error,
// and whether an earlier try may have taken effect without its answer arriving.
func (c storeCalls) persist(tries int, step func(context.Context) error) (err error, unsure bool) {
	return c.persistPatiently(c.timeout/time.Duration(min(tries, 3)), tries, step)
}

// persistPatiently is persist with tries that may take as long as the patience.
func (c storeCalls) persistPatiently(patience time.Duration, tries int, step func(context.Context) error) (err error, unsure bool) {
	deadline := time.Now().Add(c.timeout)
	const firstPause, maxPause = 20 * time.Millisecond, 500 * time.Millisecond
	for pause := firstPause; ; pause = min(2*pause, maxPause) {
		ctx, cancel := c.context(min(patience, time.Until(deadline)))
		err = step(ctx)
		cancel()
		if err == nil || isFinal(err) {
			return err, unsure
		}
		if tries--; tries == 0 {
			return err, true
		}
		unsure = true
		time.Sleep(min(pause, time.Until(deadline)))
		if !time.Now().Before(deadline) {
			return err, true
		}
	}
}

// isFinal reports whether an error of the store is an answer, and not a fault that
// may pass.
func isFinal(err error) bool {
	return errors.Is(err, ErrLeaseLost) || errors.Is(err, ErrRolledBack) || errors.Is(err, ErrStoreRefused) ||
		notServed(err) != nil
}

// notServed returns the reason why the tenant is not served, if that is what an error of
// the store says.
func notServed(err error) error {
	switch {
	case errors.Is(err, tenancy.ErrUnknownTenant):
		return tenancy.ErrUnknownTenant
	case errors.Is(err, tenancy.ErrSuspendedTenant):
		return tenancy.ErrSuspendedTenant
	}
	return nil
}

// serveClaiming claims the key and serves the request by what came of that: once,
// unless a transaction met others, and the store says that it may run again.
func (x *exchange) serveClaiming(body []byte, req *ClaimRequest) {
	const firstPause, maxPause = 4 * time.Millisecond, 128 * time.Millisecond
	for pause := firstPause; x.serveOnce(body, req); pause = min(2*pause, maxPause) {
		req.Rerun++
		x.event.Reruns++
		time.Sleep(rand.N(pause)) // so that those who met do not meet again
	}
	x.reuse(body, req.Request)
}

func (x *exchange) serveOnce(body []byte, req *ClaimRequest) (again bool) {
	asked := time.Now()
	x.began, x.lapped = asked, 0
	result, err := x.claim(req, asked)
	if result.Outcome != OutcomeCompleted || x.tells(x.r.Context(), slog.LevelDebug) {
		x.event.Claim = x.lap() // a replay that nobody hears of need not look at the clock again
	}
	if err == nil && result.Outcome == OutcomeInFlight && x.wait > 0 && x.recovery == nil {
		result, asked, err = x.await(req)
		x.event.Wait = x.lap()
		if err != nil && notServed(err) == nil {
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

// lap is how long ago the last step ended. Now another has.
func (x *exchange) lap() time.Duration {
	last := x.lapped
	x.lapped = time.Since(x.began)
	return x.lapped - last
}

// claim claims the key, at the given time. A claim whose answer was lost is finished, by
// asking again with the same token, or else undone, as far as the store can be reached: no
// claim without an owner stays behind.
func (x *exchange) claim(req *ClaimRequest, asked time.Time) (result ClaimResult, err error) {
	if x.memory != nil {
		result, x.kept = x.memory.claim(req, asked)
		return result, nil
	}
	err, unsure := x.calls().persist(2, func(ctx context.Context) error {
		result, err = x.store.Claim(ctx, *req)
		return err
	})
	if err == nil || isFinal(err) && !unsure {
		return result, err
	}
	undo, cancel := x.calls().context(x.storeTimeout / 2)
	defer cancel()
	if undoErr := x.store.Release(undo, x.releasing(req.Claim)); undoErr != nil && !errors.Is(undoErr, ErrLeaseLost) {
		err = fmt.Errorf("%w; undoing the claim: %w", err, undoErr)
	}
	return ClaimResult{}, err
}

// serveUnclaimed serves a request for which the store could not be asked.
func (x *exchange) serveUnclaimed(body []byte, err error) {
	reason := notServed(err)
	switch {
	case reason != nil:
		x.refuse(reason, err)
	case x.failOpen && !isFinal(err) && x.recovery == nil:
		x.event.Decision, x.event.Err = DecisionRanUnprotected, err
		x.runUnprotected(x.request(x.r.Context(), &bodyReader{unread: body}))
	default:
		x.refuse(ErrStoreUnavailable, err)
	}
}

// serveCompleted serves a retry of a request that has completed.
func (x *exchange) serveCompleted(rec *Record) {
	var kept response
	if x.kept != nil {
		kept = x.kept.response
	} else {
		kept = newResponse(rec)
	}
	if x.replayCheck != nil {
		if rec == nil {
			rec = x.kept.record()
		}
		if err := x.replayCheck(x.r, rec); err != nil {
			x.answer(replayDenied(err), DecisionReplayDenied)
			return
		}
	}
	if kept.tombstone {
		problem, decision := newProblem(ErrNotKept, nil)
		problem.OriginalStatus = kept.status
		x.answer(problem, decision)
		return
	}
	x.replay(kept)
}

// replay sends the stored response.
func (x *exchange) replay(kept response) {
	status := kept.status
	if status == 0 {
		status = http.StatusOK // written by Put without one; net/http's default as well
	}
	x.event.Decision, x.event.Status = DecisionReplayed, status
	h := x.w.Header()
	encoded := isEncoded(h)
	lines := make([]string, 2, 2+kept.headers.count()) // no memory of the record's: others share it
	addHeaders(h, kept.headers, lines[2:2])
	lines[0] = "true"
	h[x.replayHeader] = lines[:1:1]
	if length := contentLength(x.r.Method == http.MethodHead, status, len(kept.body)); length != "" && !encoded {
		lines[1] = length
		h["Content-Length"] = lines[1:2:2]
	}
	x.w.WriteHeader(status)
	if len(kept.body) > 0 {
		x.w.Write(kept.body)
	}
}

// serveClaimed runs the handler under the claim, and sees to it that the claim
// ends, however the handler does. It reports whether the attempt was rolled back and
// is to run again; then nothing has been sent.
func (x *exchange) serveClaimed(body []byte, c Claim, result ClaimResult, asked time.Time) (again bool) {
	if x.memory != nil {
		defer x.letLapse(c)
	}
	x.event.Attempt = result.Attempt
	inTx := result.Transaction != nil
	a := new(attempt)
	a.claimed = claimed{c.OrgID, x.domain, x.key, result.Attempt, result.Transaction, &a.steps}
	a.ctx.parent, a.ctx.claimed = x.r.Context(), &a.claimed
	if x.detached {
		a.ctx.parent = context.WithoutCancel(a.ctx.parent)
	}
	ctx := &a.ctx
	if ctx.Err() != nil { // the client left while the claim was under way
		x.release(c)
		x.refuse(ErrNoOutcome, nil)
		x.event.Decision = DecisionClientLeft
		return false
	}
	defer ctx.end(nil)
	switch {
	case x.memory != nil:
		x.memory.hold(x.kept, c.Token, ctx)
	case !inTx:
		// The lease is kept until the outcome is stored, and not just until there is one.
		x.keeper = x.leases.keep(c, asked, ctx)
		defer x.keeper.stop()
	}
	rec := &a.recorder
	rec.begin(ctx, x.w, x.r.Method, x.maxResponseBytes, inTx)

	a.steps.store, a.steps.claim, a.steps.calls = x.stepStore, c, x.calls()
	defer a.steps.end()
	returned := false
	defer func() {
		if returned {
			return
		}
		// A panic or runtime.Goexit goes on from here: nothing recovers it.
		x.event.Handler = x.lap()
		rec.abandon()
		x.event.Decision = DecisionPanicked
		x.release(c)
	}()
	a.body.unread = body
	r := x.request(ctx, &a.body)
	defer removeUploads(r)
	x.next.ServeHTTP(rec, r)
	returned = true
	if a.body.end() {
		x.readers--
	}
	a.steps.end()
	x.event.Handler = x.lap()

	if rec.silent() && ctx.Err() != nil {
		cause := context.Cause(ctx)
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

// letLapse gives a claim that holds [forever] a lease again, unless it has ended: a rule of
// the user's panicked after the handler had run, and what a retry gets is for the lease to
// decide, as over any store.
func (x *exchange) letLapse(c Claim) {
	if !x.settled {
		x.memory.letLapse(c, x.lease)
	}
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
	err := x.complete(c, x.outcome(rec), inTx)
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

// outcome is what is to be stored of a response.
func (x *exchange) outcome(rec *recorder) response {
	if rec.hijacked || rec.truncated {
		return response{status: rec.status, tombstone: true}
	}
	return response{status: rec.status, headers: x.handlerHeaders(rec.outer, rec.final), body: rec.body}
}

// complete stores the outcome. A fault of the store is tried again for as long as
// the store timeout lasts: the handler has run, and a record is worth the wait.
//
// A commit that takes long is under way more likely than lost, and to break it off would be
// to break it off each time; the rest of the time is for finding out what became of it.
func (x *exchange) complete(c Claim, outcome response, inTx bool) error {
	if x.memory != nil {
		tells := x.tells(x.r.Context(), slog.LevelDebug)
		if tells {
			x.lap()
		}
		err := x.memory.complete(x.kept, c.Token, outcome.compact())
		x.settled = true
		if tells || err != nil { // what failed is told at other levels; it then counts from the handler's end
			x.event.Complete = x.lap()
		}
		return err
	}
	x.lap()
	defer func() { x.event.Complete = x.lap() }()
	record := outcome.record()
	record.OrgID, record.Key = c.OrgID, c.Key
	patience := x.storeTimeout / 3
	if inTx {
		patience *= 2
	}
	store := func(ctx context.Context) error { return x.store.Complete(ctx, c, record) }
	err, _ := x.calls().persistPatiently(patience, manyTries, store)
	if err == nil || isFinal(err) {
		return err
	}
	// The time may have gone by while the process was paused, and the store be well: then
	// the outcome can be stored yet, or the response that counts is another attempt's.
	last, cancel := x.calls().context(x.storeTimeout / 3)
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
	x.lap()
	defer func() { x.event.Complete = x.lap() }()
	if x.memory != nil {
		x.releaseErr = x.memory.release(c)
		x.settled = true
		return false
	}
	c = x.releasing(c)
	err, unsure := x.calls().persist(3, func(ctx context.Context) error { return x.store.Release(ctx, c) })
	switch {
	case unsure && errors.Is(err, ErrLeaseLost): // an earlier try did it, and its answer was lost
	case errors.Is(err, ErrRolledBack): // as it was to be
		return errors.Is(err, ErrRerun)
	default:
		x.releaseErr = err
	}
	return false
}
