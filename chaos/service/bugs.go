package service

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgidem/pgidem/idempotency"
	"github.com/pgidem/pgidem/tenancy"
)

// Bug is a fault that is planted in the store, to see that the checker finds it. Each is
// one that stores of this kind have had.
type Bug string

// The bugs.
const (
	NoBug Bug = ""
	// UncheckedToken completes the record whoever holds it.
	UncheckedToken Bug = "token not checked"
	// EarlyResponse says that it has committed, and commits a moment later.
	EarlyResponse Bug = "response sent before commit"
	// UnfencedSteps stores steps whoever holds the record.
	UnfencedSteps Bug = "steps not fenced"
	// GetThenInsert looks for a record, and where it finds none writes its own over
	// whatever has come there meanwhile.
	GetThenInsert Bug = "claim by get, then insert"
)

// plant returns the store with the bug in it.
func plant(bug Bug, store idempotency.StepStore, pool *pgxpool.Pool, dir tenancy.Directory) (idempotency.StepStore, error) {
	b := buggy{store, pool, dir}
	switch bug {
	case NoBug:
		return store, nil
	case UncheckedToken:
		return uncheckedToken{b}, nil
	case EarlyResponse:
		return earlyResponse{b}, nil
	case UnfencedSteps:
		return unfencedSteps{b}, nil
	case GetThenInsert:
		return getThenInsert{b}, nil
	}
	return nil, fmt.Errorf("no bug is called %q", bug)
}

type buggy struct {
	idempotency.StepStore
	pool *pgxpool.Pool
	dir  tenancy.Directory
}

// in returns the statement with the tenant's schema in it.
func (b buggy) in(ctx context.Context, org uuid.UUID, format string) (string, error) {
	schema, err := b.dir.Schema(ctx, org)
	return fmt.Sprintf(format, schema.Quoted()), err
}

// holder returns the token that the record of a key has.
func (b buggy) holder(ctx context.Context, c idempotency.Claim) (idempotency.Token, error) {
	sql, err := b.in(ctx, c.OrgID, `SELECT r.token FROM %s.idempotency_records AS r WHERE r.org_id = $1 AND r.key = $2`)
	if err != nil {
		return idempotency.Token{}, err
	}
	var token uuid.UUID
	err = b.pool.QueryRow(ctx, sql, c.OrgID, c.Key).Scan(&token)
	return idempotency.Token(token), err
}

type uncheckedToken struct{ buggy }

func (b uncheckedToken) Complete(ctx context.Context, c idempotency.Claim, rec *idempotency.Record) (err error) {
	if c.Token, err = b.holder(ctx, c); err != nil {
		return err
	}
	return b.StepStore.Complete(ctx, c, rec)
}

type earlyResponse struct{ buggy }

func (b earlyResponse) Complete(ctx context.Context, c idempotency.Claim, rec *idempotency.Record) error {
	ctx = context.WithoutCancel(ctx)
	go func() {
		time.Sleep(30 * time.Millisecond) // on a slow disk
		_ = b.StepStore.Complete(ctx, c, rec)
	}()
	return nil
}

type unfencedSteps struct{ buggy }

func (b unfencedSteps) SaveStep(ctx context.Context, c idempotency.Claim, name string, result []byte) ([]byte, error) {
	sql, err := b.in(ctx, c.OrgID, `
		INSERT INTO %[1]s.idempotency_steps AS s (created_at, expires_at, token, org_id, key, request_hash, name, result)
		SELECT r.created_at, r.expires_at, r.token, r.org_id, r.key, r.request_hash, $3, $4
		FROM %[1]s.idempotency_records AS r
		WHERE r.org_id = $1 AND r.key = $2
		ON CONFLICT (org_id, key, request_hash, name) DO UPDATE SET result = EXCLUDED.result`)
	if err != nil {
		return nil, err
	}
	_, err = b.pool.Exec(ctx, sql, c.OrgID, c.Key, name, result)
	return result, err
}

type getThenInsert struct{ buggy }

func (b getThenInsert) Claim(ctx context.Context, req idempotency.ClaimRequest) (idempotency.ClaimResult, error) {
	if _, err := b.holder(ctx, req.Claim); errors.Is(err, pgx.ErrNoRows) {
		sql, err := b.in(ctx, req.OrgID, `DELETE FROM %s.idempotency_records AS r WHERE r.org_id = $1 AND r.key = $2`)
		if err != nil {
			return idempotency.ClaimResult{}, err
		}
		if _, err := b.pool.Exec(ctx, sql, req.OrgID, req.Key); err != nil {
			return idempotency.ClaimResult{}, err
		}
	}
	return b.StepStore.Claim(ctx, req)
}
