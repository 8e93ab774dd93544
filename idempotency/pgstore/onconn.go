package pgstore

import (
	"context"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgidem/pgidem/internal/db"
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

// ownConns run statements of one kind by themselves: what is not gathered.
type ownConns struct {
	turns *turns
	kind  kind
}

// Exec implements [db.DBTX].
func (c ownConns) Exec(ctx context.Context, sql string, args ...any) (tag pgconn.CommandTag, err error) {
	err = c.turns.run(ctx, c.kind, func() ([]db.Statement, error) {
		return []db.Statement{db.Execution(sql, args, &tag)}, nil
	})
	return tag, err
}

// QueryRow implements [db.DBTX]. The statement is run when the row is scanned.
func (c ownConns) QueryRow(ctx context.Context, sql string, args ...any) pgx.Row {
	return ownRow{c, ctx, sql, args}
}

type ownRow struct {
	ownConns
	ctx  context.Context
	sql  string
	args []any
}

func (r ownRow) Scan(dest ...any) error {
	none := false
	err := r.turns.run(r.ctx, r.kind, func() ([]db.Statement, error) {
		return []db.Statement{db.Reading(r.sql, r.args, dest, &none)}, nil
	})
	if err == nil && none {
		return pgx.ErrNoRows
	}
	return err
}

// Query implements [db.DBTX]. It waits for a turn, and has it until the rows are closed.
func (c ownConns) Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error) {
	if err := c.turns.begin(ctx, c.kind); err != nil {
		return closedRows{err: err}, err
	}
	rows, err := c.turns.conns.Query(ctx, sql, args...)
	if err != nil {
		c.turns.give(c.kind, false)
		return rows, err
	}
	return &rowsInTurn{Rows: rows, own: c}, nil
}

type rowsInTurn struct {
	pgx.Rows
	own   ownConns
	given bool
}

func (r *rowsInTurn) Close() {
	r.Rows.Close()
	if !r.given {
		r.given = true
		r.own.turns.give(r.own.kind, r.Err() == nil)
	}
}
