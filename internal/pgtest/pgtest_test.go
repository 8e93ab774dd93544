package pgtest_test

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"go.uber.org/goleak"

	"github.com/pgidem/pgidem/internal/pgtest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(pgtest.Tests{M: m}) }

func TestNewPool(t *testing.T) {
	t.Parallel()

	t.Run("unqualified names fail", func(t *testing.T) {
		t.Parallel()
		pool := pgtest.NewPool(t)
		_, err := pool.Exec(t.Context(), "CREATE TABLE lost (id int)")
		var pgErr *pgconn.PgError
		if !errors.As(err, &pgErr) || pgErr.Code != "3F000" { // invalid_schema_name
			t.Errorf("CREATE TABLE without a schema: %v, want SQLSTATE 3F000", err)
		}
		// It holds for connections that tests open themselves, too.
		conn := connect(t, pool.Config().ConnString())
		if path := query[[]string](t, conn, "SELECT pg_catalog.current_schemas(false)"); len(path) != 0 {
			t.Errorf("schemas in the search_path: %v, want none", path)
		}
	})

	t.Run("two pools are apart", func(t *testing.T) {
		t.Parallel()
		one, two := pgtest.NewPool(t), pgtest.NewPool(t)
		execute(t, one, "CREATE TABLE public.only_one (id int)")
		const count = "SELECT pg_catalog.count(*) FROM pg_catalog.pg_tables AS t WHERE t.tablename = 'only_one'"
		if n := query[int](t, one, count); n != 1 {
			t.Errorf("tables in the first database: %d, want 1", n)
		}
		if n := query[int](t, two, count); n != 0 {
			t.Errorf("tables in the second database: %d, want 0", n)
		}
	})
}

func TestNewDatabase(t *testing.T) {
	t.Parallel()

	t.Run("is gone after the test, open connections or not", func(t *testing.T) {
		t.Parallel()
		watch := connect(t, pgtest.NewDatabase(t))
		var name string
		t.Run("inner", func(t *testing.T) {
			// Closed after the database was dropped under it.
			conn, err := pgx.Connect(t.Context(), pgtest.NewDatabase(t))
			if err != nil {
				t.Fatal(err)
			}
			name = query[string](t, conn, "SELECT pg_catalog.current_database()")
			if n := databases(t, watch, name); n != 1 {
				t.Errorf("databases called %s during the test: %d, want 1", name, n)
			}
		})
		if n := databases(t, watch, name); n != 0 {
			t.Errorf("databases called %s after the test: %d, want 0", name, n)
		}
	})

	t.Run("many at once", func(t *testing.T) {
		t.Parallel()
		for range 12 {
			t.Run("one", func(t *testing.T) {
				t.Parallel()
				conn := connect(t, pgtest.NewDatabase(t))
				execute(t, conn, "CREATE TABLE public.t (id int)")
			})
		}
	})
}

func TestServerStop(t *testing.T) {
	t.Parallel()
	server := pgtest.NewServer(t)
	if err := server.Stop(); err != nil {
		t.Fatal(err)
	}
	if err := server.Stop(); err != nil {
		t.Errorf("second Stop: %v, want none", err)
	}
	if _, err := pgx.Connect(t.Context(), server.URL()); err == nil {
		t.Error("a stopped server takes connections")
	}
	if err := server.Restart(t.Context()); err == nil {
		t.Error("a stopped server can be restarted")
	}
}

func TestServerParameters(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name string
		opts []pgtest.Option
		want map[string]string
	}{
		{
			name: "defaults",
			want: map[string]string{
				"fsync": "off", "full_page_writes": "off", "synchronous_commit": "on", "max_connections": "200",
				"timezone": "UTC", "server_encoding": "UTF8", "lc_collate": "C", "listen_addresses": "",
			},
		},
		{
			name: "options",
			opts: []pgtest.Option{
				pgtest.WithDurable(),
				pgtest.WithTCP(),
				pgtest.WithParameter("max_connections", "20"),
				pgtest.WithParameter("application_name", "it's"),
			},
			want: map[string]string{
				"fsync": "on", "full_page_writes": "on", "max_connections": "20",
				"listen_addresses": "127.0.0.1", "application_name": "it's",
			},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			conn := connect(t, pgtest.NewServer(t, tt.opts...).URL())
			for name, want := range tt.want {
				// lc_collate is no parameter any more in PostgreSQL 16.
				got := query[string](t, conn, `
SELECT CASE $1::text
       WHEN 'lc_collate' THEN d.datcollate
       ELSE pg_catalog.current_setting($1)
       END
  FROM pg_catalog.pg_database AS d
 WHERE d.datname = current_database()`, name)
				if got != want {
					t.Errorf("%s = %q, want %q", name, got, want)
				}
			}
		})
	}
}

