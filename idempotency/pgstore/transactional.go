package pgstore

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgtype"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgidem/pgidem/idempotency"
	"github.com/pgidem/pgidem/internal/db"
	"github.com/pgidem/pgidem/tenancy"
)

// TxOption changes how [Store.Transactional] works.
type TxOption func(*txStore) error

// DefaultReruns is how often a handler is run again after a serialization failure or
// a deadlock, unless [WithReruns] says otherwise.
const DefaultReruns = 5

// WithIsolation sets the isolation level of the transactions. Defaults to that of the
// database (default_transaction_isolation). At [pgx.RepeatableRead] and
// [pgx.Serializable] expect handlers to be run again.
func WithIsolation(level pgx.TxIsoLevel) TxOption {
	return func(s *txStore) error {
		switch level {
		case pgx.ReadCommitted, pgx.RepeatableRead, pgx.Serializable:
			s.options.IsoLevel = level
			return nil
		}
		return fmt.Errorf("WithIsolation: %q is none of pgx.ReadCommitted, pgx.RepeatableRead and pgx.Serializable", level)
	}
}

// WithReruns sets how often a handler is run again whose transaction failed only
// because of others beside it (SQLSTATE 40001 and 40P01). Zero means never. Defaults
// to [DefaultReruns].
func WithReruns(n int) TxOption {
	return func(s *txStore) error {
		s.reruns = n
		if n < 0 {
			return fmt.Errorf("WithReruns: %d is negative", n)
		}
		return nil
	}
}

// Transactional returns a store under which each handler runs in a transaction of its
// tenant. What the handler writes through [Tx] and its stored response are committed
// together, and only then the response is sent; so of any number of requests with one
// key, exactly one has its effect on that database, through crashes of the service, of
// the server and of the connection between them. Effects elsewhere are not in it.
//
//	protect := idempotency.Require(store.Transactional())
//
//	func pay(w http.ResponseWriter, r *http.Request) {
//		tx, ok := pgstore.Tx(r.Context()) // not ok without a key: see WithRequireKey
//		...
//		_, err := tx.Exec(r.Context(), "INSERT INTO payments ...")
//		...
//	}
//
// A status that is not storable, a panic and a cancelled handler roll everything back.
// A handler whose transaction met others is run again, with the request's body as it
// was. A handler that flushes or hijacks gets [idempotency.ErrNoStreaming], because
// nothing may be sent before the commit; a response over WithMaxResponseBytes is held in
// memory until then. Each running request holds one connection of the pool; over [Pools] that
// of its tenant's home if one is free there, and else any.
//
// An attempt has no lease: it holds the key by a lock of its transaction, which ends
// with it. A duplicate does not wait for the lock, but is told at once that the key is in
// flight; so is a request of another fingerprint, until the first has committed. The lock
// is named by 64 bits of a SHA-256 over schema, org_id and key, in the database's space of
// advisory locks: should two keys in flight share a name, which among 10,000 at a time
// happens about once in 10^11 times, the second is told to come again. No claim waits for
// another.
//
// A claim does wait for a tenant's table that is locked as a whole, by a migration say, until
// the store timeout, and holds its connection meanwhile: as many of such requests as there are
// connections keep other tenants waiting. Set lock_timeout where that can happen, or give a
// store for transactions pools of its own.
//
// A statement that fails aborts the transaction, as ever. A handler that answers it with a
// status of 400 or more that is storable, a conflict say, has that outcome stored, and
// what it did undone; to go on after a failure it uses a savepoint (Begin). A handler that
// panics is not run again, whatever it met: its panic goes on, and a retry runs it.
//
// A handler must not end the transaction by a statement of its own (COMMIT, ROLLBACK,
// PREPARE TRANSACTION), nor use it in goroutines that outlive it. That it did the first is
// found out at its end, whatever it answered: nothing is stored, a response that would
// have been is replaced by a 503, and the event says so ([idempotency.ErrHandlerEnded]).
//
// A commit has two thirds of WithStoreTimeout; one that takes longer is cancelled, and the
// client told to come again: give it time where commits are slow, by deferred triggers or
// standbys. The last third is for finding out what became of it. A request nested in
// another, of a batch say, needs a connection of its own; where the pool has none left, it
// is refused after WithStoreTimeout.
//
// A connection that hangs without being closed keeps its key in flight until the server
// notices: set tcp_keepalives_idle and idle_in_transaction_session_timeout there. Where
// tenants have types of their own or tables that differ, let the pool cache neither
// statements nor their descriptions, by [pgx.QueryExecModeExec] say (search_path decides
// what a name means). Serializable transactions of one tenant may meet at the table of
// records however different their keys are; expect reruns.
//
// With [idempotency.WithRecoverable] the request is kept before its transaction begins, in a
// round trip of its own: a crash leaves the request alone, and no record, so [Completer]
// runs it as a first attempt.
//
// Both kinds of store may serve one table, and one key: each sees what the other has
// completed, and a claim with a lease that holds. Where both have begun at the same
// time, the unique key decides: the transaction finds the claim with a lease at its end,
// and is rolled back.
//
// Replays of keys that this process has lately met begin no transaction: they look, in one
// round trip, and go together as those of leases do (see [WithCoalescing]).
//
// Requests that wait ([idempotency.WithWait]) hold no connection. They are told at once of
// an end in their own process, and ask again for one elsewhere, at growing intervals of up
// to a second: a transaction does not see who waits for it.
//
// It panics when an option cannot work.
func (s *Store) Transactional(opts ...TxOption) idempotency.Store {
	t := &txStore{store: s, asks: firstAsk, reruns: DefaultReruns, running: make(map[idempotency.Token]*txAttempt)}
	for _, opt := range opts {
		if err := opt(t); err != nil {
			panic(fmt.Errorf("pgstore: Transactional: %w", err))
		}
	}
	return t
}

