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
// It is for deployment, never for the request path: a service that imports the
// middleware and the store alone compiles no goose.
package migrations
