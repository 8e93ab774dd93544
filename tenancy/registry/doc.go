// Package registry keeps the tenants in a table of PostgreSQL: which org_ids there are, in
// which schema and on which server their records are, and whether they are served.
//
// The table is in a control schema, which package migrations makes:
//
//	control, err := tenancy.ParseSchema(registry.DefaultSchema)
//	err = migrations.UpControl(ctx, databaseURL, control)
//
// A [Registry] works on the caller's pool, and is the directory of a store:
//
//	tenants, err := registry.New(pool)
//	defer tenants.Close()
//	store, err := pgstore.New(pool, tenants)
//
// Tenants come and go by [Registry.Add], [Registry.SetState], [Registry.Move] and
// [Registry.Remove], each one statement that changes nothing where the tenant is not as it
// was thought to be. What cannot be, such as two tenants in one schema, the table refuses,
// to those as well who write it by hand. Where a run may be held up for longer than it takes to
// remove a tenant and to register its org_id anew, it makes its changes by the tenant's
// [Generation], of which the new one is another. A tenant is served while it is [Active]; requests
// of others get a 403 from package idempotency.
//
// # Versions
//
// The registry has the version noted that each schema is at, and package pgstore refuses a
// tenant whose noted version is older than it needs, until a newer one is noted. To migrate a
// schema notes nothing by itself: after an upgrade run
//
//	idem-tenants migrate
//
// which does both, and not package migrations alone (migrations.Up, migrations.All), nor the
// same command with --schema or --all-schemas, which does without a registry. A program of your
// own calls [Registry.SetVersion] with what migrations.WithResult tells it. A tenant whose
// version was never noted is not refused for that: what its schema lacks is found out by its
// requests, which then get 503.
//
// # What is cached
//
// [Registry.Schema] and [Registry.Place] are for the request path. A tenant is looked up
// once, and then known to the process until it changes: a hit takes less than 0.1 µs and
// allocates nothing. Each process hears of changes over one connection of its own (LISTEN),
// which is made at the first lookup, like those of the pool but none of them, and made again
// whenever it is lost. Triggers on the table tell of each change as it commits, also of one
// that is made by hand. What was heard of is forgotten, and looked up when next it is wanted.
//
// While a process does not listen, because its connection is lost or because a pooler in
// transaction mode stands in between ([WithListenConfig]), what it knows counts for 0.9
// seconds. Once it listens again, nothing counts that was read before. So a change is seen
// by all processes within a second, but for two cases. Where the network swallows packets
// without a word, it takes a process up to 7 seconds to find out that it no longer hears
// anything, and [WithTTL] is the bound in any case. And while the database cannot be asked,
// a tenant that was known is served as it was for [WithStale], 5 minutes: one that was
// suspended or moved meanwhile as well. [Registry.Listening] says whether it listens.
//
// A store that finds the tables of a tenant missing has it looked up anew ([Registry.Refresh]),
// once in a second at most, and so finds one that was moved.
//
// Whoever moves a tenant must therefore not trust that all processes have seen that it is
// suspended: make the old schema unusable, by renaming it say, before its rows are copied.
// Then a process that was cut off gets errors and writes nothing where nobody looks.
//
// # What it costs
//
// The database is asked by one connection of the pool at a time, by one query for all
// org_ids that are wanted while the one before is under way; so of any number of requests
// that miss together, one asks. A query has a second, whatever the contexts of those who
// wait for it; one whose context ends leaves alone. Tenants in use are looked up again
// before what is known of them is too old, and requests do not wait for that. Where the pool
// has no connection to spare, a lookup fails after that second as if the database were away:
// give the registry a small pool of its own if that can be.
//
// An org_id that is not registered is remembered for a second, among 4,096 of its kind, apart
// from the tenants. So somebody who can get valid tokens for arbitrary org_ids cannot grow
// the memory of a process or push a tenant out of its cache. What they can cost is one
// connection of the pool, busy with index lookups, of which each such org_id is one a
// second at most while there are less than 4,096 of them and one a request beyond that, and
// the wait of tenants that are not cached for the end of the query before theirs.
package registry
