package pgstore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgidem/pgidem/idempotency"
	"github.com/pgidem/pgidem/internal/db"
	"github.com/pgidem/pgidem/internal/listen"
	"github.com/pgidem/pgidem/internal/watch"
	"github.com/pgidem/pgidem/tenancy"
)

// Store is an [idempotency.WatchStore], an [idempotency.StepStore] and an
// [idempotency.RequestStore] in PostgreSQL. Make one with [New]; it is safe for
// concurrent use.
//
// Its methods return errors that wrap [tenancy.ErrUnknownTenant] for a tenant that
// the directory does not know, or whose schema does not hold the tables.
type Store struct {
	dir     tenancy.Directory
	servers map[string]*server
	texts   db.Texts
	ends    watch.Hub[waitKey]

	placer    tenancy.Placer    // the same as dir, if it is one
	refresher tenancy.Refresher // likewise

	few      int // transactions at once that were asked for; 0 for as many as are worth it
	relaxed  bool
	logger   *slog.Logger
	seen     *seenKeys
	replayed atomic.Int64 // about how many bytes a look finds
}

var (
	_ idempotency.WatchStore   = (*Store)(nil)
	_ idempotency.StepStore    = (*Store)(nil)
	_ idempotency.RequestStore = (*Store)(nil)
)

// Option changes how a [Store] works.
type Option func(*Store) error

// WithListenConfig gives the connection on which the store hears of attempts that
// end in other processes, for [idempotency.WithWait]. By default it is made as those
// of the pool are; behind a pooler in transaction mode give a direct one, or requests
// that wait only ask again, at growing intervals of up to a second.
func WithListenConfig(config *pgx.ConnConfig) Option {
	return func(s *Store) error {
		if config == nil {
			return errors.New("WithListenConfig: the configuration is nil")
		}
		if len(s.servers) != 1 {
			return errors.New("WithListenConfig: there are several clusters; use WithClusterListenConfig for each that needs it")
		}
		for cluster := range s.servers {
			return WithClusterListenConfig(cluster, config)(s)
		}
		return nil
	}
}

// WithClusterListenConfig is [WithListenConfig] for one of several clusters.
func WithClusterListenConfig(cluster string, config *pgx.ConnConfig) Option {
	return func(s *Store) error {
		server, ok := s.servers[cluster]
		switch {
		case config == nil:
			return errors.New("WithClusterListenConfig: the configuration is nil")
		case !ok:
			return fmt.Errorf("WithClusterListenConfig: %w", unknownCluster(cluster, s.servers))
		}
		server.listener.connect = listen.ConnectorTo(config)
		return nil
	}
}

// WithLogger sets where the store warns of what slows it down or will break, found out on
// the way: see [Store.Check]. Defaults to [slog.Default] as it is when the store is made.
func WithLogger(logger *slog.Logger) Option {
	return func(s *Store) error {
		if s.logger = logger; logger == nil {
			return errors.New("WithLogger: the logger is nil")
		}
		return nil
	}
}

// WithCoalescing sets how many transactions the store has under way at once to claim and
// complete, and how many to look for responses to be replayed, before what comes gathers; n
// is at least 1. What has gathered goes together, in one transaction and one round trip, as
// soon as one of them has ended. So requests never wait for company, but only while n others
// are under way. Transactions that take unusually long, 0.1 s or more, are not waited for,
// so it is no bound on connections: that is the pool's.
//
// By default they are as many as the pool has connections at most, and fewer, down to 2,
// while each takes more than twice as long as the shortest of the last seconds: then it is
// the processors of the server, or of the service, that they wait for, and fewer with more
// in each take less of those. Where a round trip or a commit takes long by itself, more at
// once get more done.
//
// Over [Pools] it is a number for each of them. By default that is as many as it has
// connections, and fewer, down to 1, in the same way.
//
// A statement that fails is none of the other requests' concern: they are run again by
// themselves, and so is everything of a schema for ten seconds, or until something of it
// has succeeded again.
func WithCoalescing(n int) Option {
	return func(s *Store) error {
		if n < 1 {
			return fmt.Errorf("WithCoalescing: %d transactions at once; give 1 or more", n)
		}
		s.few = n
		return nil
	}
}