type txStore struct {
	store   *Store
	asks    time.Duration // before who waits first asks without having been told
	options db.EnterOptions
	reruns  int

	mu      sync.Mutex
	running map[idempotency.Token]*txAttempt
}

var (
	_ idempotency.StepStore    = (*txStore)(nil)
	_ idempotency.WatchStore   = (*txStore)(nil)
	_ idempotency.RequestStore = (*txStore)(nil)
)

// txAttempt is an attempt between its claim and its end, with the connection that its
// transaction is on.
type txAttempt struct {
	tenant  db.Tenant
	conn    *pgxpool.Conn
	tx      *handlerTx
	req     idempotency.ClaimRequest
	attempt int32
	seen    *db.DeleteSeenParams // the record that it takes the place of
	began   time.Time
	lock    int64
	keptBy  pgtype.UUID // the token of the request that is kept of it
	pid     int32       // of the server process that holds the lock
}

// Claim implements [idempotency.LeaseStore]. It takes one round trip, one more to end the
// transaction when the key is not to be had, and one before it where the request is to be
// kept. Of a key that this process has lately met a look comes first, in one round trip: for
// a replay that is all.
func (t *txStore) Claim(ctx context.Context, req idempotency.ClaimRequest) (idempotency.ClaimResult, error) {
	at, err := t.store.locate(ctx, req.OrgID)
	if err != nil {
		return idempotency.ClaimResult{}, err
	}
	if err := checkKey(req.Key, req.RequestHash); err != nil {
		return idempotency.ClaimResult{}, translate("claim", req.OrgID, err)
	}
	known := t.store.seen.add(req.OrgID, req.Key)
	looks := known && !req.Recovery && req.Rerun == 0 // who recovers, or met others, is to run most likely
	var result idempotency.ClaimResult
	err = t.store.follow(ctx, req.OrgID, at, func(at located) (err error) {
		if looks {
			var done bool
			if result, done, err = t.replay(ctx, at, req); done || err != nil {
				return err
			}
		}
		result, err = t.claimAt(ctx, at, req)
		return err
	})
	if err == nil || errors.Is(err, errContended) {
		return result, err
	}
	return idempotency.ClaimResult{}, translate("claim", req.OrgID, err)
}

