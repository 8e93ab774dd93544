package migrations_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgidem/pgidem/internal/pgtest"
	"github.com/pgidem/pgidem/migrations"
	"github.com/pgidem/pgidem/tenancy"
)

// newMigrator makes a role that may log in and make schemas, and returns a URL for it.
func newMigrator(t *testing.T, pool *pgxpool.Pool) (role, url string) {
	t.Helper()
	cfg := pool.Config().ConnConfig
	role = "pgidem_migrator_" + strings.ReplaceAll(uuid.NewString(), "-", "")
	run(t, pool, `CREATE ROLE `+role+` LOGIN PASSWORD 'x'; GRANT CREATE ON DATABASE `+pgx.Identifier{cfg.Database}.Sanitize()+` TO `+role)
	t.Cleanup(func() {
		if _, err := pool.Exec(context.Background(), `REASSIGN OWNED BY `+role+` TO CURRENT_USER; DROP OWNED BY `+role+`; DROP ROLE `+role); err != nil {
			t.Error(err)
		}
	})
	return role, fmt.Sprintf("host=%s port=%d dbname=%s user=%s password=x application_name=%s", cfg.Host, cfg.Port, cfg.Database, role, role)
}

// TestAllMakesDoWithFewConnections: a worker that gets none is no reason to end the run.
func TestAllMakesDoWithFewConnections(t *testing.T) {
	t.Parallel()
	pool := pgtest.NewPool(t)
	role, url := newMigrator(t, pool)
	run(t, pool, `ALTER ROLE `+role+` CONNECTION LIMIT 2`)
	conn, err := pgx.Connect(t.Context(), url) // takes one
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(context.Background()) }()
	schemas := tenants(t, 40)
	// Nor does one that waits for a connection keep it from ending when all is done.
	report, err := migrations.All(t.Context(), url, migrations.Schemas(schemas...), migrations.WithWorkers(4), migrations.WithReconnect(time.Hour))
	if err != nil || report.Created != 40 || report.Unreached != 0 {
		t.Errorf("%+v, %v", report, err)
	}
	if report.Refused == 0 || report.RefusedErr == nil || !strings.Contains(report.RefusedErr.Error(), "53300") {
		t.Errorf("refused %d times, the last time for %v", report.Refused, report.RefusedErr)
	}
	intact(t, pool, schemas, latest)
}

// TestAllGoesOnWithOneConnection for longer than it would go on without any.
func TestAllGoesOnWithOneConnection(t *testing.T) {
	t.Parallel()
	pool := pgtest.NewPool(t)
	role, url := newMigrator(t, pool)
	schemas := tenants(t, 3)
	if _, err := migrations.All(t.Context(), url, migrations.Schemas(schemas...)); err != nil {
		t.Fatal(err)
	}
	leave(t, pool, role)
	run(t, pool, `ALTER ROLE `+role+` CONNECTION LIMIT 1`)
	tx, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	release := sync.OnceFunc(func() { _ = tx.Rollback(context.Background()) })
	defer release()
	if _, err := tx.Exec(t.Context(), `LOCK TABLE `+schemas[0].Quoted()+`.idempotency_records IN ACCESS SHARE MODE`); err != nil {
		t.Fatal(err)
	}
	defer time.AfterFunc(5*time.Second, release).Stop()
	report, err := migrations.All(t.Context(), url, migrations.Schemas(schemas...), migrations.WithLockTimeout(time.Minute), migrations.WithReconnect(3*time.Second),
		migrations.WithFS(upTo(t, latest, another)))
	if err != nil || report.Migrated != 3 || report.Refused == 0 {
		t.Errorf("%+v, %v", report, err)
	}
}

// leave waits until the server has taken leave of all connections of the role, which have been
// closed: until then they count.
func leave(t *testing.T, pool *pgxpool.Pool, role string) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		var left int
		if err := pool.QueryRow(t.Context(), `SELECT count(*) FROM pg_stat_activity WHERE usename = $1`, role).Scan(&left); err != nil {
			t.Fatal(err)
		}
		switch {
		case left == 0:
			return
		case time.Now().After(deadline):
			t.Fatalf("%d connections are left", left)
		}
	}
}

