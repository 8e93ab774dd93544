//go:build unix

package integration_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgidem/pgidem/idempotency"
	"github.com/pgidem/pgidem/idempotency/idempotencytest"
	"github.com/pgidem/pgidem/idempotency/pgstore"
	"github.com/pgidem/pgidem/internal/pgtest"
	"github.com/pgidem/pgidem/internal/storetest"
)

// serverConns is how many connections to the server PgBouncer makes for each database.
const serverConns = 5

// bouncer is a PgBouncer in transaction mode before a PostgreSQL.
type bouncer struct {
	direct string // URL of the server
	url    string // of PgBouncer
}

// startBouncer starts a PostgreSQL and a PgBouncer before it, for the time of the test.
func startBouncer(t *testing.T) *bouncer {
	t.Helper()
	program, err := exec.LookPath("pgbouncer")
	if err != nil {
		program, err = exec.LookPath("/usr/sbin/pgbouncer") // which is not in everybody's PATH
	}
	if err != nil {
		cannotRun(t, fmt.Sprintf("no PgBouncer (scripts/integration.sh installs it): %v", err))
	}
	version, err := exec.CommandContext(t.Context(), program, "--version").Output()
	if err != nil {
		t.Fatal(err)
	}
	preparing, err := preparesNothing(string(version))
	if err != nil {
		t.Fatal(err)
	}
	b := &bouncer{direct: pgtest.NewServer(t, pgtest.WithTCP()).URL()}
	server, err := url.Parse(b.direct)
	if err != nil {
		t.Fatal(err)
	}
	port := freePort(t)
	folder, err := os.MkdirTemp("", "pgidem-pgbouncer-") //nolint:usetesting // the test's own is closed to other accounts
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(folder) })
	password, _ := server.User.Password()
	files := map[string]string{
		"users.txt": fmt.Sprintf("%q \"\"\n", server.User.Username()),
		"pgbouncer.ini": fmt.Sprintf(`[databases]
* = host=%s port=%s user=%s password=%s
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = %s
unix_socket_dir =
auth_type = trust
auth_file = %s
pool_mode = transaction
default_pool_size = %d
max_client_conn = 200
%s`, server.Hostname(), server.Port(), server.User.Username(), password, port, filepath.Join(folder, "users.txt"), serverConns, preparing),
	}
	attributes := &syscall.SysProcAttr{Setpgid: true} // Ctrl-C is for the tests, which then end it
	if os.Geteuid() == 0 {
		attributes.Credential = unprivileged(t) // it refuses root
	}
	for name, text := range files {
		path := filepath.Join(folder, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if c := attributes.Credential; c != nil {
		for _, path := range []string{folder, filepath.Join(folder, "users.txt"), filepath.Join(folder, "pgbouncer.ini")} {
			if err := os.Chown(path, int(c.Uid), int(c.Gid)); err != nil {
				t.Fatal(err)
			}
		}
	}
	var log bytes.Buffer
	cmd := exec.Command(program, filepath.Join(folder, "pgbouncer.ini"))
	cmd.Dir, cmd.SysProcAttr, cmd.Stdout, cmd.Stderr = folder, attributes, &log, &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("PgBouncer:\n%s", &log)
		}
	})
	pooled := *server
	pooled.Host = net.JoinHostPort("127.0.0.1", port)
	pooled.User = url.User(server.User.Username())
	b.url = pooled.String()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		conn, err := pgx.Connect(t.Context(), b.url)
		if err == nil {
			_ = conn.Close(t.Context())
			return b
		}
		if time.Now().After(deadline) {
			t.Fatal("PgBouncer does not answer: ", err)
		}
	}
}

// preparesNothing returns the setting that has a version of PgBouncer keep no prepared
// statements apart, which newer ones do unasked, and older ones refuse to start with.
func preparesNothing(version string) (string, error) {
	found := versionNumber.FindStringSubmatch(version)
	if found == nil {
		return "", fmt.Errorf("no version in %q", version)
	}
	major, minor := found[1], found[2]
	if n, err := strconv.Atoi(minor); err != nil || major == "1" && n < 21 {
		return "", err
	}
	return "max_prepared_statements = 0\n", nil
}

var versionNumber = regexp.MustCompile(`(\d+)\.(\d+)`)

