package pgstore_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgidem/pgidem/idempotency"
	"github.com/pgidem/pgidem/idempotency/pgstore"
	"github.com/pgidem/pgidem/internal/pgtest"
	"github.com/pgidem/pgidem/internal/storetest"
)

// withOrg stands for authentication: every request is of one tenant.
func withOrg(org uuid.UUID, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		next.ServeHTTP(w, r.WithContext(idempotency.WithOrgID(r.Context(), org)))
	})
}

func post(ctx context.Context, client *http.Client, url, key string) (status int, body string, err error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, url, strings.NewReader(`{"amount":1}`))
	if err != nil {
		return 0, "", err
	}
	r.Header.Set(idempotency.HeaderKey, key)
	resp, err := client.Do(r)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(b), err
}

// TestFiftyDuplicates sends 50 identical requests at once, 200 times over: the
// handler runs once each time, and everybody else gets its response or 409.
func TestFiftyDuplicates(t *testing.T) {
	t.Parallel()
	rounds := 200
	if testing.Short() {
		rounds = 20
	}
	pool := pgtest.NewPool(t)
	org := storetest.NewTenant(t, pool)
	var runs atomic.Int64
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n := runs.Add(1)
		w.WriteHeader(http.StatusCreated)
		fmt.Fprint(w, "payment ", n)
	})
	server := httptest.NewServer(withOrg(org, idempotency.Require(storetest.NewStore(t, pool))(handler)))
	defer server.Close()
	client := server.Client()
	client.Transport.(*http.Transport).MaxIdleConnsPerHost = 50

	var made, replayed, refused atomic.Int64
	for round := 1; round <= rounds; round++ {
		var wg sync.WaitGroup
		start := make(chan struct{})
		for range 50 {
			wg.Go(func() {
				<-start
				status, body, err := post(t.Context(), client, server.URL, fmt.Sprint("round-", round))
				switch {
				case err != nil:
					t.Error(err)
				case status == http.StatusConflict:
					refused.Add(1)
				case status != http.StatusCreated || body != fmt.Sprint("payment ", round):
					t.Errorf("round %d: %d %s", round, status, body)
				default:
					made.Add(1)
				}
			})
		}
		close(start)
		wg.Wait()
		if got := runs.Load(); got != int64(round) {
			t.Fatalf("after %d rounds the handler ran %d times", round, got)
		}
	}
	replayed.Store(made.Load() - int64(rounds))
	t.Logf("%d rounds of 50: %d handler runs, %d replays, %d refused with 409", rounds, runs.Load(), replayed.Load(), refused.Load())
}

const (
	crashURL   = "PGIDEM_CRASH_TEST_DATABASE_URL"
	crashOrg   = "PGIDEM_CRASH_TEST_ORG"
	crashTx    = "PGIDEM_CRASH_TEST_TRANSACTIONS"
	crashKeep  = "PGIDEM_CRASH_TEST_RECOVERABLE"
	crashLease = 2 * time.Second
)

// TestCrashingService is the service that the tests below start and kill. By itself it
// does nothing.
func TestCrashingService(t *testing.T) {
	url := os.Getenv(crashURL)
	if url == "" {
		return
	}
	pool, err := pgxpool.New(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	var store idempotency.Store = storetest.NewStore(t, pool)
	if os.Getenv(crashTx) != "" {
		store = storetest.NewStore(t, pool).Transactional()
	}
	opts := []idempotency.Option{idempotency.WithLease(crashLease)}
	if os.Getenv(crashKeep) != "" {
		opts = append(opts, idempotency.WithRecoverable())
	}
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if os.Getenv(crashTx) != "" && pay(t, w, r) == nil {
			return
		}
		if os.Getenv(crashKeep) != "" && charge(t, pool, r) != nil {
			return
		}
		fmt.Println("running")
		select {} // until the process is killed
	})
	server := httptest.NewServer(withOrg(uuid.MustParse(os.Getenv(crashOrg)), idempotency.Require(store, opts...)(handler)))
	fmt.Println("serving", server.URL)
	select {}
}

