// Package migrations creates and migrates the schemas of tenants.
//
//	tenants, err := tenancy.PerOrg("tenant_")
//	schema, err := tenants.Schema(ctx, orgID)
//	err = migrations.Up(ctx, databaseURL, schema)
//
// Each schema keeps a version table of its own ([VersionTable]), so tenants may be at different
// versions, and the plain goose command does the same for one schema by hand:
//
//	psql "$DATABASE_URL" -c 'CREATE SCHEMA IF NOT EXISTS tenant_a'
//	PGOPTIONS='-c search_path=tenant_a' goose -dir migrations/tenant -table idempotency_db_version postgres "$DATABASE_URL" up
//
// # Many tenants
//
// [All] does the same for thousands of them, with several workers over few connections:
//
//	report, err := migrations.All(ctx, databaseURL, migrations.Schemas(schemas...),
//		migrations.WithWorkers(8), migrations.WithProgress(show), migrations.WithResult(note))
//
// New schemas are made as a whole, by the statements that goose would send, in one
// transaction; those that are behind have each migration that they lack in a transaction of
// its own; those that have nothing to be done are told from the catalogs, hundreds at a time.
// So a run may be killed and run again at any point, and what [All] makes and what [Up] makes
// is the same.
//
// A tenant that is busy does not hold up the run, nor the run the tenant: a migration waits
// for a lock for 1.5 seconds at most (WithLockTimeout), because all later requests for that
// table wait behind it. Then the tenant is put back and tried again later, up to ten times
// ([WithTries]). So is one that another run has in its hands: two runs share the work, by
// advisory locks that belong to transactions and that Up takes, too. And so is one that is on its
// way to another cluster ([ErrMoving]), since its move may yet come to nothing. A run sets nothing on
// its connections that outlives a transaction. One that gets fewer connections than it has
// workers makes do with those; one that is stopped returns when the server has ended what it was
// doing.
//
// A run notices after about a minute that a server is not to be reached any more, by TCP
// keep-alive, and on Linux by TCP_USER_TIMEOUT; elsewhere it takes as long as the system repeats
// what the server does not acknowledge, which may be a quarter of an hour. A statement may take
// any time: the server's machine answers the probes while it runs. What it does not notice is a
// proxy that has lost the server and goes on to acknowledge what it is sent: end ctx by a time
// of your own where there is one.
//
// [Status] says which schemas are behind, and which are not what the migrations made any
// more, by comparing each with one that it makes and takes back; [Describe] and [Compare] are
// for two schemas of your choice.
//
// # Versions in a registry
//
// A registry (package registry) has a version noted of each tenant's schema, and a store
// refuses a tenant whose noted version is older than it needs. This package knows of no
// registry. So where there is one, [Up] and [All] by themselves leave the tenants refused by a
// new version of the service, until somebody notes that they were migrated. What does both is
//
//	idem-tenants migrate
//
// over the whole registry; with --schema or --all-schemas it asks no registry and notes
// nothing. A program of your own notes what [WithResult] tells it by Registry.SetVersion, also
// of tenants that were found [Current]: see the example there.
//
// # Old and new at the same time
//
// While ten thousand tenants are migrated, and for as long as an old version of the service
// still runs, that version meets schemas that are newer than it knows. So a release works with
// the schemas of its own version and with those of the next:
//
//   - expand: a release may add tables, columns that are nullable or have a default, indexes,
//     and drop constraints. Migrate first, then deploy.
//   - contract: what a release no longer uses is dropped by the migrations of a later one.
//   - A migration runs in a transaction, and does not rewrite a table that may be large.
//   - A new table is pinned to the tenant as idempotency_records is pinned, by its
//     constraint, not by what the schema's name says: the schemas of some tenants have other
//     names (Target.OrgID).
//
// A schema that is newer than the program is left alone: All reports it as [Newer], Status as
// [Ahead]. A service that meets a schema older than it needs, or one that its registry says is
// older, refuses its tenant.
//
// The package is for deployment, never for the request path: a service that imports the
// middleware and the store alone compiles no goose.
package migrations
