package main

import (
	"time"

	"github.com/google/uuid"

	"github.com/pgidem/pgidem/idempotency/pgstore"
)

// keyJSON is what inspect --json prints of a key. What is not known or does not apply is
// left out. Bytes are in base64.
type keyJSON struct {
	OrgID       uuid.UUID        `json:"org_id"`
	Schema      string           `json:"schema"`
	Key         string           `json:"key"`
	Scope       string           `json:"scope,omitempty"`
	State       pgstore.KeyState `json:"state"`
	Now         time.Time        `json:"now"` // by the database's clock
	Transaction *transactionJSON `json:"transaction,omitempty"`
	Record      *recordJSON      `json:"record,omitempty"`
	Request     *requestJSON     `json:"kept_request,omitempty"`
	Steps       []stepJSON       `json:"steps"`
}

type transactionJSON struct {
	PID     int32      `json:"server_pid"`
	BeganAt *time.Time `json:"began_at,omitempty"`
}

type recordJSON struct {
	Attempt     int        `json:"attempt"`
	ClaimedAt   time.Time  `json:"claimed_at"`
	LeaseUntil  *time.Time `json:"lease_until,omitempty"` // while in progress
	ExpiresAt   time.Time  `json:"expires_at"`
	CompletedAt *time.Time `json:"completed_at,omitempty"`
	Status      int        `json:"status,omitempty"`
	Kept        *bool      `json:"response_kept,omitempty"`
	HeaderBytes int64      `json:"header_bytes"`
	BodyBytes   int64      `json:"body_bytes"`
	RowBytes    int64      `json:"row_bytes"`
	Awaited     bool       `json:"awaited"`
	Fingerprint string     `json:"fingerprint,omitempty"` // of the usual form alone

	Headers map[string][]string `json:"headers,omitempty"` // this and the next with --reveal
	Body    []byte              `json:"body,omitempty"`
}

type requestJSON struct {
	Method      string    `json:"method"`
	Pattern     string    `json:"pattern,omitempty"`
	KeptAt      time.Time `json:"kept_at"`
	ExpiresAt   time.Time `json:"expires_at"`
	NextAt      time.Time `json:"next_at"`
	Attempts    int       `json:"attempts"`
	GaveUp      bool      `json:"given_up"`
	TargetBytes int64     `json:"target_bytes"`
	HeaderBytes int64     `json:"header_bytes"`
	BodyBytes   int64     `json:"body_bytes"`

	Target  string              `json:"target,omitempty"` // this and the rest with --reveal
	Host    string              `json:"host,omitempty"`
	Headers map[string][]string `json:"headers,omitempty"`
	Body    []byte              `json:"body,omitempty"`
}

type stepJSON struct {
	Name        string    `json:"name"`
	StoredBy    time.Time `json:"attempt_claimed_at"`
	ExpiresAt   time.Time `json:"expires_at"`
	ResultBytes int64     `json:"result_bytes"`

	Result []byte `json:"result,omitempty"` // with --reveal
}

func newKeyJSON(info pgstore.KeyInfo, secrets *pgstore.KeySecrets) keyJSON {
	if secrets == nil {
		secrets = &pgstore.KeySecrets{}
	}
	scope, key := splitKey(info.Key)
	object := keyJSON{
		OrgID: info.OrgID, Schema: info.Schema.String(), Key: key, Scope: scope, State: info.State,
		Now: info.Now.UTC(), Steps: []stepJSON{},
	}
	if tx := info.Transaction; tx != nil {
		object.Transaction = &transactionJSON{PID: tx.PID, BeganAt: utc(tx.Began)}
	}
	if r := info.Record; r != nil {
		object.Record = &recordJSON{
			Attempt: r.Attempt, ClaimedAt: r.CreatedAt.UTC(), ExpiresAt: r.ExpiresAt.UTC(), CompletedAt: utc(r.CompletedAt),
			Status: r.Status, HeaderBytes: r.HeaderBytes, BodyBytes: r.BodyBytes, RowBytes: r.RowBytes, Awaited: r.Awaited,
			Headers: secrets.Headers, Body: secrets.Body,
		}
		if isDigest(r.Fingerprint) {
			object.Record.Fingerprint = r.Fingerprint
		}
		if r.CompletedAt.IsZero() {
			object.Record.LeaseUntil = utc(r.LeaseUntil)
		} else {
			object.Record.Kept = &r.Kept
		}
	}
	if q := info.Request; q != nil {
		object.Request = &requestJSON{
			Method: q.Method, Pattern: q.Pattern, KeptAt: q.KeptAt.UTC(), ExpiresAt: q.ExpiresAt.UTC(), NextAt: q.NextAt.UTC(),
			Attempts: q.Attempts, GaveUp: q.GaveUp, TargetBytes: q.TargetBytes, HeaderBytes: q.HeaderBytes, BodyBytes: q.BodyBytes,
		}
		if r := secrets.Request; r != nil {
			object.Request.Target, object.Request.Host, object.Request.Headers, object.Request.Body = r.Target, r.Host, r.Header, r.Body
		}
	}
	for _, s := range info.Steps {
		object.Steps = append(object.Steps, stepJSON{
			Name: s.Name, StoredBy: s.StoredBy.UTC(), ExpiresAt: s.ExpiresAt.UTC(), ResultBytes: s.ResultBytes, Result: secrets.Results[s.Name],
		})
	}
	return object
}
