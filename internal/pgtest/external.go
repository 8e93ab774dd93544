package pgtest

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
)

// minVersion is the oldest major version of PostgreSQL that is supported.
const minVersion = 14

// external is a server of somebody else's. Only the databases whose names begin
// with run are ours.
type external struct {
	url, source, run string
}

func useExternal(ctx context.Context, env environment, run string) (backend, error) {
	name, rawURL := env.URLName, env.URL
	advice := fmt.Sprintf("set %s to the postgres:// URL of a server on which databases may be created, or unset it to have one started", name)
	u, err := url.Parse(rawURL)
	if err != nil || u.Scheme != "postgres" && u.Scheme != "postgresql" {
		// The value is not shown: it may hold a password.
		return nil, fmt.Errorf("%s is not a postgres:// URL: %s", name, advice)
	}
	ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	conn, err := pgx.Connect(ctx, rawURL)
	if err != nil {
		return nil, fmt.Errorf("%s: cannot reach %s: %w: %s", name, u.Redacted(), err, advice)
	}
	defer func() { _ = conn.Close(ctx) }()

	var version, role string
	var number int
	var standby, creates bool
	err = conn.QueryRow(ctx, `
SELECT pg_catalog.current_setting('server_version'),
       pg_catalog.current_setting('server_version_num')::int,
       pg_catalog.pg_is_in_recovery(),
       r.rolname,
       r.rolsuper OR r.rolcreatedb
  FROM pg_catalog.pg_roles AS r
 WHERE r.rolname = current_user`).Scan(&version, &number, &standby, &role, &creates)
	switch {
	case err != nil:
		return nil, fmt.Errorf("%s: %s: %w: %s", name, u.Redacted(), err, advice)
	case number/10000 < minVersion:
		return nil, fmt.Errorf("%s: %s is PostgreSQL %s, %d is the oldest supported: %s", name, u.Redacted(), version, minVersion, advice)
	case standby:
		return nil, fmt.Errorf("%s: %s is a standby: %s", name, u.Redacted(), advice)
	case !creates:
		return nil, fmt.Errorf("%s: role %q may not create databases on %s: ALTER ROLE %s CREATEDB, or %s",
			name, role, u.Redacted(), pgx.Identifier{role}.Sanitize(), advice)
	}
	return &external{
		url:    rawURL,
		source: fmt.Sprintf("PostgreSQL %s at %s, named by %s", version, u.Redacted(), name),
		run:    run,
	}, nil
}

func (e *external) info() serverInfo {
	return serverInfo{URL: e.url, Source: e.source, Create: "TEMPLATE template0"}
}

// stop drops the databases that the process left behind.
func (e *external) stop() (err error) {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	conn, err := pgx.Connect(ctx, e.url)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, conn.Close(ctx)) }()

	// A process that was killed may have left a CREATE DATABASE behind which
	// no one waits for. Its connection bears our name.
	for left := true; left; {
		err = conn.QueryRow(ctx, `
SELECT pg_catalog.count(pg_catalog.pg_terminate_backend(a.pid)) > 0
  FROM pg_catalog.pg_stat_activity AS a
 WHERE a.application_name = $1
   AND a.pid <> pg_catalog.pg_backend_pid()`, applicationName(e.run)).Scan(&left)
		if err != nil {
			return err
		}
		if left {
			pause(ctx, 20*time.Millisecond)
		}
	}
	rows, err := conn.Query(ctx, `
SELECT d.datname
  FROM pg_catalog.pg_database AS d
 WHERE pg_catalog.starts_with(d.datname, $1)`, e.run)
	if err != nil {
		return err
	}
	names, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return err
	}
	for _, name := range names {
		_, dropErr := conn.Exec(ctx, dropDatabase(name))
		err = errors.Join(err, dropErr)
	}
	return err
}

// applicationName names the connections that create and drop databases.
func applicationName(run string) string { return strings.TrimSuffix(run, "_") }

// pause waits for d, or for the end of ctx.
func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}
