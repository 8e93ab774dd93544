package pgstore

import (
	"context"

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
	n, err := repeated(func() (int64, error) {
		return db.New(tenant).KeepRequest(ctx, db.KeepRequestParams{
			Ttl: req.TTL, Lease: req.Lease, LockKey: lock, Token: db.UUID(req.Token),
			OrgID: db.UUID(req.OrgID), Key: req.Key, RequestHash: encodeHash(req.RequestHash),
			Method: r.method, Target: r.target, Host: r.host, Pattern: r.pattern,
			PathValues: r.pathValues, Headers: r.headers, Body: r.body,
		})
	})
	return n == 1, err
}

// keptFor asks, of a claim that keeps its request, which attempt has kept it. None may have
// by the time that the claim holds the lock: one that held it before, as this one was to be
// kept or since, has ended and taken the request along, or kept another in its place. While
// the lock is held nobody does.
func keptFor(req idempotency.ClaimRequest) *db.KeptByParams {
	if req.Request == nil {
		return nil
	}
	return &db.KeptByParams{OrgID: db.UUID(req.OrgID), Key: req.Key, RequestHash: encodeHash(req.RequestHash)}
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
	at, err := t.store.locateBegun(ctx, c.OrgID)
	if err != nil {
		return err
	}
	err = t.store.follow(ctx, c.OrgID, at, func(at located) error {
		return db.New(at.tenant).ForgetAttempt(ctx, db.ForgetAttemptParams{OrgID: db.UUID(c.OrgID), Key: c.Key, Token: db.UUID(c.Token)})
	})
	if err != nil {
		return err
	}
	return pgx.ErrNoRows
}

// request names the request that is kept of the attempt.
func (a *txAttempt) request() db.ForgetAttemptParams {
	return db.ForgetAttemptParams{OrgID: db.UUID(a.req.OrgID), Key: a.req.Key, Token: a.keptBy}
}
