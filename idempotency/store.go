package idempotency

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"time"

	"github.com/google/uuid"
)

// Defaults of the options that shape a claim.
const (
	DefaultTTL   = 24 * time.Hour
	DefaultLease = 30 * time.Second
)

// Store keeps completed records. It is the least that [Require] works with; a
// store that can also exclude concurrent attempts implements [LeaseStore].
//
// Across processes a plain Store cannot exclude duplicates: two processes that
// get the same request at the same time both find no record and both run the
// handler. Within one process Require keeps a table of claims in front of it,
// so that there only one runs.
//
// A Store must be safe for concurrent use, and must keep tenants apart: a record
// is found by its org_id and key together. It neither keeps nor changes the
// record that it is given, and the caller may change the record that it gets.
type Store interface {
	// Get returns the completed record of a key that has not expired, or an
	// error that wraps [ErrNotFound]. A key that is in progress has none.
	Get(ctx context.Context, orgID uuid.UUID, key string) (*Record, error)

	// Put writes a completed record whole, in place of whatever was there, a
	// claim in progress included. A zero CreatedAt means now; a zero ExpiresAt
	// means [DefaultTTL] after CreatedAt.
	Put(ctx context.Context, rec *Record) error
}

// LeaseStore is a [Store] in which an attempt claims a key for the length of a
// lease before it runs, so that of any number of concurrent attempts, in any
// number of processes, exactly one does. [MemoryStore] and pgstore.Store are
// LeaseStores; package idempotencytest proves that a store of your own is one.
//
// A record is absent, in progress under the token of one claim, or completed.
// One whose ExpiresAt has passed counts as absent, unless it is in progress
// under a lease that has not lapsed. Time is the store's, not the caller's.
//
// An error other than those named below is a passing fault of the store, after
// which the call may or may not have taken effect. An error that wraps
// [tenancy.ErrUnknownTenant] says that the tenant has no place in the store, and one that
// wraps [tenancy.ErrSuspendedTenant] that it is not served at present. A store that says the
// latter of a claim completes, releases and extends what was claimed before all the same.
type LeaseStore interface {
	Store

	// Claim tries to claim req.Key for the attempt named by req.Token.
	//
	// It may be repeated after a fault: a claim in progress that has req.Token
	// already is claimed, with its attempt unchanged. After an error the claim may
	// stand all the same, when the store's answer was lost; the caller then calls
	// Release with the same token. An error that wraps [ErrStoreRefused] says that
	// there is no claim and that repeating it is in vain.
	Claim(ctx context.Context, req ClaimRequest) (ClaimResult, error)

	// Complete stores the outcome of the attempt that holds c. Of rec it takes
	// the response; the fingerprint and the times are those of the claim. It may
	// be repeated after a fault. It returns an error that wraps [ErrLeaseLost],
	// and changes nothing, when the record is no longer of c's token.
	//
	// Of an attempt in a transaction ([ClaimResult.Transaction]) it commits the
	// transaction. An error that wraps [ErrRolledBack] says that nothing of the attempt
	// has taken effect, and one that wraps [ErrRerun] as well that it may run again
	// at once, under a claim to be made anew.
	Complete(ctx context.Context, c Claim, rec *Record) error

	// Release ends c without an outcome. After a first attempt the record is absent
	// again. After a later one it stays in progress under a lease that has lapsed
	// and a token that nobody has, so that the next attempt is counted on: what the
	// first one did before it was interrupted is still unknown. So does, in a
	// [StepStore], a first one that has steps, so that the next attempt finds them. It
	// returns an error that wraps [ErrLeaseLost], and changes nothing, when the record
	// is no longer of c's token or has been completed.
	//
	// An attempt in a transaction is rolled back. An error that wraps [ErrRerun] says
	// that this was done, and that the attempt failed only because of others beside it.
	Release(ctx context.Context, c Claim) error

	// Extend moves the end of c's lease to the given time from now. It returns
	// an error that wraps [ErrLeaseLost], and changes nothing, when the record
	// is no longer of c's token or has been completed.
	Extend(ctx context.Context, c Claim, lease time.Duration) error
}

