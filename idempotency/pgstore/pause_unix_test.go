//go:build unix

package pgstore_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgidem/pgidem/idempotency"
	"github.com/pgidem/pgidem/internal/pgtest"
	"github.com/pgidem/pgidem/internal/storetest"
)

// Where the service that the tests of this file pause, in a process of its own, waits to
// be told to go on.
const (
	inHandler      = "in its handler"
	inStep         = "between a step's effect and its result"
	beforeComplete = "before its outcome is stored"
)

const (
	pauseWhere   = "PGIDEM_PAUSE_TEST_WHERE"
	pauseLease   = "PGIDEM_PAUSE_TEST_LEASE"
	pauseTimeout = "PGIDEM_PAUSE_TEST_STORE_TIMEOUT"
)

// TestPausableService is that service. By itself it does nothing.
func TestPausableService(t *testing.T) {
	where := os.Getenv(pauseWhere)
	if where == "" {
		return
	}
	pool, err := pgxpool.New(t.Context(), os.Getenv(crashURL))
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	lease, err := time.ParseDuration(os.Getenv(pauseLease))
	if err != nil {
		t.Fatal(err)
	}
	storeTimeout, err := time.ParseDuration(os.Getenv(pauseTimeout))
	if err != nil {
		t.Fatal(err)
	}
	told := make(chan struct{})
	go func() {
		_, _ = bufio.NewReader(os.Stdin).ReadString('\n')
		close(told)
	}()
	wait := func(here string) {
		if where == here {
			fmt.Println("waiting")
			<-told
		}
	}
	store := &tellingStore{StepStore: storetest.NewStore(t, pool), beforeComplete: func() { wait(beforeComplete) }}
	if os.Getenv(crashTx) != "" {
		store.StepStore = storetest.NewStore(t, pool).Transactional().(idempotency.StepStore)
	}
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx := r.Context()
		if os.Getenv(crashTx) != "" && pay(t, w, r) == nil {
			return
		}
		wait(inHandler)
		_, err := idempotency.Step(ctx, "charge", func(context.Context) (string, error) {
			wait(inStep)
			return "charged by the first", nil
		})
		say("step", err)
		if where == inHandler && err != nil && os.Getenv(crashTx) == "" {
			<-ctx.Done()
			say("cancelled", context.Cause(ctx))
		}
		w.WriteHeader(http.StatusCreated)
		io.WriteString(w, "made by the first")
	})
	server := httptest.NewServer(withOrg(uuid.MustParse(os.Getenv(crashOrg)), idempotency.Require(store,
		idempotency.WithLease(lease), idempotency.WithStoreTimeout(storeTimeout),
		idempotency.WithObserver(func(_ context.Context, e idempotency.Event) { say("event "+string(e.Decision), e.Err) }),
	)(handler)))
	fmt.Println("serving", server.URL)
	select {}
}

// say prints a line for the test that reads along.
func say(what string, err error) {
	switch {
	case err == nil:
		fmt.Println("said:", what)
	case errors.Is(err, idempotency.ErrLeaseLost):
		fmt.Println("said:", what, "lost")
	case errors.Is(err, idempotency.ErrRolledBack):
		fmt.Println("said:", what, "rolled back")
	default:
		fmt.Println("said:", what, "error:", err)
	}
}

// tellingStore says what its store answers.
type tellingStore struct {
	idempotency.StepStore
	beforeComplete func()
}

func (s *tellingStore) Extend(ctx context.Context, c idempotency.Claim, lease time.Duration) error {
	err := s.StepStore.Extend(ctx, c, lease)
	say("extend", err)
	return err
}

func (s *tellingStore) Complete(ctx context.Context, c idempotency.Claim, rec *idempotency.Record) error {
	s.beforeComplete()
	err := s.StepStore.Complete(ctx, c, rec)
	say("complete", err)
	return err
}

// pausable is a process with the service.
type pausable struct {
	url     string
	process *os.Process
	stdin   io.Writer

	mu    sync.Mutex
	lines []string
}

