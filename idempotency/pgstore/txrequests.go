package pgstore

import (
	"context"
	"errors"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/pgidem/pgidem/idempotency"
	"github.com/pgidem/pgidem/internal/db"
)

// An attempt in a transaction commits nothing before its end, so its request is kept
// before the transaction begins: on the same connection, because none may wait for a
// second one while it holds a first.

// keepRequest keeps the request of a claim, and reports whether it did: not while another
// attempt holds the lock, or has just kept the same.
func keepRequest(ctx context.Context, tenant db.Tenant, lock int64, req idempotency.ClaimRequest) (own bool, err error) {
	r := encodeRequest(req.Request)
	for range maxClaimTries {
		var n int64
		n, err = db.New(tenant).KeepRequest(ctx, db.KeepRequestParams{
			Ttl: req.TTL, Lease: req.Lease, LockKey: lock, Token: uuid.UUID(req.Token),
			OrgID: req.OrgID, Key: req.Key, RequestHash: encodeHash(req.RequestHash),
			Method: r.method, Target: r.target, Host: r.host, Pattern: r.pattern,
			PathValues: r.pathValues, Headers: r.headers, Body: r.body,
		})
		if !isSerializationFailure(err) {
			return n == 1, err
		}
	}
	return false, err
}

// keptBy returns the token of the attempt that has kept the request of a claim which holds
// the lock, and false where none has: one that held the lock as this one was to be kept may
// have ended since, and taken its own along. While the lock is held nobody keeps another.
func keptBy(ctx context.Context, tenant db.Tenant, req idempotency.ClaimRequest) (token uuid.UUID, found bool, err error) {
	token, err = db.New(tenant).KeptBy(ctx, db.KeptByParams{OrgID: req.OrgID, Key: req.Key, RequestHash: encodeHash(req.RequestHash)})
	if errors.Is(err, pgx.ErrNoRows) {
		return token, false, nil
	}
	return token, err == nil, err
}

// undoAndForget ends the transaction of an attempt without what its handler did and
// without the request, so that no worker can find the request between the two. It reports
// whether it could.
func undoAndForget(ctx context.Context, a *txAttempt) bool {
	conn := a.conn.Conn()
	if conn.IsClosed() || conn.PgConn().TxStatus() == 'I' {
		return false
	}
	if conn.PgConn().TxStatus() == 'E' { // in which nothing else can be prepared
		if err := db.UndoHandler(ctx, a.conn); err != nil {
			return false
		}
	}
	forgotten, err := a.tenant.UndoForgetCommit(ctx, a.conn, a.request())
	return forgotten && err == nil
}

// forget keeps the request of an attempt of a client's no longer that has ended without an
// outcome. Where that fails, a worker runs the request again.
func (t *txStore) forget(ctx context.Context, a *txAttempt) {
	if a.req.Request == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), rollbackTimeout)
	defer cancel()
	_ = db.New(a.tenant).ForgetAttempt(ctx, a.request())
}

// forgetLost does so for an attempt that there is no more, or never was: the answer to its
// claim was lost, say. It returns [pgx.ErrNoRows], or the error that came in between.
func (t *txStore) forgetLost(ctx context.Context, c idempotency.Claim) error {
	if !c.Kept {
		return pgx.ErrNoRows
	}
	tenant, err := t.store.tenant(ctx, c.OrgID)
	if err != nil {
		return err
	}
	if err := db.New(tenant).ForgetAttempt(ctx, db.ForgetAttemptParams{OrgID: c.OrgID, Key: c.Key, Token: uuid.UUID(c.Token)}); err != nil {
		return err
	}
	return pgx.ErrNoRows
}

// request names the request that is kept of the attempt.
func (a *txAttempt) request() db.ForgetAttemptParams {
	return db.ForgetAttemptParams{OrgID: a.req.OrgID, Key: a.req.Key, Token: a.keptBy}
}
