package migrations_test

import (
	"context"
	"database/sql"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pressly/goose/v3"
	"go.uber.org/goleak"

	"github.com/pgidem/pgidem/internal/pgtest"
	"github.com/pgidem/pgidem/migrations"
	"github.com/pgidem/pgidem/tenancy"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(pgtest.Tests{M: m}) }

func parse(t *testing.T, name string) tenancy.Schema {
	t.Helper()
	schema, err := tenancy.ParseSchema(name)
	if err != nil {
		t.Fatal(err)
	}
	return schema
}

// shape describes all that a schema holds, without its name and its data.
func shape(t *testing.T, pool *pgxpool.Pool, schema tenancy.Schema) string {
	t.Helper()
	rows, err := pool.Query(t.Context(), `
		SELECT concat_ws(' ', c.relname, c.relkind, c.reloptions, a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull, a.attcollation)
		FROM pg_class c LEFT JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0
		WHERE c.relnamespace = to_regnamespace($1)
		UNION ALL
		SELECT concat_ws(' ', conname, pg_get_constraintdef(oid)) FROM pg_constraint WHERE connamespace = to_regnamespace($1)
		ORDER BY 1`, schema.Quoted())
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	var b strings.Builder
	for rows.Next() {
		var line string
		if err := rows.Scan(&line); err != nil {
			t.Fatal(err)
		}
		fmt.Fprintln(&b, line)
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func TestUpCreatesAndMigrates(t *testing.T) {
	t.Parallel()
	pool := pgtest.NewPool(t)
	schemas := []tenancy.Schema{parse(t, "tenant_a"), parse(t, "select"), parse(t, "t"+strings.Repeat("x", 62))}
	for range 2 { // the second time changes nothing
		if err := migrations.Up(t.Context(), pool.Config().ConnString(), schemas...); err != nil {
			t.Fatal(err)
		}
	}
	first := shape(t, pool, schemas[0])
	for _, want := range []string{"idempotency_records r {fillfactor=70} org_id uuid", "idempotency_db_version r", "PRIMARY KEY (org_id, key)"} {
		if !strings.Contains(first, want) {
			t.Errorf("schema lacks %q:\n%s", want, first)
		}
	}
	for _, schema := range schemas[1:] {
		if got := shape(t, pool, schema); got != first {
			t.Errorf("schema %s differs:\n%s\nfrom\n%s", schema, got, first)
		}
	}
	var public int
	if err := pool.QueryRow(t.Context(), `SELECT count(*) FROM pg_class WHERE relnamespace = 'public'::regnamespace`).Scan(&public); err != nil || public != 0 {
		t.Errorf("%d things in public, %v; want none", public, err)
	}
}

func TestUpSideBySide(t *testing.T) {
	t.Parallel()
	pool := pgtest.NewPool(t)
	one, other := parse(t, "tenant_a"), parse(t, "tenant_b")
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if err := migrations.Up(context.Background(), pool.Config().ConnString(), one, other); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	files, err := fs.Glob(migrations.FS(), "*.sql")
	if err != nil {
		t.Fatal(err)
	}
	var recorded, versions int
	err = pool.QueryRow(t.Context(), `SELECT count(*), count(DISTINCT version_id) FROM tenant_a.idempotency_db_version WHERE version_id > 0`).Scan(&recorded, &versions)
	if err != nil || recorded != len(files) || versions != len(files) {
		t.Errorf("%d records of %d versions, %v; want each of %d once", recorded, versions, err, len(files))
	}
}

// TestUpInDifferentSchemasDoesNotWait: a runner that hangs in one tenant's schema
// holds up nobody else.
func TestUpInDifferentSchemasDoesNotWait(t *testing.T) {
	t.Parallel()
	pool := pgtest.NewPool(t)
	url := pool.Config().ConnString()
	one, other := parse(t, "tenant_a"), parse(t, "tenant_b")
	if _, err := pool.Exec(t.Context(), `CREATE SCHEMA tenant_a`); err != nil {
		t.Fatal(err)
	}
	tx, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback(context.Background())
	// Whoever makes a table of that name now has to wait for this transaction.
	if _, err := tx.Exec(t.Context(), `CREATE TABLE tenant_a.idempotency_records ()`); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	stuck := make(chan error, 1)
	go func() { stuck <- migrations.Up(ctx, url, one) }()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) { // until it hangs, its lock in hand
		var waiting bool
		if err := pool.QueryRow(t.Context(), `SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock')`).Scan(&waiting); err != nil {
			t.Fatal(err)
		}
		if waiting {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the first runner never came to hang")
		}
	}
	others, giveUp := context.WithTimeout(t.Context(), 20*time.Second)
	defer giveUp()
	if err := migrations.Up(others, url, other); err != nil {
		t.Errorf("the other schema: %v", err)
	}
	cancel()
	if err := <-stuck; err == nil {
		t.Error("a runner that was cancelled while it hung reported success")
	}
}

func TestUpPinsTheTenantOfItsSchema(t *testing.T) {
	t.Parallel()
	pool := pgtest.NewPool(t)
	dir, err := tenancy.PerOrg("t")
	if err != nil {
		t.Fatal(err)
	}
	org := uuid.New()
	own, err := dir.Schema(t.Context(), org)
	if err != nil {
		t.Fatal(err)
	}
	shared := parse(t, "shared")
	if err := migrations.Up(t.Context(), pool.Config().ConnString(), own, shared); err != nil {
		t.Fatal(err)
	}
	insert := func(schema tenancy.Schema, org uuid.UUID) error {
		_, err := pool.Exec(t.Context(), `INSERT INTO `+schema.Quoted()+`.idempotency_records
			(created_at, expires_at, lease_until, token, org_id, attempt, response_kept, key, request_hash)
			VALUES (now(), now(), now(), gen_random_uuid(), $1, 1, true, 'key', '\x00')`, org)
		return err
	}
	if err := insert(own, uuid.New()); err == nil || !strings.Contains(err.Error(), "idempotency_records_tenant_check") {
		t.Errorf("a row of another tenant: %v; want the tenant check to refuse it", err)
	}
	if err := insert(own, org); err != nil {
		t.Errorf("a row of the schema's tenant: %v", err)
	}
	for range 2 {
		if err := insert(shared, uuid.New()); err != nil {
			t.Errorf("a row in a shared schema: %v", err)
		}
	}
	if err := insert(shared, uuid.Nil); err == nil {
		t.Error("a row of the nil UUID was accepted")
	}
}

// TestUpBesideMigrationsOfAnother: a service may keep tables of its own in the
// tenant's schema, under goose's default version table.
func TestUpBesideMigrationsOfAnother(t *testing.T) {
	t.Parallel()
	pool := pgtest.NewPool(t)
	_, err := pool.Exec(t.Context(), `CREATE SCHEMA tenant_a;
		CREATE TABLE tenant_a.goose_db_version (id integer PRIMARY KEY GENERATED BY DEFAULT AS IDENTITY,
			version_id bigint NOT NULL, is_applied boolean NOT NULL, tstamp timestamp NOT NULL DEFAULT now());
		INSERT INTO tenant_a.goose_db_version (version_id, is_applied) VALUES (0, true), (1, true), (99, true)`)
	if err != nil {
		t.Fatal(err)
	}
	schema := parse(t, "tenant_a")
	if err := migrations.Up(t.Context(), pool.Config().ConnString(), schema); err != nil {
		t.Fatal(err)
	}
	if got := shape(t, pool, schema); !strings.Contains(got, "idempotency_records r") {
		t.Errorf("the records' table was taken for made:\n%s", got)
	}
}

func TestUpReportsEachFailure(t *testing.T) {
	t.Parallel()
	pool := pgtest.NewPool(t)
	if _, err := pool.Exec(t.Context(), `CREATE SCHEMA tenant_bad; CREATE TABLE tenant_bad.idempotency_records ()`); err != nil {
		t.Fatal(err)
	}
	good, bad := parse(t, "tenant_good"), parse(t, "tenant_bad")
	err := migrations.Up(t.Context(), pool.Config().ConnString(), bad, tenancy.Schema{}, good)
	if err == nil || !strings.Contains(err.Error(), "schema tenant_bad") || !strings.Contains(err.Error(), "already exists") {
		t.Errorf("error %v; want it to name the schema and the SQL error", err)
	}
	if err == nil || !strings.Contains(err.Error(), "zero Schema") {
		t.Errorf("error %v; want it to name the zero Schema", err)
	}
	if got := shape(t, pool, good); !strings.Contains(got, "idempotency_records") {
		t.Error("the failure of one schema kept another from being migrated")
	}
}

func TestUpRefusesNonsense(t *testing.T) {
	t.Parallel()
	if err := migrations.Up(t.Context(), pgtest.NewDatabase(t)); err == nil || !strings.Contains(err.Error(), "no schema") {
		t.Errorf("no schema given: %v", err)
	}
	schema := parse(t, "tenant_a")
	err := migrations.Up(t.Context(), "postgres://user:sesame@[::1", schema)
	if err == nil || strings.Contains(err.Error(), "sesame") {
		t.Errorf("a URL that is none: %v; want an error without the password", err)
	}
	dead, _ := url.Parse(pgtest.NewDatabase(t))
	dead.Path = "/no_such_database"
	if err := migrations.Up(t.Context(), dead.String(), schema); err == nil {
		t.Error("a database that is not there gave no error")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := migrations.Up(ctx, pgtest.NewDatabase(t), schema); err == nil {
		t.Error("a cancelled context gave no error")
	}
}

// forgetful stands between a client and its server like a pooler that drops a
// parameter of the startup packet, and returns the URL that leads through it.
func forgetful(t *testing.T, cfg *pgx.ConnConfig, parameter string) string {
	t.Helper()
	var lc net.ListenConfig
	listener, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var relays sync.WaitGroup
	relays.Go(func() {
		for {
			client, err := listener.Accept()
			if err != nil {
				return
			}
			relays.Go(func() { relay(t, client, cfg, parameter) })
		}
	})
	t.Cleanup(func() {
		listener.Close()
		relays.Wait()
	})
	u := url.URL{
		Scheme: "postgres", User: url.UserPassword(cfg.User, cfg.Password), Host: listener.Addr().String(),
		Path: "/" + cfg.Database, RawQuery: "sslmode=disable",
	}
	return u.String()
}

func relay(t *testing.T, client net.Conn, cfg *pgx.ConnConfig, parameter string) {
	defer client.Close()
	network, address := pgconn.NetworkAddress(cfg.Host, cfg.Port)
	server, err := cfg.DialFunc(context.Background(), network, address)
	if err != nil {
		t.Error(err)
		return
	}
	defer server.Close()
	backend := pgproto3.NewBackend(client, nil)
	startup, err := backend.ReceiveStartupMessage()
	if err != nil {
		return // a client that only looked whether somebody listens
	}
	message := startup.(*pgproto3.StartupMessage)
	delete(message.Parameters, parameter)
	packet, err := message.Encode(nil)
	if err != nil {
		t.Error(err)
		return
	}
	if _, err := server.Write(packet); err != nil {
		t.Error(err)
		return
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		io.Copy(client, server)
		client.Close()
	}()
	io.Copy(server, client)
	server.Close()
	<-done
}

// TestUpNoticesALostSearchPath: a pooler that drops search_path would have every
// tenant's tables made in public.
func TestUpNoticesALostSearchPath(t *testing.T) {
	t.Parallel()
	pool := pgtest.NewPool(t)
	through := forgetful(t, pool.Config().ConnConfig, "search_path")
	err := migrations.Up(t.Context(), through, parse(t, "tenant_a"))
	if err == nil || !strings.Contains(err.Error(), "search_path") || !strings.Contains(err.Error(), "pooler") {
		t.Errorf("error %v; want one about search_path and poolers", err)
	}
	var made int
	if err := pool.QueryRow(t.Context(), `SELECT count(*) FROM pg_class WHERE relname LIKE 'idempotency%'`).Scan(&made); err != nil || made != 0 {
		t.Errorf("%d things made, %v; want none", made, err)
	}
}

// TestMigrationsRefuseToRunInPublic: nor does a tool of the user's that forgot to set
// search_path.
func TestMigrationsRefuseToRunInPublic(t *testing.T) {
	t.Parallel()
	cfg, err := pgx.ParseConfig(pgtest.NewDatabase(t))
	if err != nil {
		t.Fatal(err)
	}
	conn := stdlib.OpenDB(*cfg)
	defer conn.Close()
	provider, err := goose.NewProvider(goose.DialectPostgres, conn, migrations.FS(), goose.WithDisableGlobalRegistry(true))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := provider.Up(t.Context()); err == nil || !strings.Contains(err.Error(), "search_path does not lead to a tenant") {
		t.Errorf("error %v; want one about search_path", err)
	}
	var table sql.NullString
	if err := conn.QueryRowContext(t.Context(), `SELECT to_regclass('public.idempotency_records')`).Scan(&table); err != nil || table.Valid {
		t.Errorf("table %v, %v; want none", table, err)
	}
}

// TestUpNeedsNoRightToCreateSchemas: a role that owns its schema can migrate it.
func TestUpNeedsNoRightToCreateSchemas(t *testing.T) {
	t.Parallel()
	pool := pgtest.NewPool(t)
	role := "pgidem_migrator_" + strings.ReplaceAll(uuid.NewString(), "-", "")
	for _, sql := range []string{
		`CREATE ROLE ` + role, `CREATE SCHEMA tenant_a AUTHORIZATION ` + role,
	} {
		if _, err := pool.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() {
		for _, sql := range []string{`DROP OWNED BY ` + role, `DROP ROLE ` + role} {
			if _, err := pool.Exec(context.Background(), sql); err != nil {
				t.Error(err)
			}
		}
	})
	u, err := url.Parse(pool.Config().ConnString())
	if err != nil {
		t.Fatal(err)
	}
	q := u.Query()
	q.Set("role", role) // a run-time parameter: the session acts as the role
	u.RawQuery = q.Encode()
	if err := migrations.Up(t.Context(), u.String(), parse(t, "tenant_a")); err != nil {
		t.Fatal(err)
	}
	if err := migrations.Up(t.Context(), u.String(), parse(t, "tenant_b")); err == nil {
		t.Error("a role without the right made a schema: the test proves nothing")
	}
}
