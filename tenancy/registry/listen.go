package registry

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/pgidem/pgidem/internal/listen"
)

const (
	pulseTimeout     = 2 * time.Second
	firstListenPause = 100 * time.Millisecond
	maxListenPause   = 5 * time.Second
)

var (
	errNotListening = errors.New("registry: nothing was looked up yet")
	errClosed       = errors.New("registry: closed")
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
		case errors.Is(err, listen.ErrPooler):
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
	conn, err := listen.Open(ctx, r.connect, r.channel())
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

// channel is where the triggers of the control schema tell of changes.
func (r *Registry) channel() string {
	const maxIdentifier = 63
	name := "pgidem_tenants_" + r.schema.String()
	return name[:min(len(name), maxIdentifier)]
}
