// Package pgstore keeps idempotency records in PostgreSQL, each tenant's in that
// tenant's own schema.
//
// The caller owns the pool, which the store neither opens nor closes, and says by
// a directory where each tenant lives:
//
//	pool, err := pgxpool.New(ctx, databaseURL)
//	tenants, err := tenancy.PerOrg("tenant_")
//	store, err := pgstore.New(pool, tenants)
//	protect := idempotency.Require(store)
//
// The tenant's schema must have been migrated with package migrations, and again after an
// upgrade, before the new version serves it. With the registry of package registry that is
// done by idem-tenants migrate, or the versions are noted by Registry.SetVersion: the store
// refuses a tenant whose noted version is too old, and migrations.Up notes none. PostgreSQL
// 14 or newer is needed.
//
// # How it works
//
// A claim takes one round trip. Of a key that this process has not met lately it is an
// INSERT that does nothing where there is a record; of one that it has, a SELECT of that
// record, so a replay writes nothing, no dead row and no WAL. Retries that come to another
// process than their first requests did are met by a second round trip once, and as long as
// they go on coming by both statements in one. The take-over of a record that has expired,
// or whose lease has lapsed, takes a second one. Completing, releasing and extending are one
// statement each, compare-and-set on the fencing token. The handler runs without holding
// a connection.
//
// Claims and completions that find as many transactions under way as are worth having wait
// together, and go in one transaction and one round trip when one of those has ended; so do
// replays. How many are worth having is found out while it runs, and is the pool's connections
// at most; [WithCoalescing] sets it. In one transaction, those of one schema are few statements,
// whatever their number. docs/performance.md has what this is worth.
//
// All times are the database's. Every statement names its schema; nothing is ever
// set on a connection, so the store works behind PgBouncer in transaction mode,
// given a pool that does not cache prepared statements there (set
// DefaultQueryExecMode to pgx.QueryExecModeExec, or use PgBouncer 1.21 or newer
// with max_prepared_statements).
//
// # Many tenants, many servers
//
// A connection's server process keeps what it knows of each tenant that it has met, and that
// takes time to gather and memory to keep. With hundreds of tenants or more use [NewPools],
// among which each tenant has a home, and [NewRouted]; where they are on several servers,
// [Clusters], and a [tenancy.Placer] that names the server of each. [Store.Check] reports what
// does not fit. docs/scale.md has measurements.
//
//	pools, err := pgstore.NewPools(ctx, config, 8)
//	defer pools.Close()
//	store, err := pgstore.NewRouted(pools, tenants)
//	defer store.Close()
//
// # Transactions
//
// [Store.Transactional] lets each handler run in a transaction of its tenant, in which
// its own writes and the stored response are committed together; [Tx] is the handler's
// way to it. A claim is one round trip there as well, and so are record and commit
// together. Each running request then holds a connection. A replay of a key that this process
// has met lately is one round trip and no transaction; of any other key it takes a second one.
//
// # Requests whose process died
//
// [Completer] runs the requests again that [idempotency.WithRecoverable] keeps and whose
// process died, of all tenants, beside the service itself. Keeping a request takes no round
// trip of its own with leases, for it is part of the claim and of the completion, and one
// in front of a transaction.
//
// # Purging
//
// Expired records are deleted by [Purge], which cmd/idem-janitor runs over all
// tenants.
//
// # Durability
//
// What a claim, a completion or a step has stored survives a crash of the server as the
// settings of the server say (synchronous_commit, and fsync). [WithRelaxedClaims] trades
// the durability of claims, and of nothing else, for the wait for the disk.
package pgstore