// WithRelaxedClaims has claims not wait until the server's disk has them: their transactions
// commit with synchronous_commit off. Completions, transactions of [Store.Transactional] and
// steps are as durable as ever.
//
// A crash of the server, not of the service, can then undo the claims of its last moments,
// three times wal_writer_delay at most (600 ms by default; PostgreSQL 15 documentation,
// section 30.4; where a standby takes over, what it had not received by then), whose
// outcomes were not yet stored. A service that lives on goes on with such a request, and a
// retry that comes after the crash does not find it in flight: both run, and only one of
// them can store its outcome. So this is for handlers whose effects may happen twice at such
// a moment, or are made once by whom they ask ([idempotency.ChildKey]).
//
// A request whose outcome is stored is safe, and so is the response that was sent for that. Not
// so a response that is on its way before: one that streams, or that was sent as
// [idempotency.DecisionCompleteFailed] because the server could not be reached for as long as
// [idempotency.WithStoreTimeout]. If the crash has undone the claim, a retry then does not wait
// for the lease to lapse, and runs at once. The request that [idempotency.WithRecoverable] keeps
// is written with the claim and lost with it, so that no [Completer] finishes it; and
// [idempotency.WithInterrupted] with [idempotency.Refuse] has no record to refuse a retry by.
func WithRelaxedClaims() Option {
	return func(s *Store) error {
		s.relaxed = true
		return nil
	}
}

// New returns a Store over the caller's pool, with each tenant in the schema that
// dir names. It opens no connection. The error says which argument is missing.
//
// Where there are hundreds of tenants or more, each with a schema of its own, [NewRouted]
// over [Pools] does a multiple of it.
func New(pool *pgxpool.Pool, dir tenancy.Directory, opts ...Option) (*Store, error) {
	if pool == nil {
		return nil, errors.New("pgstore: the pool is nil")
	}
	return NewRouted(SinglePool(pool), dir, opts...)
}

// Close ends what the store has started by itself, for [idempotency.WithWait]: the
// connection on which it listens while requests wait, and what it still has to tell
// other processes. Call it before the pool is closed. Without it, the connection is
// closed half a minute or so after the last request that waited. Close leaves the pool
// alone, and the store may be used further; requests that wait, here and for what ends
// here, then ask again and again.
func (s *Store) Close() {
	for _, server := range s.servers {
		server.listener.close()
	}
}

// maxClaimTries bounds how often a claim starts over because the record changed
// under it. Each round some other attempt got further, so a few suffice.
const maxClaimTries = 16

// errContended ends a claim that was overtaken in every round.
var errContended = fmt.Errorf("pgstore: %w: the record kept changing while it was claimed; try again", idempotency.ErrStoreRefused)

// Claim implements [idempotency.LeaseStore].
func (s *Store) Claim(ctx context.Context, req idempotency.ClaimRequest) (idempotency.ClaimResult, error) {
	at, err := s.locate(ctx, req.OrgID)
	if err != nil {
		return idempotency.ClaimResult{}, err
	}
	if err := checkKey(req.Key, req.RequestHash); err != nil {
		return idempotency.ClaimResult{}, translate("claim", req.OrgID, err)
	}
	var result idempotency.ClaimResult
	err = s.follow(ctx, req.OrgID, at, func(at located) (err error) {
		result, err = s.claimAt(ctx, at, req)
		return err
	})
	if err == nil || errors.Is(err, errContended) {
		return result, err
	}
	return idempotency.ClaimResult{}, translate("claim", req.OrgID, err)
}

func (s *Store) claimAt(ctx context.Context, at located, req idempotency.ClaimRequest) (idempotency.ClaimResult, error) {
	for range maxClaimTries {
		result, again, err := s.tryClaim(ctx, at, req)
		if err != nil && !isSerializationFailure(err) {
			return idempotency.ClaimResult{}, err
		}
		if err == nil && !again {
			return result, nil
		}
	}
	return idempotency.ClaimResult{}, errContended
}