// WatchStore is a [LeaseStore] that can tell when an attempt ends, so that requests
// which wait for one ([WithWait]) need not ask over and over.
type WatchStore interface {
	LeaseStore

	// Watch returns a channel that gets a value soon after an attempt at the key has
	// been completed or released, in whatever process, until stop is called. A value
	// may come without cause and may get lost, so whoever waits claims again after
	// each, with [ClaimRequest.Await], and from time to time without one. A channel that
	// is closed has no more to tell.
	//
	// An error says that the store cannot watch at the moment; stop is then nil.
	Watch(orgID uuid.UUID, key string) (ended <-chan struct{}, stop func(), err error)
}

// StepStore is a [LeaseStore] that keeps the results of steps ([Step]) for the attempts
// after the one that stored them. [MemoryStore] and pgstore.Store are StepStores, and so
// is what pgstore.Store.Transactional returns.
//
// A step belongs to one life of a key: to the record of one org_id, key and fingerprint,
// from the first claim to the record's expiry, through take-overs, which move both on.
// It is not seen under another fingerprint, nor by a claim of the key after the expiry,
// nor after Put or Complete. A first attempt that is released leaves its record behind
// exactly when that has steps: see Release.
//
// An attempt in a transaction ([ClaimResult.Transaction]) stores its steps at once and
// beside the transaction, so that they outlive its end; they expire when the record of
// that attempt would have.
type StepStore interface {
	LeaseStore

	// LoadStep returns the result that is stored for the name in this life of c's key,
	// by whichever attempt, or false when there is none. It returns an error that wraps
	// [ErrLeaseLost] when c is not, or no longer, the attempt in progress. The result may
	// be shared: the caller must not change it.
	LoadStep(ctx context.Context, c Claim, name string) (result []byte, found bool, err error)

	// SaveStep stores the result for the name, and returns the one that is stored then:
	// the first that was saved, whoever saves another. So it may be repeated after a
	// fault. It returns an error that wraps [ErrLeaseLost], and stores nothing, when c is
	// not, or no longer, the attempt in progress; a step that is stored is seen by every
	// later attempt. It does not keep the memory of result.
	SaveStep(ctx context.Context, c Claim, name string, result []byte) (stored []byte, err error)
}

// RequestStore is a [LeaseStore] that keeps the requests of attempts in progress
// ([ClaimRequest.Request]), so that a worker of the store can find those that were
// interrupted and have them run again by [Recover]. pgstore.Store is one, and so is what
// its Transactional returns.
//
// A claim with a Request keeps it with the record that it claims, as one: an interrupted
// attempt has either left both or, where it ran in a transaction, the request alone. A
// claim that takes over keeps it anew. [Claim.Kept] tells which claims have one.
//
// Complete and Release of a claim that is Kept remove the request as they end the claim,
// and only if they do; so do Put and Clear. An attempt that ends without this leaves the
// request to the worker, until the record expires.
//
// Which requests are picked, when, and how often is the worker's affair. For each it calls
// Recover, whose claim has [ClaimRequest.Recovery]; it is Kept when it is completed, and
// not when it is released, so that the request is there for the next try.
type RequestStore interface {
	LeaseStore

	// KeepsRequests does nothing. It says that the store does as described.
	KeepsRequests()
}

// Token is the fencing token of one attempt: 128 random bits that no other
// attempt ever has. An attempt that was paused past its lease finds another
// token on its record and can change nothing there.
type Token [16]byte

// NewToken returns a fresh token from the system's secure random source.
func NewToken() Token {
	var t Token
	rand.Read(t[:]) // never fails: crypto/rand ends the program instead
	return t
}

// String returns the token in hexadecimal.
func (t Token) String() string { return hex.EncodeToString(t[:]) }