func TestTCPNeedsPassword(t *testing.T) {
	t.Parallel()
	server := pgtest.NewServer(t, pgtest.WithTCP())
	cfg, err := pgx.ParseConfig(server.URL())
	if err != nil {
		t.Fatal(err)
	}
	if cfg.Host != "127.0.0.1" {
		t.Errorf("host %q, want 127.0.0.1", cfg.Host)
	}
	connect(t, server.URL())
	cfg.Password = "wrong"
	_, err = pgx.ConnectConfig(t.Context(), cfg)
	var pgErr *pgconn.PgError
	if !errors.As(err, &pgErr) || pgErr.Code != "28P01" { // invalid_password
		t.Errorf("wrong password: %v, want SQLSTATE 28P01", err)
	}
}

func TestKillAndRestart(t *testing.T) {
	t.Parallel()
	server := pgtest.NewServer(t, pgtest.WithDurable(), pgtest.WithTCP())
	url, _, err := server.CreateDatabase(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	conn := connect(t, url)
	execute(t, conn, "CREATE TABLE public.t (id int)")
	execute(t, conn, "INSERT INTO public.t (id) SELECT i FROM pg_catalog.generate_series(1, 1000) AS i")
	execute(t, conn, "BEGIN")
	execute(t, conn, "INSERT INTO public.t (id) VALUES (1001)")

	if err := server.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := conn.Ping(t.Context()); err == nil {
		t.Error("the connection outlived the kill")
	}
	if _, err := pgx.Connect(t.Context(), url); err == nil {
		t.Error("the killed server takes connections")
	}
	if err := server.Kill(); err == nil {
		t.Error("a killed server can be killed again")
	}

	if err := server.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := query[int](t, connect(t, url), "SELECT pg_catalog.count(*) FROM public.t AS t"); n != 1000 {
		t.Errorf("rows after the kill: %d, want the 1000 that were committed", n)
	}
	// And while it runs.
	if err := server.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	connect(t, url)
}

func TestStartHeedsContext(t *testing.T) {
	t.Parallel()
	cause := errors.New("enough")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(cause)
	if _, err := pgtest.Start(ctx); !errors.Is(err, cause) {
		t.Errorf("Start: %v, want the cause", err)
	}
	server := pgtest.NewServer(t)
	if err := server.Restart(ctx); !errors.Is(err, cause) {
		t.Errorf("Restart: %v, want the cause", err)
	}
}

type querier interface {
	Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error)
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
}

var _ = []querier{(*pgx.Conn)(nil), (*pgxpool.Pool)(nil)}

func connect(t *testing.T, url string) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(context.Background()) })
	return conn
}

func execute(t *testing.T, db querier, sql string) {
	t.Helper()
	if _, err := db.Exec(t.Context(), sql); err != nil {
		t.Fatalf("%s: %v", strings.TrimSpace(sql), err)
	}
}

func query[T any](t *testing.T, db querier, sql string, args ...any) T {
	t.Helper()
	rows, err := db.Query(t.Context(), sql, args...)
	if err != nil {
		t.Fatalf("%s: %v", strings.TrimSpace(sql), err)
	}
	value, err := pgx.CollectExactlyOneRow(rows, pgx.RowTo[T])
	if err != nil {
		t.Fatalf("%s: %v", strings.TrimSpace(sql), err)
	}
	return value
}

// databases counts the databases whose names begin with prefix.
func databases(t *testing.T, db querier, prefix string) int {
	t.Helper()
	return query[int](t, db, `
SELECT pg_catalog.count(*)
  FROM pg_catalog.pg_database AS d
 WHERE pg_catalog.starts_with(d.datname, $1)`, prefix)
}
