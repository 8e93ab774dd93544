package pgtest

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// databasePrefix begins the name of every database that this package makes.
const databasePrefix = "pgidem_test_"

// CreateDatabase makes an empty database, a copy of template0, and returns its
// URL and the function that drops it, connections and all. Dropping a database
// that is gone is no error. It is safe to call from many goroutines at once.
func (s *Server) CreateDatabase(ctx context.Context) (databaseURL string, drop func(context.Context) error, err error) {
	name := s.run + strconv.FormatInt(s.made.Add(1), 10)
	databaseURL, err = withDatabase(s.info.URL, name)
	if err != nil {
		return "", nil, fmt.Errorf("pgtest: create database: %w", err)
	}
	if err := s.exec(ctx, "CREATE DATABASE "+pgx.Identifier{name}.Sanitize()+" "+s.info.Create); err != nil {
		return "", nil, fmt.Errorf("pgtest: create database: %w", err)
	}
	drop = func(ctx context.Context) error {
		if err := s.exec(ctx, dropDatabase(name)); err != nil {
			return fmt.Errorf("pgtest: drop database: %w", err)
		}
		return nil
	}
	return databaseURL, drop, nil
}

// exec runs one statement on the maintenance database. While something else
// holds the database (another copy of the template, a worker that is just
// leaving), it tries again.
func (s *Server) exec(ctx context.Context, sql string) error {
	cfg, err := pgx.ParseConfig(s.info.URL)
	if err != nil {
		return err
	}
	cfg.RuntimeParams["application_name"] = applicationName(s.run)
	conn, err := pgx.ConnectConfig(ctx, cfg)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(ctx) }()
	for try := 1; ; try++ {
		_, err := conn.Exec(ctx, sql)
		var pgErr *pgconn.PgError
		busy := errors.As(err, &pgErr) && pgErr.Code == "55006" // object_in_use
		if !busy || try == 100 || ctx.Err() != nil {
			return err
		}
		pause(ctx, 20*time.Millisecond)
	}
}

func dropDatabase(name string) string {
	return "DROP DATABASE IF EXISTS " + pgx.Identifier{name}.Sanitize() + " WITH (FORCE)"
}

// withDatabase returns the URL of another database of the same server.
func withDatabase(serverURL, name string) (string, error) {
	u, err := url.Parse(serverURL)
	if err != nil {
		return "", errors.New("the server's URL cannot be parsed") // it may hold a password
	}
	u.Path, u.RawPath = "/"+name, ""
	query := u.Query()
	if query.Has("dbname") || query.Has("database") { // would win over the path
		query.Del("dbname")
		query.Del("database")
		u.RawQuery = query.Encode()
	}
	return u.String(), nil
}
