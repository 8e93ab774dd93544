package pgstore

import (
	"context"

	"github.com/google/uuid"

	"github.com/pgidem/pgidem/idempotency"
	"github.com/pgidem/pgidem/internal/db"
)

// storedRequest is a request in its stored form. Headers and path values are stored as
// the headers of a response are.
type storedRequest struct {
	method, pattern           string
	target, host              []byte
	pathValues, headers, body []byte
}

func encodeRequest(r *idempotency.KeptRequest) storedRequest {
	values := make(map[string][]string, len(r.PathValues))
	for name, value := range r.PathValues {
		values[name] = []string{value}
	}
	return storedRequest{
		method: r.Method, pattern: r.Pattern, target: []byte(r.Target), host: []byte(r.Host),
		pathValues: encodeMap(values, nil), headers: encodeMap(r.Header, nil), body: r.Body,
	}
}

// decode returns the request; the error says that it is damaged, or written by a newer
// version of pgidem.
func (s storedRequest) decode() (idempotency.KeptRequest, error) {
	r := idempotency.KeptRequest{
		Method: s.method, Target: string(s.target), Host: string(s.host), Pattern: s.pattern, Body: s.body,
	}
	var headers, values idempotency.Record
	if err := decodeHeaders(&headers, s.headers); err != nil {
		return r, err
	}
	if err := decodeHeaders(&values, s.pathValues); err != nil {
		return r, err
	}
	r.Header = headers.ResponseHeaders
	for name, v := range values.ResponseHeaders {
		if r.PathValues == nil {
			r.PathValues = make(map[string]string)
		}
		if len(v) > 0 {
			r.PathValues[name] = v[0]
		}
	}
	return r, nil
}

// outdatedOrMissing tells apart, for a statement that met no table, a schema without the
// table of records and one that lacks another alone.
func (s *Store) outdatedOrMissing(ctx context.Context, tenant db.Tenant, orgID uuid.UUID, err error) error {
	if !isMissing(err) {
		return err
	}
	if _, found := db.New(tenant).GetRecord(ctx, db.GetRecordParams{OrgID: db.UUID(orgID)}); isMissing(found) {
		return err
	}
	return asOutdated(err)
}
