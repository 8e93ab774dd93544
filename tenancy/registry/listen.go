package registry

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

const (
	listenTimeout    = 5 * time.Second // of connecting
	pulseTimeout     = 2 * time.Second
	firstListenPause = 100 * time.Millisecond
	maxListenPause   = 5 * time.Second
)

var (
	errNotListening = errors.New("registry: nothing was looked up yet")
	errClosed       = errors.New("registry: closed")
	// errPooler: what listens would be whatever server connection the pooler lent for the
	// statement.
	errPooler = errors.New("a connection pooler stands before the server; give WithListenConfig a direct connection")
)

// Listening returns nil while the registry hears of changes, and why it does not while it
// does not: it then asks about tenants once a second. It begins with the first lookup, and
// begins again by itself when the connection is lost.
func (r *Registry) Listening() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.silent
}

// startListening starts the goroutine that listens. The caller holds the lock.
func (r *Registry) startListening() {
	if r.listening != nil || r.closed {
		return
	}
	ctx, cancel := context.WithCancel(context.Background()) // until Close
	r.stopListening, r.listening = cancel, make(chan struct{})
	go r.listen(ctx, r.listening)
}

// listen hears of changes, over one connection after the other, until ctx ends.
func (r *Registry) listen(ctx context.Context, done chan struct{}) {
	defer close(done)
	for pause := firstListenPause; ctx.Err() == nil; pause = min(2*pause, maxListenPause) {
		began := time.Now()
		err := r.listenOnce(ctx)
		r.deaf()
		r.setSilent(err)
		switch {
		case errors.Is(err, errPooler):
			pause = maxListenPause
		case time.Since(began) > 2*pause: // it had been well
			pause = firstListenPause
		}
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
	}
}

func (r *Registry) setSilent(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.silent = err; r.closed {
		r.silent = errClosed
	}
}

// listenOnce hears of changes over one connection until it breaks.
func (r *Registry) listenOnce(ctx context.Context) error {
	conn, err := r.openListener(ctx)
	if err != nil {
		return fmt.Errorf("registry: listen: %w", err)
	}
	defer func() {
		closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		_ = conn.Close(closing)
	}()
	r.hears()
	r.setSilent(nil)
	for {
		waiting, cancel := context.WithTimeout(ctx, r.pulse)
		n, err := conn.WaitForNotification(waiting)
		cancel()
		switch {
		case err == nil:
			if orgID, err := uuid.Parse(n.Payload); err == nil {
				r.changed(orgID)
			} else {
				r.allChanged()
			}
			continue
		case ctx.Err() == nil && errors.Is(err, context.DeadlineExceeded):
			err = ping(ctx, conn) // a connection that is lost may be silent as well
		}
		if err != nil {
			return fmt.Errorf("registry: listen: %w", err)
		}
	}
}

func ping(ctx context.Context, conn *pgx.Conn) error {
	ctx, cancel := context.WithTimeout(ctx, pulseTimeout)
	defer cancel()
	return conn.Ping(ctx)
}

// openListener returns a connection that listens.
func (r *Registry) openListener(ctx context.Context) (*pgx.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, listenTimeout)
	defer cancel()
	conn, err := r.connect(ctx)
	if err != nil {
		return nil, err
	}
	var pid uint32
	err = conn.QueryRow(ctx, `SELECT pg_backend_pid()`).Scan(&pid)
	switch {
	case err != nil:
	case pid != conn.PgConn().PID(): // a pooler makes up the one that it gives at the start
		err = errPooler
	default:
		_, err = conn.Exec(ctx, "LISTEN "+pgx.Identifier{r.channel()}.Sanitize())
	}
	if err != nil {
		_ = conn.Close(ctx)
		return nil, err
	}
	return conn, nil
}

// channel is where the triggers of the control schema tell of changes.
func (r *Registry) channel() string {
	const maxIdentifier = 63
	name := "pgidem_tenants_" + r.schema.String()
	return name[:min(len(name), maxIdentifier)]
}

// connector returns a function that connects as the pool does, and is none of its
// connections.
func connector(pool *pgxpool.Pool) func(context.Context) (*pgx.Conn, error) {
	return func(ctx context.Context) (*pgx.Conn, error) {
		config := pool.Config()
		if config.BeforeConnect != nil {
			if err := config.BeforeConnect(ctx, config.ConnConfig); err != nil {
				return nil, err
			}
		}
		return connectTo(ctx, config.ConnConfig)
	}
}

func connectTo(ctx context.Context, config *pgx.ConnConfig) (*pgx.Conn, error) {
	config = config.Copy()
	config.OnNotification = nil                         // so that WaitForNotification gets them
	config.DefaultQueryExecMode = pgx.QueryExecModeExec // leaves nothing prepared, should a pooler be there
	return pgx.ConnectConfig(ctx, config)
}
