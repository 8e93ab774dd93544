package pgstore

import (
	"context"
	"time"

	"github.com/google/uuid"

	"github.com/pgidem/pgidem/internal/db"
	"github.com/pgidem/pgidem/tenancy"
)

// Summary counts what is stored of a tenant.
type Summary struct {
	Now time.Time // by the database's clock

	// Records by their state, and when the oldest attempt in progress claimed its key.
	InProgress, Interrupted, Completed, NotKept, Expired int64
	OldestInProgress                                     time.Time // zero where there is none

	Steps          int64 // that have not expired
	KeptRequests   int64 // that have not expired
	GaveUpRequests int64 // of these, those that are not run again

	// Bytes of the tables on the disk, with their indexes, by name. A schema that several
	// tenants share has one number for all of them.
	Bytes map[string]int64
}

// Summarize counts what is stored of a tenant. It reads the tenant's tables whole. A schema
// without the tables gives an error that wraps [tenancy.ErrUnknownTenant].
func Summarize(ctx context.Context, q Querier, schema tenancy.Schema, orgID uuid.UUID) (Summary, error) {
	var texts db.Texts
	tenant := db.New(texts.Bind(q, schema.Quoted()))
	org := db.UUID(orgID)
	records, err := tenant.CountRecords(ctx, org)
	if err != nil {
		return Summary{}, translateSchema("count records", schema, err)
	}
	s := Summary{
		Now:        records.Now,
		InProgress: records.InProgress, Interrupted: records.Interrupted, Completed: records.Completed,
		NotKept: records.NotKept, Expired: records.Expired, Bytes: make(map[string]int64),
	}
	if records.OldestInProgress.Year() > 1 {
		s.OldestInProgress = records.OldestInProgress
	}
	if s.Steps, err = tenant.CountSteps(ctx, org); err != nil {
		return Summary{}, translateSchema("count steps", schema, asOutdated(err))
	}
	requests, err := tenant.CountRequests(ctx, org)
	if err != nil {
		return Summary{}, translateSchema("count kept requests", schema, asOutdated(err))
	}
	s.KeptRequests, s.GaveUpRequests = requests.Kept, requests.GaveUp
	tables, err := db.New(q).TableSizes(ctx, schema.String())
	if err != nil {
		return Summary{}, translateSchema("measure tables", schema, err)
	}
	for _, table := range tables {
		s.Bytes[table.Name] = table.Bytes
	}
	return s, nil
}
