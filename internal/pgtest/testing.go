package pgtest

import (
	"context"
	"fmt"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

const (
	startTimeout = 5 * time.Minute // an image or a package may have to be fetched
	stepTimeout  = 30 * time.Second
)

// Main is for TestMain. It runs the tests, stops all servers that the process
// started, and exits with the code of the tests:
//
//	func TestMain(m *testing.M) { pgtest.Main(m) }
//
// A package without it, or whose TestMain exits by itself, leaves nothing
// behind either; the supervisor then cleans up just after the process's end.
func Main(m *testing.M) { os.Exit(Tests{m}.Run()) }

// Tests runs tests and stops all servers that the process started, for a TestMain
// that has something to do afterwards:
//
//	func TestMain(m *testing.M) { goleak.VerifyTestMain(pgtest.Tests{M: m}) }
type Tests struct{ M *testing.M }

// Run returns the code to exit with.
func (t Tests) Run() int {
	code := t.M.Run()
	running.Range(func(s, _ any) bool {
		if err := s.(*Server).Stop(); err != nil {
			_, _ = fmt.Fprintln(os.Stderr, err)
		}
		return true
	})
	return code
}

// shared is the server of the process. It is started on first use; if that
// fails, it fails for every test alike.
var shared = sync.OnceValues(func() (*Server, error) {
	ctx, cancel := startContext(context.Background())
	defer cancel()
	return Start(ctx)
})

func startContext(parent context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(parent, startTimeout, fmt.Errorf("no server within %s", startTimeout))
}

// NewDatabase returns the URL of a fresh, empty database on the process's
// shared server, which is started on first use. The database is dropped when
// the test ends. Without a PostgreSQL the test fails; it is never skipped.
func NewDatabase(t testing.TB) string {
	t.Helper()
	server, err := shared()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), stepTimeout)
	defer cancel()
	url, drop, err := server.CreateDatabase(ctx)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), stepTimeout)
		defer cancel()
		if err := drop(ctx); err != nil {
			t.Error(err)
		}
	})
	return url
}

// NewPool returns a pool of up to 16 connections on a fresh database like that
// of [NewDatabase]. The database's search_path is empty, so that an unqualified
// name in SQL fails instead of finding something in public. The pool is closed
// and the database dropped when the test ends; a connection that the test did
// not release by then fails it.
func NewPool(t testing.TB) *pgxpool.Pool {
	t.Helper()
	cfg, err := pgxpool.ParseConfig(NewDatabase(t))
	if err != nil {
		t.Fatal(err)
	}
	cfg.MaxConns = 16 // the same on every machine
	ctx, cancel := context.WithTimeout(t.Context(), stepTimeout)
	defer cancel()
	if err := emptySearchPath(ctx, cfg.ConnConfig); err != nil {
		t.Fatalf("pgtest: empty the search_path: %v", err)
	}
	pool, err := pgxpool.NewWithConfig(context.WithoutCancel(ctx), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		closed := make(chan struct{})
		go func() { pool.Close(); close(closed) }()
		select {
		case <-closed:
		case <-time.After(10 * time.Second):
			t.Error("pgtest: the pool does not close: a connection was not released")
		}
	})
	return pool
}

// emptySearchPath sets it for the database, not for a connection, so that it
// holds for every connection that is ever made to it, and through a proxy that
// refuses parameters at the start of a connection.
func emptySearchPath(ctx context.Context, cfg *pgx.ConnConfig) error {
	conn, err := pgx.ConnectConfig(ctx, cfg)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(ctx) }()
	// The setting for the role in the database wins over one that a server of
	// somebody else's may have for the role.
	name := pgx.Identifier{cfg.Database}.Sanitize()
	for _, sql := range []string{
		"ALTER DATABASE " + name + " SET search_path = ''",
		"ALTER ROLE CURRENT_USER IN DATABASE " + name + " SET search_path = ''",
	} {
		if _, err := conn.Exec(ctx, sql); err != nil {
			return err
		}
	}
	return nil
}

// NewServer starts a throw-away cluster of the test's own, from server binaries
// on this machine, for tests that kill or restart it. It is stopped when the
// test ends. Without binaries the test fails; neither the environment's server
// nor a container will do.
func NewServer(t testing.TB, opts ...Option) *Server {
	t.Helper()
	ctx, cancel := startContext(t.Context())
	defer cancel()
	localOnly := func(c *config) { c.spec.LocalOnly = true }
	server, err := Start(ctx, append(slices.Clip(opts), localOnly)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := server.Stop(); err != nil {
			t.Error(err)
		}
	})
	return server
}
