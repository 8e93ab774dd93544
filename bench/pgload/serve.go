package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"runtime/pprof"
	"strconv"
	"strings"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgidem/pgidem/idempotency"
	"github.com/pgidem/pgidem/idempotency/pgstore"
	"github.com/pgidem/pgidem/tenancy"
)

// The environment of the service process.
const (
	serveEnv    = "PGLOAD_SERVE_DATABASE_URL"
	connsEnv    = "PGLOAD_SERVE_CONNECTIONS"
	coalesceEnv = "PGLOAD_SERVE_COALESCING"
)

const smallBody = `{"id":12345}`

// largeBody is 64 KiB of JSON that compresses as lists of a service do: names repeat,
// values do not.
var largeBody = func() string {
	random := rand.New(rand.NewPCG(1, 2))
	var b strings.Builder
	b.WriteByte('[')
	for b.Len() < 64<<10-100 {
		fmt.Fprintf(&b, `{"id":%d,"amount":%d,"currency":"EUR","reference":"%08x"},`, random.Uint32(), random.Uint32N(1e6), random.Uint32())
	}
	b.WriteString(`{}]`)
	return b.String()
}()

// orgHeader stands for authentication.
const orgHeader = "X-Org"

// serve is the service process: it prints its address and serves until its standard
// input ends.
func serve() error {
	conns, err := strconv.Atoi(os.Getenv(connsEnv))
	if err != nil {
		return fmt.Errorf("%s: %w", connsEnv, err)
	}
	config, err := pgxpool.ParseConfig(os.Getenv(serveEnv))
	if err != nil {
		return err
	}
	config.MaxConns, config.MinConns = int32(conns), int32(conns)
	pool, err := pgxpool.NewWithConfig(context.Background(), config)
	if err != nil {
		return err
	}
	defer pool.Close()
	tenants, err := tenancy.PerOrg("tenant_")
	if err != nil {
		return err
	}
	few, err := strconv.Atoi(os.Getenv(coalesceEnv))
	if err != nil {
		return fmt.Errorf("%s: %w", coalesceEnv, err)
	}
	quiet := idempotency.WithLogger(slog.New(slog.DiscardHandler))

	mux := http.NewServeMux()
	mux.HandleFunc("POST /bare/{size}", answer)
	for mode, opts := range map[string][]pgstore.Option{
		"lease":   nil,
		"apart":   {pgstore.WithCoalescing(math.MaxInt)},
		"few":     {pgstore.WithCoalescing(few)},
		"relaxed": {pgstore.WithRelaxedClaims()},
	} {
		store, err := pgstore.New(pool, tenants, opts...)
		if err != nil {
			return err
		}
		defer store.Close()
		mux.Handle("POST /"+mode+"/{size}", authenticate(idempotency.Require(store, quiet)(http.HandlerFunc(answer))))
		if mode == "lease" {
			mux.Handle("POST /tx/{size}", authenticate(idempotency.Require(store.Transactional(), quiet)(http.HandlerFunc(pay))))
		}
	}
	mux.HandleFunc("POST /report", func(w http.ResponseWriter, r *http.Request) {
		n, err := report(r.Context(), pool)
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		_, _ = fmt.Fprint(w, n)
	})

	var profile bytes.Buffer
	mux.HandleFunc("POST /profile/start", func(http.ResponseWriter, *http.Request) {
		profile.Reset()
		_ = pprof.StartCPUProfile(&profile)
	})
	mux.HandleFunc("POST /profile/stop", func(w http.ResponseWriter, _ *http.Request) {
		pprof.StopCPUProfile()
		_, _ = w.Write(profile.Bytes())
	})

	listener, err := new(net.ListenConfig).Listen(context.Background(), "tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	server := &http.Server{Handler: mux}
	fmt.Println(listener.Addr())
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin) // until the parent has gone
		_ = server.Close()
	}()
	if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

func authenticate(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		org, err := uuid.Parse(r.Header.Get(orgHeader))
		if err != nil {
			http.Error(w, err.Error(), http.StatusUnauthorized)
			return
		}
		next.ServeHTTP(w, r.WithContext(idempotency.WithOrgID(r.Context(), org)))
	})
}

// answer is the handler: it reads its request and makes a response.
func answer(w http.ResponseWriter, r *http.Request) {
	if _, err := io.Copy(io.Discard, r.Body); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusCreated)
	body := smallBody
	if r.PathValue("size") == "large" {
		body = largeBody
	}
	_, _ = io.WriteString(w, body)
}

// pay is answer behind a business insert.
func pay(w http.ResponseWriter, r *http.Request) {
	tx, ok := pgstore.Tx(r.Context())
	if !ok {
		http.Error(w, "no transaction", http.StatusInternalServerError)
		return
	}
	var id int64
	if err := tx.QueryRow(r.Context(), "INSERT INTO payments (amount) VALUES ($1) RETURNING id", 1200).Scan(&id); err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	answer(w, r)
}

// report makes every connection of the pool report its statistics, and returns in how
// many transactions.
func report(ctx context.Context, pool *pgxpool.Pool) (int, error) {
	var held []*pgxpool.Conn
	defer func() {
		for _, conn := range held {
			conn.Release()
		}
	}()
	for range pool.Config().MaxConns {
		conn, err := pool.Acquire(ctx)
		if err != nil {
			return 0, err
		}
		held = append(held, conn)
		if _, err := conn.Exec(ctx, "SELECT pg_stat_force_next_flush()"); err != nil {
			return 0, err
		}
	}
	return len(held), nil
}
