package db

import (
	"context"
	"errors"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// Batcher sends statements in one round trip: a pool, a connection or a
// transaction of pgx.
type Batcher interface {
	SendBatch(context.Context, *pgx.Batch) pgx.BatchResults
}

// Statement is a statement that may be run together with others. It is ready to be run
// once only.
type Statement struct {
	sql    string
	args   []any
	dest   []any                   // of each row
	onRow  func()                  // after each row is in dest; nil for a statement of one row
	onTag  func(pgconn.CommandTag) // for a statement without rows
	onNone func()                  // for a statement of one row that has none
}

// RelaxCommit is [Queries.RelaxCommit].
func RelaxCommit() Statement { return Statement{sql: relaxCommit} }

// Run runs statements in one round trip and one transaction. After an error none of them
// has had an effect, unless the error leaves open what became of the transaction.
func Run(ctx context.Context, db interface {
	DBTX
	Batcher
}, statements ...Statement) error {
	if len(statements) == 1 {
		return statements[0].run(ctx, db)
	}
	var batch pgx.Batch
	for _, s := range statements {
		batch.Queue(s.sql, s.args...)
	}
	results := db.SendBatch(ctx, &batch)
	for _, s := range statements {
		if err := s.read(results); err != nil {
			_ = results.Close() // tells of the same
			return err
		}
	}
	return results.Close()
}

func (s Statement) run(ctx context.Context, db DBTX) error {
	switch {
	case s.onRow != nil:
		rows, err := db.Query(ctx, s.sql, s.args...)
		return s.scanAll(rows, err)
	case s.dest != nil:
		return s.scan(db.QueryRow(ctx, s.sql, s.args...))
	}
	tag, err := db.Exec(ctx, s.sql, s.args...)
	return s.tagged(tag, err)
}

func (s Statement) read(results pgx.BatchResults) error {
	switch {
	case s.onRow != nil:
		rows, err := results.Query()
		return s.scanAll(rows, err)
	case s.dest != nil:
		return s.scan(results.QueryRow())
	}
	tag, err := results.Exec()
	return s.tagged(tag, err)
}

func (s Statement) scanAll(rows pgx.Rows, err error) error {
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		if err := rows.Scan(s.dest...); err != nil {
			return err
		}
		s.onRow()
	}
	return rows.Err()
}

func (s Statement) scan(row pgx.Row) error {
	err := row.Scan(s.dest...)
	if errors.Is(err, pgx.ErrNoRows) {
		s.onNone()
		return nil
	}
	return err
}

func (s Statement) tagged(tag pgconn.CommandTag, err error) error {
	if err == nil && s.onTag != nil {
		s.onTag(tag)
	}
	return err
}
