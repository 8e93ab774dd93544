package pgstore

import (
	"context"
	"errors"
	"fmt"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/pgidem/pgidem/idempotency"
	"github.com/pgidem/pgidem/internal/db"
	"github.com/pgidem/pgidem/tenancy"
)

// KeySecrets is what clients and handlers sent: personal data, often, and not for logs.
type KeySecrets struct {
	Headers map[string][]string // of the response
	Body    []byte
	Request *idempotency.KeptRequest // which is kept
	Results map[string][]byte        // of steps, by name; of several requests with one key the last
}

// Reveal returns what is stored of a key beside what [Inspect] tells.
func Reveal(ctx context.Context, q Querier, schema tenancy.Schema, orgID uuid.UUID, key string) (KeySecrets, error) {
	var texts db.Texts
	tenant := db.New(texts.Bind(q, schema.Quoted()))
	org := db.UUID(orgID)
	var secrets KeySecrets

	row, err := tenant.RevealRecord(ctx, db.RevealRecordParams{OrgID: org, Key: key})
	if err != nil && !errors.Is(err, pgx.ErrNoRows) {
		return KeySecrets{}, translateSchema("reveal", schema, err)
	}
	var rec idempotency.Record
	if err := decodeHeaders(&rec, row.ResponseHeaders); err != nil {
		return KeySecrets{}, fmt.Errorf("pgstore: reveal in schema %s: %w", schema, err)
	}
	secrets.Headers, secrets.Body = rec.ResponseHeaders, row.ResponseBody

	kept, err := tenant.RevealRequest(ctx, db.RevealRequestParams{OrgID: org, Key: key})
	switch {
	case err == nil:
		request, err := storedRequest{
			method: kept.Method, target: kept.Target, host: kept.Host, pattern: kept.Pattern,
			pathValues: kept.PathValues, headers: kept.Headers, body: kept.Body,
		}.decode()
		if err != nil {
			return KeySecrets{}, fmt.Errorf("pgstore: reveal in schema %s: %w", schema, err)
		}
		secrets.Request = &request
	case !errors.Is(err, pgx.ErrNoRows):
		return KeySecrets{}, translateSchema("reveal", schema, asOutdated(err))
	}

	steps, err := tenant.RevealSteps(ctx, db.RevealStepsParams{OrgID: org, Key: key})
	if err != nil {
		return KeySecrets{}, translateSchema("reveal", schema, asOutdated(err))
	}
	for _, s := range steps {
		if secrets.Results == nil {
			secrets.Results = make(map[string][]byte)
		}
		secrets.Results[s.Name] = s.Result
	}
	return secrets, nil
}