// replay looks at the record of a key without a transaction of its own, together with others.
// It is done if that is completed, or of another fingerprint: what is completed stays so until
// it has expired or is cleared, so this is what a transaction would find. In all else it is for
// the transaction to say.
func (t *txStore) replay(ctx context.Context, at located, req idempotency.ClaimRequest) (result idempotency.ClaimResult, done bool, err error) {
	row, found, err := t.store.look(ctx, at, req.Claim)
	switch {
	case isSerializationFailure(err):
		return result, false, nil
	case err != nil:
		var pgErr *pgconn.PgError
		if !errors.As(err, &pgErr) {
			err = at.refusedIfFull(err)
		}
		return result, false, err
	case !found:
		return result, false, nil
	}
	result, _ = judge(req, row)
	return result, result.Outcome == idempotency.OutcomeCompleted || result.Outcome == idempotency.OutcomeMismatch, nil
}

// refusedIfFull returns the error of a claim that got no connection: refused if all are in use,
// by attempts in flight, perhaps at this very key. Nobody is to run beside them.
func (at located) refusedIfFull(err error) error {
	if at.server.pools.full() {
		return fmt.Errorf("%w: all connections of the pool are in use: %w", idempotency.ErrStoreRefused, err)
	}
	return err
}

func (t *txStore) claimAt(ctx context.Context, at located, req idempotency.ClaimRequest) (idempotency.ClaimResult, error) {
	conn, err := at.server.acquireIdle(ctx, at.schema)
	if err != nil {
		return idempotency.ClaimResult{}, at.refusedIfFull(err)
	}
	for range maxClaimTries {
		result, again, err := t.tryClaim(ctx, at, conn, req)
		if err != nil {
			giveBack(ctx, conn)
			return idempotency.ClaimResult{}, err
		}
		if !again {
			return result, nil
		}
	}
	conn.Release()
	return idempotency.ClaimResult{}, errContended
}

// tryClaim claims the key once, on a connection that is the attempt's if it gets the key,
// and given back if it does not. After an error, and when it asks to be called again, the
// connection is still the caller's.
func (t *txStore) tryClaim(ctx context.Context, at located, conn *pgxpool.Conn, req idempotency.ClaimRequest) (_ idempotency.ClaimResult, again bool, err error) {
	schema := at.schema
	a := &txAttempt{tenant: at.tenant, conn: conn, req: req, lock: lockName(schema, req.OrgID, req.Key)}
	onConn := t.store.texts.Bind(conn, schema.Quoted())
	kept := false
	if req.Request != nil {
		if kept, err = keepRequest(ctx, onConn, a.lock, req); err != nil {
			return idempotency.ClaimResult{}, false, fmt.Errorf("keep the request: %w", t.store.outdatedOrMissing(ctx, onConn, req.OrgID, err))
		}
	}
	tx, entered, err := at.tenant.EnterSelect(ctx, conn, t.options,
		db.EnterTenantParams{SearchPath: schema.Quoted(), KeyLock: a.lock},
		db.ClaimSelectParams{OrgID: db.UUID(req.OrgID), Key: req.Key}, keptFor(req))
	if err != nil {
		return idempotency.ClaimResult{}, false, err
	}
	a.keptBy = entered.KeptBy
	var result idempotency.ClaimResult
	result, a.attempt, a.seen = judgeTx(req, entered)
	switch {
	case result.Outcome == 0 && req.Recovery:
		has, err := db.New(onConn).HasRequest(ctx, db.HasRequestParams{OrgID: db.UUID(req.OrgID), Key: req.Key, RequestHash: encodeHash(req.RequestHash)})
		if err != nil {
			return idempotency.ClaimResult{}, false, asOutdated(err)
		}
		if !has {
			result.Outcome = idempotency.OutcomeNotInterrupted
		}
	case result.Outcome == 0 && req.Request != nil && a.keptBy == (pgtype.UUID{}):
		rollBack(ctx, conn)
		return idempotency.ClaimResult{}, true, nil
	}
	if result.Outcome != 0 {
		rollBack(ctx, conn)
		if kept && result.Outcome != idempotency.OutcomeInFlight {
			// It completed, or came to belong to another request, as this one was kept.
			own := db.ForgetAttemptParams{OrgID: db.UUID(req.OrgID), Key: req.Key, Token: db.UUID(req.Token)}
			if err := db.New(onConn).ForgetAttempt(ctx, own); err != nil {
				return idempotency.ClaimResult{}, false, err
			}
		}
		conn.Release()
		return result, false, nil
	}
	a.began, a.pid = entered.Began, entered.Pid
	a.tx = &handlerTx{Tx: tx, org: req.OrgID, seen: &seenByHandler{}, asTenant: t.options.TenantRole}
	t.mu.Lock()
	t.running[req.Token] = a
	t.mu.Unlock()
	return idempotency.ClaimResult{Outcome: idempotency.OutcomeClaimed, Attempt: int(a.attempt), Transaction: a.tx}, false, nil
}