// startPausable starts the service, which waits at the given place until goOn.
func startPausable(t *testing.T, pool *pgxpool.Pool, org uuid.UUID, where string, lease, storeTimeout time.Duration, env ...string) *pausable {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), exe, "-test.run=^TestPausableService$")
	cmd.Env = append(append(os.Environ(), crashURL+"="+pool.Config().ConnString(), crashOrg+"="+org.String(),
		pauseWhere+"="+where, pauseLease+"="+lease.String(), pauseTimeout+"="+storeTimeout.String()), env...)
	cmd.Stderr = io.Discard
	p := &pausable{}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if p.stdin, err = cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p.process = cmd.Process
	read := make(chan struct{})
	go func() {
		defer close(read)
		for lines := bufio.NewScanner(out); lines.Scan(); {
			p.mu.Lock()
			p.lines = append(p.lines, lines.Text())
			p.mu.Unlock()
		}
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // also one that is paused
		<-read
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("the service:\n%s", strings.Join(p.said(), "\n"))
		}
	})
	p.await(t, "serving ", 1)
	for _, line := range p.said() {
		if url, ok := strings.CutPrefix(line, "serving "); ok {
			p.url = url
		}
	}
	return p
}

func (p *pausable) said() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.lines)
}

// await waits until the service has said n lines that begin with the prefix.
func (p *pausable) await(t *testing.T, prefix string, n int) {
	t.Helper()
	eventually(t, fmt.Sprintf("the service to say %q", prefix), func() bool { return p.count(prefix) >= n })
}

func (p *pausable) count(prefix string) (n int) {
	for _, line := range p.said() {
		if strings.HasPrefix(line, prefix) {
			n++
		}
	}
	return n
}

// extensions counts those that were not refused.
func (p *pausable) extensions() (n int) {
	for _, line := range p.said() {
		if line == "said: extend" {
			n++
		}
	}
	return n
}

func (p *pausable) signal(t *testing.T, sig syscall.Signal) {
	t.Helper()
	if err := p.process.Signal(sig); err != nil {
		t.Fatal(err)
	}
}

func (p *pausable) goOn(t *testing.T) {
	t.Helper()
	if _, err := io.WriteString(p.stdin, "go\n"); err != nil {
		t.Fatal(err)
	}
}

type response struct {
	status int
	body   string
	err    error
}

// send sends the service a request and returns where its answer comes.
func (p *pausable) send(t *testing.T, key string) <-chan response {
	answer := make(chan response, 1)
	ctx := t.Context()
	go func() {
		var r response
		r.status, r.body, r.err = post(ctx, http.DefaultClient, p.url, key)
		answer <- r
	}()
	return answer
}

func wantAnswer(t *testing.T, answer <-chan response, status int, body string) {
	t.Helper()
	select {
	case r := <-answer:
		if r.err != nil || r.status != status || !strings.Contains(r.body, body) {
			t.Errorf("%d %s, %v; want %d and %q", r.status, r.body, r.err, status, body)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("no answer")
	}
}

// second is a service in this process, for the attempts after the first.
func second(t *testing.T, store idempotency.Store, org uuid.UUID) *httptest.Server {
	t.Helper()
	server := httptest.NewServer(withOrg(org, idempotency.Require(store)(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		charge, err := idempotency.Step(r.Context(), "charge", func(context.Context) (string, error) { return "charged by the second", nil })
		if err != nil {
			t.Errorf("the second attempt's step: %v", err)
		}
		io.WriteString(w, "made by the second, "+charge)
	}))))
	t.Cleanup(server.Close)
	return server
}

// takeOver sends requests until one is not told that the first is running.
func takeOver(t *testing.T, server *httptest.Server, key string) (refused int) {
	t.Helper()
	eventually(t, "the second attempt", func() bool {
		status, body, err := post(t.Context(), server.Client(), server.URL, key)
		if err != nil || status != http.StatusConflict && status != http.StatusOK || status == http.StatusConflict && !strings.Contains(body, "in_flight") {
			t.Fatalf("%d %s, %v", status, body, err)
		}
		if status == http.StatusConflict {
			refused++
		}
		return status == http.StatusOK
	})
	return refused
}