func TestPreparesNothing(t *testing.T) {
	t.Parallel()
	for version, want := range map[string]bool{
		"PgBouncer 1.18.0\nlibevent 2.1.12-stable\nadns: c-ares 1.18.1": false, "PgBouncer 1.20.1\n": false,
		"PgBouncer 1.21.0\nlibevent 2.1.12-stable": true, "PgBouncer 1.24.1\n": true, "PgBouncer 2.0.0\n": true,
	} {
		if got, err := preparesNothing(version); err != nil || (got != "") != want {
			t.Errorf("%q: %q, %v", version, got, err)
		}
	}
	if _, err := preparesNothing("usage: pgbouncer"); err == nil {
		t.Error("no version is one")
	}
}

func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	return port
}

// unprivileged returns an account to run as in root's place.
func unprivileged(t *testing.T) *syscall.Credential {
	t.Helper()
	u, err := user.Lookup("nobody")
	if err != nil {
		t.Fatal(err)
	}
	uid, err := strconv.ParseUint(u.Uid, 10, 32)
	if err != nil {
		t.Fatal(err)
	}
	gid, err := strconv.ParseUint(u.Gid, 10, 32)
	if err != nil {
		t.Fatal(err)
	}
	return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
}

// pools returns one of direct connections to a fresh database, and one through PgBouncer.
func (b *bouncer) pools(t *testing.T, database string, mode pgx.QueryExecMode) (direct, pooled *pgxpool.Pool) {
	t.Helper()
	direct = newPool(t, b.direct, database)
	config, err := pgxpool.ParseConfig(inDatabase(t, b.url, database))
	if err != nil {
		t.Fatal(err)
	}
	config.MaxConns = 4 * serverConns
	config.ConnConfig.DefaultQueryExecMode = mode
	pooled, err = pgxpool.NewWithConfig(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pooled.Close)
	return direct, pooled
}

// txStore lets a suite move the times of the tenants of one test.
type txStore struct {
	idempotency.LeaseStore
	orgs []uuid.UUID
}

func transactionSuite(direct, pooled *pgxpool.Pool) (newStore func(testing.TB) idempotency.Store, opts []idempotencytest.Option) {
	return func(t testing.TB) idempotency.Store {
			return &txStore{LeaseStore: storetest.NewStore(t, pooled).Transactional().(idempotency.LeaseStore)}
		}, []idempotencytest.Option{
			idempotencytest.WithTransactions(),
			idempotencytest.WithTenant(func(t testing.TB, s idempotency.Store) uuid.UUID {
				org := storetest.NewTenant(t, direct)
				s.(*txStore).orgs = append(s.(*txStore).orgs, org)
				return org
			}),
			idempotencytest.WithAdvance(func(t testing.TB, s idempotency.Store, d time.Duration) {
				for _, org := range s.(*txStore).orgs {
					storetest.Advance(t, direct, org, d)
				}
			}),
		}
}

// TestPgBouncer runs the suites, and what could only go wrong where server connections are
// shared, through a PgBouncer in transaction mode.
func TestPgBouncer(t *testing.T) {
	t.Parallel()
	b := startBouncer(t)
	t.Run("middleware", func(t *testing.T) {
		t.Parallel()
		direct, pooled := b.pools(t, "middleware", pgx.QueryExecModeExec)
		newStore, opts := storetest.SuiteBehind(pooled, direct)
		idempotencytest.TestMiddleware(t, newStore, opts...)
	})
	t.Run("transactions", func(t *testing.T) {
		t.Parallel()
		newStore, opts := transactionSuite(b.pools(t, "transactions", pgx.QueryExecModeExec))
		idempotencytest.TestMiddleware(t, newStore, opts...)
	})
	t.Run("janitor", func(t *testing.T) {
		t.Parallel()
		testJanitor(t, b)
	})
	for name, mode := range map[string]pgx.QueryExecMode{
		"exec":           pgx.QueryExecModeExec,
		"cache_describe": pgx.QueryExecModeCacheDescribe,
		"simple":         pgx.QueryExecModeSimpleProtocol,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			t.Run("store", func(t *testing.T) {
				t.Parallel()
				direct, pooled := b.pools(t, name+"_store", mode)
				newStore, opts := storetest.SuiteBehind(pooled, direct)
				idempotencytest.TestStore(t, newStore, opts...)
			})
			t.Run("tenants share connections", func(t *testing.T) {
				t.Parallel()
				direct, pooled := b.pools(t, name+"_shared", mode)
				testSharedConnections(t, direct, pooled)
			})
			t.Run("many together", func(t *testing.T) {
				t.Parallel()
				direct, pooled := b.pools(t, name+"_together", mode)
				testTogether(t, direct, pooled)
			})
			t.Run("connections die", func(t *testing.T) {
				t.Parallel()
				direct, pooled := b.pools(t, name+"_dying", mode)
				testDyingConnections(t, direct, pooled)
			})
		})
	}
}

