package service

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"io/fs"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pressly/goose/v3"

	"github.com/pgidem/pgidem/migrations"
	"github.com/pgidem/pgidem/tenancy"
)

//go:embed migrations/*.sql
var migrationFiles embed.FS

// Migrate makes the schemas of tenants, or brings them up to date: first the
// library's table of idempotency records, and then the tables of this service
// beside it. Run it once for each deployment, not in every replica.
func Migrate(ctx context.Context, databaseURL string, schemas ...tenancy.Schema) error {
	if err := migrations.Up(ctx, databaseURL, schemas...); err != nil {
		return err
	}
	for _, schema := range schemas {
		if err := migratePayments(ctx, databaseURL, schema); err != nil {
			return fmt.Errorf("migrate payments in schema %s: %w", schema, err)
		}
	}
	return nil
}

// migratePayments keeps its versions in goose's default table, in the tenant's
// schema; package migrations has one of another name there.
func migratePayments(ctx context.Context, databaseURL string, schema tenancy.Schema) (err error) {
	cfg, err := pgx.ParseConfig(databaseURL)
	if err != nil {
		return err
	}
	// Migrations have connections of their own, which are closed afterwards, so
	// search_path is safe to set here. On a pool that serves requests it is not.
	cfg.RuntimeParams["search_path"] = schema.Quoted()
	conn := stdlib.OpenDB(*cfg)
	defer func() { err = errors.Join(err, conn.Close()) }()

	files, err := fs.Sub(migrationFiles, "migrations")
	if err != nil {
		return err
	}
	provider, err := goose.NewProvider(goose.DialectPostgres, conn, files,
		goose.WithDisableGlobalRegistry(true),
	)
	if err != nil {
		return err
	}
	_, err = provider.Up(ctx)
	return err
}
