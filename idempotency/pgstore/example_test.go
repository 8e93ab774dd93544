package pgstore_test

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgidem/pgidem/authctx"
	"github.com/pgidem/pgidem/idempotency"
	"github.com/pgidem/pgidem/idempotency/pgstore"
	"github.com/pgidem/pgidem/internal/pgtest"
	"github.com/pgidem/pgidem/migrations"
	"github.com/pgidem/pgidem/tenancy"
)

// README begins here.

// protect stands authentication and idempotency in front of the service's routes.
func protect(routes http.Handler, pool *pgxpool.Pool, jwtKey []byte) (http.Handler, error) {
	const login = "POST /v1/auth/login"

	auth, err := authctx.New(
		authctx.WithKey("HS256", jwtKey),
		authctx.WithExclude(login), // whoever logs in has no token yet
	)
	if err != nil {
		return nil, err
	}
	tenants, err := tenancy.PerOrg("tenant_") // org_id -> its schema
	if err != nil {
		return nil, err
	}
	store, err := pgstore.New(pool, tenants)
	if err != nil {
		return nil, err
	}
	idempotent := idempotency.Require(store,
		idempotency.WithExclude(login), // a token must not be stored
		idempotency.WithRequireKey("POST /v1/payments"),
	)
	return auth.Middleware(idempotent(routes)), nil
}

// README ends here.

func TestREADMEShowsTheWiring(t *testing.T) {
	t.Parallel()
	source, err := os.ReadFile("example_test.go")
	if err != nil {
		t.Fatal(err)
	}
	_, wiring, _ := strings.Cut(string(source), "// README begins here.\n\n")
	wiring, _, found := strings.Cut(wiring, "\n// README ends here.")
	readme, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	if !found || !strings.Contains(string(readme), "```go\n"+wiring+"```\n") {
		t.Error("the wiring in README.md is not the one of this example; copy it over")
	}
}

// A service wires authentication, the tenant's schema and the store together; the
// tenant's schema is made when the tenant is.
func Example() {
	ctx := context.Background()
	server, err := pgtest.Start(ctx, pgtest.WithLog(nil))
	if err != nil {
		panic(err)
	}
	defer server.Stop()
	databaseURL, _, err := server.CreateDatabase(ctx)
	if err != nil {
		panic(err)
	}

	// When the tenant signs up:
	org := uuid.MustParse("6f1c2f6e-0d5a-4c8e-9f5e-2f0a3c1d7b42")
	tenants, err := tenancy.PerOrg("tenant_")
	if err != nil {
		panic(err)
	}
	schema, err := tenants.Schema(ctx, org)
	if err != nil {
		panic(err)
	}
	if err := migrations.Up(ctx, databaseURL, schema); err != nil {
		panic(err)
	}

	// When the service starts:
	pool, err := pgxpool.New(ctx, databaseURL)
	if err != nil {
		panic(err)
	}
	defer pool.Close()
	payments := 0
	mux := http.NewServeMux()
	mux.HandleFunc("POST /v1/payments", func(w http.ResponseWriter, r *http.Request) {
		payments++
		w.WriteHeader(http.StatusCreated)
		fmt.Fprint(w, "payment ", payments)
	})
	key := []byte("an example's key, of 32 bytes or more")
	handler, err := protect(mux, pool, key)
	if err != nil {
		panic(err)
	}

	// When a client pays, and tries again because it heard nothing:
	token, err := jwt.NewWithClaims(jwt.SigningMethodHS256, jwt.MapClaims{
		"sub": "ann", "org_id": org.String(), "exp": time.Now().Add(time.Hour).Unix(),
	}).SignedString(key)
	if err != nil {
		panic(err)
	}
	for range 2 {
		r := httptest.NewRequest(http.MethodPost, "/v1/payments", strings.NewReader(`{"amount":1200}`))
		r.Header.Set("Authorization", "Bearer "+token)
		r.Header.Set("Idempotency-Key", "8e03978e-40d5-43e8-bc93-6894a57f9324")
		w := httptest.NewRecorder()
		handler.ServeHTTP(w, r)
		body, _ := io.ReadAll(w.Body)
		fmt.Printf("%d %s replayed: %q\n", w.Code, body, w.Header().Get("Idempotency-Replayed"))
	}
	// Output:
	// 201 payment 1 replayed: ""
	// 201 payment 1 replayed: "true"
}

// Behind a pooler in transaction mode, requests that wait are told of the end over a
// direct connection.
func ExampleWithListenConfig() {
	pooled, err := pgxpool.ParseConfig("postgres://app@pgbouncer.internal:6432/app")
	if err != nil {
		panic(err)
	}
	pooled.ConnConfig.DefaultQueryExecMode = pgx.QueryExecModeExec
	direct, err := pgx.ParseConfig("postgres://app@postgres.internal:5432/app")
	if err != nil {
		panic(err)
	}
	pool, err := pgxpool.NewWithConfig(context.Background(), pooled)
	if err != nil {
		panic(err)
	}
	defer pool.Close()
	tenants, err := tenancy.PerOrg("tenant_")
	if err != nil {
		panic(err)
	}
	store, err := pgstore.New(pool, tenants, pgstore.WithListenConfig(direct))
	if err != nil {
		panic(err)
	}
	defer store.Close()
	idempotency.Require(store, idempotency.WithWait(10*time.Second))
	fmt.Println("ready")
	// Output: ready
}