// tryClaim claims the key once. It asks to be called again when the record
// changed between two of its looks.
func (s *Store) tryClaim(ctx context.Context, at located, req idempotency.ClaimRequest) (_ idempotency.ClaimResult, again bool, _ error) {
	tenant := at.tenant
	claimed, row, found, err := s.firstLook(ctx, at, req)
	switch {
	case err != nil:
		return idempotency.ClaimResult{}, false, err
	case claimed:
		return idempotency.ClaimResult{Outcome: idempotency.OutcomeClaimed, Attempt: 1}, false, nil
	case !found && req.Recovery:
		return idempotency.ClaimResult{Outcome: idempotency.OutcomeNotInterrupted}, false, nil
	case !found:
		return idempotency.ClaimResult{}, true, nil
	}

	result, attempt := judge(req, row)
	switch {
	case result.Outcome == idempotency.OutcomeInFlight && req.Await && !row.Awaited:
		n, err := db.New(tenant).MarkAwaited(ctx, db.MarkAwaitedParams{OrgID: db.UUID(req.OrgID), Key: req.Key})
		return result, err == nil && n == 0, err
	case result.Outcome != 0:
		return result, false, nil
	}
	n, err := takeOver(ctx, tenant, req, row, attempt)
	switch {
	case err != nil:
		return idempotency.ClaimResult{}, false, asOutdated(err)
	case n == 0 && req.Recovery: // the record has changed, or the request is not kept any more
		kept, err := db.New(tenant).HasRequest(ctx, db.HasRequestParams{OrgID: db.UUID(req.OrgID), Key: req.Key, RequestHash: row.RequestHash})
		return idempotency.ClaimResult{Outcome: idempotency.OutcomeNotInterrupted}, kept && !row.Expired, asOutdated(err)
	case n == 0:
		return idempotency.ClaimResult{}, true, nil
	}
	return idempotency.ClaimResult{Outcome: idempotency.OutcomeClaimed, Attempt: int(attempt)}, false, nil
}

// firstLook claims a key that has no record, or else looks at its record. It takes one
// round trip, but for a retry that nothing foretold.
func (s *Store) firstLook(ctx context.Context, at located, req idempotency.ClaimRequest) (claimed bool, row db.ClaimSelectRow, found bool, err error) {
	tenant := at.tenant
	known := s.seen.add(req.OrgID, req.Key)
	if known || req.Recovery {
		if row, found, err = s.look(ctx, at, req.Claim); found || req.Recovery || err != nil {
			return false, row, found, err
		}
	}
	insert := db.ClaimInsertParams{
		Ttl: req.TTL, Lease: req.Lease, Token: db.UUID(req.Token),
		OrgID: db.UUID(req.OrgID), Key: req.Key, RequestHash: encodeHash(req.RequestHash),
	}
	if req.Request != nil {
		r := encodeRequest(req.Request)
		claim := tenant.RecoverableClaim(db.ClaimInsertRecoverableParams{
			Ttl: insert.Ttl, Lease: insert.Lease, Token: insert.Token,
			OrgID: insert.OrgID, Key: insert.Key, RequestHash: insert.RequestHash,
			Method: r.method, Target: r.target, Host: r.host, Pattern: r.pattern,
			PathValues: r.pathValues, Headers: r.headers, Body: r.body,
		})
		err = at.home.claims.do(ctx, claim, len(r.headers)+len(r.body))
		return claim.Claimed, claim.Row, claim.Found, s.outdatedOrMissing(ctx, tenant, req.OrgID, err)
	}
	claim := tenant.Claim(insert, s.seen.expectStrangers())
	if err = at.home.claims.do(ctx, claim, 0); err != nil {
		return false, row, false, err
	}
	if !known {
		s.seen.met(!claim.Claimed)
	}
	if claim.Claimed || claim.Looks {
		return claim.Claimed, claim.Row, claim.Found, nil
	}
	row, found, err = s.look(ctx, at, req.Claim)
	return false, row, found, err
}

// look looks at the record of a key.
func (s *Store) look(ctx context.Context, at located, c idempotency.Claim) (row db.ClaimSelectRow, found bool, err error) {
	look := at.tenant.Look(db.ClaimSelectParams{OrgID: db.UUID(c.OrgID), Key: c.Key})
	usual := s.replayed.Load()
	err = at.home.looks.do(ctx, look, int(usual))
	if n := int64(len(look.Row.ResponseBody)); err == nil && look.Found {
		s.replayed.Store(usual + (n-usual)/8) // others may overwrite it: it is a guess
	}
	return look.Row, err == nil && look.Found, err
}

