// Package db holds the SQL of this module: what sqlc generates from the files in
// queries against the tables in migrations/tenant, and [Tenant], which binds it
// to the schema of one tenant.
//
// A record counts as absent once expires_at has passed, unless it is in progress
// under a lease that has not lapsed: a handler that outlives the expiry of its
// record still excludes others. All times are the database's now().
//
// The statements keep to what schema-based sharding in Citus allows as well as
// plain PostgreSQL: each names one schema, ON CONFLICT compares and sets
// immutable values only, no UPDATE calls a volatile function, and now() stands
// in no CASE or COALESCE.
package db
