package pgstore

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// Errors that [Store.Check] returns, wrapped, with what to do about them.
var (
	// ErrPoolerMode says that a pooler in transaction mode stands before the server, and
	// that statements which one connection has prepared are not there, or not the same, in
	// the next transaction. Claims fail then, now and then or always.
	ErrPoolerMode = errors.New("pgstore: a connection pooler does not keep prepared statements; set DefaultQueryExecMode of the pool's ConnConfig to pgx.QueryExecModeExec or pgx.QueryExecModeCacheDescribe, or have PgBouncer 1.21 or newer keep them (max_prepared_statements)")

	// ErrPoolsBehindPooler says that [Pools] lead to a pooler, which deals server
	// connections out anew for each transaction: all of them meet all tenants.
	ErrPoolsBehindPooler = errors.New("pgstore: several pools lead to a connection pooler, where homes for tenants come to nothing; connect them to the server itself, or give one pool")

	// ErrSmallCache says that connections meet more tenants than they can keep statements
	// for, so that these are prepared and thrown away all the time.
	ErrSmallCache = errors.New("pgstore: the statement caches are too small for so many tenants; use pgstore.NewPools, or more pools of it, or a larger StatementCacheCapacity (about 35 KiB of the server's memory for each statement and connection), or pgx.QueryExecModeExec")

	// ErrTooManyConns says that the pools together may open more connections than the server
	// gives to their role.
	ErrTooManyConns = errors.New("pgstore: the pools may open more connections than the server allows; lower MaxConns, or raise max_connections")
)

const (
	// statementsPerTenant is how many statements a tenant has that come with every request: a
	// claim, a completion and a look, and each of them for many keys at once.
	statementsPerTenant = 6
	warnAgainAfter      = time.Hour
	probeTimeout        = 5 * time.Second
)

// Check asks each server what cannot be seen without it, and tells what is wrong with how
// the store reaches its tenants: [ErrPoolerMode], [ErrPoolsBehindPooler], [ErrTooManyConns],
// and, once there have been requests of many tenants, [ErrSmallCache]. It is for the start of
// a service and its health page, and takes a few round trips on 2 connections of each server.
// The last one is found out by requests as well, and logged ([WithLogger]), once an hour.
func (s *Store) Check(ctx context.Context) error {
	var errs []error
	for _, server := range s.servers {
		for _, err := range server.check(ctx) {
			errs = append(errs, fmt.Errorf("%w%s", err, server.inCluster()))
		}
	}
	return errors.Join(errs...)
}

func (s *server) check(ctx context.Context) (errs []error) {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	for i, h := range s.homes {
		if met, room := h.met.count(time.Now()), capacity(s.pools.pools[i]); met > room {
			errs = append(errs, tooSmall(met, room))
			break // the others are alike
		}
	}
	pool := s.pools.pools[0]
	conn, err := pool.Acquire(ctx)
	if err != nil {
		return append(errs, fmt.Errorf("pgstore: check: %w", err))
	}
	defer conn.Release()
	var pid uint32
	var allowed int
	// Without a prepared statement, which a pooler would lose.
	err = conn.QueryRow(ctx, `SELECT pg_backend_pid(), current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int`,
		pgx.QueryExecModeExec).Scan(&pid, &allowed)
	if err != nil {
		return append(errs, fmt.Errorf("pgstore: check: %w", err))
	}
	if pid != conn.Conn().PgConn().PID() {
		if len(s.homes) > 1 {
			errs = append(errs, ErrPoolsBehindPooler)
		}
		if pool.Config().ConnConfig.DefaultQueryExecMode == pgx.QueryExecModeCacheStatement {
			if err := probePrepared(ctx, pool.Config().ConnConfig); err != nil {
				errs = append(errs, err)
			}
		}
		return errs
	}
	if most := s.pools.maxConns(); most > allowed {
		errs = append(errs, fmt.Errorf("%w: up to %d of %d", ErrTooManyConns, most, allowed))
	}
	return errs
}

// probePrepared finds out whether a statement that is prepared over one connection to a
// pooler can be used over it while another holds the server connection that it was prepared
// on.
func probePrepared(ctx context.Context, config *pgx.ConnConfig) error {
	config = config.Copy()
	config.DefaultQueryExecMode = pgx.QueryExecModeSimpleProtocol
	one, err := pgx.ConnectConfig(ctx, config)
	if err != nil {
		return fmt.Errorf("pgstore: check: %w", err)
	}
	defer func() { _ = one.Close(ctx) }()
	other, err := pgx.ConnectConfig(ctx, config)
	if err != nil {
		return fmt.Errorf("pgstore: check: %w", err)
	}
	defer func() { _ = other.Close(ctx) }()
	const name = "pgidem_probe"
	for range 3 {
		// Its parts may come to different server connections, at each of which this fails if
		// it is there from another time.
		if _, err = one.PgConn().Prepare(ctx, name, "SELECT 1", nil); err == nil {
			_, err = other.Exec(ctx, "BEGIN")
		}
		if err == nil {
			err = one.PgConn().ExecPrepared(ctx, name, nil, nil, nil).Read().Err
		}
		_, endErr := other.Exec(ctx, "ROLLBACK")
		deallocErr := one.PgConn().Deallocate(ctx, name)
		switch {
		case isMixedUp(err):
			return ErrPoolerMode
		case err != nil:
			return fmt.Errorf("pgstore: check: %w", err)
		case endErr != nil || deallocErr != nil:
			return fmt.Errorf("pgstore: check: %w", errors.Join(endErr, deallocErr))
		}
	}
	return nil
}

// isMixedUp reports whether a prepared statement is not there, or is there already.
func isMixedUp(err error) bool {
	const invalidStatementName, duplicatePreparedStatement = "26000", "42P05"
	var pgErr *pgconn.PgError
	return errors.As(err, &pgErr) && (pgErr.Code == invalidStatementName || pgErr.Code == duplicatePreparedStatement)
}

// capacity is how many tenants a connection of the pool can keep the statements of.
func capacity(pool *pgxpool.Pool) int {
	config := pool.Config().ConnConfig
	switch config.DefaultQueryExecMode {
	case pgx.QueryExecModeCacheStatement:
		return config.StatementCacheCapacity / statementsPerTenant
	case pgx.QueryExecModeCacheDescribe:
		return config.DescriptionCacheCapacity / statementsPerTenant
	}
	return 1 << 30 // it keeps none
}

func tooSmall(met, room int) error {
	return fmt.Errorf("%w: %d tenants of late, and room for %d", ErrSmallCache, met, room)
}

// warning says once in a while that the caches of a home are too small.
type warning struct {
	capacity int
	news     atomic.Int32
	next     atomic.Int64
}

// meet takes note of a request of a schema.
func (h *home) meet(schema string, logger *slog.Logger) {
	const lookEvery = 16
	if !h.met.add(schema) || h.warn.news.Add(1)%lookEvery != 0 {
		return
	}
	now := time.Now()
	met, next := h.met.count(now), h.warn.next.Load()
	if met > h.warn.capacity && now.UnixNano() > next && h.warn.next.CompareAndSwap(next, now.Add(warnAgainAfter).UnixNano()) {
		logger.Warn("pgidem: requests are slower than they need be", slog.String("error", tooSmall(met, h.warn.capacity).Error()))
	}
}
