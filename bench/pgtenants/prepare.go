package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgidem/pgidem/migrations"
	"github.com/pgidem/pgidem/tenancy"
)

// prepare makes the schemas that are missing, in batches.
func prepare(ctx context.Context, url string, tenants int) error {
	dir, err := tenancy.PerOrg("tenant_")
	if err != nil {
		return err
	}
	up, err := template()
	if err != nil {
		return err
	}
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return err
	}
	rows, _ := conn.Query(ctx, "SELECT nspname FROM pg_namespace")
	names, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err = errors.Join(err, conn.Close(ctx)); err != nil {
		return err
	}
	there := make(map[string]bool)
	for _, name := range names {
		there[name] = true
	}
	var missing []string
	for n := range tenants {
		schema, err := dir.Schema(ctx, orgOf(n))
		if err != nil {
			return err
		}
		if !there[schema.String()] {
			missing = append(missing, schema.Quoted())
		}
	}
	if !there[sharedSchema] {
		missing = append(missing, sharedSchema)
	}
	if len(missing) == 0 {
		return nil
	}
	began := time.Now()
	work := make(chan []string)
	const workers, batch = 2, 20
	errs := make([]error, workers)
	var wg sync.WaitGroup
	for i := range workers {
		wg.Go(func() { errs[i] = create(ctx, url, up, work) })
	}
	for len(missing) > 0 {
		n := min(batch, len(missing))
		work <- missing[:n]
		missing = missing[n:]
	}
	close(work)
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		return err
	}
	if conn, err = pgx.Connect(ctx, url); err != nil {
		return err
	}
	_, err = conn.Exec(ctx, "VACUUM ANALYZE pg_class, pg_attribute, pg_index, pg_constraint, pg_type, pg_depend")
	if err == nil {
		_, err = conn.Exec(ctx, "CHECKPOINT")
	}
	fmt.Fprintf(os.Stderr, "made the missing schemas in %v\n", time.Since(began).Round(time.Second))
	return errors.Join(err, conn.Close(ctx))
}

// create makes schemas, those of a batch in one transaction. After an error it takes the
// rest of the work and does nothing.
func create(ctx context.Context, url, up string, work <-chan []string) error {
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		for range work {
		}
		return err
	}
	for batch := range work {
		if err != nil {
			continue
		}
		var sql strings.Builder
		sql.WriteString("BEGIN;")
		for _, schema := range batch {
			fmt.Fprintf(&sql, "CREATE SCHEMA %s;SET LOCAL search_path = %s;%s", schema, schema, up)
		}
		sql.WriteString("COMMIT;")
		_, err = conn.PgConn().Exec(ctx, sql.String()).ReadAll()
	}
	return errors.Join(err, conn.Close(ctx))
}

// template returns the statements of all migrations together.
func template() (string, error) {
	files, err := fs.Glob(migrations.FS(), "*.sql")
	if err != nil {
		return "", err
	}
	var all strings.Builder
	for _, name := range files {
		text, err := fs.ReadFile(migrations.FS(), name)
		if err != nil {
			return "", err
		}
		_, up, ok := strings.Cut(string(text), "-- +goose Up\n")
		up, _, ok2 := strings.Cut(up, "-- +goose Down\n")
		if !ok || !ok2 {
			return "", fmt.Errorf("migration %s has no Up and Down", name)
		}
		all.WriteString(up)
	}
	return all.String(), nil
}
