package service_test

import (
	"context"
	"errors"
	"net"
	"net/http"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/pgidem/pgidem/examples/payments/internal/service"
)

// serve starts the service on a port of its own. The returned channel has what
// Serve returned, after stop.
func serve(t *testing.T, a *api) (stop func(), ended <-chan error) {
	t.Helper()
	listener, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	a.url = "http://" + listener.Addr().String()
	ctx, stop := context.WithCancel(t.Context())
	t.Cleanup(stop)
	done := make(chan error, 1)
	go func() { done <- a.Serve(ctx, listener) }()
	return stop, done
}

func refusesConnections(url string) func() bool {
	return func() bool {
		conn, err := net.Dial("tcp", url[len("http://"):])
		if err == nil {
			_ = conn.Close()
		}
		return err != nil
	}
}

// The tests for shutdown do not run in parallel with others: goleak sees the
// goroutines of all.

func TestShutdownLetsRequestsFinish(t *testing.T) {
	a := newService(t, nil)
	stop, ended := serve(t, a)
	token := a.login(t, "north")
	release := a.lockPayments(t)
	http.DefaultClient.CloseIdleConnections()
	before := goleak.IgnoreCurrent()

	answers := make(chan reply, 1)
	go func() {
		r, err := send(context.Background(), a.url, pay(token, "k", goodOrder))
		if err != nil {
			t.Error(err)
		}
		answers <- r
	}()
	a.awaitBlocked(t)
	stop()
	eventually(t, "a closed port", refusesConnections(a.url))
	select {
	case err := <-ended:
		t.Fatalf("Serve returned %v before the request in flight was answered", err)
	default:
	}
	release()
	(<-answers).wantStatus(t, http.StatusCreated)
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	http.DefaultClient.CloseIdleConnections()
	goleak.VerifyNone(t, before)
	var state string
	if err := a.pool.QueryRow(t.Context(), "SELECT CASE WHEN completed_at IS NULL THEN 'in progress' ELSE 'completed' END FROM "+
		schemaOf(t, service.North).Quoted()+".idempotency_records").Scan(&state); err != nil || state != "completed" {
		t.Errorf("the record is %q (%v), want it completed", state, err)
	}
}

func TestShutdownDoesNotWaitForever(t *testing.T) {
	a := newService(t, func(c *service.Config) { c.ShutdownGrace = 20 * time.Millisecond })
	stop, ended := serve(t, a)
	token := a.login(t, "north")
	release := a.lockPayments(t)
	cutOff := make(chan error, 1)
	go func() {
		_, err := send(context.Background(), a.url, pay(token, "k", goodOrder))
		cutOff <- err
	}()
	a.awaitBlocked(t)
	stop()
	if err := <-ended; !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Serve returned %v, want that the time was over", err)
	}
	if err := <-cutOff; err == nil {
		t.Error("the request was answered, though its handler waits for the table")
	}
	release()
}

func TestServeReportsABrokenListener(t *testing.T) {
	t.Parallel()
	a := newService(t, nil)
	listener, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if err := listener.Close(); err != nil {
		t.Fatal(err)
	}
	if err := a.Serve(t.Context(), listener); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Serve returned %v, want %v", err, net.ErrClosed)
	}
}

func TestServePurges(t *testing.T) {
	t.Parallel()
	a := newService(t, func(c *service.Config) { c.PurgeInterval = 5 * time.Millisecond })
	stop, ended := serve(t, a)
	token := a.login(t, "north")
	a.do(t, pay(token, "old", goodOrder)).wantStatus(t, http.StatusCreated)
	a.exec(t, "UPDATE ", ".idempotency_records SET expires_at = now(), lease_until = now()")
	a.do(t, pay(token, "new", goodOrder)).wantStatus(t, http.StatusOK)

	eventually(t, "a purge of the expired record", func() bool { return a.count(t, service.North, "idempotency_records") == 1 })
	if r := a.do(t, pay(token, "new", goodOrder)); !r.replayed() {
		t.Errorf("got %d %s, want a replay of the record that has not expired", r.status, r.body)
	}
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// TestServeCompletesPayments has a payment lose its process, as far as the database can
// tell: the service brings it to its end, and the client that comes back finds it.
func TestServeCompletesPayments(t *testing.T) {
	t.Parallel()
	a := newService(t, func(c *service.Config) { c.CompleteInterval = 5 * time.Millisecond })
	stop, ended := serve(t, a)
	token := a.login(t, "north")
	release := a.lockPayments(t)
	lost := make(chan struct{})
	go func() {
		defer close(lost)
		_, _ = send(context.Background(), a.url, pay(token, "k", goodOrder))
	}()
	a.awaitBlocked(t)
	a.exec(t, "UPDATE ", ".idempotency_records SET lease_until = now(), token = gen_random_uuid()")
	a.exec(t, "UPDATE ", ".idempotency_requests SET next_at = now()")
	eventually(t, "the payment to be begun again", func() bool {
		var attempts int
		err := a.pool.QueryRow(t.Context(), "SELECT attempts FROM "+schemaOf(t, service.North).Quoted()+".idempotency_requests").Scan(&attempts)
		return err == nil && attempts == 1
	})
	release()
	<-lost
	eventually(t, "the payment to be completed", func() bool { return a.count(t, service.North, "idempotency_requests") == 0 })
	if r := a.do(t, pay(token, "k", goodOrder)); !r.replayed() || r.status != http.StatusOK && r.status != http.StatusCreated {
		t.Errorf("the client that comes back got %d %s, want a replay", r.status, r.body)
	}
	if n := a.count(t, service.North, "payments"); n != 1 {
		t.Errorf("%d payments, want 1", n)
	}
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

func TestPurgeExpiredGoesOnPastAFailure(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	for _, tenant := range []string{"north", "south"} { // a table that never held a row would be left alone
		a.do(t, pay(a.login(t, tenant), "k", goodOrder)).wantStatus(t, http.StatusCreated)
	}
	if _, err := a.pool.Exec(t.Context(), "UPDATE "+schemaOf(t, service.South).Quoted()+".idempotency_records SET expires_at = now(), lease_until = now()"); err != nil {
		t.Fatal(err)
	}
	a.exec(t, "ALTER TABLE ", ".idempotency_records RENAME COLUMN expires_at TO ends_at") // north comes first
	deleted, err := a.PurgeExpired(t.Context())
	if err == nil || deleted != 1 {
		t.Errorf("deleted %d with error %v, want south's record and an error for north", deleted, err)
	}
}
