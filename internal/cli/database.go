package cli

import (
	"errors"
	"fmt"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgconn/ctxwatch"
	"github.com/jackc/pgx/v5/pgxpool"
)

const (
	// ConnectTimeout applies unless the URL has a connect_timeout.
	ConnectTimeout = 10 * time.Second

	// After a stop, a statement under way may finish for finishDelay. Then the
	// server is asked to cancel it, and after abandonDelay its answer is no longer
	// waited for.
	finishDelay  = 500 * time.Millisecond
	abandonDelay = 2 * time.Second
)

// Database says how a command connects.
type Database struct {
	URL                           string
	Application                   string // tells the command's connections apart in the server
	Connections                   int    // at most
	StatementTimeout, LockTimeout time.Duration
}

// ErrNoDatabase is returned for a [Database] without a URL.
var ErrNoDatabase = errors.New("no database: set DATABASE_URL or give --database-url, such as postgres://user@host:5432/name")

// PoolConfig returns what a pool is made of. It connects nowhere. No error has part of a
// password in it.
func (d Database) PoolConfig() (*pgxpool.Config, error) {
	if d.URL == "" {
		return nil, ErrNoDatabase
	}
	pool, err := pgxpool.ParseConfig(d.URL)
	if err != nil {
		return nil, urlError(d.URL)
	}
	if strings.Contains(pool.ConnConfig.Database, "@") {
		return nil, errMalformedURL // the end of a password that has a / in it
	}
	pool.MaxConns = int32(d.Connections)
	pool.MinConns, pool.MinIdleConns = 0, 0

	conn := pool.ConnConfig
	// Each statement text names its tenant and is used once or a few times, and
	// behind PgBouncer nothing prepared can be relied on.
	conn.DefaultQueryExecMode = pgx.QueryExecModeExec
	conn.StatementCacheCapacity, conn.DescriptionCacheCapacity = 0, 0
	if conn.ConnectTimeout == 0 {
		conn.ConnectTimeout = ConnectTimeout
	}
	conn.BuildContextWatcherHandler = func(c *pgconn.PgConn) ctxwatch.Handler {
		return &pgconn.CancelRequestContextWatcherHandler{Conn: c, CancelRequestDelay: finishDelay, DeadlineDelay: abandonDelay}
	}
	if conn.RuntimeParams["application_name"] == "" {
		conn.RuntimeParams["application_name"] = d.Application
	}
	for param, timeout := range map[string]time.Duration{"statement_timeout": d.StatementTimeout, "lock_timeout": d.LockTimeout} {
		if timeout > 0 {
			conn.RuntimeParams[param] = strconv.FormatInt(timeout.Milliseconds(), 10)
		}
	}
	return pool, nil
}

var errMalformedURL = errors.New("--database-url or DATABASE_URL cannot be read: give postgres://user:password@host:5432/name, " +
	"with the special characters of the password percent-encoded (/ is %2F, @ is %40), or keyword=value pairs")

// urlError says why pgx refuses a database URL. The reason is found again for the
// URL without its passwords, so that it cannot contain one; where it is not clear
// which part is a password, the reason is left out.
func urlError(databaseURL string) error {
	u, err := url.Parse(databaseURL)
	if err != nil || u.Host == "" || strings.Contains(u.Path, "@") || u.Fragment != "" {
		return errMalformedURL
	}
	if u.User != nil {
		u.User = url.User(u.User.Username())
	}
	query := u.Query()
	query.Del("password")
	query.Del("sslpassword")
	u.RawQuery = query.Encode()
	if _, err = pgxpool.ParseConfig(u.String()); err == nil {
		return errMalformedURL
	}
	return fmt.Errorf("--database-url or DATABASE_URL: %w", err)
}

// ClosePool closes a pool, but does not wait for long for connections to a server that no
// longer answers: their last words have a timeout of their own.
func ClosePool(pool *pgxpool.Pool) {
	closed := make(chan struct{})
	go func() {
		defer close(closed)
		pool.Close()
	}()
	select {
	case <-closed:
	case <-time.After(abandonDelay):
	}
}

// IsLost reports whether an error is of the connection, not of a statement.
func IsLost(err error) bool {
	if _, ok := errors.AsType[*pgconn.ConnectError](err); ok {
		return true
	}
	pgErr, ok := errors.AsType[*pgconn.PgError](err)
	return !ok || pgErr.SeverityUnlocalized == "FATAL" || pgErr.SeverityUnlocalized == "PANIC"
}

// IsCancelled reports whether the server cancelled the statement on request.
func IsCancelled(err error) bool { return SQLState(err) == "57014" } // query_canceled

// SQLState returns the SQLSTATE of an error of the server's, and "" of any other.
func SQLState(err error) string {
	if pgErr, ok := errors.AsType[*pgconn.PgError](err); ok {
		return pgErr.Code
	}
	return ""
}

// DirectURL returns the URL with the application's name and the timeout of connecting in
// it, for what connects by itself. Call PoolConfig before, which finds out whether it can be
// read.
func (d Database) DirectURL() string {
	given, err := pgx.ParseConfig(d.URL)
	if err != nil {
		return d.URL
	}
	add := make(map[string]string)
	if given.RuntimeParams["application_name"] == "" {
		add["application_name"] = d.Application
	}
	if given.ConnectTimeout == 0 {
		add["connect_timeout"] = strconv.Itoa(int(ConnectTimeout.Seconds()))
	}
	u, err := url.Parse(d.URL)
	if err != nil || u.Scheme != "postgres" && u.Scheme != "postgresql" {
		text := []string{d.URL}
		for name, value := range add {
			text = append(text, name+"="+value)
		}
		return strings.Join(text, " ")
	}
	query := u.Query()
	for name, value := range add {
		query.Set(name, value)
	}
	for name := range query {
		if strings.HasPrefix(name, "pool_") { // of pgxpool, and refused by the server
			query.Del(name)
		}
	}
	u.RawQuery = query.Encode()
	return u.String()
}
