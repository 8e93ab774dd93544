package integration_test

import (
	"context"
	"fmt"
	"net/url"
	"os"
	"strconv"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/testcontainers/testcontainers-go"
	"github.com/testcontainers/testcontainers-go/modules/postgres"
)

// image is the image of PostgreSQL to test with.
func image() string {
	if name := os.Getenv("PGIDEM_TEST_IMAGE"); name != "" {
		return name
	}
	return "postgres:17-alpine"
}

// cannotRun ends a test for which the machine lacks something: on a developer's
// machine it is skipped, in CI it fails.
func cannotRun(t testing.TB, why string) {
	t.Helper()
	if ci, _ := strconv.ParseBool(os.Getenv("CI")); ci {
		t.Fatal(why)
	}
	t.Skip(why)
}

func needEngine(t testing.TB) {
	t.Helper()
	if err := engineAnswers(t.Context()); err != nil {
		cannotRun(t, fmt.Sprintf("no container engine answers (scripts/integration.sh starts one, or start Docker): %v", err))
	}
}

func engineAnswers(ctx context.Context) (err error) {
	// The search for a socket panics where there is none.
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("%v", r)
		}
	}()
	provider, err := testcontainers.ProviderDefault.GetProvider()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	return provider.Health(ctx) // closes it, too
}

// startPostgres starts a server in a container, for the time of the test, and
// returns its URL.
func startPostgres(t testing.TB) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute) // the image may have to be pulled
	defer cancel()
	server, err := postgres.Run(ctx, image(),
		postgres.BasicWaitStrategies(),
		postgres.WithDatabase("pgidem"),
		postgres.WithUsername("owner"),
		postgres.WithPassword("for-tests-only"),
		testcontainers.WithCmdArgs("-c", "full_page_writes=off", "-c", "max_connections=200"),
		// By it scripts/integration.sh finds what a panic leaves behind.
		testcontainers.WithLabels(map[string]string{"pgidem.integration": os.Getenv("PGIDEM_INTEGRATION_RUN")}),
	)
	testcontainers.CleanupContainer(t, server)
	if err != nil {
		t.Fatal(err)
	}
	serverURL, err := server.ConnectionString(ctx, "sslmode=disable")
	if err != nil {
		t.Fatal(err)
	}
	return serverURL
}

// newPool returns a pool on a fresh database whose search_path is empty, so that
// unqualified names in SQL fail.
func newPool(t testing.TB, serverURL, database string) *pgxpool.Pool {
	t.Helper()
	ctx := t.Context()
	admin, err := pgx.Connect(ctx, serverURL)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = admin.Close(context.WithoutCancel(ctx)) }()
	name := pgx.Identifier{database}.Sanitize()
	for _, sql := range []string{
		"CREATE DATABASE " + name + " TEMPLATE template0",
		"ALTER DATABASE " + name + " SET search_path = ''",
	} {
		if _, err := admin.Exec(ctx, sql); err != nil {
			t.Fatal(err)
		}
	}
	cfg, err := pgxpool.ParseConfig(inDatabase(t, serverURL, database))
	if err != nil {
		t.Fatal(err)
	}
	cfg.MaxConns = 16 // the same on every machine
	pool, err := pgxpool.NewWithConfig(context.WithoutCancel(ctx), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	return pool
}

// inDatabase returns the URL of another database of the same server.
func inDatabase(t testing.TB, serverURL, database string) string {
	t.Helper()
	u, err := url.Parse(serverURL)
	if err != nil {
		t.Fatal(err)
	}
	u.Path = "/" + database
	return u.String()
}