// startVictim starts a process with the service, sends it a request with the key "key",
// and returns when its handler runs. The function that it returns kills the process.
func startVictim(t *testing.T, pool *pgxpool.Pool, org uuid.UUID, env ...string) (killed func()) {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), exe, "-test.run=^TestCrashingService$")
	cmd.Env = append(append(os.Environ(), crashURL+"="+pool.Config().ConnString(), crashOrg+"="+org.String()), env...)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	killed = sync.OnceFunc(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	t.Cleanup(killed)
	lines := bufio.NewScanner(out)
	await := func(prefix string) string {
		for lines.Scan() {
			if rest, ok := strings.CutPrefix(lines.Text(), prefix); ok {
				return rest
			}
		}
		t.Fatalf("the service ended before it said %q: %v", prefix, lines.Err())
		return ""
	}
	victim := await("serving ")
	go post(t.Context(), http.DefaultClient, victim, "key") // never answered
	await("running")
	return killed
}

// charge has an effect beside any transaction, in a step.
func charge(t *testing.T, pool *pgxpool.Pool, r *http.Request) error {
	org, _ := idempotency.FromContext(r.Context())
	_, err := idempotency.Step(r.Context(), "charge", func(ctx context.Context) (string, error) {
		_, err := pool.Exec(ctx, `INSERT INTO `+storetest.SchemaOf(t, org).Quoted()+`.balance SELECT max(id) + 1, 100 FROM `+storetest.SchemaOf(t, org).Quoted()+`.balance`)
		return "charged", err
	})
	if err != nil {
		t.Error(err)
	}
	return err
}

// TestKilledProcessIsCompleted kills a service with SIGKILL in the middle of its handler: a
// completer in another process brings the request to its end, and what the first had done in
// a step it does not do again. The client that comes back finds the response.
func TestKilledProcessIsCompleted(t *testing.T) {
	t.Parallel()
	for name, mode := range modes {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pool := pgtest.NewPool(t)
			var b *bank
			var runs atomic.Int64
			handler := func(w http.ResponseWriter, r *http.Request) {
				runs.Add(1)
				if name == "transaction" && pay(t, w, r) == nil || charge(t, pool, r) != nil {
					return
				}
				body, _ := io.ReadAll(r.Body)
				fmt.Fprintf(w, "completed %s for nobody: %t", body, idempotency.Recovered(r.Context()))
			}
			b = newBank(t, pool, handler, nil)
			store := storetest.NewStore(t, pool)
			protected := idempotency.Require(mode(store), idempotency.WithRecoverable())(http.HandlerFunc(handler))
			completer, err := pgstore.NewCompleter(store, protected, pgstore.WithPause(time.Millisecond),
				pgstore.WithCompleterLogger(slog.New(slog.DiscardHandler)))
			if err != nil {
				t.Fatal(err)
			}
			env := []string{crashKeep + "=yes"}
			if name == "transaction" {
				env = append(env, crashTx+"=yes")
			}
			killed := startVictim(t, pool, b.org, env...)
			wantPass(t, completer, pgstore.CompleterResult{}) // it lives
			killed()
			eventually(t, "the completer to find the request", func() bool {
				result, err := completer.Pass(t.Context())
				if err != nil || result.Failed > 0 {
					t.Fatalf("%+v, %v", result, err)
				}
				return result.Completed == 1
			})
			b.want(t, "key", http.StatusOK, `completed {"amount":1} for nobody: true`)
			if n := runs.Load(); n != 1 {
				t.Errorf("%d runs after the crash, want 1", n)
			}
			var charges, payments int
			if err := pool.QueryRow(t.Context(), `SELECT (SELECT count(*) - 2 FROM `+b.schema+`.balance), (SELECT count(*) FROM `+b.schema+`.payments)`).Scan(&charges, &payments); err != nil {
				t.Fatal(err)
			}
			if charges != 1 || name == "transaction" && payments != 1 {
				t.Errorf("%d charges and %d payments, want one", charges, payments)
			}
			wantKept(t, pool, b.org, 0)
		})
	}
}