// takeOver claims a record that may be taken over, if it is still as it was seen, and
// returns how many it has claimed.
func takeOver(ctx context.Context, tenant db.Tenant, req idempotency.ClaimRequest, seen db.ClaimSelectRow, attempt int32) (int64, error) {
	switch {
	case req.Recovery:
		return db.New(tenant).ClaimInterrupted(ctx, db.ClaimInterruptedParams{
			Ttl: req.TTL, Lease: req.Lease, Token: db.UUID(req.Token), Attempt: attempt,
			OrgID: db.UUID(req.OrgID), Key: req.Key, SeenToken: seen.Token,
		})
	case req.Request != nil:
		r := encodeRequest(req.Request)
		return db.New(tenant).ClaimTakeOverRecoverable(ctx, db.ClaimTakeOverRecoverableParams{
			Ttl: req.TTL, Lease: req.Lease, Token: db.UUID(req.Token), Attempt: attempt,
			RequestHash: encodeHash(req.RequestHash), OrgID: db.UUID(req.OrgID), Key: req.Key, SeenToken: seen.Token,
			Method: r.method, Target: r.target, Host: r.host, Pattern: r.pattern,
			PathValues: r.pathValues, Headers: r.headers, Body: r.body,
		})
	}
	return db.New(tenant).ClaimTakeOver(ctx, db.ClaimTakeOverParams{
		Ttl: req.TTL, Lease: req.Lease, Token: db.UUID(req.Token), Attempt: attempt,
		RequestHash: encodeHash(req.RequestHash), OrgID: db.UUID(req.OrgID), Key: req.Key, SeenToken: seen.Token,
	})
}

// judge says what a claim comes to that has met a record. An outcome of zero means
// that the record may be taken over, by the attempt of the returned number.
func judge(req idempotency.ClaimRequest, row db.ClaimSelectRow) (result idempotency.ClaimResult, attempt int32) {
	if row.Expired && (row.Completed || row.Lapsed) { // it counts as absent
		return idempotency.ClaimResult{}, 1
	}
	switch {
	case row.Token == db.UUID(req.Token) && !row.Completed: // ours: the answer to an earlier try was lost
		return idempotency.ClaimResult{Outcome: idempotency.OutcomeClaimed, Attempt: int(row.Attempt)}, 0
	// The fingerprint comes before a take-over: a request that may not have
	// the record must not touch it.
	case !bytes.Equal(row.RequestHash, encodeHash(req.RequestHash)):
		return idempotency.ClaimResult{Outcome: idempotency.OutcomeMismatch}, 0
	case row.Completed:
		rec, err := completedRecord(req.OrgID, req.Key, req.RequestHash, db.GetRecordRow{
			CreatedAt: row.CreatedAt, ExpiresAt: row.ExpiresAt,
			ResponseStatus: row.ResponseStatus, ResponseKept: row.ResponseKept,
			ResponseHeaders: row.ResponseHeaders, ResponseBody: row.ResponseBody,
		})
		if err != nil { // completed, and so not to be run again, though not to be read
			rec = &idempotency.Record{OrgID: req.OrgID, Key: req.Key, ResponseStatus: int(*row.ResponseStatus), Tombstone: true}
		}
		return idempotency.ClaimResult{Outcome: idempotency.OutcomeCompleted, Record: rec}, 0
	case !row.Lapsed:
		return idempotency.ClaimResult{Outcome: idempotency.OutcomeInFlight}, 0
	case req.Interrupted == idempotency.Refuse:
		return idempotency.ClaimResult{Outcome: idempotency.OutcomeInterrupted}, 0
	}
	return idempotency.ClaimResult{}, row.Attempt + 1
}

// looksForLost is how often an attempt's record is looked for before its lease is lost. At
// REPEATABLE READ a statement that has waited for one that rewrites the table, VACUUM FULL
// say, has a snapshot of before, and sees no row at all.
const looksForLost = 2

