package migrations

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strconv"
	"strings"
	"sync"

	"github.com/pressly/goose/v3"
	"github.com/pressly/goose/v3/database"
)

// plan is what goose sends to the server for a set of migration files, word for word, so
// that it can be sent in fewer round trips than goose takes.
type plan struct {
	table string // makes the version table, with its row of version 0
	steps []step // in the order of their versions
}

// step is one migration and the row that records it.
type step struct {
	version int64
	sql     string
}

func (p plan) latest() int64 {
	if len(p.steps) == 0 {
		return 0
	}
	return p.steps[len(p.steps)-1].version
}

// since returns the steps that a schema lacks which has had those of applied. It is an
// error if one of them is older than the newest that was applied, as it is to goose.
func (p plan) since(applied []int64) ([]step, error) {
	had := make(map[int64]bool, len(applied))
	newest := int64(-1)
	for _, v := range applied {
		had[v] = true
		newest = max(newest, v)
	}
	if newest < 0 {
		return nil, fmt.Errorf("the table %s is empty, so what the schema has had is not known", VersionTable)
	}
	var lacking []step
	for _, s := range p.steps {
		switch {
		case had[s.version]:
		case s.version < newest:
			return nil, fmt.Errorf("migration %d was not applied though %d was: see to the table %s by hand", s.version, newest, VersionTable)
		default:
			lacking = append(lacking, s)
		}
	}
	return lacking, nil
}

// whole returns the statements that take a schema without a version table to the newest
// version.
func (p plan) whole() string { return p.upTo(p.latest()) }

func (p plan) upTo(version int64) string {
	var b strings.Builder
	b.WriteString(p.table)
	for _, s := range p.steps {
		if s.version <= version {
			b.WriteString(s.sql)
		}
	}
	return b.String()
}

// embedded is the plan of the files of this package.
var embedded = sync.OnceValues(func() (plan, error) { return newPlan(FS()) })

// Latest returns the number of the newest migration of tenants' schemas. A schema that
// [Up] or [All] has migrated is at this version.
func Latest() int64 {
	p, err := embedded()
	if err != nil {
		panic(err) // the files are embedded, and a test runs them
	}
	return p.latest()
}

// newPlan has goose run the files against a driver that writes down what it is sent. So
// what a file means is goose's to say, and nothing here reads one.
func newPlan(files fs.FS) (p plan, err error) {
	tape := &tape{}
	db := sql.OpenDB(tape)
	defer func() { err = errors.Join(err, db.Close()) }()
	inner, err := database.NewStore(goose.DialectPostgres, VersionTable)
	if err != nil {
		return plan{}, err
	}
	store := &recordedVersions{Store: inner, tape: tape}
	provider, err := goose.NewProvider(goose.DialectCustom, db, files, goose.WithStore(store), goose.WithDisableGlobalRegistry(true))
	if err != nil {
		return plan{}, err
	}
	if _, err := provider.Up(context.Background()); err != nil {
		return plan{}, err
	}
	if tape.outside {
		return plan{}, errors.New("a migration without a transaction: it could be half done, so split it, or do without CONCURRENTLY")
	}
	for i, s := range store.steps {
		if i == 0 && s.version == 0 {
			p.table = s.sql
			continue
		}
		p.steps = append(p.steps, s)
	}
	return p, nil
}

// recordedVersions is goose's own store, but that it remembers by itself which versions
// there are, since the tape answers no questions.
type recordedVersions struct {
	database.Store
	tape  *tape
	steps []step
}

func (*recordedVersions) TableExists(context.Context, database.DBTxConn) (bool, error) {
	return false, nil
}

func (r *recordedVersions) Insert(ctx context.Context, db database.DBTxConn, req database.InsertRequest) error {
	if err := r.Store.Insert(ctx, db, req); err != nil {
		return err
	}
	// Goose records a migration last in its transaction, so what is on the tape by now is
	// this one's.
	r.steps = append(r.steps, step{version: req.Version, sql: r.tape.cut()})
	return nil
}

func (r *recordedVersions) GetLatestVersion(context.Context, database.DBTxConn) (int64, error) {
	if len(r.steps) == 0 {
		return 0, database.ErrVersionNotFound
	}
	return r.steps[len(r.steps)-1].version, nil
}

func (r *recordedVersions) ListMigrations(context.Context, database.DBTxConn) ([]*database.ListMigrationsResult, error) {
	var list []*database.ListMigrationsResult
	for _, s := range r.steps {
		list = append([]*database.ListMigrationsResult{{Version: s.version, IsApplied: true}}, list...)
	}
	return list, nil
}

// tape is a driver, a connection and a transaction at once that writes down each statement
// and does nothing.
type tape struct {
	text    strings.Builder
	inTx    bool
	outside bool // there was a statement outside of a transaction
}

func (t *tape) cut() string {
	text := t.text.String()
	t.text.Reset()
	return text
}

func (t *tape) Connect(context.Context) (driver.Conn, error) { return t, nil }
func (t *tape) Driver() driver.Driver                        { return nil }
func (t *tape) Close() error                                 { return nil }

func (t *tape) Begin() (driver.Tx, error) { return t.BeginTx(context.Background(), driver.TxOptions{}) }

func (t *tape) BeginTx(context.Context, driver.TxOptions) (driver.Tx, error) {
	t.inTx = true
	return t, nil
}

func (t *tape) Commit() error {
	t.inTx = false
	return nil
}

func (t *tape) Rollback() error { return t.Commit() }

func (t *tape) Prepare(string) (driver.Stmt, error) {
	return nil, errors.New("migrations: goose prepares a statement, which this release did not use to")
}

func (t *tape) ExecContext(_ context.Context, query string, args []driver.NamedValue) (driver.Result, error) {
	t.outside = t.outside || !t.inTx
	for i := len(args) - 1; i >= 0; i-- { // from the last, so that $1 does not meet $10
		text, err := literal(args[i].Value)
		if err != nil {
			return nil, err
		}
		query = strings.ReplaceAll(query, "$"+strconv.Itoa(args[i].Ordinal), text)
	}
	// The line break ends a comment of one line, should the statement end in one.
	_, err := io.WriteString(&t.text, strings.TrimSuffix(strings.TrimSpace(query), ";")+"\n;\n")
	return driver.RowsAffected(0), err
}

// literal writes what goose puts into its version table. The statements of migrations have
// no arguments.
func literal(value driver.Value) (string, error) {
	switch v := value.(type) {
	case int64:
		return strconv.FormatInt(v, 10), nil
	case bool:
		return strconv.FormatBool(v), nil
	}
	return "", fmt.Errorf("migrations: goose records a %T, which this release did not use to", value)
}