// judgeTx is judge for a claim by a transaction: an outcome of zero means that it
// holds the key.
func judgeTx(req idempotency.ClaimRequest, entered db.Entered) (result idempotency.ClaimResult, attempt int32, seen *db.DeleteSeenParams) {
	attempt = 1
	if entered.Found {
		result, attempt = judge(req, entered.Record)
		seen = &db.DeleteSeenParams{OrgID: db.UUID(req.OrgID), Key: req.Key, SeenToken: entered.Record.Token}
	}
	if result.Outcome == 0 && !entered.Locked {
		// By another request, perhaps, of another fingerprint: that is not known before it
		// commits, and to say so on a guess would send a client off with a new key.
		result.Outcome = idempotency.OutcomeInFlight
	}
	return result, attempt, seen
}

// Complete implements [idempotency.LeaseStore]: it writes the record and commits, in one
// round trip. When the answer to the commit is lost, the next call finds out what became
// of it.
func (t *txStore) Complete(ctx context.Context, c idempotency.Claim, rec *idempotency.Record) error {
	a := t.take(c)
	if a == nil {
		return t.findOut(ctx, c)
	}
	err := t.commit(ctx, a, c, rec)
	if isFinal := errors.Is(err, idempotency.ErrRolledBack) || errors.Is(err, idempotency.ErrStoreRefused); isFinal && !errors.Is(err, idempotency.ErrRerun) {
		t.forget(ctx, a) // the client is told, and decides
	}
	return err
}

func (t *txStore) commit(ctx context.Context, a *txAttempt, c idempotency.Claim, rec *idempotency.Record) error {
	a.tx.seen.end(a.conn.Conn())
	defer t.ended(c)
	defer a.giveBack(ctx)
	if a.conn.Conn().IsClosed() {
		return t.rolledBack(a, errors.New("the connection broke while the handler ran"))
	}
	status := a.conn.Conn().PgConn().TxStatus()
	if status == 'I' {
		return endedByHandler("complete", c)
	}
	if status == 'E' {
		err := db.UndoHandler(ctx, a.conn)
		switch {
		case db.EndedWithin(err):
			return endedByHandler("complete", c)
		case err != nil:
			return t.rolledBack(a, err)
		case rec.ResponseStatus < 400 || a.tx.seen.met() != nil:
			return t.rolledBack(a, errors.New("one of the handler's statements had failed"))
		}
		// A handler may answer a statement that failed with an outcome that is one: a conflict,
		// say. It is stored, and what the handler did before has been undone.
	}
	committed, err := a.tenant.InsertCommit(ctx, a.conn, a.seen, c.Kept, db.InsertCompletedParams{
		Ttl: a.req.TTL, Token: db.UUID(c.Token), OrgID: db.UUID(c.OrgID), Attempt: a.attempt,
		ResponseStatus: int32(rec.ResponseStatus), ResponseKept: !rec.Tombstone,
		Key: c.Key, RequestHash: encodeHash(a.req.RequestHash),
		ResponseHeaders: encodeHeaders(rec), ResponseBody: rec.ResponseBody,
	})
	switch {
	case committed:
		return nil
	case err == nil:
		return t.rolledBack(a, errors.New("the transaction had failed before"))
	case db.EndedWithin(err):
		return endedByHandler("complete", c)
	case isAnswer(err):
		return t.rolledBack(a, err)
	}
	return translate("complete", c.OrgID, err) // not known; ask again
}