// TestLongHandlersAreNeverTakenOver: handlers of three leases' length in one process,
// while another asks for their keys all the time.
func TestLongHandlersAreNeverTakenOver(t *testing.T) {
	t.Parallel()
	pool := pgtest.NewPool(t)
	org := storetest.NewTenant(t, pool)
	const lease = 1500 * time.Millisecond // whose extensions a busy machine gets through
	const keys = 3
	p := startPausable(t, pool, org, inHandler, lease, 5*time.Second)
	begun := time.Now()
	var answers []<-chan response
	for i := range keys {
		answers = append(answers, p.send(t, fmt.Sprint("key", i)))
	}
	p.await(t, "waiting", keys)
	server := second(t, storetest.NewStore(t, pool), org)
	var wg sync.WaitGroup
	for i := range keys {
		wg.Go(func() {
			refused := 0
			for ; time.Since(begun) < 3*lease+lease/5; time.Sleep(10 * time.Millisecond) {
				status, body, err := post(t.Context(), server.Client(), server.URL, fmt.Sprint("key", i))
				if err != nil || status != http.StatusConflict || !strings.Contains(body, "in_flight") {
					t.Errorf("after %s: %d %s, %v", time.Since(begun), status, body, err)
					return
				}
				refused++
			}
			if refused == 0 {
				t.Errorf("key%d was not asked for", i)
			}
		})
	}
	wg.Wait()
	p.goOn(t)
	for i, answer := range answers {
		wantAnswer(t, answer, http.StatusCreated, "made by the first")
		status, body, err := post(t.Context(), server.Client(), server.URL, fmt.Sprint("key", i))
		if err != nil || status != http.StatusCreated || body != "made by the first" {
			t.Errorf("the retry: %d %s, %v", status, body, err)
		}
	}
	p.await(t, "said: event executed", keys)
	if n := p.extensions(); n < 3*keys {
		t.Errorf("%d extensions; want one or more for each of 3 leases of %d keys", n, keys)
	}
}

// TestPausedProcessChangesNothing pauses a process past its lease, until another attempt
// has come to its end. What it then has in its hands it can no longer store; its handler's
// context is cancelled; its client is not told a second story.
func TestPausedProcessChangesNothing(t *testing.T) {
	t.Parallel()
	pool := pgtest.NewPool(t)
	const long, short = 20 * time.Second, 2 * time.Second
	for name, c := range map[string]struct {
		where        string
		storeTimeout time.Duration
		says         []string
	}{
		inHandler:      {inHandler, long, []string{"said: step lost", "said: cancelled lost", "said: complete lost"}},
		inStep:         {inStep, long, []string{"said: step lost", "said: complete lost"}},
		beforeComplete: {beforeComplete, long, []string{"said: complete lost"}},
		// By its own clock the process has no time left to store anything when it wakes up.
		"beyond all timeouts":                {beforeComplete, short, []string{"said: complete lost"}},
		"in a step, and beyond all timeouts": {inStep, short, []string{"said: step lost", "said: complete lost"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			org := storetest.NewTenant(t, pool)
			p := startPausable(t, pool, org, c.where, 700*time.Millisecond, c.storeTimeout)
			first := p.send(t, "key")
			p.await(t, "waiting", 1)
			p.signal(t, syscall.SIGSTOP)
			paused := time.Now()

			charged := "charged by the second"
			if c.where == beforeComplete {
				charged = "charged by the first" // its step was stored in time
			}
			server := second(t, storetest.NewStore(t, pool), org)
			if refused := takeOver(t, server, "key"); refused == 0 {
				t.Error("the lease held nobody off")
			}
			if c.storeTimeout == short {
				eventually(t, "all deadlines to pass", func() bool { return time.Since(paused) > short })
			}
			before := record(t, pool, org)

			p.signal(t, syscall.SIGCONT)
			p.goOn(t)
			wantAnswer(t, first, http.StatusConflict, "lease_lost")
			for _, line := range append(c.says, "said: event lease_lost lost") {
				p.await(t, line, 1)
			}
			if after := record(t, pool, org); after != before {
				t.Errorf("the record was\n%s\nand is\n%s", before, after)
			}
			for _, url := range []string{server.URL, p.url} {
				status, body, err := post(t.Context(), http.DefaultClient, url, "key")
				if err != nil || status != http.StatusOK || body != "made by the second, "+charged {
					t.Errorf("the retry: %d %s, %v", status, body, err)
				}
			}
		})
	}
}

