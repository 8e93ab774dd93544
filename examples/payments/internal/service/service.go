package service

import (
	"crypto/ed25519"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgidem/pgidem/authctx"
	"github.com/pgidem/pgidem/idempotency"
	"github.com/pgidem/pgidem/idempotency/pgstore"
	"github.com/pgidem/pgidem/tenancy"
)

const (
	loginRoute  = "POST /v1/auth/login"
	payRoute    = "POST /v1/payments"
	listRoute   = "GET /v1/payments"
	healthRoute = "GET /healthz"

	maxBodyBytes = 16 << 10

	defaultPurgeInterval    = time.Hour
	defaultCompleteInterval = pgstore.DefaultCompleterInterval
	defaultShutdownGrace    = 10 * time.Second
)

// Config is what a [Service] is made of.
type Config struct {
	// Pool leads to the database. The service uses it and leaves it open.
	Pool *pgxpool.Pool
	// Tenants says in which schema each tenant lives.
	Tenants tenancy.Directory
	// SigningKey signs access tokens. A real service reads it from a secret store.
	SigningKey ed25519.PrivateKey
	// Logger defaults to [slog.Default].
	Logger *slog.Logger
	// PurgeInterval is how often expired idempotency records are deleted.
	// Defaults to an hour.
	PurgeInterval time.Duration
	// CompleteInterval is how often the service looks for payments whose process died.
	// Defaults to 10 seconds.
	CompleteInterval time.Duration
	// ShutdownGrace is how long requests in flight may take to finish when the
	// service stops. Defaults to 10 seconds.
	ShutdownGrace time.Duration
}

// Service is the payments API. Make one with [New].
type Service struct {
	Config
	ledger    ledger
	handler   http.Handler
	completer *pgstore.Completer
}

// New puts the service together. It starts nothing; [Service.Serve] does.
func New(cfg Config) (*Service, error) {
	switch {
	case cfg.Pool == nil:
		return nil, errors.New("service: no pool")
	case cfg.Tenants == nil:
		return nil, errors.New("service: no directory of tenants")
	case len(cfg.SigningKey) != ed25519.PrivateKeySize:
		return nil, errors.New("service: no key to sign tokens with")
	case cfg.PurgeInterval < 0 || cfg.CompleteInterval < 0 || cfg.ShutdownGrace < 0:
		return nil, errors.New("service: a duration is negative")
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	if cfg.PurgeInterval == 0 {
		cfg.PurgeInterval = defaultPurgeInterval
	}
	if cfg.CompleteInterval == 0 {
		cfg.CompleteInterval = defaultCompleteInterval
	}
	if cfg.ShutdownGrace == 0 {
		cfg.ShutdownGrace = defaultShutdownGrace
	}
	s := &Service{Config: cfg, ledger: ledger{pool: cfg.Pool, tenants: cfg.Tenants}}

	auth, err := authctx.New(
		authctx.WithKey(tokenAlgorithm, cfg.SigningKey.Public()),
		authctx.WithIssuer(tokenIssuer),
		authctx.WithAudience(tokenAudience),
		// Whoever logs in has no token yet, and neither has a load balancer.
		authctx.WithExclude(loginRoute, healthRoute),
	)
	if err != nil {
		return nil, fmt.Errorf("service: %w", err)
	}
	records, err := pgstore.New(cfg.Pool, cfg.Tenants)
	if err != nil {
		return nil, fmt.Errorf("service: %w", err)
	}
	protect := idempotency.Require(records,
		// The answer to a login is a secret, which must not be stored.
		idempotency.WithExclude(loginRoute),
		// A client that pays without a key could not retry; better to say so at
		// once than to let it find out.
		idempotency.WithRequireKey(payRoute),
		// A payment whose process died is brought to its end without waiting for the
		// client to come back. The ledger takes the same order twice and keeps it once.
		idempotency.WithRecoverable(payRoute),
		// A key without a tenant would go unprotected. It cannot happen here, as
		// long as nobody excludes one more route above and forgets it below.
		idempotency.WithRequireOrg(),
		idempotency.WithMaxRequestBytes(maxBodyBytes),
		idempotency.WithLogger(cfg.Logger),
	)

	// Router, authctx, Require, handler: authctx puts the tenant into the context,
	// and Require needs it there.
	//
	// The router is outermost. It answers for unknown routes, and redirects a path
	// such as //v1/payments to the clean one, before there is any claim. Inside
	// Require that redirect would be stored as the outcome of the key, and the
	// client that follows it would be told that the key is taken.
	routes := http.NewServeMux()
	for route, handler := range map[string]http.HandlerFunc{
		loginRoute:  s.login,
		payRoute:    s.createPayment,
		listRoute:   s.listPayments,
		healthRoute: s.health,
	} {
		routes.Handle(route, auth.Middleware(protect(handler)))
	}
	s.handler = routes
	// The whole router: authctx lets a request through that is run again.
	s.completer, err = pgstore.NewCompleter(records, routes,
		pgstore.WithInterval(cfg.CompleteInterval),
		pgstore.WithCompleterLogger(cfg.Logger),
	)
	if err != nil {
		return nil, fmt.Errorf("service: %w", err)
	}
	return s, nil
}

// ServeHTTP implements [http.Handler].
func (s *Service) ServeHTTP(w http.ResponseWriter, r *http.Request) { s.handler.ServeHTTP(w, r) }

// health answers whether the service can do its work, which needs the database.
func (s *Service) health(w http.ResponseWriter, r *http.Request) {
	if err := s.Pool.Ping(r.Context()); err != nil {
		s.Logger.WarnContext(r.Context(), "health check", "error", err)
		writeProblem(w, problem{Status: http.StatusServiceUnavailable, Code: "database_unreachable", Detail: "The database does not answer."})
		return
	}
	writeJSON(w, http.StatusOK, map[string]string{"status": "ok"})
}