// Release implements [idempotency.LeaseStore]: it rolls the transaction back.
func (t *txStore) Release(ctx context.Context, c idempotency.Claim) error {
	a := t.take(c)
	if a == nil {
		return lostOr("release", c.OrgID, t.forgetLost(ctx, c))
	}
	a.tx.seen.end(a.conn.Conn())
	forgotten, ended := a.req.Request != nil && undoAndForget(ctx, a), false
	if !forgotten {
		ended = a.rollBack(ctx)
	}
	a.giveBack(ctx)
	if !forgotten {
		t.forget(ctx, a)
	}
	t.ended(c)
	if ended {
		return endedByHandler("release", c)
	}
	if err := t.rolledBack(a, nil); errors.Is(err, idempotency.ErrRerun) {
		return err
	}
	return nil
}

// rollBack rolls the attempt's transaction back, and reports whether its handler had
// ended it before.
func (a *txAttempt) rollBack(ctx context.Context) (ended bool) {
	conn := a.conn.Conn()
	switch {
	case conn.IsClosed():
		return false
	case conn.PgConn().TxStatus() == 'I':
		return true
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), rollbackTimeout)
	defer cancel()
	return db.EndedWithin(db.RollBack(ctx, conn))
}

// giveBack gives the attempt's connection back, unless its handler may have kept it.
func (a *txAttempt) giveBack(ctx context.Context) {
	if a.tx.seen.wasLent() {
		closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), rollbackTimeout)
		defer cancel()
		_ = a.conn.Conn().Close(closing)
	}
	giveBack(ctx, a.conn)
}

// endedByHandler says that a handler has ended the transaction by a statement of its own,
// a COMMIT perhaps.
func endedByHandler(step string, c idempotency.Claim) error {
	return fmt.Errorf("pgstore: %s for org %s: %w", step, c.OrgID, idempotency.ErrHandlerEnded)
}

// KeepsRequests implements [idempotency.RequestStore].
func (t *txStore) KeepsRequests() {}

// Get implements [idempotency.Store].
func (t *txStore) Get(ctx context.Context, orgID uuid.UUID, key string) (*idempotency.Record, error) {
	return t.store.Get(ctx, orgID, key)
}

// Put implements [idempotency.Store].
func (t *txStore) Put(ctx context.Context, rec *idempotency.Record) error {
	return t.store.Put(ctx, rec)
}

// Clear deletes all records of a tenant, as that of [Store] does.
func (t *txStore) Clear(ctx context.Context, orgID uuid.UUID) error { return t.store.Clear(ctx, orgID) }

// Extend implements [idempotency.LeaseStore]: an attempt lasts as long as its
// transaction.
func (t *txStore) Extend(_ context.Context, c idempotency.Claim, _ time.Duration) error {
	if t.find(c) == nil {
		return lostOr("extend", c.OrgID, pgx.ErrNoRows)
	}
	return nil
}

// take returns the running attempt of a claim, and leaves none.
func (t *txStore) take(c idempotency.Claim) *txAttempt {
	t.mu.Lock()
	defer t.mu.Unlock()
	a := t.running[c.Token]
	delete(t.running, c.Token)
	return a
}

// rolledBack says that nothing of an attempt has taken effect, and whether it may run
// again: when it, or a statement of its handler, met others.
func (t *txStore) rolledBack(a *txAttempt, err error) error {
	sentinel := idempotency.ErrRolledBack
	conflict := a.tx.seen.met()
	if conflict == nil && meetsOthers(err) {
		conflict = err
	}
	if conflict != nil && a.req.Rerun < t.reruns {
		sentinel = idempotency.ErrRerun
	}
	return fmt.Errorf("pgstore: complete for org %s: %w: %w", a.req.OrgID, sentinel, errors.Join(err, conflict))
}

