package pgstore_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgidem/pgidem/idempotency"
	"github.com/pgidem/pgidem/idempotency/pgstore"
	"github.com/pgidem/pgidem/internal/pgtest"
	"github.com/pgidem/pgidem/internal/storetest"
)

// another returns a store over a pool of its own, as another process has it.
func another(t *testing.T, pool *pgxpool.Pool, opts ...pgstore.Option) *pgstore.Store {
	t.Helper()
	second, err := pgxpool.NewWithConfig(t.Context(), pool.Config())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(second.Close)
	store, err := pgstore.New(second, storetest.PerOrg, opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(store.Close)
	return store
}

// listening returns the process IDs of the server's connections that listen.
func listening(t *testing.T, pool *pgxpool.Pool) []int32 {
	t.Helper()
	rows, err := pool.Query(t.Context(), `SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND query LIKE 'LISTEN%'`)
	if err != nil {
		t.Fatal(err)
	}
	pids, err := pgx.CollectRows(rows, pgx.RowTo[int32])
	if err != nil {
		t.Fatal(err)
	}
	return pids
}

func eventually(t *testing.T, what string, condition func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !condition(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("timed out waiting for %s", what)
		}
	}
}

// watchAll has a store listen, and then watches n keys: nobody is woken any more because
// listening begins.
func watchAll(t *testing.T, store *pgstore.Store, org uuid.UUID, n int) (ended []<-chan struct{}) {
	t.Helper()
	watch := func(key string) <-chan struct{} {
		ch, stop, err := store.Watch(org, key)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(stop)
		return ch
	}
	wantSignal(t, "listening to begin", watch("the first"))
	for i := range n {
		ended = append(ended, watch(fmt.Sprint("key-", i)))
	}
	return ended
}

func wantSignal(t *testing.T, what string, ch <-chan struct{}) {
	t.Helper()
	select {
	case <-ch:
	case <-time.After(20 * time.Second):
		t.Fatalf("timed out waiting for %s", what)
	}
}

// hold claims a key for one store, and has another mark that it waits for it.
func hold(t *testing.T, holder, waiter *pgstore.Store, org uuid.UUID, key string) idempotency.Claim {
	t.Helper()
	first, second := claimRequest(org, key), claimRequest(org, key)
	second.Await = true
	if result, err := holder.Claim(t.Context(), first); err != nil || result.Outcome != idempotency.OutcomeClaimed {
		t.Fatalf("%+v, %v", result, err)
	}
	if result, err := waiter.Claim(t.Context(), second); err != nil || result.Outcome != idempotency.OutcomeInFlight {
		t.Fatalf("%+v, %v", result, err)
	}
	return first.Claim
}

// TestEndsAreHeardInOtherProcesses: a completion and each kind of release in one
// process wakes those who wait for it in another, over one connection for all.
func TestEndsAreHeardInOtherProcesses(t *testing.T) {
	t.Parallel()
	pool := pgtest.NewPool(t)
	org := storetest.NewTenant(t, pool)
	here, there := storetest.NewStore(t, pool), another(t, pool)
	ended := watchAll(t, there, org, 100)
	if n := len(listening(t, pool)); n != 1 {
		t.Errorf("%d connections listen for 100 who wait, want 1", n)
	}

	completed := hold(t, here, there, org, "key-0")
	if err := here.Complete(t.Context(), completed, &idempotency.Record{ResponseStatus: 201}); err != nil {
		t.Fatal(err)
	}
	wantSignal(t, "the completion", ended[0])

	released := hold(t, here, there, org, "key-1")
	if err := here.Release(t.Context(), released); err != nil {
		t.Fatal(err)
	}
	wantSignal(t, "the release", ended[1])

	hold(t, here, there, org, "key-2")
	storetest.Advance(t, pool, org, 2*time.Minute) // its process has died
	takenOver := claimRequest(org, "key-2")        // and those who waited for it wait for this one
	if result, err := here.Claim(t.Context(), takenOver); err != nil || result.Attempt != 2 {
		t.Fatalf("%+v, %v", result, err)
	}
	if err := here.Release(t.Context(), takenOver.Claim); err != nil {
		t.Fatal(err)
	}
	wantSignal(t, "the release after a take-over", ended[2])

	select {
	case <-ended[3]:
		t.Error("somebody was woken for a key of which nothing ended")
	default:
	}
}

