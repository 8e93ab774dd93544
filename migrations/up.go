package migrations

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"hash/fnv"
	"io/fs"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pressly/goose/v3"
	"github.com/pressly/goose/v3/database"
	"github.com/pressly/goose/v3/lock"

	"github.com/pgidem/pgidem/internal/moved"
	"github.com/pgidem/pgidem/tenancy"
)

//go:embed tenant/*.sql
var files embed.FS

// FS returns the goose migrations of a tenant's schema, for tools of your own.
// Their statements are unqualified: run them with search_path set to the schema
// alone.
func FS() fs.FS { return tenantSet.files }

// set is a set of migrations with the name of the table that keeps their versions.
type set struct {
	files    fs.FS
	versions string
}

var tenantSet = set{files: sub(files, "tenant"), versions: VersionTable}

func sub(files fs.FS, dir string) fs.FS {
	sub, err := fs.Sub(files, dir)
	if err != nil {
		panic(err) // the path is a constant, and embedded
	}
	return sub
}

// VersionTable is the table, one in each tenant's schema, in which goose keeps the
// versions of these migrations. It is not goose's default, so that a service may
// keep migrations of its own in the same schema.
const VersionTable = "idempotency_db_version"

// lockWaitSeconds bounds how long Up waits for another runner in the same schema.
const lockWaitSeconds = 300

// Up creates each of the schemas if it is missing and migrates it to the newest
// version. A schema that is up to date is left as it is, so Up may run at every
// deployment, and from several places at once: runners in the same schema wait for
// each other, for 5 minutes at most, and those in different schemas do not.
//
// Each schema is migrated over a connection of its own, which must go to
// PostgreSQL itself: search_path is set on it, and the lock is the session's. Where
// a pooler in between drops the setting, Up says so and changes nothing but to make
// the schema. The role needs CREATE on the database to make a
// schema, and CREATE on a schema that exists already.
//
// Each migration is a transaction, so one that fails leaves nothing behind. A
// schema that fails does not keep the others from being migrated; the errors are
// joined and each names its schema. Up stops when ctx ends, and where it gets no connection, for
// which it waits no longer than [All] does: the schemas are those of one database, and the rest
// would wait as long each. The error names the first of those that were not reached, and says
// how many they are. The error of a tenant that was
// moved to another cluster wraps [ErrMoved], and that of one that is on its way [ErrMoving].
//
// Up notes no version in a registry of tenants: see the package documentation.
func Up(ctx context.Context, databaseURL string, schemas ...tenancy.Schema) error {
	return upEach(ctx, databaseURL, connectTimeout, schemas)
}

func upEach(ctx context.Context, databaseURL string, patience time.Duration, schemas []tenancy.Schema) error {
	if len(schemas) == 0 {
		return errors.New("migrations: no schema given; name the tenants' schemas to migrate")
	}
	cfg, err := connConfig(databaseURL, patience)
	if err != nil {
		return err
	}
	var errs []error
	for i, schema := range schemas {
		err := up(ctx, cfg, schema, tenantSet)
		if err != nil {
			errs = append(errs, fmt.Errorf("migrations: schema %s: %w", schema, err))
		}
		rest := schemas[i+1:]
		if len(rest) == 0 {
			break
		}
		if ctx.Err() != nil {
			errs = append(errs, fmt.Errorf("migrations: not reached: %s: %w", few(rest), ctx.Err()))
			break
		}
		if _, ok := errors.AsType[*pgconn.ConnectError](err); ok {
			errs = append(errs, fmt.Errorf("migrations: not reached for want of a connection: %s; run again when the server gives one", few(rest)))
			break
		}
	}
	return errors.Join(errs...)
}

// few names the first schemas of a list.
func few(schemas []tenancy.Schema) string {
	const most = 10
	var names []string
	for _, schema := range schemas[:min(most, len(schemas))] {
		names = append(names, schema.String())
	}
	text := strings.Join(names, ", ")
	if more := len(schemas) - most; more > 0 {
		text = fmt.Sprintf("%s and %d more", text, more)
	}
	return text
}

func up(ctx context.Context, cfg *pgx.ConnConfig, schema tenancy.Schema, migrations set) (err error) {
	if schema.IsZero() {
		return errors.New("the zero Schema names none; make one with tenancy.ParseSchema or a Directory")
	}
	cfg = cfg.Copy()
	cfg.RuntimeParams["search_path"] = schema.Quoted()
	conn := stdlib.OpenDB(*cfg)
	defer func() { err = errors.Join(err, conn.Close()) }()
	conn.SetMaxOpenConns(1)

	if err := createSchema(ctx, conn, schema); err != nil {
		return err
	}
	if err := checkMoved(ctx, conn, schema); err != nil {
		return err
	}
	if err := checkSearchPath(ctx, conn, schema); err != nil {
		return err
	}
	// From here on a move is noticed by what it leaves in the way of the table of versions.
	if err := createVersions(ctx, conn, schema, migrations.versions); err != nil {
		return err
	}
	locker, err := lock.NewPostgresSessionLocker(
		lock.WithLockID(lockID(schema)),
		lock.WithLockTimeout(1, lockWaitSeconds),
	)
	if err != nil {
		return err
	}
	provider, err := goose.NewProvider(goose.DialectPostgres, conn, migrations.files,
		goose.WithTableName(migrations.versions),
		goose.WithSessionLocker(sessionLock{locker}),
		goose.WithDisableGlobalRegistry(true),
	)
	if err != nil {
		return err
	}
	_, err = provider.Up(ctx)
	return err
}

