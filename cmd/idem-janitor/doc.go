// Idem-janitor deletes the expired idempotency records of every tenant of a
// database, or of several, once, for cron, or on an interval.
//
//	DATABASE_URL=postgres://janitor@db/app idem-janitor --dry-run   # only counts
//	DATABASE_URL=postgres://janitor@db/app idem-janitor
//	DATABASE_URL=postgres://janitor@db/app idem-janitor --interval 1h --max-duration 10m
//
//	idem-janitor --database-url "$DB1" --server eu-2="$DB2"   # both clusters in one round
//
// It asks the catalog which schemas hold a table of records, or takes those of
// --schema, and visits them in random order. Those of tenants that are being moved to
// another cluster (moving_...) it passes over. What it deletes has expired and is
// not leased; it may run beside the service, and beside other janitors. Where the registry
// places tenants in several clusters, give it the database of each, or run one for each: a
// cluster that is named nowhere is purged by nobody. One that cannot be reached stops no
// other, and keeps them waiting for half a minute at most; one that stops answering midway keeps the
// round from ending, until --max-duration does that. See
// idem-janitor --help for its flags, the environment variables behind them, and
// its exit codes.
//
// The role that it connects as needs USAGE on the tenants' schemas, and SELECT,
// UPDATE (for the row locks) and DELETE on their tables of records.
//
// # Through PgBouncer
//
// Nothing is prepared and nothing is set on a connection, so PgBouncer in
// transaction mode will do. Only --statement-timeout and --lock-timeout, which
// are parameters at the start of a connection, are refused by it unless its
// ignore_startup_parameters lists them, and then they are without effect: set
// them on the role instead (ALTER ROLE janitor SET statement_timeout = '10s').
//
// # Stopping
//
// SIGINT and SIGTERM let the statements under way finish for half a second, have
// the server cancel those that take longer, and end the process with a summary of
// what was done. The same happens when --max-duration is over. Nothing that was
// deleted before is lost: each statement is a transaction. A second signal ends
// the process at once.
package main
