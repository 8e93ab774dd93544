// Package listen opens connections that hear of NOTIFY, beside a pool and none of its own.
package listen

import (
	"context"
	"errors"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgconn/ctxwatch"
	"github.com/jackc/pgx/v5/pgxpool"
)

// ErrPooler is returned by [Open] where what listens would be whatever server connection a
// pooler has lent for the statement, and it would go on listening when others use it.
var ErrPooler = errors.New("a connection pooler stands before the server; give WithListenConfig a direct connection")

// timeout is of connecting, and of listening.
const timeout = 5 * time.Second

// Connector returns a function that connects as the pool does.
func Connector(pool *pgxpool.Pool) func(context.Context) (*pgx.Conn, error) {
	return func(ctx context.Context) (*pgx.Conn, error) {
		config := pool.Config()
		if config.BeforeConnect != nil {
			if err := config.BeforeConnect(ctx, config.ConnConfig); err != nil {
				return nil, err
			}
		}
		return connect(ctx, config.ConnConfig)
	}
}

// ConnectorTo returns a function that connects as config says, of which it takes a copy.
func ConnectorTo(config *pgx.ConnConfig) func(context.Context) (*pgx.Conn, error) {
	config = config.Copy()
	return func(ctx context.Context) (*pgx.Conn, error) { return connect(ctx, config) }
}

func connect(ctx context.Context, config *pgx.ConnConfig) (*pgx.Conn, error) {
	config = config.Copy()
	config.OnNotification = nil                         // so that WaitForNotification gets them
	config.DefaultQueryExecMode = pgx.QueryExecModeExec // leaves nothing prepared, should a pooler be there
	// To stop listening is no statement that the server could cancel, whatever the pool does
	// with those whose context ends.
	config.BuildContextWatcherHandler = func(conn *pgconn.PgConn) ctxwatch.Handler {
		return &pgconn.DeadlineContextWatcherHandler{Conn: conn.Conn()}
	}
	return pgx.ConnectConfig(ctx, config)
}

// Open returns a connection that listens on the channel.
func Open(ctx context.Context, connect func(context.Context) (*pgx.Conn, error), channel string) (*pgx.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	conn, err := connect(ctx)
	if err != nil {
		return nil, err
	}
	var pid uint32
	err = conn.QueryRow(ctx, `SELECT pg_catalog.pg_backend_pid()`).Scan(&pid)
	switch {
	case err != nil:
	case pid != conn.PgConn().PID(): // a pooler makes up the one that it gives at the start
		err = ErrPooler
	default:
		_, err = conn.Exec(ctx, "LISTEN "+pgx.Identifier{channel}.Sanitize())
	}
	if err != nil {
		_ = conn.Close(ctx)
		return nil, err
	}
	return conn, nil
}
