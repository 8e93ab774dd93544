package pgstore

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/pgidem/pgidem/idempotency"
	"github.com/pgidem/pgidem/internal/db"
	"github.com/pgidem/pgidem/tenancy"
)

// KeyState is what a request with a key would meet.
type KeyState string

// The states of a key. A store that takes over ([idempotency.Rerun]) runs the handler again
// for a key that is absent, interrupted or expired.
const (
	KeyAbsent        KeyState = "absent"         // no record, though perhaps steps or a kept request
	KeyInProgress    KeyState = "in_progress"    // an attempt holds it by a lease
	KeyInTransaction KeyState = "in_transaction" // an attempt holds it by the lock of its transaction, and may have no record
	KeyInterrupted   KeyState = "interrupted"    // the lease of its attempt has lapsed
	KeyCompleted     KeyState = "completed"      // its response is replayed
	KeyNotKept       KeyState = "not_kept"       // completed, and the response was not stored
	KeyExpired       KeyState = "expired"        // counts as absent, and waits for a purge
)

// KeyInfo is what is known of a key, without what clients and handlers sent: [Reveal] has
// that.
type KeyInfo struct {
	Schema tenancy.Schema
	OrgID  uuid.UUID
	Key    string // as it is stored, with its scope in front where there is one
	State  KeyState
	Now    time.Time // by the database's clock, which all other times are of

	Record      *RecordInfo
	Transaction *TransactionInfo // which holds the key
	Request     *RequestInfo     // which is kept ([idempotency.WithRecoverable])
	Steps       []StepInfo       // oldest first
}

// RecordInfo is what is known of the record of a key.
type RecordInfo struct {
	Token       idempotency.Token
	Attempt     int
	CreatedAt   time.Time // when the attempt that holds or completed the record claimed it
	LeaseUntil  time.Time
	ExpiresAt   time.Time
	CompletedAt time.Time // zero while it is in progress
	Status      int       // of the response; 0 where there is none, or it is unknown
	Kept        bool      // false for a tombstone
	HeaderBytes int64     // of the stored headers
	BodyBytes   int64
	RowBytes    int64 // that the row takes in the database, compressed
	Awaited     bool  // somebody waits, or waited, for the end of the attempt
	Fingerprint string
}

// TransactionInfo is what is known of a transaction that holds a key.
type TransactionInfo struct {
	PID   int32     // of the server process
	Began time.Time // zero where the role may not see it
}

// RequestInfo is what is known of a request that is kept.
type RequestInfo struct {
	Method, Pattern                     string
	KeptAt, ExpiresAt, NextAt           time.Time // NextAt: not to be run again before
	Attempts                            int       // how often it has been begun again
	GaveUp                              bool
	TargetBytes, HeaderBytes, BodyBytes int64
	Fingerprint                         string
}

// StepInfo is what is known of a step.
type StepInfo struct {
	Name        string
	StoredBy    time.Time // when the attempt that stored it claimed the key
	ExpiresAt   time.Time
	ResultBytes int64
	Fingerprint string // of the request that it is of
}

// Inspect tells what is known of a key of a tenant, in the form in which it is stored. It
// changes nothing. A key of which nothing is known gives an error that wraps
// [idempotency.ErrNotFound], and a schema without the tables one that wraps
// [tenancy.ErrUnknownTenant].
//
// For a key with a scope ([idempotency.WithScope]) ask [ScopedKeys].
func Inspect(ctx context.Context, q Querier, schema tenancy.Schema, orgID uuid.UUID, key string) (KeyInfo, error) {
	info := KeyInfo{Schema: schema, OrgID: orgID, Key: key}
	if err := info.read(ctx, q); err != nil {
		return KeyInfo{}, translateSchema("inspect", schema, err)
	}
	if info.State == KeyAbsent && info.Request == nil && len(info.Steps) == 0 {
		return KeyInfo{}, fmt.Errorf("pgstore: inspect in schema %s: %w", schema, idempotency.ErrNotFound)
	}
	return info, nil
}