// TestAllEndsWithoutAConnection, and goes on when it is run again.
func TestAllEndsWithoutAConnection(t *testing.T) {
	t.Parallel()
	pool := pgtest.NewPool(t)
	role, url := newMigrator(t, pool)
	schemas := tenants(t, 30)
	shut := false
	report, err := migrations.All(t.Context(), url, migrations.Schemas(schemas...), migrations.WithWorkers(3), migrations.WithTries(1000, time.Millisecond),
		migrations.WithReconnect(3*time.Second), migrations.WithResult(func(migrations.Result) {
			if shut {
				return
			}
			shut = true
			run(t, pool, `ALTER ROLE `+role+` NOLOGIN`)
			run(t, pool, `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '`+role+`'`)
		}))
	if err == nil || errors.Is(err, migrations.ErrFailed) || !strings.Contains(err.Error(), "no worker could get a connection for 3s; run again to go on") || !strings.Contains(err.Error(), "not permitted to log in") {
		t.Errorf("error %v", err)
	}
	if report.Created == 0 || report.Failed != 0 || report.Unreached == 0 || report.Created+report.Unreached != 30 || report.Refused == 0 {
		t.Errorf("%+v", report)
	}
	run(t, pool, `ALTER ROLE `+role+` LOGIN`)
	report, err = migrations.All(t.Context(), url, migrations.Schemas(schemas...))
	if err != nil || report.Created+report.Current != 30 {
		t.Errorf("%+v, %v", report, err)
	}
	intact(t, pool, schemas, latest)
}

// TestRunsEndWithoutAnAnswer: what takes their connections says nothing.
func TestRunsEndWithoutAnAnswer(t *testing.T) {
	t.Parallel()
	cfg := pgtest.NewPool(t).Config().ConnConfig
	for name, c := range map[string]struct {
		answers int
		run     func(context.Context, string, iter.Seq2[migrations.Target, error], ...migrations.Option) error
		says    string
	}{
		"All":     {0, ignoringReport, "failed to connect"},
		"workers": {1, ignoringReport, "no worker could get a connection for 3s; run again to go on"},
		"Status": {0, func(ctx context.Context, url string, targets iter.Seq2[migrations.Target, error], opts ...migrations.Option) error {
			_, err := migrations.Status(ctx, url, targets, opts...)
			return err
		}, "failed to connect"},
		"Up": {0, func(ctx context.Context, url string, targets iter.Seq2[migrations.Target, error], _ ...migrations.Option) error {
			return migrations.UpWithin(ctx, url, 3*time.Second, schemasOf(targets)[0])
		}, "failed to connect"},
		"UpControl": {0, func(ctx context.Context, url string, targets iter.Seq2[migrations.Target, error], _ ...migrations.Option) error {
			return migrations.UpControlWithin(ctx, url, 3*time.Second, schemasOf(targets)[0])
		}, "failed to connect"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			url := fmt.Sprintf("host=127.0.0.1 port=%d dbname=%s user=%s password='%s' sslmode=disable", newSilence(t, cfg, c.answers), cfg.Database, cfg.User, cfg.Password)
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			err := c.run(ctx, url, migrations.Schemas(tenants(t, 2)...), migrations.WithReconnect(3*time.Second))
			if err == nil || ctx.Err() != nil || !strings.Contains(err.Error(), c.says) {
				t.Errorf("%v; want one that says %q", err, c.says)
			}
		})
	}
}