// sessionLock leaves the unlocking to the end of the session, which comes right
// after: Up closes the connection. To unlock over it is not safe when ctx ended in
// the middle of a migration, because database/sql may be taking it apart then.
type sessionLock struct{ lock.SessionLocker }

// SessionUnlock implements [lock.SessionLocker].
func (sessionLock) SessionUnlock(context.Context, *sql.Conn) error { return nil }

// createSchema makes the schema if it is missing. It asks first, because CREATE
// SCHEMA IF NOT EXISTS needs the right to create even where there is nothing to do.
func createSchema(ctx context.Context, conn *sql.DB, schema tenancy.Schema) error {
	var exists bool
	err := conn.QueryRowContext(ctx, `SELECT EXISTS (SELECT FROM pg_catalog.pg_namespace WHERE nspname = $1)`, schema.String()).Scan(&exists)
	if err != nil || exists {
		return err
	}
	_, err = conn.ExecContext(ctx, "CREATE SCHEMA IF NOT EXISTS "+schema.Quoted())
	var pgErr *pgconn.PgError
	if errors.As(err, &pgErr) && pgErr.Code == "23505" {
		return nil // unique_violation in the catalog: another runner made it at the same moment
	}
	return err
}

// checkMoved refuses the schema that a move has left.
func checkMoved(ctx context.Context, conn *sql.DB, schema tenancy.Schema) error {
	var comment string
	var fenced bool
	err := conn.QueryRowContext(ctx, `SELECT `+moved.Columns+` FROM pg_catalog.pg_namespace AS n WHERE n.nspname = $1`, schema.String()).Scan(&comment, &fenced)
	if errors.Is(err, sql.ErrNoRows) {
		return nil // dropped by somebody, which comes out in a moment
	}
	return errors.Join(err, ifMoved(schema, comment, fenced))
}

// createVersions makes goose's table of versions if it is missing, under the lock. Goose would
// make it before it takes that, and some of those who do so at once would have to try again
// after a second; and the table of who wins may have a sequence with another name than ever.
func createVersions(ctx context.Context, conn *sql.DB, schema tenancy.Schema, table string) error {
	exists := func(q interface {
		QueryRowContext(ctx context.Context, sql string, args ...any) *sql.Row
	}) (exists bool, err error) {
		err = q.QueryRowContext(ctx, `SELECT EXISTS (SELECT FROM pg_catalog.pg_tables WHERE schemaname = $1 AND tablename = $2)`, schema.String(), table).Scan(&exists)
		return exists, err
	}
	if there, err := exists(conn); there || err != nil {
		return err
	}
	store, err := database.NewStore(goose.DialectPostgres, table)
	if err != nil {
		return err
	}
	tx, err := conn.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback() }()
	if _, err := tx.ExecContext(ctx, `SELECT set_config('lock_timeout', $1, true), pg_advisory_xact_lock($2)`, fmt.Sprintf("%ds", lockWaitSeconds), lockID(schema)); err != nil {
		return fmt.Errorf("wait for another runner: %w", err)
	}
	if there, err := exists(tx); there || err != nil {
		return err
	}
	if err := store.CreateVersionTable(ctx, tx); err != nil {
		return err
	}
	if err := store.Insert(ctx, tx, database.InsertRequest{Version: 0}); err != nil {
		return err
	}
	return tx.Commit()
}

// checkSearchPath makes sure that unqualified names mean the tenant's schema. A pooler
// may drop the parameter that says so, in session mode as well.
func checkSearchPath(ctx context.Context, conn *sql.DB, schema tenancy.Schema) error {
	var current sql.NullString
	if err := conn.QueryRowContext(ctx, `SELECT current_schema()`).Scan(&current); err != nil {
		return err
	}
	if current.String != schema.String() {
		return fmt.Errorf("the connection does not heed search_path (it works in %q): connect to PostgreSQL itself, not through a pooler", current.String)
	}
	return nil
}

// lockID returns the number of the advisory lock of a schema. Locks are the
// database's, and so are schemas; another program's lock of the same number would
// only make one of the two wait.
func lockID(schema tenancy.Schema) int64 {
	h := fnv.New64a()
	h.Write([]byte("pgidem migrations " + schema.String()))
	return int64(h.Sum64())
}
