package pgstore

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/pgidem/pgidem/internal/db"
	"github.com/pgidem/pgidem/internal/listen"
	"github.com/pgidem/pgidem/internal/watch"
)

// channel is the channel of NOTIFY. Its payloads name a key by [waitKey], which says
// nothing of the tenant or the key to whoever else may listen.
const channel = "pgidem"

// waitKey is what is heard of an org_id and key together: 128 bits of their SHA-256.
type waitKey [16]byte

func newWaitKey(orgID uuid.UUID, key string) waitKey {
	sum := sha256.Sum256(append(orgID[:], key...))
	return waitKey(sum[:16])
}

var errClosed = errors.New("pgstore: the store is closed")

// listener hears of the ends of attempts in all processes, over one connection of
// its own that it holds while somebody watches and a little longer.
type listener struct {
	connect func(context.Context) (*pgx.Conn, error)
	idle    time.Duration       // after which a connection that nobody needs is given up
	ends    *watch.Hub[waitKey] // of all servers

	telling sync.WaitGroup // under way to tell others

	mu     sync.Mutex
	cancel context.CancelFunc // ends the goroutine; nil while there is none
	done   chan struct{}      // closed when the goroutine has ended
	closed bool
	broken error     // why it cannot listen at the moment
	retry  time.Time // until when that is believed
}

const (
	listenIdle       = 30 * time.Second
	watchTimeout     = 5 * time.Second // of finding out where a tenant is
	tellTimeout      = 2 * time.Second
	firstListenPause = 500 * time.Millisecond
	maxListenPause   = 30 * time.Second
)

// watch registers for a key and sees to it that somebody listens. The first to
// watch is woken without cause when listening has begun, for what it missed before.
func (l *listener) watch(key waitKey) (<-chan struct{}, func(), error) {
	ended, stop := l.ends.Watch(key)
	if err := l.start(); err != nil {
		stop()
		return nil, nil, err
	}
	return ended, stop, nil
}

func (l *listener) start() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.closed:
		return errClosed
	case l.cancel == nil && (l.broken == nil || time.Now().After(l.retry)):
		ctx, cancel := context.WithCancel(context.Background()) // until it is idle, or close
		l.cancel, l.done, l.broken = cancel, make(chan struct{}), nil
		go l.run(ctx, l.done)
	}
	return l.broken
}

// tell notifies those who wait in other processes of the end of an attempt. The attempt
// does not wait for it, and its failure is not the attempt's: who waits looks again
// without it.
func (l *listener) tell(ctx context.Context, on conns, key waitKey) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return
	}
	l.telling.Go(func() {
		ctx, cancel := context.WithTimeout(ctx, tellTimeout)
		defer cancel()
		_ = db.New(on).Notify(ctx, db.NotifyParams{Channel: channel, Payload: hex.EncodeToString(key[:])})
	})
}

// close ends listening and waits for its end, and for what is still to be told.
func (l *listener) close() {
	l.mu.Lock()
	l.closed = true
	cancel, done := l.cancel, l.done
	l.mu.Unlock()
	if cancel != nil {
		cancel()
		<-done
	}
	l.telling.Wait()
	l.ends.SignalAll() // they look again, and from now on without being told
}

// run listens until ctx ends or nobody has watched for a while.
func (l *listener) run(ctx context.Context, done chan struct{}) {
	defer close(done)
	for pause := firstListenPause; ; {
		began := time.Now()
		err := l.listen(ctx)
		switch {
		case err == nil, time.Since(began) > maxListenPause: // it had been well
			pause = firstListenPause
		case errors.Is(err, listen.ErrPooler):
			pause = maxListenPause
		}
		if l.ended(ctx, err, pause) {
			return
		}
		if err == nil {
			continue // it was idle, and somebody came while it ended
		}
		l.ends.SignalAll()
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
		if l.ended(ctx, err, pause) {
			return // nobody waits any more
		}
		pause = min(2*pause, maxListenPause)
	}
}

// ended notes how listening ended, and reports whether that is for good.
func (l *listener) ended(ctx context.Context, err error, pause time.Duration) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.broken, l.retry = err, time.Now().Add(pause)
	idle := l.ends.Len() == 0 // who comes now waits for the lock, and starts anew
	if !idle && ctx.Err() == nil {
		return false
	}
	l.cancel()
	l.cancel = nil
	return true
}

// listen wakes those whose attempts end, until it cannot go on or nobody watches.
func (l *listener) listen(ctx context.Context) error {
	conn, err := listen.Open(ctx, l.connect, channel)
	if err != nil {
		return fmt.Errorf("pgstore: listen: %w", err)
	}
	defer func() {
		closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		_ = conn.Close(closing)
	}()
	l.mu.Lock()
	l.broken = nil
	l.mu.Unlock()
	l.ends.SignalAll() // what ended before was not heard
	for {
		waiting, cancel := context.WithTimeout(ctx, l.idle)
		n, err := conn.WaitForNotification(waiting)
		cancel()
		switch {
		case err == nil:
			var key waitKey
			if k, err := hex.Decode(key[:], []byte(n.Payload)); k == len(key) && err == nil {
				l.ends.Signal(key)
			}
		case ctx.Err() != nil:
			return ctx.Err()
		case !errors.Is(err, context.DeadlineExceeded):
			return fmt.Errorf("pgstore: listen: %w", err)
		case l.ends.Len() == 0:
			return nil
		}
	}
}
