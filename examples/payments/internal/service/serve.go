package service

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/pgidem/pgidem/idempotency/pgstore"
)

// Serve serves requests from the listener, and beside it purges expired records and
// completes payments whose process died, until ctx ends. Then it takes no more requests, lets those in flight finish for
// up to ShutdownGrace, and returns when everything that it started has ended.
//
// It closes the listener. The error is nil after a shutdown in which every request
// could finish.
func (s *Service) Serve(ctx context.Context, listener net.Listener) error {
	// The contexts of requests do not descend from ctx: its end must not cut off
	// a handler that is about to commit.
	server := &http.Server{
		Handler:           s,
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       15 * time.Second,
		WriteTimeout:      60 * time.Second, // longer than any handler may take
		IdleTimeout:       2 * time.Minute,
		ErrorLog:          slog.NewLogLogger(s.Logger.Handler(), slog.LevelWarn),
	}
	ctx, cancel := context.WithCancel(ctx)
	var background sync.WaitGroup
	defer background.Wait()
	defer cancel()

	background.Go(func() { s.purgeRegularly(ctx) })
	background.Go(func() {
		// In every replica: they share the work, and none is in another's way.
		if err := s.completer.Run(ctx); err != nil {
			s.Logger.ErrorContext(ctx, "complete payments", "error", err)
		}
	})
	failed := make(chan error, 1)
	background.Go(func() { failed <- server.Serve(listener) })
	select {
	case err := <-failed:
		return fmt.Errorf("serve: %w", err)
	case <-ctx.Done():
	}

	grace, stop := context.WithTimeout(context.WithoutCancel(ctx), s.ShutdownGrace)
	defer stop()
	if err := server.Shutdown(grace); err != nil {
		// Handlers that are cut off here leave their keys leased. The leases lapse
		// by themselves, and then a retry runs.
		return errors.Join(fmt.Errorf("shut down: %w", err), server.Close())
	}
	return nil
}

// purgeRegularly is the janitor. Where it runs in every replica, the replicas
// share the work and are not in each other's way. The program idem-janitor does
// the same on a schedule of its own, with limits, for those who would rather not
// have it in the service.
func (s *Service) purgeRegularly(ctx context.Context) {
	tick := time.NewTicker(s.PurgeInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if _, err := s.PurgeExpired(ctx); err != nil && ctx.Err() == nil {
			s.Logger.ErrorContext(ctx, "purge", "error", err)
		}
	}
}

// PurgeExpired deletes the expired idempotency records of all tenants and returns
// how many there were. A tenant that fails does not keep the others from being
// purged.
func (s *Service) PurgeExpired(ctx context.Context) (deleted int64, err error) {
	schemas, err := pgstore.Schemas(ctx, s.Pool)
	errs := []error{err}
	for _, schema := range schemas {
		n, err := pgstore.Purge(ctx, s.Pool, schema, pgstore.PurgeOptions{})
		deleted += n
		errs = append(errs, err)
		s.Logger.InfoContext(ctx, "purged", "schema", schema, "deleted", n)
	}
	return deleted, errors.Join(errs...)
}
