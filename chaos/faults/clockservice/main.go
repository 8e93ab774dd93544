// Clockservice is a service whose clock may be wrong, for the tests of package faults. It
// is built by package skew, serves the tenant that ORG_ID names, in the database of
// DATABASE_URL, on a port of 127.0.0.1, which it prints, and ends when its standard input
// does.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgidem/pgidem/chaos/faults/skew"
	"github.com/pgidem/pgidem/idempotency"
	"github.com/pgidem/pgidem/idempotency/pgstore"
	"github.com/pgidem/pgidem/tenancy"
)

// Lease and TTL of all requests.
const (
	lease = time.Second
	ttl   = time.Hour
	wait  = 20 * time.Second
)

func main() {
	if err := run(context.Background()); err != nil {
		_, _ = fmt.Fprintln(os.Stderr, "clockservice:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	org, err := uuid.Parse(os.Getenv("ORG_ID"))
	if err != nil {
		return fmt.Errorf("ORG_ID: %w", err)
	}
	pool, err := pgxpool.New(ctx, os.Getenv("DATABASE_URL"))
	if err != nil {
		return fmt.Errorf("DATABASE_URL: %w", err)
	}
	defer pool.Close()
	tenants, err := tenancy.PerOrg("")
	if err != nil {
		return err
	}
	store, err := pgstore.New(pool, tenants)
	if err != nil {
		return err
	}
	defer store.Close()
	schema, err := tenants.Schema(ctx, org)
	if err != nil {
		return err
	}

	s := &service{pool: pool, table: schema.Quoted() + ".payments", held: make(chan struct{}, 1)}
	protect := idempotency.Require(store, idempotency.WithLease(lease), idempotency.WithTTL(ttl))
	waiting := idempotency.Require(store, idempotency.WithLease(lease), idempotency.WithTTL(ttl), idempotency.WithWait(wait))
	inTx := idempotency.Require(store.Transactional(), idempotency.WithLease(lease), idempotency.WithTTL(ttl))
	pay := http.HandlerFunc(s.pay)
	mux := http.NewServeMux()
	mux.Handle("POST /pay", protect(pay))
	mux.Handle("POST /tx", inTx(pay))
	mux.Handle("POST /hold", protect(http.HandlerFunc(s.hold)))
	// The same request to the store as /hold, but it waits.
	mux.Handle("POST /wait", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r.URL.Path = "/hold"
		waiting(http.HandlerFunc(s.hold)).ServeHTTP(w, r)
	}))
	mux.Handle("POST /step", protect(http.HandlerFunc(s.step)))
	mux.HandleFunc("PUT /go", func(http.ResponseWriter, *http.Request) { s.held <- struct{}{} })
	mux.HandleFunc("GET /clock", func(w http.ResponseWriter, _ *http.Request) {
		io.WriteString(w, strconv.FormatInt(time.Now().Unix(), 10))
	})
	mux.HandleFunc("PUT /clock", func(w http.ResponseWriter, r *http.Request) {
		if err := os.Setenv(skew.Variable, r.FormValue("skew")); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
		}
	})

	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	server := &http.Server{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			mux.ServeHTTP(w, r.WithContext(idempotency.WithOrgID(r.Context(), org)))
		}),
		ReadHeaderTimeout: 10 * time.Second,
	}
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		_ = server.Close()
	}()
	fmt.Println("http://" + listener.Addr().String())
	if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

type service struct {
	pool  *pgxpool.Pool
	table string
	held  chan struct{}
}

type execer interface {
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}

// insert makes a payment and answers with its number.
func (s *service) insert(w http.ResponseWriter, r *http.Request, db execer, note string) {
	key, _ := idempotency.Key(r.Context())
	attempt, _ := idempotency.Attempt(r.Context())
	var id int64
	if err := db.QueryRow(r.Context(), `INSERT INTO `+s.table+` (key) VALUES ($1) RETURNING id`, key).Scan(&id); err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.WriteHeader(http.StatusCreated)
	io.WriteString(w, fmt.Sprintf("payment %d by attempt %d%s", id, attempt, note))
}

// pay makes a payment, in the transaction if there is one.
func (s *service) pay(w http.ResponseWriter, r *http.Request) {
	if tx, ok := pgstore.Tx(r.Context()); ok {
		s.insert(w, r, tx, "")
		return
	}
	s.insert(w, r, s.pool, "")
}

// hold makes a payment when it is let go on.
func (s *service) hold(w http.ResponseWriter, r *http.Request) {
	select {
	case <-s.held:
		s.insert(w, r, s.pool, "")
	case <-r.Context().Done():
	}
}

// step has a payment made elsewhere, as it were, and fails after that in its first
// attempt.
func (s *service) step(w http.ResponseWriter, r *http.Request) {
	child, err := idempotency.ChildKey(r.Context(), "charge")
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	at, err := idempotency.Step(r.Context(), "charge", func(context.Context) (int64, error) { return time.Now().Unix(), nil })
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	note := fmt.Sprintf(" with %s at %d", child, at)
	if attempt, _ := idempotency.Attempt(r.Context()); attempt == 1 {
		http.Error(w, note, http.StatusInternalServerError)
		return
	}
	s.insert(w, r, s.pool, note)
}