// shop is a service whose handlers pay in transactions, and are told who the tenant is.
type shop struct {
	url    string
	direct *pgxpool.Pool
	orgs   []uuid.UUID
}

const orgHeader = "X-Org"

// patience is for those who wait until a connection is free.
var patience = idempotency.WithStoreTimeout(time.Minute)

// newShop makes tenants, each with a table of payments, and serves handle for them.
func newShop(t *testing.T, direct *pgxpool.Pool, store idempotency.Store, tenants int, handle http.HandlerFunc) *shop {
	t.Helper()
	s := &shop{direct: direct}
	for range tenants {
		org := storetest.NewTenant(t, direct)
		s.orgs = append(s.orgs, org)
		if _, err := direct.Exec(t.Context(), `CREATE TABLE `+storetest.SchemaOf(t, org).Quoted()+`.payments (key text NOT NULL, org uuid NOT NULL)`); err != nil {
			t.Fatal(err)
		}
	}
	protected := idempotency.Require(store, patience)(handle)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		org, err := uuid.Parse(r.Header.Get(orgHeader))
		if err != nil {
			t.Error(err)
		}
		protected.ServeHTTP(w, r.WithContext(idempotency.WithOrgID(r.Context(), org)))
	}))
	t.Cleanup(server.Close)
	s.url = server.URL
	return s
}

func (s *shop) post(ctx context.Context, org uuid.UUID, key string) (status int, body string, err error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, s.url, strings.NewReader(`{"amount":1}`))
	if err != nil {
		return 0, "", err
	}
	r.Header.Set(idempotency.HeaderKey, key)
	r.Header.Set(orgHeader, org.String())
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(text), err
}

// wantPayments checks that each tenant has one payment of its own for each of n keys.
func (s *shop) wantPayments(t *testing.T, n int) {
	t.Helper()
	for _, org := range s.orgs {
		schema := storetest.SchemaOf(t, org).Quoted()
		var payments, keys, records int
		err := s.direct.QueryRow(t.Context(), `SELECT count(*), count(DISTINCT key), (SELECT count(*) FROM `+schema+`.idempotency_records WHERE completed_at IS NOT NULL)
			FROM `+schema+`.payments WHERE org = $1`, org).Scan(&payments, &keys, &records)
		if err != nil || payments != n || keys != n || records < n {
			t.Errorf("%d payments of %d keys, %d records, %v; want %d of each", payments, keys, records, err, n)
		}
	}
}

// pay writes one payment of the tenant's, into whatever table the name leads to.
func pay(r *http.Request) (tx pgx.Tx, err error) {
	tx, ok := pgstore.Tx(r.Context())
	if !ok {
		return nil, errors.New("no transaction")
	}
	org, _ := idempotency.FromContext(r.Context())
	key, _ := idempotency.Key(r.Context())
	_, err = tx.Exec(r.Context(), `INSERT INTO payments (key, org) VALUES ($1, $2)`, key, org)
	return tx, err
}

// wantClean checks that nothing is left on the connections to the server.
func wantClean(t *testing.T, direct, pooled *pgxpool.Pool) {
	t.Helper()
	var wg sync.WaitGroup
	for range 4 * serverConns { // so that each of them is asked
		wg.Go(func() {
			var path string
			if err := pooled.QueryRow(t.Context(), `SELECT pg_catalog.current_setting('search_path') FROM pg_catalog.pg_sleep(0.01)`).Scan(&path); err != nil || path != `""` {
				t.Errorf("search_path %s, %v; want none", path, err)
			}
		})
	}
	wg.Wait()
	var locks, open int
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) { // a server process that was ended takes a moment
		err := direct.QueryRow(t.Context(), `SELECT
			(SELECT count(*) FROM pg_catalog.pg_locks AS l JOIN pg_catalog.pg_database AS d ON d.oid = l.database WHERE l.locktype = 'advisory' AND d.datname = current_database()),
			(SELECT count(*) FROM pg_catalog.pg_stat_activity WHERE datname = current_database() AND pid <> pg_catalog.pg_backend_pid() AND state LIKE 'idle in transaction%')`).Scan(&locks, &open)
		if err == nil && locks == 0 && open == 0 {
			return
		}
		if err != nil || time.Now().After(deadline) {
			t.Fatalf("%d advisory locks and %d transactions are left, %v", locks, open, err)
		}
	}
}