// TestKilledProcessLeavesNoTransaction kills a service with SIGKILL after its handler has
// written in its transaction: nothing is left of it, and a retry runs without waiting for
// any lease, as the first attempt.
func TestKilledProcessLeavesNoTransaction(t *testing.T) {
	t.Parallel()
	pool := pgtest.NewPool(t)
	b := newBank(t, pool, func(w http.ResponseWriter, r *http.Request) {
		if pay(t, w, r) != nil {
			n, _ := idempotency.Attempt(r.Context())
			fmt.Fprint(w, "paid by attempt ", n)
		}
	}, nil)
	killed := startVictim(t, pool, b.org, crashTx+"=yes")
	b.want(t, "key", http.StatusConflict, "in_flight")
	killed()
	eventually(t, "the server to notice", func() bool {
		status, body := b.send(t, "key")
		if status != http.StatusConflict && (status != http.StatusOK || body != "paid by attempt 1") {
			t.Fatalf("%d %s", status, body)
		}
		return status == http.StatusOK
	})
	b.wantPayments(t, "key", 1)
}

// TestKilledProcessIsTakenOver kills a service with SIGKILL while its handler
// runs: until the lease lapses a retry is refused, then it takes over, and what
// the dead process might still have in its hands can change nothing any more.
func TestKilledProcessIsTakenOver(t *testing.T) {
	t.Parallel()
	pool := pgtest.NewPool(t)
	org := storetest.NewTenant(t, pool)
	schema := storetest.SchemaOf(t, org).Quoted()

	killed := startVictim(t, pool, org)
	defer killed()

	// The dead process's token, as if it were only paused: this is what a process
	// would still send that wakes up after its lease.
	late := idempotency.Claim{OrgID: org, Key: "key"}
	var token uuid.UUID
	if err := pool.QueryRow(t.Context(), `SELECT token FROM `+schema+`.idempotency_records`).Scan(&token); err != nil {
		t.Fatal(err)
	}
	late.Token = idempotency.Token(token)
	killed()

	var attempts []int
	store := storetest.NewStore(t, pool)
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n, _ := idempotency.Attempt(r.Context())
		attempts = append(attempts, n)
		io.WriteString(w, "made by the second")
	})
	server := httptest.NewServer(withOrg(org, idempotency.Require(store)(handler)))
	defer server.Close()
	refused := 0
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		status, body, err := post(t.Context(), server.Client(), server.URL, "key")
		if err != nil {
			t.Fatal(err)
		}
		if status == http.StatusOK && body == "made by the second" {
			break
		}
		if status != http.StatusConflict {
			t.Fatalf("%d %s", status, body)
		}
		if refused++; time.Now().After(deadline) {
			t.Fatal("the dead process's lease never lapsed")
		}
	}
	if refused == 0 {
		t.Error("the lease of the dead process held nobody off")
	}
	if len(attempts) != 1 || attempts[0] != 2 {
		t.Errorf("attempts %v, want the second alone", attempts)
	}
	rec := &idempotency.Record{ResponseStatus: 500, ResponseBody: []byte("late")}
	for step, err := range map[string]error{
		"Complete": store.Complete(t.Context(), late, rec),
		"Extend":   store.Extend(t.Context(), late, time.Hour),
		"Release":  store.Release(t.Context(), late),
	} {
		if !errors.Is(err, idempotency.ErrLeaseLost) {
			t.Errorf("late %s: %v; want ErrLeaseLost", step, err)
		}
	}
	if status, body, err := post(t.Context(), server.Client(), server.URL, "key"); err != nil || status != http.StatusOK || body != "made by the second" {
		t.Errorf("in the end: %d %s, %v", status, body, err)
	}
}
