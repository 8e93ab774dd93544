// Package service is a small payments API for several tenants: what a service
// looks like that uses pgidem, made to be read and to be copied from.
//
//	POST /v1/auth/login   email and password -> access token
//	POST /v1/payments     make a payment; needs a token and an Idempotency-Key
//	GET  /v1/payments     the tenant's newest payments; needs a token
//	GET  /healthz
//
// A good order to read it in: migrate.go (a tenant's tables), service.go (how the
// middleware is put together), login.go (where the org_id comes from), payments.go
// and ledger.go (a handler that is safe to retry), serve.go (graceful shutdown,
// the janitor and the completer).
//
// A program that runs it comes down to this:
//
//	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
//	defer stop()
//	pool, err := pgxpool.New(ctx, os.Getenv("DATABASE_URL"))
//	defer pool.Close()
//	api, err := service.New(service.Config{Pool: pool, Tenants: tenants, SigningKey: key})
//	listener, err := net.Listen("tcp", ":8080")
//	err = api.Serve(ctx, listener)
//
// after [Migrate] has run, once for each deployment.
package service
