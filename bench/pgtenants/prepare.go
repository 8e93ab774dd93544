package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgidem/pgidem/migrations"
	"github.com/pgidem/pgidem/tenancy"
)

// prepare makes the schemas that are missing, and migrates those that an older version of this
// program made.
func prepare(ctx context.Context, url string, tenants int) error {
	dir, err := tenancy.PerOrg("tenant_")
	if err != nil {
		return err
	}
	shared, err := tenancy.ParseSchema(sharedSchema)
	if err != nil {
		return err
	}
	targets := func(yield func(migrations.Target, error) bool) {
		if !yield(migrations.Target{Schema: shared}, nil) {
			return
		}
		for n := range tenants {
			org := orgOf(n)
			schema, err := dir.Schema(ctx, org)
			if !yield(migrations.Target{Schema: schema, OrgID: org}, err) || err != nil {
				return
			}
		}
	}
	if err := whole(ctx, url); err != nil {
		return err
	}
	report, err := migrations.All(ctx, url, targets)
	if err != nil || report.Created+report.Migrated == 0 {
		return err
	}
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return err
	}
	_, err = conn.Exec(ctx, "VACUUM ANALYZE pg_class, pg_attribute, pg_index, pg_constraint, pg_type, pg_depend")
	if err == nil {
		_, err = conn.Exec(ctx, "CHECKPOINT")
	}
	fmt.Fprintf(os.Stderr, "made %d schemas and migrated %d in %v\n", report.Created, report.Migrated, report.Duration.Round(time.Second))
	return errors.Join(err, conn.Close(ctx))
}

// whole refuses a database whose schemas were made without noting their migrations, as this
// program used to.
func whole(ctx context.Context, url string) error {
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return err
	}
	var old int
	err = conn.QueryRow(ctx, `SELECT count(*) FROM pg_class AS c WHERE c.relname = 'idempotency_records' AND c.relkind = 'r'
		AND NOT EXISTS (SELECT FROM pg_class AS v WHERE v.relnamespace = c.relnamespace AND v.relname = $1)`, migrations.VersionTable).Scan(&old)
	if err == nil && old > 0 {
		err = fmt.Errorf("%d schemas of this database do not say which migrations they have had, so an older version of this program made them: give a new database by -url", old)
	}
	return errors.Join(err, conn.Close(ctx))
}
