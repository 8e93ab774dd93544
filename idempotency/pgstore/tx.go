package pgstore

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgidem/pgidem/idempotency"
	"github.com/pgidem/pgidem/tenancy"
)

// Tx returns the transaction that a handler runs in under [Store.Transactional], and
// false where there is none. Its search_path is the tenant's schema alone, so
// unqualified names are the tenant's own tables.
//
// The store commits and rolls back: Commit and Rollback of the transaction itself return
// an error and do nothing. Begin makes a savepoint, as with any pgx.Tx. When the handler
// has returned, the transaction is closed to it. What its Conn and LargeObjects give
// cannot be closed without the connection: where a handler has asked for them, the
// connection is not used again, and the next request makes a new one.
func Tx(ctx context.Context) (pgx.Tx, bool) {
	tx, ok := idempotency.Transaction(ctx).(*handlerTx)
	if org, _ := tenancy.OrgID(ctx); !ok || org != tx.org {
		return nil, false // of another claim, or another tenant's
	}
	return tx, true
}

// errManaged is what a handler gets that would end the transaction itself.
var errManaged = errors.New("pgstore: the store commits the transaction after the handler has returned with a status that is storable, and rolls it back after any other: return one")

// seenByHandler is what a handler met in its transaction and the savepoints in it. Each
// of their steps holds the lock, so that none is under way when the store ends the
// transaction, and none begins after that, whatever goroutine it is in.
type seenByHandler struct {
	mu       sync.Mutex
	ended    bool  // the handler has returned
	lent     bool  // it was given what reaches the connection past the lock
	conflict error // the first serialization failure or deadlock
}

// begin takes the lock for a step, or says that the transaction is closed to the handler.
func (s *seenByHandler) begin() error {
	s.mu.Lock()
	if s.ended {
		s.mu.Unlock()
		return pgx.ErrTxClosed
	}
	return nil
}

// note looks at an error on its way to the handler, within a step.
func (s *seenByHandler) note(err error) error {
	if s.conflict == nil && isSerializationFailure(err) {
		s.conflict = err
	}
	return err
}

// end closes the transaction to the handler. A statement that a goroutine of the
// handler's is still at has a second; then its connection is cut.
func (s *seenByHandler) end(conn *pgx.Conn) {
	const patience = time.Second
	cut := time.AfterFunc(patience, func() { _ = conn.PgConn().Conn().Close() })
	defer cut.Stop()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ended = true
}

// lend notes that the handler gets at the connection itself, or refuses it.
func (s *seenByHandler) lend() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lent = s.lent || !s.ended
	return !s.ended
}

func (s *seenByHandler) wasLent() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.lent
}

func (s *seenByHandler) met() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.conflict
}

// handlerTx is the transaction of an attempt as its handler sees it, or a savepoint in
// it.
type handlerTx struct {
	pgx.Tx
	org       uuid.UUID
	seen      *seenByHandler
	savepoint bool
	asTenant  bool // under [WithTenantRole]
}

// Commit implements [pgx.Tx]: of a savepoint alone.
func (tx *handlerTx) Commit(ctx context.Context) error {
	return tx.finish(ctx, tx.Tx.Commit)
}

// Rollback implements [pgx.Tx]: of a savepoint alone.
func (tx *handlerTx) Rollback(ctx context.Context) error {
	return tx.finish(ctx, tx.Tx.Rollback)
}

func (tx *handlerTx) finish(ctx context.Context, end func(context.Context) error) error {
	if err := tx.seen.begin(); err != nil {
		return err
	}
	defer tx.seen.mu.Unlock()
	if !tx.savepoint {
		return errManaged
	}
	return tx.seen.note(end(ctx))
}

// Begin implements [pgx.Tx]: it makes a savepoint.
func (tx *handlerTx) Begin(ctx context.Context) (pgx.Tx, error) {
	if err := tx.seen.begin(); err != nil {
		return nil, err
	}
	defer tx.seen.mu.Unlock()
	inner, err := tx.Tx.Begin(ctx)
	if err != nil {
		return nil, tx.seen.note(err)
	}
	return &handlerTx{Tx: inner, org: tx.org, seen: tx.seen, savepoint: true, asTenant: tx.asTenant}, nil
}