// The payment and the stored response are committed together: a request that is sent
// twice, or whose service is killed anywhere, makes one payment.
func ExampleStore_Transactional() {
	ctx := context.Background()
	server, err := pgtest.Start(ctx)
	if err != nil {
		panic(err)
	}
	defer server.Stop()
	databaseURL, _, err := server.CreateDatabase(ctx)
	if err != nil {
		panic(err)
	}
	org := uuid.MustParse("6f1c2f6e-0d5a-4c8e-9f5e-2f0a3c1d7b42")
	tenants, err := tenancy.PerOrg("tenant_")
	if err != nil {
		panic(err)
	}
	schema, err := tenants.Schema(ctx, org)
	if err != nil {
		panic(err)
	}
	if err := migrations.Up(ctx, databaseURL, schema); err != nil {
		panic(err)
	}
	pool, err := pgxpool.New(ctx, databaseURL)
	if err != nil {
		panic(err)
	}
	defer pool.Close()
	if _, err := pool.Exec(ctx, "CREATE TABLE "+schema.Quoted()+".payments (amount int)"); err != nil {
		panic(err)
	}

	store, err := pgstore.New(pool, tenants)
	if err != nil {
		panic(err)
	}
	idempotent := idempotency.Require(store.Transactional())
	handler := idempotent(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		tx, ok := pgstore.Tx(r.Context()) // search_path is the tenant's schema
		if !ok {
			http.Error(w, "no key", http.StatusBadRequest)
			return
		}
		if _, err := tx.Exec(r.Context(), "INSERT INTO payments (amount) VALUES ($1)", 1200); err != nil {
			http.Error(w, "no payment", http.StatusInternalServerError) // rolls back
			return
		}
		w.WriteHeader(http.StatusCreated)
	}))
	for range 2 {
		r := httptest.NewRequest(http.MethodPost, "/v1/payments", nil)
		r.Header.Set("Idempotency-Key", "8e03978e-40d5-43e8-bc93-6894a57f9324")
		w := httptest.NewRecorder()
		handler.ServeHTTP(w, r.WithContext(tenancy.WithOrgID(r.Context(), org)))
		var payments int
		if err := pool.QueryRow(ctx, "SELECT count(*) FROM "+schema.Quoted()+".payments").Scan(&payments); err != nil {
			panic(err)
		}
		fmt.Println(w.Code, payments, "payment")
	}
	// Output:
	// 201 1 payment
	// 201 1 payment
}

// A payment whose process died is brought to its end by the service itself, and the client
// that comes back finds it made. Here the process is a store whose handler never returned.
func ExampleCompleter() {
	ctx := context.Background()
	server, err := pgtest.Start(ctx)
	if err != nil {
		panic(err)
	}
	defer server.Stop()
	databaseURL, _, err := server.CreateDatabase(ctx)
	if err != nil {
		panic(err)
	}
	org := uuid.MustParse("6f1c2f6e-0d5a-4c8e-9f5e-2f0a3c1d7b42")
	tenants, err := tenancy.PerOrg("tenant_")
	if err != nil {
		panic(err)
	}
	schema, err := tenants.Schema(ctx, org)
	if err != nil {
		panic(err)
	}
	if err := migrations.Up(ctx, databaseURL, schema); err != nil {
		panic(err)
	}
	pool, err := pgxpool.New(ctx, databaseURL)
	if err != nil {
		panic(err)
	}
	defer pool.Close()
	store, err := pgstore.New(pool, tenants)
	if err != nil {
		panic(err)
	}

	protect := idempotency.Require(store, idempotency.WithRecoverable("POST /v1/payments"),
		idempotency.WithLease(100*time.Millisecond), idempotency.WithLogger(slog.New(slog.DiscardHandler)))
	dying := make(chan struct{})
	handler := protect(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !idempotency.Recovered(r.Context()) {
			// Here the process dies: nothing of it reaches the store any more.
			if _, err := pool.Exec(ctx, "UPDATE "+schema.Quoted()+".idempotency_records SET token = gen_random_uuid()"); err != nil {
				panic(err)
			}
			close(dying)
			<-r.Context().Done()
			return
		}
		body, _ := io.ReadAll(r.Body)
		w.WriteHeader(http.StatusCreated)
		fmt.Fprintf(w, "paid %s", body)
	}))
	request := func() *http.Request {
		r := httptest.NewRequest(http.MethodPost, "/v1/payments", strings.NewReader(`{"amount":1200}`))
		r.Header.Set("Idempotency-Key", "8e03978e-40d5-43e8-bc93-6894a57f9324")
		return r.WithContext(tenancy.WithOrgID(r.Context(), org))
	}
	var background sync.WaitGroup
	background.Go(func() { handler.ServeHTTP(httptest.NewRecorder(), request()) })
	<-dying

	// Beside the server, in each instance of the service:
	completer, err := pgstore.NewCompleter(store, handler, pgstore.WithInterval(10*time.Millisecond),
		pgstore.WithCompleterLogger(slog.New(slog.DiscardHandler)))
	if err != nil {
		panic(err)
	}
	running, stop := context.WithCancel(ctx)
	background.Go(func() { _ = completer.Run(running) })

	// When the client comes back, at last:
	for {
		if _, err := store.Get(ctx, org, "8e03978e-40d5-43e8-bc93-6894a57f9324"); err == nil {
			break
		}
		time.Sleep(time.Millisecond)
	}
	w := httptest.NewRecorder()
	handler.ServeHTTP(w, request())
	fmt.Println(w.Code, w.Body, "replayed:", w.Header().Get("Idempotency-Replayed"))
	stop()
	background.Wait()
	// Output: 201 paid {"amount":1200} replayed: true
}
