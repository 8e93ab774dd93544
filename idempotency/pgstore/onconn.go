package pgstore

import (
	"context"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// As with a pool, the connection of a statement is given back when its result is closed or
// scanned. Whoever asks for rows, or for the results of a batch, here closes them.

// Exec implements conns.
func (h homeConns) Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error) {
	conn, err := h.Acquire(ctx)
	if err != nil {
		return pgconn.CommandTag{}, err
	}
	defer conn.Release()
	return conn.Exec(ctx, sql, args...)
}

// Query implements conns.
func (h homeConns) Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error) {
	conn, err := h.Acquire(ctx)
	if err != nil {
		return closedRows{err: err}, err
	}
	rows, err := conn.Query(ctx, sql, args...)
	if err != nil {
		conn.Release()
		return rows, err
	}
	return &releasedRows{rows, conn}, nil
}

// QueryRow implements conns.
func (h homeConns) QueryRow(ctx context.Context, sql string, args ...any) pgx.Row {
	conn, err := h.Acquire(ctx)
	if err != nil {
		return closedRows{err: err}
	}
	return releasedRow{conn.QueryRow(ctx, sql, args...), conn}
}

// SendBatch implements conns.
func (h homeConns) SendBatch(ctx context.Context, b *pgx.Batch) pgx.BatchResults {
	conn, err := h.Acquire(ctx)
	if err != nil {
		return closedBatch{err: err}
	}
	return &releasedBatch{conn.SendBatch(ctx, b), conn}
}

type releasedRows struct {
	pgx.Rows
	conn *pgxpool.Conn
}

func (r *releasedRows) Close() {
	r.Rows.Close()
	r.conn.Release() // which may be repeated
}

type releasedRow struct {
	pgx.Row
	conn *pgxpool.Conn
}

func (r releasedRow) Scan(dest ...any) error {
	defer r.conn.Release()
	return r.Row.Scan(dest...)
}

type releasedBatch struct {
	pgx.BatchResults
	conn *pgxpool.Conn
}

func (b *releasedBatch) Close() error {
	defer b.conn.Release()
	return b.BatchResults.Close()
}