// Exec implements [pgx.Tx].
func (tx *handlerTx) Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error) {
	if err := tx.seen.begin(); err != nil {
		return pgconn.CommandTag{}, err
	}
	defer tx.seen.mu.Unlock()
	exec := tx.Tx.Exec
	if tx.asTenant {
		exec = tx.execExtended
	}
	tag, err := exec(ctx, sql, args...)
	return tag, tx.seen.note(err)
}

// execExtended is Exec by the extended protocol, which takes one statement alone. Without
// arguments pgx's own goes by the simple one, in which injected SQL may append a RESET ROLE.
func (tx *handlerTx) execExtended(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error) {
	rows, err := tx.Tx.Query(ctx, sql, args...)
	if err != nil {
		return pgconn.CommandTag{}, err
	}
	rows.Close()
	return rows.CommandTag(), rows.Err()
}

// Query implements [pgx.Tx].
func (tx *handlerTx) Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error) {
	if err := tx.seen.begin(); err != nil {
		return closedRows{err: err}, err
	}
	defer tx.seen.mu.Unlock()
	rows, err := tx.Tx.Query(ctx, sql, args...)
	return notedRows{rows, tx.seen}, tx.seen.note(err)
}

// QueryRow implements [pgx.Tx].
func (tx *handlerTx) QueryRow(ctx context.Context, sql string, args ...any) pgx.Row {
	if err := tx.seen.begin(); err != nil {
		return closedRows{err: err}
	}
	defer tx.seen.mu.Unlock()
	return notedRow{tx.Tx.QueryRow(ctx, sql, args...), tx.seen}
}

// SendBatch implements [pgx.Tx].
func (tx *handlerTx) SendBatch(ctx context.Context, b *pgx.Batch) pgx.BatchResults {
	if err := tx.seen.begin(); err != nil {
		return closedBatch{err: err}
	}
	defer tx.seen.mu.Unlock()
	return notedBatch{tx.Tx.SendBatch(ctx, b), tx.seen}
}

// CopyFrom implements [pgx.Tx].
func (tx *handlerTx) CopyFrom(ctx context.Context, table pgx.Identifier, columns []string, rows pgx.CopyFromSource) (int64, error) {
	if err := tx.seen.begin(); err != nil {
		return 0, err
	}
	defer tx.seen.mu.Unlock()
	n, err := tx.Tx.CopyFrom(ctx, table, columns, rows)
	return n, tx.seen.note(err)
}

// Prepare implements [pgx.Tx].
func (tx *handlerTx) Prepare(ctx context.Context, name, sql string) (*pgconn.StatementDescription, error) {
	if err := tx.seen.begin(); err != nil {
		return nil, err
	}
	defer tx.seen.mu.Unlock()
	return tx.Tx.Prepare(ctx, name, sql)
}

// LargeObjects implements [pgx.Tx].
func (tx *handlerTx) LargeObjects() pgx.LargeObjects {
	if !tx.seen.lend() {
		return closedTx().LargeObjects()
	}
	return tx.Tx.LargeObjects()
}

// Conn implements [pgx.Tx]. It returns nil after the handler has returned.
func (tx *handlerTx) Conn() *pgx.Conn {
	if !tx.seen.lend() {
		return nil
	}
	return tx.Tx.Conn()
}

// notedRows are rows whose steps hold the lock, and whose errors are looked at.
type notedRows struct {
	pgx.Rows
	seen *seenByHandler
}

func (r notedRows) Close() {
	if r.seen.begin() == nil {
		defer r.seen.mu.Unlock()
		r.Rows.Close()
	}
}

func (r notedRows) Err() error {
	if err := r.seen.begin(); err != nil {
		return err
	}
	defer r.seen.mu.Unlock()
	return r.seen.note(r.Rows.Err())
}