// TestUpStopsWithoutAConnection: the schemas after the one for which it got none would wait as
// long each.
func TestUpStopsWithoutAConnection(t *testing.T) {
	t.Parallel()
	pool := pgtest.NewPool(t)
	cfg := pool.Config().ConnConfig
	schemas := tenants(t, 14)
	url := fmt.Sprintf("host=127.0.0.1 port=%d dbname=%s user=%s password='%s' sslmode=disable", newSilence(t, cfg, 1), cfg.Database, cfg.User, cfg.Password)
	err := migrations.UpWithin(t.Context(), url, 3*time.Second, schemas...)
	if _, ok := errors.AsType[*pgconn.ConnectError](err); !ok {
		t.Fatal(err)
	}
	for _, says := range []string{"schema " + schemas[1].String() + ": ", "not reached for want of a connection: " + schemas[2].String() + ", " + schemas[3].String(), schemas[11].String() + " and 2 more; run again"} {
		if !strings.Contains(err.Error(), says) {
			t.Errorf("%v; want it to say %q", err, says)
		}
	}
	if !exists(t, pool, schemas[0]) || exists(t, pool, schemas[1]) {
		t.Error("the first is not there, or the second is")
	}

	// That is not so of what fails for itself.
	run(t, pool, `DROP TABLE `+schemas[0].Quoted()+`.idempotency_db_version; CREATE VIEW `+schemas[0].Quoted()+`.idempotency_db_version AS SELECT 1`)
	if err := migrations.Up(t.Context(), pool.Config().ConnString(), schemas[:2]...); err == nil || strings.Contains(err.Error(), "not reached") || !exists(t, pool, schemas[1]) {
		t.Errorf("beside one that fails: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := migrations.Up(ctx, pool.Config().ConnString(), schemas[:2]...); !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), "not reached: "+schemas[1].String()+": context canceled") {
		t.Errorf("cancelled: %v", err)
	}
}

func schemasOf(targets iter.Seq2[migrations.Target, error]) (list []tenancy.Schema) {
	for target := range targets {
		list = append(list, target.Schema)
	}
	return list
}

// TestConnectTimeout: that of the URL holds if it is shorter.
func TestConnectTimeout(t *testing.T) {
	t.Parallel()
	for url, want := range map[string]time.Duration{
		"postgres://h/d": 30 * time.Second, "postgres://h/d?connect_timeout=7": 7 * time.Second, "postgres://h/d?connect_timeout=70": 30 * time.Second,
	} {
		cfg, err := migrations.ConnConfig(url, 30*time.Second)
		if err != nil || cfg.ConnectTimeout != want {
			t.Errorf("%s: %v, %v; want %v", url, cfg.ConnectTimeout, err, want)
		}
	}
}

func ignoringReport(ctx context.Context, url string, targets iter.Seq2[migrations.Target, error], opts ...migrations.Option) error {
	_, err := migrations.All(ctx, url, targets, opts...)
	return err
}

// newSilence returns the port of what leads so many connections to the server, and then takes
// more and says nothing.
func newSilence(t *testing.T, cfg *pgx.ConnConfig, answers int) (port int) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var group sync.WaitGroup
	group.Go(func() {
		for n := 0; ; n++ {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			defer func() { _ = conn.Close() }()
			if n >= answers {
				continue
			}
			network, address := pgconn.NetworkAddress(cfg.Host, cfg.Port)
			server, err := net.Dial(network, address)
			if err != nil {
				t.Error(err)
				return
			}
			defer func() { _ = server.Close() }()
			group.Go(func() { _, _ = io.Copy(server, conn); _ = server.Close() })
			group.Go(func() { _, _ = io.Copy(conn, server); _ = conn.Close() })
		}
	})
	t.Cleanup(func() { _ = listener.Close(); group.Wait() })
	return listener.Addr().(*net.TCPAddr).Port
}

// TestAllLeavesNothingBehind when it is stopped while it waits for a lock.
func TestAllLeavesNothingBehind(t *testing.T) {
	t.Parallel()
	pool := pgtest.NewPool(t)
	_, url := newMigrator(t, pool)
	schemas := tenants(t, 2)
	if _, err := migrations.All(t.Context(), url, migrations.Schemas(schemas...)); err != nil {
		t.Fatal(err)
	}
	tx, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback(context.Background()) }()
	for _, schema := range schemas {
		if _, err := tx.Exec(t.Context(), `LOCK TABLE `+schema.Quoted()+`.idempotency_records IN ACCESS SHARE MODE`); err != nil {
			t.Fatal(err)
		}
	}
	waiting := func() (n int) {
		t.Helper()
		if err := pool.QueryRow(t.Context(), `SELECT count(*) FROM pg_locks WHERE NOT granted AND database = (SELECT oid FROM pg_database WHERE datname = current_database())`).Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	next := migrations.WithFS(upTo(t, latest, another))
	for range 5 {
		ctx, stop := context.WithCancel(t.Context())
		defer stop()
		ended := make(chan error)
		go func() {
			_, err := migrations.All(ctx, url, migrations.Schemas(schemas...), migrations.WithLockTimeout(time.Minute), next)
			ended <- err
		}()
		for deadline := time.Now().Add(30 * time.Second); waiting() < 2; time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatal("it waits for no lock")
			}
		}
		stop()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Errorf("error %v", err)
		}
		if n := waiting(); n > 0 {
			t.Fatalf("%d of its statements still wait for a lock", n)
		}
	}
}
