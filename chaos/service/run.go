package service

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgidem/pgidem/chaos/history"
	"github.com/pgidem/pgidem/idempotency"
	"github.com/pgidem/pgidem/idempotency/pgstore"
	"github.com/pgidem/pgidem/tenancy"
)

// connections is how many a process has: two for each of the requests that it may have
// to serve at a time, in a transaction and for its steps.
const connections = 24

// run serves until the standard input ends.
func run(config Config) (err error) {
	ctx := context.Background()
	log, err := history.Open(config.Dir, history.EventsFile(config.Process))
	if err != nil {
		return err
	}
	notices := os.NewFile(NoticesFile, "notices")
	poolConfig, err := pgxpool.ParseConfig(config.DatabaseURL)
	if err != nil {
		return err
	}
	poolConfig.MaxConns = connections
	pool, err := pgxpool.NewWithConfig(ctx, poolConfig)
	if err != nil {
		return err
	}
	defer pool.Close()
	dir, err := tenancy.PerOrg("")
	if err != nil {
		return err
	}
	s := &payments{
		config: config, pool: pool, dir: dir, log: log,
		points: &points{process: config.Process, log: log, notices: notices, plan: config.Plan},
		bank:   bank{client: &http.Client{Timeout: 5 * time.Second}, url: config.BankURL},
	}
	logger := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	handler, store, err := s.handler(logger)
	if err != nil {
		return err
	}
	defer store.Close()
	stopCompleter, err := s.complete(ctx, store, handler, logger)
	if err != nil {
		return err
	}

	listener, err := net.FileListener(os.NewFile(ListenerFile, "listener"))
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	server := &http.Server{Handler: handler, ReadHeaderTimeout: 5 * time.Second}
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	log.Write(history.Event{T: history.Now(), Process: config.Process, Kind: history.Prepared, Clock: time.Now().Unix()})
	if _, err := notices.Write([]byte{Ready}); err != nil {
		return err
	}

	_, _ = io.Copy(io.Discard, os.Stdin)
	ending, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	err = errors.Join(server.Shutdown(ending), stopCompleter())
	if failed := <-served; !errors.Is(failed, http.ErrServerClosed) {
		err = errors.Join(err, failed)
	}
	return err
}

// handler stands authentication and idempotency in front of the payments.
func (s *payments) handler(logger *slog.Logger) (http.Handler, *pgstore.Store, error) {
	leases, err := pgstore.New(s.pool, s.dir, pgstore.WithCoalescing(2)) // so that many share the fate of a transaction
	if err != nil {
		return nil, nil, err
	}
	var store idempotency.StepStore = leases
	if s.config.Mode == history.Transaction {
		store = leases.Transactional().(idempotency.StepStore)
	}
	store, err = plant(s.config.Bug, store, s.pool, s.dir)
	if err != nil {
		return nil, nil, err
	}
	options := []idempotency.Option{
		idempotency.WithRequireOrg(),
		idempotency.WithRequireKey(),
		idempotency.WithStoreTimeout(s.config.StoreTimeout),
		idempotency.WithLogger(logger),
		idempotency.WithObserver(s.observe),
	}
	completes := s.config.CompleterInterval > 0
	if completes {
		options = append(options, idempotency.WithRecoverable())
	}
	if s.config.Mode == history.Lease || completes { // after a lease a kept request is looked at
		options = append(options, idempotency.WithLease(s.config.Lease))
	}
	if s.config.Wait > 0 {
		options = append(options, idempotency.WithWait(s.config.Wait))
	}
	protect := idempotency.Require(trace(store, s), options...)
	return s.respond(authenticate(protect(http.HandlerFunc(s.pay)))), leases, nil
}

func (s *payments) observe(ctx context.Context, e idempotency.Event) {
	note := history.Event{
		T: history.Now(), Process: s.config.Process, Kind: history.Decided, Request: requestID(ctx),
		Outcome: string(e.Decision), Attempt: e.Attempt,
	}
	if e.Err != nil {
		note.Err = e.Err.Error()
	}
	s.log.Write(note)
}
