package migrations

import "slices"

// tables are those that the migrations make, the version table among them.
var tables = []string{VersionTable, "idempotency_records", "idempotency_requests", "idempotency_steps"}

// Tables returns the names of the tables that the migrations make in a tenant's schema. Any
// other is not this library's.
func Tables() []string { return slices.Clone(tables) }
