package pgstore_test

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgidem/pgidem/idempotency"
	"github.com/pgidem/pgidem/idempotency/pgstore"
	"github.com/pgidem/pgidem/internal/pgtest"
	"github.com/pgidem/pgidem/migrations"
	"github.com/pgidem/pgidem/tenancy"
)

// What an operator does about a key whose attempt hangs.
func ExampleEndAttempt() {
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
	pool, err := pgxpool.New(ctx, databaseURL)
	if err != nil {
		panic(err)
	}
	defer pool.Close()
	schema, err := tenancy.ParseSchema("payments")
	if err != nil {
		panic(err)
	}
	if err := migrations.Up(ctx, databaseURL, schema); err != nil {
		panic(err)
	}
	store, err := pgstore.New(pool, tenancy.Fixed(schema))
	if err != nil {
		panic(err)
	}

	// A request that never comes to its end:
	org := uuid.MustParse("6f1c2f6e-0d5a-4c8e-9f5e-2f0a3c1d7b42")
	hangs := idempotency.Claim{OrgID: org, Key: "order-1234", Token: idempotency.NewToken()}
	if _, err := store.Claim(ctx, idempotency.ClaimRequest{Claim: hangs, Lease: time.Minute, TTL: time.Hour}); err != nil {
		panic(err)
	}

	info, err := pgstore.Inspect(ctx, pool, schema, org, "order-1234")
	if err != nil {
		panic(err)
	}
	fmt.Println(info.State, info.Record.Attempt)
	err = pgstore.EndAttempt(ctx, pool, info, pgstore.EndOptions{})
	fmt.Println(errors.Is(err, pgstore.ErrLeaseHeld))
	err = pgstore.EndAttempt(ctx, pool, info, pgstore.EndOptions{Live: true}) // its handler may be running
	fmt.Println(err)
	info, err = pgstore.Inspect(ctx, pool, schema, org, "order-1234")
	fmt.Println(info.State, err)
	// Output:
	// in_progress 1
	// true
	// <nil>
	// interrupted <nil>
}