// testTogether has many requests go in few transactions, for which those change settings:
// none may be left behind on a connection that others get.
func testTogether(t *testing.T, direct, pooled *pgxpool.Pool) {
	store := storetest.NewStore(t, pooled, pgstore.WithCoalescing(1), pgstore.WithRelaxedClaims())
	var orgs []uuid.UUID
	for range 3 {
		orgs = append(orgs, storetest.NewTenant(t, direct))
	}
	const keys = 60
	var claimed atomic.Int64
	var wg sync.WaitGroup
	for i := range 3 * keys {
		wg.Go(func() {
			req := idempotency.ClaimRequest{
				Claim:       idempotency.Claim{OrgID: orgs[i%3], Key: fmt.Sprint("key-", i%keys), Token: idempotency.NewToken()},
				RequestHash: "hash", Lease: time.Minute, TTL: time.Hour,
			}
			result, err := store.Claim(t.Context(), req)
			if err == nil && result.Outcome == idempotency.OutcomeClaimed {
				claimed.Add(1)
				err = store.Complete(t.Context(), req.Claim, &idempotency.Record{ResponseStatus: http.StatusCreated})
			}
			if err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if claimed.Load() != keys {
		t.Errorf("%d claims of %d keys", claimed.Load(), keys)
	}
	for range 50 {
		wg.Go(func() {
			var settings string
			err := pooled.QueryRow(t.Context(), `SELECT current_setting('synchronous_commit') || ' ' || current_setting('enable_seqscan') || ' ' ||
				current_setting('enable_hashjoin') || ' ' || current_setting('enable_mergejoin')`).Scan(&settings)
			if err != nil || settings != "on on on on" {
				t.Errorf("%s, %v: a setting was left behind", settings, err)
			}
		})
	}
	wg.Wait()
}

// testSharedConnections: many tenants, more requests at a time than the server has
// connections, in both modes side by side, and a purge.
func testSharedConnections(t *testing.T, direct, pooled *pgxpool.Pool) {
	const tenants, keys, each = 4, 6, 3
	var steps atomic.Int64
	handle := func(w http.ResponseWriter, r *http.Request) {
		ctx := r.Context()
		org, _ := idempotency.FromContext(ctx)
		tx, err := pay(r)
		if err != nil {
			t.Error(err)
			return
		}
		var path string
		if err := tx.QueryRow(ctx, `SELECT pg_catalog.current_setting('search_path')`).Scan(&path); err != nil || strings.Trim(path, `"`) != storetest.SchemaOf(t, org).String() {
			t.Errorf("search_path %s, %v; want the tenant's", path, err)
		}
		w.WriteHeader(http.StatusCreated)
		fmt.Fprint(w, "paid by ", org)
	}
	s := newShop(t, direct, storetest.NewStore(t, pooled).Transactional(), tenants, handle)
	leases := storetest.NewStore(t, pooled)
	var wg sync.WaitGroup
	for _, org := range s.orgs {
		for key := range keys {
			for range each {
				wg.Go(func() {
					status, body, err := s.post(t.Context(), org, fmt.Sprint("key", key))
					switch {
					case err == nil && status == http.StatusCreated && body == fmt.Sprint("paid by ", org):
					case err == nil && status == http.StatusConflict && strings.Contains(body, "in_flight"):
					default:
						t.Errorf("%d %s, %v", status, body, err)
					}
				})
			}
		}
		wg.Go(func() { // with a lease, and a step
			for i := range keys {
				got, outcome, err := idempotency.Do(t.Context(), leases, org, fmt.Sprint("job", i), "", func(ctx context.Context) (string, error) {
					return idempotency.Step(ctx, "step", func(context.Context) (string, error) {
						steps.Add(1)
						return org.String(), nil
					})
				}, patience)
				if err != nil || outcome != idempotency.DecisionExecuted || got != org.String() {
					t.Errorf("%s, %s, %v", got, outcome, err)
				}
			}
		})
	}
	wg.Wait()
	if n := steps.Load(); n != tenants*keys {
		t.Errorf("%d steps, want %d", n, tenants*keys)
	}
	s.wantPayments(t, keys)
	wantClean(t, direct, pooled)

	for i, org := range s.orgs {
		if i%2 == 0 {
			storetest.Advance(t, direct, org, 48*time.Hour)
		}
		deleted, err := pgstore.Purge(t.Context(), pooled, storetest.SchemaOf(t, org), pgstore.PurgeOptions{Batch: 3})
		if want := int64(2 * keys * ((i + 1) % 2)); err != nil || deleted != want {
			t.Errorf("Purge = %d, %v; want %d", deleted, err, want)
		}
	}
	wantClean(t, direct, pooled)
}

// testDyingConnections: server connections end under handlers, and under everybody. Each
// key is paid for once, and steps in transactions are had once.
func testDyingConnections(t *testing.T, direct, pooled *pgxpool.Pool) {
	const tenants, keys = 3, 10
	var doomed, charges sync.Map
	handle := func(w http.ResponseWriter, r *http.Request) {
		ctx := r.Context()
		org, _ := idempotency.FromContext(ctx)
		key, _ := idempotency.Key(ctx)
		tx, err := pay(r)
		if err == nil {
			_, err = idempotency.Step(ctx, "charge", func(context.Context) (bool, error) {
				if _, again := charges.LoadOrStore(fmt.Sprint(org, key), true); again {
					t.Errorf("the step of %s %s ran twice", org, key)
				}
				return true, nil
			})
		}
		if _, before := doomed.LoadOrStore(fmt.Sprint(org, key), true); err == nil && !before {
			_, _ = tx.Exec(ctx, `SELECT pg_catalog.pg_terminate_backend(pg_catalog.pg_backend_pid())`)
		}
		if err != nil {
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		w.WriteHeader(http.StatusCreated)
		io.WriteString(w, "paid")
	}
	s := newShop(t, direct, storetest.NewStore(t, pooled).Transactional(), tenants, handle)
	gate := make(chan struct{}, serverConns-2) // a transaction with a step needs two connections
	var unpaid atomic.Int64
	var wg sync.WaitGroup
	for _, org := range s.orgs {
		for key := range keys {
			wg.Go(func() {
				gate <- struct{}{}
				defer func() { <-gate }()
				for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(5 * time.Millisecond) {
					status, body, err := s.post(t.Context(), org, fmt.Sprint("key", key))
					if err == nil && status == http.StatusCreated && body == "paid" {
						return
					}
					unpaid.Add(1)
					if err != nil || status != http.StatusServiceUnavailable && status != http.StatusConflict || time.Now().After(deadline) {
						t.Errorf("%d %s, %v", status, body, err)
						return
					}
				}
			})
		}
	}
	wg.Wait()
	if n := unpaid.Load(); n < tenants*keys {
		t.Errorf("%d requests failed, and each key's first was to", n)
	}
	s.wantPayments(t, keys)
	if _, err := direct.Exec(t.Context(), `SELECT pg_catalog.pg_terminate_backend(pid) FROM pg_catalog.pg_stat_activity
		WHERE datname = current_database() AND pid <> pg_catalog.pg_backend_pid()`); err != nil {
		t.Fatal(err)
	}
	for _, org := range s.orgs {
		for key := range keys {
			for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(5 * time.Millisecond) {
				status, body, err := s.post(t.Context(), org, fmt.Sprint("key", key))
				if err == nil && status == http.StatusCreated && body == "paid" {
					break
				}
				if err != nil || status != http.StatusServiceUnavailable || time.Now().After(deadline) {
					t.Fatalf("the replay: %d %s, %v", status, body, err)
				}
			}
		}
	}
	s.wantPayments(t, keys)
	wantClean(t, direct, pooled)
}

// TestCheckBehindPgBouncer: a store tells that its pool's connections lead through a pooler
// that loses what they prepare, and says nothing of a pool that prepares nothing.
func TestCheckBehindPgBouncer(t *testing.T) {
	t.Parallel()
	b := startBouncer(t)
	for mode, want := range map[pgx.QueryExecMode]error{
		pgx.QueryExecModeCacheStatement: pgstore.ErrPoolerMode,
		pgx.QueryExecModeExec:           nil,
		pgx.QueryExecModeCacheDescribe:  nil,
	} {
		t.Run(mode.String(), func(t *testing.T) {
			t.Parallel()
			direct, pooled := b.pools(t, "check_"+strings.ReplaceAll(mode.String(), " ", "_"), mode)
			if err := storetest.NewStore(t, direct).Check(t.Context()); err != nil {
				t.Errorf("direct: %v", err)
			}
			if err := storetest.NewStore(t, pooled).Check(t.Context()); !errors.Is(err, want) {
				t.Errorf("through PgBouncer: %v; want %v", err, want)
			}
			config := pooled.Config()
			pools, err := pgstore.NewPools(t.Context(), config, 2)
			if err != nil {
				t.Fatal(err)
			}
			defer pools.Close()
			store, err := pgstore.NewRouted(pools, storetest.PerOrg)
			if err != nil {
				t.Fatal(err)
			}
			if err := store.Check(t.Context()); !errors.Is(err, pgstore.ErrPoolsBehindPooler) {
				t.Errorf("pools through PgBouncer: %v; want %v", err, pgstore.ErrPoolsBehindPooler)
			}
		})
	}
}