// Complete implements [idempotency.LeaseStore].
func (s *Store) Complete(ctx context.Context, c idempotency.Claim, rec *idempotency.Record) error {
	at, err := s.locateBegun(ctx, c.OrgID)
	if err != nil {
		return err
	}
	if err := checkStatus(rec.ResponseStatus); err != nil {
		return translate("complete", c.OrgID, err)
	}
	params := db.CompleteParams{
		ResponseStatus: int32(rec.ResponseStatus), ResponseKept: !rec.Tombstone,
		ResponseHeaders: encodeHeaders(rec), ResponseBody: rec.ResponseBody,
		OrgID: db.UUID(c.OrgID), Key: c.Key, Token: db.UUID(c.Token),
	}
	var awaited bool
	err = s.follow(ctx, c.OrgID, at, func(here located) error {
		at = here
		for range looksForLost {
			completion := at.tenant.Completion(params, c.Kept)
			err := at.home.outcomes.do(ctx, completion, len(rec.ResponseBody))
			if awaited = completion.Awaited; err != nil || completion.Held {
				return err
			}
		}
		return pgx.ErrNoRows
	})
	if c.Kept {
		err = asOutdated(err)
	}
	return s.ended(ctx, at, "complete", c, awaited, err)
}

// Release implements [idempotency.LeaseStore].
func (s *Store) Release(ctx context.Context, c idempotency.Claim) error {
	at, err := s.locateBegun(ctx, c.OrgID)
	if err != nil {
		return err
	}
	first := db.ReleaseParams{OrgID: db.UUID(c.OrgID), Key: c.Key, Token: db.UUID(c.Token)}
	later := db.ReleaseKeptParams{SpentToken: db.UUID(idempotency.NewToken()), OrgID: db.UUID(c.OrgID), Key: c.Key, Token: db.UUID(c.Token)}
	var awaited bool
	err = s.follow(ctx, c.OrgID, at, func(here located) (err error) {
		at = here
		queries := db.New(at.tenant)
		if c.Kept {
			if awaited, err = queries.ReleaseRecoverable(ctx, db.ReleaseRecoverableParams(first)); errors.Is(err, pgx.ErrNoRows) {
				awaited, err = queries.ReleaseKeptRecoverable(ctx, db.ReleaseKeptRecoverableParams(later))
			}
		} else if awaited, err = queries.Release(ctx, first); errors.Is(err, pgx.ErrNoRows) {
			awaited, err = queries.ReleaseKept(ctx, later)
		}
		return err
	})
	if c.Kept {
		err = asOutdated(err)
	}
	return s.ended(ctx, at, "release", c, awaited, err)
}

// ended tells those who wait for the attempt of c, here and elsewhere, that it has
// come to its end.
func (s *Store) ended(ctx context.Context, at located, step string, c idempotency.Claim, awaited bool, err error) error {
	if err != nil {
		return lostOr(step, c.OrgID, err)
	}
	s.signal(c.OrgID, c.Key)
	if awaited {
		at.server.listener.tell(context.WithoutCancel(ctx), at.home.conns, newWaitKey(c.OrgID, c.Key))
	}
	return nil
}

// signal tells those who wait in this process for what happens to a key. Mostly nobody does,
// and its name is not worth the hash: who comes to wait after this looks, and finds what
// happened before.
func (s *Store) signal(orgID uuid.UUID, key string) {
	if s.ends.Len() > 0 {
		s.ends.Signal(newWaitKey(orgID, key))
	}
}

// Watch implements [idempotency.WatchStore], over one connection to each server for all who
// wait in this process. It fails while the server cannot be listened to.
func (s *Store) Watch(orgID uuid.UUID, key string) (ended <-chan struct{}, stop func(), err error) {
	ctx, cancel := context.WithTimeout(context.Background(), watchTimeout)
	defer cancel()
	at, err := s.locate(ctx, orgID)
	if err != nil {
		return nil, nil, err
	}
	return at.server.listener.watch(newWaitKey(orgID, key))
}

// Extend implements [idempotency.LeaseStore].
func (s *Store) Extend(ctx context.Context, c idempotency.Claim, lease time.Duration) error {
	at, err := s.locateBegun(ctx, c.OrgID)
	if err != nil {
		return err
	}
	err = s.follow(ctx, c.OrgID, at, func(at located) error {
		for range looksForLost {
			n, err := db.New(at.tenant).Extend(ctx, db.ExtendParams{Lease: lease, OrgID: db.UUID(c.OrgID), Key: c.Key, Token: db.UUID(c.Token)})
			if err != nil || n > 0 {
				return err
			}
		}
		return pgx.ErrNoRows
	})
	return lostOr("extend", c.OrgID, err)
}