// meetsOthers reports whether a transaction failed only because of others beside it. The
// record of another attempt at the key is one of them: the next claim will see it.
func meetsOthers(err error) bool {
	var pgErr *pgconn.PgError
	return isSerializationFailure(err) || errors.As(err, &pgErr) && pgErr.ConstraintName == "idempotency_records_pkey"
}

// isAnswer reports whether the server said that a transaction failed, and not that it
// had to leave, which it may do after a commit as well as before it.
func isAnswer(err error) bool {
	var pgErr *pgconn.PgError
	return errors.As(err, &pgErr) && pgErr.SeverityUnlocalized == "ERROR"
}

// findOut tells what became of an attempt whose commit was not answered. It waits for the
// attempt's lock: when that is free, its transaction has ended, one way or the other.
func (t *txStore) findOut(ctx context.Context, c idempotency.Claim) error {
	at, err := t.store.locateBegun(ctx, c.OrgID)
	if err != nil {
		return err
	}
	completed := false
	err = t.store.follow(ctx, c.OrgID, at, func(at located) (err error) {
		completed, err = t.completedAt(ctx, at, c)
		return err
	})
	switch {
	case err != nil:
		return translate("find out what became of a commit", c.OrgID, err)
	case !completed:
		return fmt.Errorf("pgstore: complete for org %s: %w: its commit was not answered, and did not happen", c.OrgID, idempotency.ErrRolledBack)
	}
	return nil
}

func (t *txStore) completedAt(ctx context.Context, at located, c idempotency.Claim) (completed bool, err error) {
	conn, err := at.home.conns.Acquire(ctx)
	if err != nil {
		return false, err
	}
	defer conn.Release()
	// At a stricter level the second statement would not see what was committed while the
	// first one waited.
	readCommitted := pgx.TxOptions{IsoLevel: pgx.ReadCommitted}
	err = pgx.BeginTxFunc(ctx, conn, readCommitted, func(tx pgx.Tx) error {
		queries := db.New(t.store.texts.Bind(tx, at.schema.Quoted()))
		if err := db.New(tx).JoinCommits(ctx); err != nil {
			return err
		}
		if err := db.New(tx).AwaitLock(ctx, lockName(at.schema, c.OrgID, c.Key)); err != nil {
			return err
		}
		completed, err = queries.CompletedBy(ctx, db.CompletedByParams{Token: db.UUID(c.Token), OrgID: db.UUID(c.OrgID), Key: c.Key})
		if errors.Is(err, pgx.ErrNoRows) {
			return nil
		}
		return err
	})
	return completed, err
}

// lockName names the lock of a key.
func lockName(schema tenancy.Schema, orgID uuid.UUID, key string) int64 {
	h := sha256.New()
	for _, part := range []string{"pgidem", schema.Quoted(), string(orgID[:]), key} {
		h.Write(binary.BigEndian.AppendUint64(nil, uint64(len(part)))) // so that no two lists of parts read alike
		h.Write([]byte(part))
	}
	return int64(binary.BigEndian.Uint64(h.Sum(nil)))
}

// giveBack ends what is left of a transaction and gives the connection back to the pool,
// which closes it if that did not succeed.
func giveBack(ctx context.Context, conn *pgxpool.Conn) {
	rollBack(ctx, conn)
	conn.Release()
}

func rollBack(ctx context.Context, conn *pgxpool.Conn) {
	if c := conn.Conn(); !c.IsClosed() && c.PgConn().TxStatus() != 'I' {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), rollbackTimeout)
		defer cancel()
		_, _ = c.Exec(ctx, "ROLLBACK") // or else the connection is closed, which rolls back as well
	}
}

const rollbackTimeout = 2 * time.Second
