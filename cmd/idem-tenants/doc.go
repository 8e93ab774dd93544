// Idem-tenants provisions, lists, migrates, inspects, moves and drops the tenants of a
// service.
//
//	export DATABASE_URL=postgres://owner@db/app
//	idem-tenants init
//	idem-tenants provision 6f1c2f6e-0d5a-4c8e-9f5e-2f0a3c1d7b42
//	idem-tenants migrate --dry-run
//	idem-tenants inspect 6f1c2f6e-0d5a-4c8e-9f5e-2f0a3c1d7b42 order-1234
//
// It works on the registry of package tenancy/registry, which it makes by init. Services
// whose directory is another one inspect, release and migrate by --schema, and migrate all
// schemas of a database that hold records by --all-schemas.
//
// Connections go to PostgreSQL itself, not through a pooler in transaction mode, where
// schemas are made, migrated or copied (init, provision, migrate, status, move, drop). The
// role owns the schemas. Inspect, release, list, suspend and resume need less: to read and
// to write the tables that they are about, and any connection will do.
//
// See idem-tenants --help for the verbs, and idem-tenants help VERB for their flags, the
// environment variables behind them, examples, what --json prints, and the exit codes.
package main
