package idempotency

import (
	"errors"
	"maps"
	"slices"
	"time"

	"github.com/google/uuid"
)

// Record is what a store keeps of one idempotency key once its request has
// completed.
type Record struct {
	// OrgID is the tenant. A key means nothing outside its tenant.
	OrgID uuid.UUID
	// Key is the idempotency key as stored: as the client sent it, unquoted; with
	// [WithScope], behind a hash of the scope and the byte 0x1f.
	Key string
	// RequestHash is the fingerprint of the request that completed the record.
	RequestHash string

	// ResponseStatus is the HTTP status of the response; 0 where it is not
	// known, as after a hijacked connection.
	ResponseStatus int
	// ResponseBody is the whole body.
	ResponseBody []byte
	// ResponseHeaders are the headers that the handler set, without those that
	// must not be repeated; see [WithHeaders]. A name with no values means that
	// the handler removed or suppressed that header.
	ResponseHeaders map[string][]string
	// AppendedHeaders names those of ResponseHeaders whose values the handler
	// added to values that outer middleware had set. A replay adds them, too,
	// and sets all others.
	AppendedHeaders []string
	// Tombstone says that the request completed but its response was not kept:
	// it was too large, or its connection was hijacked. ResponseBody and
	// ResponseHeaders are then empty.
	Tombstone bool

	// CreatedAt is when the attempt that completed the record claimed the key.
	CreatedAt time.Time
	// ExpiresAt is when the record stops counting; it is fixed at the claim.
	ExpiresAt time.Time
}

// Clone returns a copy of r that shares no memory with it.
func (r *Record) Clone() *Record {
	c := *r
	c.ResponseBody = slices.Clone(r.ResponseBody)
	c.AppendedHeaders = slices.Clone(r.AppendedHeaders)
	c.ResponseHeaders = maps.Clone(r.ResponseHeaders)
	for name, values := range c.ResponseHeaders {
		c.ResponseHeaders[name] = slices.Clone(values)
	}
	return &c
}

// validate reports what makes r unfit to be stored.
func (r *Record) validate() error {
	switch {
	case r == nil:
		return errors.New("idempotency: record is nil")
	case r.OrgID == uuid.Nil:
		return errors.New("idempotency: record without an OrgID; set it to the tenant's")
	case r.Key == "":
		return errors.New("idempotency: record without a Key")
	}
	return nil
}

// setTimes fills in the times that were left zero.
func (r *Record) setTimes(now time.Time) {
	if r.CreatedAt.IsZero() {
		r.CreatedAt = now
	}
	if r.ExpiresAt.IsZero() {
		r.ExpiresAt = r.CreatedAt.Add(DefaultTTL)
	}
}