func (r notedRows) Next() bool {
	if r.seen.begin() != nil {
		return false
	}
	defer r.seen.mu.Unlock()
	if r.Rows.Next() {
		return true
	}
	_ = r.seen.note(r.Rows.Err()) // which the handler may not ask for
	return false
}

func (r notedRows) Scan(dest ...any) error {
	if err := r.seen.begin(); err != nil {
		return err
	}
	defer r.seen.mu.Unlock()
	return r.seen.note(r.Rows.Scan(dest...))
}

func (r notedRows) Values() ([]any, error) {
	if err := r.seen.begin(); err != nil {
		return nil, err
	}
	defer r.seen.mu.Unlock()
	return r.Rows.Values()
}

func (r notedRows) Conn() *pgx.Conn {
	if !r.seen.lend() {
		return nil
	}
	return r.Rows.Conn()
}

type notedRow struct {
	pgx.Row
	seen *seenByHandler
}

func (r notedRow) Scan(dest ...any) error {
	if err := r.seen.begin(); err != nil {
		return err
	}
	defer r.seen.mu.Unlock()
	return r.seen.note(r.Row.Scan(dest...))
}

type notedBatch struct {
	pgx.BatchResults
	seen *seenByHandler
}

func (b notedBatch) Exec() (pgconn.CommandTag, error) {
	if err := b.seen.begin(); err != nil {
		return pgconn.CommandTag{}, err
	}
	defer b.seen.mu.Unlock()
	tag, err := b.BatchResults.Exec()
	return tag, b.seen.note(err)
}

func (b notedBatch) Query() (pgx.Rows, error) {
	if err := b.seen.begin(); err != nil {
		return closedRows{err: err}, err
	}
	defer b.seen.mu.Unlock()
	rows, err := b.BatchResults.Query()
	return notedRows{rows, b.seen}, b.seen.note(err)
}

func (b notedBatch) QueryRow() pgx.Row {
	if err := b.seen.begin(); err != nil {
		return closedRows{err: err}
	}
	defer b.seen.mu.Unlock()
	return notedRow{b.BatchResults.QueryRow(), b.seen}
}

// Tx is that of a batch that begins a transaction, which within one is a mistake.
func (b notedBatch) Tx() pgx.Tx { return closedTx() }

func (b notedBatch) Close() error {
	if err := b.seen.begin(); err != nil {
		return err
	}
	defer b.seen.mu.Unlock()
	return b.seen.note(b.BatchResults.Close())
}

// closedTx returns a transaction of which every step gives pgx.ErrTxClosed.
func closedTx() pgx.Tx {
	var b pgx.Batch
	b.BeginTx(pgx.TxOptions{})
	return pgx.FailedBatchResults(&b, pgx.ErrTxClosed).Tx()
}

// closedRows is a result of a transaction that is closed.
type closedRows struct {
	pgx.Rows // nil: nobody asks a result that has failed for more
	err      error
}

func (r closedRows) Close()            {}
func (r closedRows) Err() error        { return r.err }
func (r closedRows) Next() bool        { return false }
func (r closedRows) Scan(...any) error { return r.err }

func (r closedRows) CommandTag() pgconn.CommandTag                { return pgconn.CommandTag{} }
func (r closedRows) FieldDescriptions() []pgconn.FieldDescription { return nil }
func (r closedRows) Values() ([]any, error)                       { return nil, r.err }
func (r closedRows) RawValues() [][]byte                          { return nil }
func (r closedRows) Conn() *pgx.Conn                              { return nil }

type closedBatch struct {
	pgx.BatchResults // nil, likewise
	err              error
}

func (b closedBatch) Exec() (pgconn.CommandTag, error) { return pgconn.CommandTag{}, b.err }
func (b closedBatch) Query() (pgx.Rows, error)         { return closedRows{err: b.err}, b.err }
func (b closedBatch) QueryRow() pgx.Row                { return closedRows{err: b.err} }
func (b closedBatch) Close() error                     { return b.err }
func (b closedBatch) Tx() pgx.Tx                       { return closedTx() }