// record returns what is stored for the tenant, its one record and the steps.
func record(t *testing.T, pool *pgxpool.Pool, org uuid.UUID) (text string) {
	t.Helper()
	sql := strings.ReplaceAll(`SELECT (SELECT string_agg(r::text, ' ') FROM %.idempotency_records AS r) || coalesce((SELECT string_agg(s::text, ' ') FROM %.idempotency_steps AS s), '')`,
		"%", storetest.SchemaOf(t, org).Quoted())
	if err := pool.QueryRow(t.Context(), sql).Scan(&text); err != nil {
		t.Fatal(err)
	}
	return text
}

// TestPausedProcessThatNobodyTookOver: its lease has lapsed, but the key is still its own
// when it wakes up, so it goes on and its outcome counts.
func TestPausedProcessThatNobodyTookOver(t *testing.T) {
	t.Parallel()
	pool := pgtest.NewPool(t)
	for _, where := range []string{inHandler, inStep, beforeComplete} {
		t.Run(where, func(t *testing.T) {
			t.Parallel()
			org := storetest.NewTenant(t, pool)
			// The lease is long enough for its extension, of a third of it at most, on a busy machine.
			p := startPausable(t, pool, org, where, 1500*time.Millisecond, 20*time.Second)
			first := p.send(t, "key")
			p.await(t, "waiting", 1)
			p.signal(t, syscall.SIGSTOP)
			eventually(t, "the lease to lapse", func() (lapsed bool) {
				sql := `SELECT lease_until < now() FROM ` + storetest.SchemaOf(t, org).Quoted() + `.idempotency_records`
				if err := pool.QueryRow(t.Context(), sql).Scan(&lapsed); err != nil {
					t.Fatal(err)
				}
				return lapsed
			})
			p.signal(t, syscall.SIGCONT)
			p.goOn(t)
			wantAnswer(t, first, http.StatusCreated, "made by the first")
			p.await(t, "said: event executed", 1)
			status, body, err := post(t.Context(), http.DefaultClient, second(t, storetest.NewStore(t, pool), org).URL, "key")
			if err != nil || status != http.StatusCreated || body != "made by the first" {
				t.Errorf("the retry: %d %s, %v", status, body, err)
			}
		})
	}
}

// TestPausedTransactionCommitsNothing pauses a process that holds a transaction. Its key is
// in flight until the server gives the transaction up; then another attempt runs, and the
// paused one commits nothing, and no step.
func TestPausedTransactionCommitsNothing(t *testing.T) {
	t.Parallel()
	pool := pgtest.NewPool(t)
	const patience = 1200 * time.Millisecond // of the server
	for _, where := range []string{inHandler, inStep, beforeComplete} {
		t.Run(where, func(t *testing.T) {
			t.Parallel()
			b := newBank(t, pool, http.NotFound, nil)
			p := startPausable(t, pool, b.org, where, time.Minute, 20*time.Second,
				crashTx+"=yes", fmt.Sprintf("PGOPTIONS=-c idle_in_transaction_session_timeout=%d", patience.Milliseconds()))
			first := p.send(t, "key")
			p.await(t, "waiting", 1)
			p.signal(t, syscall.SIGSTOP)

			server := second(t, storetest.NewStore(t, pool).Transactional(), b.org)
			if refused := takeOver(t, server, "key"); refused == 0 {
				t.Error("the transaction held nobody off")
			}
			before := record(t, pool, b.org)
			if n := b.payments(t, "key"); n != 0 {
				t.Errorf("%d payments of the first attempt", n)
			}
			p.signal(t, syscall.SIGCONT)
			p.goOn(t)
			wantAnswer(t, first, http.StatusServiceUnavailable, "not_committed")
			p.await(t, "said: complete rolled back", 1)
			p.await(t, "said: event rolled_back rolled back", 1)
			if where != beforeComplete {
				p.await(t, "said: step lost", 1)
			}
			if after := record(t, pool, b.org); after != before {
				t.Errorf("the record was\n%s\nand is\n%s", before, after)
			}
			if n := b.payments(t, "key"); n != 0 {
				t.Errorf("%d payments of the first attempt", n)
			}
			charged := "charged by the second"
			if where == beforeComplete {
				charged = "charged by the first"
			}
			status, body, err := post(t.Context(), http.DefaultClient, p.url, "key")
			if err != nil || status != http.StatusOK || body != "made by the second, "+charged {
				t.Errorf("the retry: %d %s, %v", status, body, err)
			}
		})
	}
}