// TestEndsAreHeardInTheProcess: without any word from the server.
func TestEndsAreHeardInTheProcess(t *testing.T) {
	t.Parallel()
	pool := pgtest.NewPool(t)
	org := storetest.NewTenant(t, pool)
	store := another(t, pool)
	ended := watchAll(t, store, org, 4)
	for i, end := range []func(c idempotency.Claim) error{
		func(c idempotency.Claim) error {
			return store.Complete(t.Context(), c, &idempotency.Record{ResponseStatus: 201})
		},
		func(c idempotency.Claim) error { return store.Release(t.Context(), c) },
		func(c idempotency.Claim) error {
			return store.Put(t.Context(), &idempotency.Record{OrgID: c.OrgID, Key: c.Key, ResponseStatus: 201})
		},
		func(c idempotency.Claim) error { return store.Clear(t.Context(), c.OrgID) },
	} {
		req := claimRequest(org, fmt.Sprint("key-", i)) // that nobody marked
		if _, err := store.Claim(t.Context(), req); err != nil {
			t.Fatal(err)
		}
		if err := end(req.Claim); err != nil {
			t.Fatal(err)
		}
		select {
		case <-ended[i]:
		default:
			t.Errorf("end %d was not signalled", i)
		}
	}
}

// TestMarkIsNotTooLate: an attempt that ends between the look at it and the mark that
// somebody waits for it is seen to have ended.
func TestMarkIsNotTooLate(t *testing.T) {
	t.Parallel()
	pool := pgtest.NewPool(t)
	org := storetest.NewTenant(t, pool)
	holder := storetest.NewStore(t, pool)
	config := pool.Config()
	meanwhile := &before{statement: "MarkAwaited"}
	config.ConnConfig.Tracer = meanwhile
	traced, err := pgxpool.NewWithConfig(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(traced.Close)
	waiter := storetest.NewStore(t, traced)
	first, second := claimRequest(org, "key"), claimRequest(org, "key")
	if _, err := holder.Claim(t.Context(), first); err != nil {
		t.Fatal(err)
	}
	meanwhile.do = func() {
		if err := holder.Complete(t.Context(), first.Claim, &idempotency.Record{ResponseStatus: 201}); err != nil {
			t.Error(err)
		}
	}
	second.Await = true
	if result, err := waiter.Claim(t.Context(), second); err != nil || result.Outcome != idempotency.OutcomeCompleted || meanwhile.do != nil {
		t.Errorf("%+v, %v; want what was completed meanwhile", result, err)
	}
}

// TestListeningConnectsAsThePoolDoes: with whatever its BeforeConnect sets.
func TestListeningConnectsAsThePoolDoes(t *testing.T) {
	t.Parallel()
	pool := pgtest.NewPool(t)
	config := pool.Config()
	before := config.BeforeConnect
	config.BeforeConnect = func(ctx context.Context, c *pgx.ConnConfig) error {
		c.RuntimeParams["application_name"] = "named before"
		if before != nil {
			return before(ctx, c)
		}
		return nil
	}
	named, err := pgxpool.NewWithConfig(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(named.Close)
	store := storetest.NewStore(t, named)
	t.Cleanup(store.Close)
	watchAll(t, store, uuid.New(), 1)
	var name string
	err = pool.QueryRow(t.Context(), `SELECT application_name FROM pg_stat_activity WHERE pid = $1`, listening(t, pool)[0]).Scan(&name)
	if err != nil || name != "named before" {
		t.Errorf("%q, %v", name, err)
	}
}

// TestCompletionDoesNotWaitToTell: when the NOTIFY cannot get a connection, the client
// whose request has ended does not wait for that.
func TestCompletionDoesNotWaitToTell(t *testing.T) {
	t.Parallel()
	pool := pgtest.NewPool(t)
	org := storetest.NewTenant(t, pool)
	config := pool.Config()
	completed, told := make(chan struct{}), make(chan struct{}, 1)
	config.ConnConfig.Tracer = &before{statement: "Notify", do: func() {
		<-completed // not before Complete has returned
		told <- struct{}{}
	}}
	traced, err := pgxpool.NewWithConfig(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(traced.Close)
	here, there := storetest.NewStore(t, traced), another(t, pool)
	ended := watchAll(t, there, org, 1)[0]
	claim := hold(t, here, there, org, "key-0")
	if err := here.Complete(t.Context(), claim, &idempotency.Record{ResponseStatus: 201}); err != nil {
		t.Fatal(err)
	}
	close(completed)
	wantSignal(t, "the NOTIFY", told)
	wantSignal(t, "the completion", ended)
	here.Close()
}

// TestOnlyWhatIsAwaitedIsNotified: a NOTIFY serialises commits, so nobody pays for
// one that nobody waits for.
func TestOnlyWhatIsAwaitedIsNotified(t *testing.T) {
	t.Parallel()
	pool := pgtest.NewPool(t)
	org := storetest.NewTenant(t, pool)
	store, there := another(t, pool), another(t, pool)
	watching := watchAll(t, there, org, 2)
	req := claimRequest(org, "key-0")
	for range 2 { // a record that is done with is awaited no longer when its key begins anew
		if result, err := store.Claim(t.Context(), req); err != nil || result.Outcome != idempotency.OutcomeClaimed {
			t.Fatalf("%+v, %v", result, err)
		}
		if err := store.Complete(t.Context(), req.Claim, &idempotency.Record{ResponseStatus: 201}); err != nil {
			t.Fatal(err)
		}
		if _, err := pool.Exec(t.Context(), "SELECT pg_notify('pgidem', '')"); err != nil { // of no key: a malformed payload wakes nobody
			t.Fatal(err)
		}
		if _, err := pool.Exec(t.Context(), `UPDATE `+storetest.SchemaOf(t, org).Quoted()+`.idempotency_records SET awaited = true`); err != nil {
			t.Fatal(err)
		}
		storetest.Advance(t, pool, org, 2*time.Hour)
		req = claimRequest(org, "key-0")
	}
	// Notifications arrive in the order of their commits: when this one has come, those
	// before would have.
	last := hold(t, store, there, org, "key-1")
	if err := store.Complete(t.Context(), last, &idempotency.Record{ResponseStatus: 201}); err != nil {
		t.Fatal(err)
	}
	wantSignal(t, "a completion that is waited for", watching[1])
	select {
	case <-watching[0]:
		t.Error("a completion that nobody waited for was notified")
	default:
	}
}

// TestListeningSurvivesItsConnection: when it breaks, those who wait look again, and
// are told again once there is another.
func TestListeningSurvivesItsConnection(t *testing.T) {
	t.Parallel()
	pool := pgtest.NewPool(t)
	org := storetest.NewTenant(t, pool)
	here, there := storetest.NewStore(t, pool), another(t, pool)
	ended := watchAll(t, there, org, 1)[0]
	first := listening(t, pool)
	if _, err := pool.Exec(t.Context(), `SELECT pg_terminate_backend($1)`, first[0]); err != nil {
		t.Fatal(err)
	}
	wantSignal(t, "the break to be noticed", ended)
	eventually(t, "listening to begin again", func() bool {
		pids := listening(t, pool)
		return len(pids) == 1 && pids[0] != first[0]
	})
	wantSignal(t, "a look at what was missed", ended)
	claim := hold(t, here, there, org, "key-0")
	if err := here.Complete(t.Context(), claim, &idempotency.Record{ResponseStatus: 201}); err != nil {
		t.Fatal(err)
	}
	wantSignal(t, "the completion", ended)
}

// TestListeningEnds: with the last who waits, after a while, or with Close at once;
// and it begins again when it is needed.
func TestListeningEnds(t *testing.T) {
	t.Parallel()
	pool := pgtest.NewPool(t)
	org := storetest.NewTenant(t, pool)
	store := another(t, pool)
	pgstore.SetListenIdle(store, 30*time.Millisecond)
	if n := len(listening(t, pool)); n != 0 {
		t.Fatalf("%d connections listen before anybody waits", n)
	}
	for range 3 {
		ended, stop, err := store.Watch(org, "key")
		if err != nil {
			t.Fatal(err)
		}
		wantSignal(t, "listening to begin", ended)
		<-time.After(100 * time.Millisecond) // longer than it may be idle, but it is not
		if n := len(listening(t, pool)); n != 1 {
			t.Fatalf("%d connections listen while somebody waits, want 1", n)
		}
		stop()
		eventually(t, "listening to end", func() bool { return len(listening(t, pool)) == 0 })
	}
	ended, stop, err := store.Watch(org, "key")
	if err != nil {
		t.Fatal(err)
	}
	defer stop()
	wantSignal(t, "listening to begin", ended)
	store.Close()
	store.Close() // twice does no harm
	wantSignal(t, "the end to be told", ended)
	eventually(t, "the connection to be gone", func() bool { return len(listening(t, pool)) == 0 })
	if _, _, err := store.Watch(org, "key"); err == nil {
		t.Error("a closed store watches")
	}
	if result, err := store.Claim(t.Context(), claimRequest(org, "after")); err != nil || result.Outcome != idempotency.OutcomeClaimed {
		t.Errorf("a closed store does not claim: %+v, %v", result, err)
	}
}

// lookedAt is a store that tells who waits at it.
type lookedAt struct {
	*pgstore.Store
	waiting sync.Map // tokens
}

func (s *lookedAt) Claim(ctx context.Context, req idempotency.ClaimRequest) (idempotency.ClaimResult, error) {
	result, err := s.Store.Claim(ctx, req)
	if err == nil && req.Await && result.Outcome == idempotency.OutcomeInFlight {
		s.waiting.Store(req.Token, true)
	}
	return result, err
}

// TestWaitersHoldNoConnection: many requests wait in one process for one that runs in
// another, over a pool of two connections.
func TestWaitersHoldNoConnection(t *testing.T) {
	t.Parallel()
	pool := pgtest.NewPool(t)
	org := storetest.NewTenant(t, pool)
	config := pool.Config()
	config.MaxConns = 2
	small, err := pgxpool.NewWithConfig(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(small.Close)
	open, begun := make(chan struct{}), make(chan struct{}, 1)
	var runs atomic.Int64
	handler := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		runs.Add(1)
		begun <- struct{}{}
		<-open
		io.WriteString(w, "made")
	})
	process := func(store idempotency.Store) *httptest.Server {
		server := httptest.NewServer(withOrg(org, idempotency.Require(store, idempotency.WithWait(time.Minute))(handler)))
		t.Cleanup(server.Close)
		return server
	}
	waiters := &lookedAt{Store: another(t, small)}
	here, there := process(another(t, pool)), process(waiters)

	const n = 200
	var wg sync.WaitGroup
	send := func(server *httptest.Server) {
		wg.Go(func() {
			status, body, err := post(t.Context(), server.Client(), server.URL, "key")
			if err != nil || status != http.StatusOK || body != "made" {
				t.Errorf("%d %q, %v", status, body, err)
			}
		})
	}
	send(here)
	<-begun
	for range n {
		send(there)
	}
	eventually(t, "all to wait", func() bool {
		waiting := 0
		waiters.waiting.Range(func(any, any) bool {
			waiting++
			return true
		})
		return waiting == n
	})
	eventually(t, "the pool to be idle while all wait", func() bool { return small.Stat().AcquiredConns() == 0 })
	eventually(t, "one connection to listen", func() bool { return len(listening(t, pool)) == 1 })
	close(open)
	wg.Wait()
	if runs.Load() != 1 {
		t.Errorf("%d runs, want 1", runs.Load())
	}
}

// TestWatchWithoutAServerToListenTo: who cannot be told is told so, and asks instead.
func TestWatchWithoutAServerToListenTo(t *testing.T) {
	t.Parallel()
	pool := pgtest.NewPool(t)
	org := storetest.NewTenant(t, pool)
	nowhere := pool.Config().ConnConfig.Copy()
	nowhere.DialFunc = func(context.Context, string, string) (net.Conn, error) { return nil, errors.New("cut off on purpose") }
	for name, c := range map[string]struct {
		config *pgx.ConnConfig
		want   string
	}{
		"nowhere": {nowhere, "cut off on purpose"},
		"pooler":  {pgtest.BehindPooler(pool.Config().ConnConfig), "WithListenConfig"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			here, there := storetest.NewStore(t, pool), another(t, pool, pgstore.WithListenConfig(c.config))
			eventually(t, "an error that says why", func() bool {
				_, stop, err := there.Watch(org, "key")
				if err == nil {
					stop()
					return false
				}
				if !strings.Contains(err.Error(), c.want) {
					t.Fatalf("error %v, want one with %q", err, c.want)
				}
				return true
			})
			if n := len(listening(t, pool)); n != 0 {
				t.Errorf("%d connections listen", n)
			}
			claim := hold(t, here, there, org, name)
			answers := make(chan string, 1)
			waiting := httptest.NewServer(withOrg(org, idempotency.Require(there, idempotency.WithWait(time.Minute),
				idempotency.WithFingerprint(func(*http.Request, []byte) (string, error) { return "hash", nil }))(http.NotFoundHandler())))
			t.Cleanup(waiting.Close)
			go func() {
				_, body, _ := post(context.Background(), waiting.Client(), waiting.URL, name)
				answers <- body
			}()
			if err := here.Complete(t.Context(), claim, &idempotency.Record{ResponseStatus: 201, ResponseBody: []byte("made")}); err != nil {
				t.Fatal(err)
			}
			select {
			case body := <-answers:
				if body != "made" {
					t.Errorf("answer %q", body)
				}
			case <-time.After(20 * time.Second):
				t.Fatal("timed out waiting for the answer")
			}
		})
	}
	if _, err := pgstore.New(pool, storetest.PerOrg, pgstore.WithListenConfig(nil)); err == nil {
		t.Error("WithListenConfig took a nil configuration")
	}
}