// Claim names one attempt's hold on a key.
type Claim struct {
	OrgID uuid.UUID
	Key   string
	Token Token
	// Kept says that the store keeps the request of this claim ([RequestStore]), and is
	// to remove it when the claim is completed or released. Other stores ignore it.
	Kept bool
}

// ClaimRequest is a [Claim] to be made, with its terms.
type ClaimRequest struct {
	Claim
	// RequestHash is the fingerprint of the request. A record of another
	// fingerprint is never taken over before it expires.
	RequestHash string
	// Lease is how long the claim excludes others unless it is extended.
	Lease time.Duration
	// TTL is how long after the claim the record expires.
	TTL time.Duration
	// Interrupted says what to do with a record in progress whose lease lapsed.
	Interrupted InterruptedPolicy
	// Rerun counts how often the attempt has run before and was rolled back with
	// [ErrRerun].
	Rerun int
	// Await says that the caller watches the key ([WatchStore]) and will wait when
	// it is in flight. Once such a claim has been answered with [OutcomeInFlight],
	// the end of the attempt in flight is signalled. Other stores ignore it.
	Await bool
	// Request is what a [RequestStore] is to keep for as long as the claim is in
	// progress, or nil. It does not keep its memory.
	Request *KeptRequest
	// Recovery asks to take an interrupted attempt over whose request is kept, and for
	// nothing else: where there is none the answer is [OutcomeNotInterrupted]. Only a
	// [RequestStore] is asked. In a transaction, which leaves no record when it is
	// interrupted, the kept request stands for one; nobody may hold its lock.
	Recovery bool
}

// InterruptedPolicy says what a request gets that finds an earlier attempt of
// itself interrupted: in progress, with a lease that has lapsed.
type InterruptedPolicy uint8

const (
	// Rerun takes the record over and runs the handler again. It is the default.
	Rerun InterruptedPolicy = iota
	// Refuse leaves the record as it is until it expires, and answers that the
	// outcome is unknown: for handlers whose effect must not happen twice and
	// cannot be looked up. It does so, too, after an attempt that was released with
	// steps, so it is not for handlers that call [Step] or [ChildKey].
	Refuse
)

// ClaimOutcome is what became of a [ClaimRequest].
type ClaimOutcome uint8

const (
	// OutcomeClaimed means that the attempt holds the key and is to run. It is the only
	// outcome that changes the record, but for a note that somebody waits for its end.
	OutcomeClaimed ClaimOutcome = iota + 1
	// OutcomeCompleted means that a record of the same fingerprint is completed.
	OutcomeCompleted
	// OutcomeInFlight means that another attempt of the same fingerprint holds the key.
	OutcomeInFlight
	// OutcomeMismatch means that there is a record, in progress or completed, of
	// another fingerprint.
	OutcomeMismatch
	// OutcomeInterrupted means that an attempt of the same fingerprint let its lease
	// lapse, and the request asked to [Refuse] such a record.
	OutcomeInterrupted
	// OutcomeNotInterrupted means that there is no interrupted attempt to be taken over by
	// a claim that asks for one ([ClaimRequest.Recovery]).
	OutcomeNotInterrupted
)

// ClaimResult is the answer to a [ClaimRequest].
type ClaimResult struct {
	Outcome ClaimOutcome
	// Attempt counts the attempts at the record, from 1, when the outcome is
	// OutcomeClaimed. It is above 1 after a take-over of an attempt that was
	// interrupted, or released with steps.
	Attempt int
	// Record is the completed record when the outcome is
	// OutcomeCompleted. It may be shared: the caller must not change it.
	Record *Record
	// Transaction is set where the attempt runs in a transaction of the store, in
	// which what its handler does and its outcome take effect together or not at all.
	// The handler's context leads to it by [Transaction]. Such a claim has no lease to be
	// extended: it lasts as long as the transaction.
	Transaction any
}
