package demo

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgidem/pgidem/examples/payments/internal/service"
	"github.com/pgidem/pgidem/tenancy"
)

// scriptTimeout bounds the whole script, which takes a few seconds.
const scriptTimeout = time.Minute

// Options are the terms of [Run]. The zero value is usable.
type Options struct {
	// Transport carries the script's requests. Defaults to one like
	// [http.DefaultTransport]. It is there so that tests can show that the script
	// notices when a request is not answered as it should be.
	Transport http.RoundTripper
}

// Run migrates the tenants north and south in an empty database, starts the
// service on a free port of 127.0.0.1, plays the script, and stops the service. It
// returns an error that names the first step that did not show what it should.
func Run(ctx context.Context, databaseURL string, out *Transcript, opts Options) error {
	ctx, cancel := context.WithTimeoutCause(ctx, scriptTimeout, fmt.Errorf("the script took more than %s", scriptTimeout))
	defer cancel()
	started := time.Now()
	logs := newRunCounter()
	api, err := start(ctx, databaseURL, slog.New(logs))
	if err != nil {
		return err
	}
	err = playOn(ctx, api, databaseURL, &script{out: out, service: api.service, logs: logs}, opts)
	if stopErr := api.stop(); err == nil {
		err = stopErr
	}
	switch {
	case err != nil && ctx.Err() != nil:
		return context.Cause(ctx)
	case err != nil:
		return err
	}
	out.summary("All %d steps showed what they should: %d checks in %.1f s.", out.steps, out.checks, time.Since(started).Seconds())
	return nil
}

// playOn plays the script on a service that runs.
func playOn(ctx context.Context, api *running, databaseURL string, s *script, opts Options) (err error) {
	transport := opts.Transport
	if transport == nil {
		own := http.DefaultTransport.(*http.Transport).Clone()
		own.MaxIdleConnsPerHost = duplicates
		transport = own
	}
	web := &http.Client{Transport: transport}
	defer web.CloseIdleConnections()

	// The script looks into the tables over connections of its own.
	if s.db, err = pgxpool.New(ctx, databaseURL); err != nil {
		return err
	}
	defer s.db.Close()

	if s.north, err = logIn(ctx, web, api.url, tenant{"north", service.North}); err != nil {
		return err
	}
	if s.south, err = logIn(ctx, web, api.url, tenant{"south", service.South}); err != nil {
		return err
	}
	s.out.Note("A payments service at %s, with the tenants north and south, and clients that retry:", api.url)
	return s.play(ctx)
}

// tenant is one of the two, with the name that the transcript calls it.
type tenant struct {
	name  string
	orgID uuid.UUID
}

// running is the service under way in this process.
type running struct {
	service *service.Service
	pool    *pgxpool.Pool
	url     string
	ended   <-chan error // what Serve returned
	cancel  context.CancelFunc
	stopped bool
}

// start migrates the tenants and starts the service. It goes on when ctx ends,
// until it is stopped.
func start(ctx context.Context, databaseURL string, logger *slog.Logger) (*running, error) {
	tenants, err := tenancy.PerOrg("")
	if err != nil {
		return nil, err
	}
	var schemas []tenancy.Schema
	for _, org := range []uuid.UUID{service.North, service.South} {
		schema, err := tenants.Schema(ctx, org)
		if err != nil {
			return nil, err
		}
		schemas = append(schemas, schema)
	}
	if err := service.Migrate(ctx, databaseURL, schemas...); err != nil {
		return nil, err
	}
	_, signingKey, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	pool, err := pgxpool.New(ctx, databaseURL)
	if err != nil {
		return nil, err
	}
	api, err := service.New(service.Config{Pool: pool, Tenants: tenants, SigningKey: signingKey, Logger: logger})
	if err != nil {
		pool.Close()
		return nil, err
	}
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		pool.Close()
		return nil, err
	}
	serving, cancel := context.WithCancel(context.WithoutCancel(ctx))
	ended := make(chan error, 1)
	go func() { ended <- api.Serve(serving, listener) }()
	return &running{service: api, pool: pool, url: "http://" + listener.Addr().String(), ended: ended, cancel: cancel}, nil
}

// stop shuts the service down and waits for its end. Stopping again does nothing.
func (r *running) stop() error {
	if r.stopped {
		return nil
	}
	r.stopped = true
	r.cancel()
	err := <-r.ended
	r.pool.Close()
	if err != nil {
		return fmt.Errorf("stop the service: %w", err)
	}
	return nil
}

// Serve starts the service as [Run] does, prints what to try, and leaves it
// running until ctx ends.
func Serve(ctx context.Context, databaseURL string, out *Transcript, logger *slog.Logger) error {
	api, err := start(ctx, databaseURL, logger)
	if err != nil {
		return err
	}
	out.invite(api.url)
	select {
	case <-ctx.Done():
		return api.stop()
	case err := <-api.ended:
		api.pool.Close()
		return errors.Join(errors.New("the service ended by itself"), err)
	}
}
