package pgstore

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"time"
)

// Defaults of the options of a [Completer].
const (
	DefaultCompleterInterval    = 10 * time.Second
	DefaultCompleterPause       = 10 * time.Second
	DefaultCompleterMaxAttempts = 5
	DefaultCompleterConcurrency = 4
)

// Completer brings requests to their end whose process died: it finds those of routes
// that opted in ([idempotency.WithRecoverable]) and runs them again, through the handler
// of the service, until they complete or their attempts are used up. The client that comes
// back finds the finished response. Make one with [NewCompleter], and have the service
// itself run it:
//
//	idempotent := idempotency.Require(store, idempotency.WithRecoverable())
//	handler := idempotent(routes)
//	completer, err := pgstore.NewCompleter(store, handler)
//	...
//	go func() { done <- completer.Run(ctx) }()
//
// It looks after all tenants of the store's directory, and any number of copies may run
// side by side, one in each instance of the service: each attempt is one copy's. It is
// optional; without it a retry of the client takes over, as ever.
//
// What it gives is at least once. A process that dies may have had any part of its
// handler's effects, and a response that was sent but could not be stored is followed by
// another run. Put what must not happen twice in a step ([idempotency.Step]) with a
// [idempotency.ChildKey], or in the transaction of the store ([Store.Transactional]), where
// the effects of an attempt that died are gone.
//
// An attempt comes to nothing when the handler panics, or answers with a status that is
// not storable, unless it was told to stop; the next one follows after a pause that doubles each time. When the last
// one has come to nothing, or its process has died too, the request is left as it is, a
// retry of the client may still take it over, and one line at level Error says so, with
// method, path, org_id, the hash of the key, and the attempts.
//
// A handler runs without its client: the address, the headers that were not kept and the
// claims of a token are missing, and its context ends when that of the Completer does. It
// holds connections of the pool as it does for a client, for which [WithConcurrency] is to
// leave room.
//
// Each pass asks the catalog once for the schemas in whose table of requests there is
// anything, so tenants that keep none cost nothing, and then reads that small table in each
// of them. The role needs what the store needs, and nothing is set on a connection. A schema
// that holds interrupted requests of a tenant whom the store's directory leads elsewhere, or
// nowhere, is reported and left alone.
type Completer struct {
	store       *Store
	handler     http.Handler
	interval    time.Duration
	pause       time.Duration
	maxAttempts int
	concurrency int
	logger      *slog.Logger
}

// CompleterOption changes how a [Completer] works.
type CompleterOption func(*Completer) error

// WithInterval sets how often [Completer.Run] looks for interrupted requests, give or take
// a tenth. Defaults to 10 seconds.
func WithInterval(d time.Duration) CompleterOption {
	return func(c *Completer) error {
		c.interval = d
		return positive("WithInterval", d)
	}
}

// WithPause sets the least pause between the first and the second attempt at a request; it
// doubles with each further one. Defaults to 10 seconds.
func WithPause(d time.Duration) CompleterOption {
	return func(c *Completer) error {
		c.pause = d
		return positive("WithPause", d)
	}
}

// WithMaxAttempts sets how often a request is run again before it is given up, from 1 to
// 20. The attempts of clients do not count; one of them that is interrupted has the count
// begin anew. Services that share a tenant's schema give the same. Defaults to 5.
func WithMaxAttempts(n int) CompleterOption {
	return func(c *Completer) error {
		c.maxAttempts = n
		if n < 1 || n > 20 {
			return fmt.Errorf("WithMaxAttempts: %d; give 1 to 20", n)
		}
		return nil
	}
}

// WithConcurrency sets how many handlers run at a time in this copy, over all tenants.
// Defaults to 4.
func WithConcurrency(n int) CompleterOption {
	return func(c *Completer) error {
		c.concurrency = n
		return positive("WithConcurrency", n)
	}
}