func (info *KeyInfo) read(ctx context.Context, q Querier) (err error) {
	var texts db.Texts
	tenant := db.New(texts.Bind(q, info.Schema.Quoted()))
	org := db.UUID(info.OrgID)
	if info.Now, err = db.New(q).DatabaseTime(ctx); err != nil {
		return err
	}

	// The transaction comes first: one that commits in between is seen by its record.
	holder, err := db.New(q).KeyLockHolder(ctx, lockName(info.Schema, info.OrgID, info.Key))
	switch {
	case err == nil:
		info.Transaction = &TransactionInfo{PID: holder.Pid}
		if holder.Began.Year() > 1 {
			info.Transaction.Began = holder.Began
		}
	case !errors.Is(err, pgx.ErrNoRows):
		return err
	}

	info.State = KeyAbsent
	row, err := tenant.InspectRecord(ctx, db.InspectRecordParams{OrgID: org, Key: info.Key})
	switch {
	case err == nil:
		info.State = stateOf(row)
		info.Record = &RecordInfo{
			Token: row.Token.Bytes, Attempt: int(row.Attempt),
			CreatedAt: row.CreatedAt, LeaseUntil: row.LeaseUntil, ExpiresAt: row.ExpiresAt, CompletedAt: row.CompletedAt.Time,
			Kept: row.ResponseKept, HeaderBytes: row.HeaderBytes, BodyBytes: row.BodyBytes, RowBytes: row.RowBytes,
			Awaited: row.Awaited, Fingerprint: decodeHash(row.RequestHash),
		}
		if row.ResponseStatus != nil {
			info.Record.Status = int(*row.ResponseStatus)
		}
	case !errors.Is(err, pgx.ErrNoRows):
		return err
	}
	if info.Transaction != nil && info.State != KeyCompleted && info.State != KeyNotKept && info.State != KeyInProgress {
		info.State = KeyInTransaction
	}

	kept, err := tenant.InspectRequest(ctx, db.InspectRequestParams{OrgID: org, Key: info.Key})
	switch {
	case err == nil:
		info.Request = &RequestInfo{
			Method: kept.Method, Pattern: kept.Pattern, KeptAt: kept.CreatedAt, ExpiresAt: kept.ExpiresAt, NextAt: kept.NextAt,
			Attempts: int(kept.Attempts), GaveUp: kept.GaveUp,
			TargetBytes: kept.TargetBytes, HeaderBytes: kept.HeaderBytes, BodyBytes: kept.BodyBytes,
			Fingerprint: decodeHash(kept.RequestHash),
		}
	case !errors.Is(err, pgx.ErrNoRows):
		return asOutdated(err)
	}

	steps, err := tenant.InspectSteps(ctx, db.InspectStepsParams{OrgID: org, Key: info.Key})
	if err != nil {
		return asOutdated(err)
	}
	for _, s := range steps {
		info.Steps = append(info.Steps, StepInfo{
			Name: s.Name, StoredBy: s.CreatedAt, ExpiresAt: s.ExpiresAt, ResultBytes: s.ResultBytes, Fingerprint: decodeHash(s.RequestHash),
		})
	}
	return nil
}

func stateOf(row db.InspectRecordRow) KeyState {
	switch {
	case row.Expired && (row.Completed || row.Lapsed):
		return KeyExpired
	case row.Completed && row.ResponseKept:
		return KeyCompleted
	case row.Completed:
		return KeyNotKept
	case row.Lapsed:
		return KeyInterrupted
	}
	return KeyInProgress
}

// maxScopedKeys bounds what [ScopedKeys] returns.
const maxScopedKeys = 100

// ScopedKeys returns the keys, in the form in which they are stored, that have a scope in
// front of the key that a client sent ([idempotency.WithScope], [idempotency.Do]): 100 at
// most. It reads all keys of the tenant.
func ScopedKeys(ctx context.Context, q Querier, schema tenancy.Schema, orgID uuid.UUID, key string) ([]string, error) {
	var texts db.Texts
	keys, err := db.New(texts.Bind(q, schema.Quoted())).ScopedKeys(ctx, db.ScopedKeysParams{
		OrgID: db.UUID(orgID), Key: key, Most: maxScopedKeys,
	})
	if err != nil {
		return nil, translateSchema("find scoped keys", schema, err)
	}
	return keys, nil
}
