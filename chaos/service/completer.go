package service

import (
	"context"
	"errors"
	"log/slog"
	"net/http"

	"github.com/pgidem/pgidem/idempotency/pgstore"
)

// complete starts a completer beside the service, if the configuration asks for one. The
// function that it returns ends it.
func (s *payments) complete(ctx context.Context, store *pgstore.Store, handler http.Handler, logger *slog.Logger) (stop func() error, err error) {
	if s.config.CompleterInterval == 0 {
		return func() error { return nil }, nil
	}
	completer, err := pgstore.NewCompleter(store, handler, pgstore.WithCompleterLogger(logger),
		pgstore.WithInterval(s.config.CompleterInterval), pgstore.WithPause(s.config.CompleterInterval),
		pgstore.WithMaxAttempts(20)) // of which many die with their process
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() { done <- completer.Run(ctx) }()
	return func() error {
		cancel()
		if err := <-done; err != nil {
			return errors.Join(errors.New("the completer ended by itself"), err)
		}
		return nil
	}, nil
}