// WithCompleterLogger sets where the Completer logs: at level Error what it has given up,
// at Warn what failed and will be tried again, at Info what it has completed. Defaults to
// [slog.Default] as it is when NewCompleter is called.
func WithCompleterLogger(logger *slog.Logger) CompleterOption {
	return func(c *Completer) error {
		c.logger = logger
		if logger == nil {
			return errors.New("WithCompleterLogger: the logger is nil")
		}
		return nil
	}
}

func positive[N ~int | ~int64](option string, n N) error {
	if n <= 0 {
		return fmt.Errorf("%s: %v is not positive", option, n)
	}
	return nil
}

// NewCompleter returns a Completer of the store's requests. The handler is what
// [idempotency.Require] with [idempotency.WithRecoverable] returned, over the store or over
// what its Transactional returned; or the whole router of the service, with authentication
// in front that lets requests through for which [idempotency.Recovered] reports true, as
// authctx does. Give what Require returned where something in front of it changes the path
// ([http.StripPrefix]) or the body, by decompressing it say, for both are kept as Require saw
// them; and the whole router where one that is not [http.ServeMux] stands in front and finds
// the path's values. Requests that were kept in transactions are left alone by a handler with
// leases.
//
// It starts nothing and opens no connection. The error names what is wrong.
func NewCompleter(store *Store, handler http.Handler, opts ...CompleterOption) (*Completer, error) {
	switch {
	case store == nil:
		return nil, errors.New("pgstore: NewCompleter: the store is nil")
	case handler == nil:
		return nil, errors.New("pgstore: NewCompleter: the handler is nil; give what idempotency.Require returned")
	}
	c := &Completer{
		store: store, handler: handler, logger: slog.Default(),
		interval: DefaultCompleterInterval, pause: DefaultCompleterPause,
		maxAttempts: DefaultCompleterMaxAttempts, concurrency: DefaultCompleterConcurrency,
	}
	for i, opt := range opts {
		if opt == nil {
			return nil, fmt.Errorf("pgstore: NewCompleter: option %d is nil", i+1)
		}
		if err := opt(c); err != nil {
			return nil, fmt.Errorf("pgstore: NewCompleter: %w", err)
		}
	}
	return c, nil
}

// Run makes a pass over all tenants at once and then one in each interval, until ctx ends.
// Then the handlers that still run have their contexts cancelled, and Run returns nil when
// the last of them has returned; what they had not finished another copy picks up. What
// goes wrong meanwhile is logged, and tried again.
func (c *Completer) Run(ctx context.Context) error {
	s := c.newSweep()
	defer s.wait()
	for {
		if err := s.pass(ctx); err != nil && ctx.Err() == nil {
			c.logger.LogAttrs(ctx, slog.LevelWarn, "pgidem completer: some requests could not be looked for; they will be in the next pass", slog.String("error", err.Error()))
		}
		next := time.NewTimer(c.interval*9/10 + rand.N(c.interval/5+1))
		select {
		case <-ctx.Done():
			next.Stop()
			return nil
		case <-next.C:
		}
	}
}

// CompleterResult is what a [Completer.Pass] came to.
type CompleterResult struct {
	// Completed counts the requests that were run again and completed.
	Completed int
	// Failed counts the attempts that came to nothing.
	Failed int
	// GivenUp counts the requests whose attempts are used up, the first time that this is
	// noticed.
	GivenUp int
	// Skipped counts the requests that were found and turned out not to be interrupted,
	// or could not be asked for, or whose route is not recoverable here.
	Skipped int
}

// Pass looks once for interrupted requests of all tenants, runs those that are due again,
// and returns when the last of them has ended. It is for tests, and for a service that is
// run from time to time; [Completer.Run] is for all others. The error joins what went
// wrong in single tenants, none of which stops the others.
func (c *Completer) Pass(ctx context.Context) (CompleterResult, error) {
	s := c.newSweep()
	err := s.pass(ctx)
	s.wait()
	return s.result, err
}