// KeepsRequests implements [idempotency.RequestStore].
func (s *Store) KeepsRequests() {}

// Clear deletes all records of a tenant, those in progress among them, and all requests
// that are kept: for tests, and for a tenant that is gone. Its retries run their handlers
// again.
func (s *Store) Clear(ctx context.Context, orgID uuid.UUID) error {
	at, err := s.locateBegun(ctx, orgID)
	if err != nil {
		return err
	}
	err = s.follow(ctx, orgID, at, func(at located) error {
		_, err := repeated(func() (int64, error) { return db.New(at.tenant).ClearRecords(ctx, db.UUID(orgID)) })
		return s.outdatedOrMissing(ctx, at.tenant, orgID, err)
	})
	s.ends.SignalAll()
	return translate("clear", orgID, err)
}

// Get implements [idempotency.Store].
func (s *Store) Get(ctx context.Context, orgID uuid.UUID, key string) (*idempotency.Record, error) {
	at, err := s.locate(ctx, orgID)
	if err != nil {
		return nil, err
	}
	var row db.GetRecordRow
	err = s.follow(ctx, orgID, at, func(at located) (err error) {
		row, err = db.New(at.tenant).GetRecord(ctx, db.GetRecordParams{OrgID: db.UUID(orgID), Key: key})
		return err
	})
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, fmt.Errorf("%w: org %s", idempotency.ErrNotFound, orgID)
	}
	if err != nil {
		return nil, translate("get", orgID, err)
	}
	return completedRecord(orgID, key, decodeHash(row.RequestHash), row)
}

// Put implements [idempotency.Store]. A CreatedAt that is left zero is asked of the
// database, which takes a round trip more.
func (s *Store) Put(ctx context.Context, rec *idempotency.Record) error {
	if rec == nil {
		return errors.New("pgstore: put: record is nil")
	}
	at, err := s.locate(ctx, rec.OrgID)
	if err != nil {
		return err
	}
	if err := errors.Join(checkKey(rec.Key, rec.RequestHash), checkStatus(rec.ResponseStatus)); err != nil {
		return translate("put", rec.OrgID, err)
	}
	err = s.follow(ctx, rec.OrgID, at, func(at located) error {
		return s.outdatedOrMissing(ctx, at.tenant, rec.OrgID, putAt(ctx, at, rec))
	})
	s.signal(rec.OrgID, rec.Key)
	return translate("put", rec.OrgID, err)
}

func putAt(ctx context.Context, at located, rec *idempotency.Record) (err error) {
	createdAt, expiresAt := rec.CreatedAt, rec.ExpiresAt
	if createdAt.IsZero() {
		if createdAt, err = db.New(at.home.conns).DatabaseTime(ctx); err != nil {
			return err
		}
	}
	if expiresAt.IsZero() {
		expiresAt = createdAt.Add(idempotency.DefaultTTL)
	}
	return db.New(at.tenant).PutRecord(ctx, db.PutRecordParams{
		CreatedAt: createdAt, ExpiresAt: expiresAt, Token: db.UUID(idempotency.NewToken()),
		OrgID: db.UUID(rec.OrgID), Key: rec.Key, RequestHash: encodeHash(rec.RequestHash),
		ResponseStatus: int32(rec.ResponseStatus), ResponseKept: !rec.Tombstone,
		ResponseHeaders: encodeHeaders(rec), ResponseBody: rec.ResponseBody,
	})
}

// completedRecord makes a record of what the database holds.
func completedRecord(orgID uuid.UUID, key, hash string, row db.GetRecordRow) (*idempotency.Record, error) {
	rec := &idempotency.Record{
		OrgID: orgID, Key: key, RequestHash: hash,
		ResponseStatus: int(*row.ResponseStatus), // a completed row has one, says its CHECK
		ResponseBody:   row.ResponseBody, Tombstone: !row.ResponseKept,
		CreatedAt: row.CreatedAt, ExpiresAt: row.ExpiresAt,
	}
	if err := decodeHeaders(rec, row.ResponseHeaders); err != nil {
		return nil, fmt.Errorf("pgstore: record of org %s: %w", orgID, err)
	}
	return rec, nil
}
