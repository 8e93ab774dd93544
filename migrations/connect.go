package migrations

import (
	"context"
	"fmt"
	"net"
	"time"

	"github.com/jackc/pgx/v5"
)

// connectTimeout is how long an address may take to give a connection.
const connectTimeout = 30 * time.Second

// A server of which nothing has been heard for lostAfter is lost: its network swallows packets, or
// its machine is gone.
const (
	probeEvery = 15 * time.Second
	lostAfter  = time.Minute
)

// connConfig bounds each try at an address by patience: what has taken a connection may never
// answer. And it bounds the silence of a server that is not to be reached any more in the middle of
// a statement, but not the statement: one that takes an hour is not silent to TCP.
func connConfig(databaseURL string, patience time.Duration) (*pgx.ConnConfig, error) {
	cfg, err := pgx.ParseConfig(databaseURL)
	if err != nil {
		return nil, fmt.Errorf("migrations: database URL: %w", err) // pgx leaves the password out of it
	}
	if cfg.ConnectTimeout == 0 || cfg.ConnectTimeout > patience {
		cfg.ConnectTimeout = patience
	}
	dialer := &net.Dialer{
		// What there has been nothing to say on is probed from probeEvery on.
		KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: probeEvery, Interval: probeEvery, Count: int(lostAfter/probeEvery) - 1},
		Control:         boundUnacknowledged,
	}
	cfg.DialFunc = dialer.DialContext
	return cfg, nil
}

// connect returns a connection for a worker, or nil if the run is over before there is one. A
// server that restarts, or has no connection to spare, is no reason to give up: not as long as
// another worker has one, nor for a while after that.
func (f *fleet) connect(busy context.Context) *pgx.Conn {
	for pause := f.pause; ; pause = min(2*pause, max(f.pause, maxPause)) {
		conn, err := pgx.ConnectConfig(busy, f.conn)
		if err == nil {
			f.connected()
			return conn
		}
		if busy.Err() != nil {
			return nil
		}
		if f.refused(err, pause) {
			f.stop(fmt.Errorf("no worker could get a connection for %s; run again to go on: %w", f.reconnect, err))
			return nil
		}
		select {
		case <-busy.Done():
			return nil
		case <-time.After(pause):
		}
	}
}

func (f *fleet) connected() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.open++
}

// refused notes that there was no connection to be had, and reports whether to give up instead
// of trying again after the pause.
func (f *fleet) refused(err error, pause time.Duration) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.report.Refused++
	f.report.RefusedErr = err
	return f.open == 0 && time.Since(f.without)+pause > f.reconnect
}

func (f *fleet) disconnect(ctx context.Context, conn *pgx.Conn) {
	if conn == nil {
		return
	}
	hangUp(ctx, conn)
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.open--; f.open == 0 {
		f.without = time.Now()
	}
}

// cleanup bounds the last words with a server.
const cleanup = 5 * time.Second

func parting(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), cleanup)
}

// hangUp closes a connection, and waits until the server has ended what it was doing there. A
// statement whose context ended may wait for a lock, and have others wait behind it, until the
// server has heard of that.
func hangUp(ctx context.Context, conn *pgx.Conn) {
	ctx, cancel := parting(ctx)
	defer cancel()
	_ = conn.Close(ctx)
	select {
	case <-conn.PgConn().CleanupDone():
	case <-ctx.Done():
	}
}
