package registry_test

import (
	"context"
	"errors"
	"fmt"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgidem/pgidem/internal/pgtest"
	"github.com/pgidem/pgidem/migrations"
	"github.com/pgidem/pgidem/tenancy"
	"github.com/pgidem/pgidem/tenancy/registry"
)

// A tenant is registered, served, and suspended by another process.
func ExampleRegistry() {
	ctx := context.Background()
	databaseURL, stop := exampleDatabase()
	defer stop()

	control, err := tenancy.ParseSchema(registry.DefaultSchema)
	if err != nil {
		panic(err)
	}
	if err := migrations.UpControl(ctx, databaseURL, control); err != nil {
		panic(err)
	}
	pool, err := pgxpool.New(ctx, databaseURL)
	if err != nil {
		panic(err)
	}
	defer pool.Close()
	tenants, err := registry.New(pool)
	if err != nil {
		panic(err)
	}
	defer tenants.Close()

	orgID := uuid.MustParse("6f1c2f6e-0d5a-4c8e-9f5e-2f0a3c1d7b42")
	schema, err := tenancy.ParseSchema("tenant_acme")
	if err != nil {
		panic(err)
	}
	if _, err := tenants.Add(ctx, registry.Tenant{OrgID: orgID, Schema: schema}); err != nil {
		panic(err)
	}
	_, err = tenants.Schema(ctx, orgID)
	fmt.Println("being provisioned:", errors.Is(err, tenancy.ErrSuspendedTenant))

	// Its schema is made, by migrations.Up; then it is served.
	if _, err := tenants.SetState(ctx, orgID, registry.Active, registry.Provisioning); err != nil {
		panic(err)
	}
	for found, err := range tenants.Tenants(ctx, registry.Filter{States: []registry.State{registry.Active}}) {
		fmt.Println(found.OrgID, found.Schema, found.State, err)
	}
	_, err = tenants.SetState(ctx, orgID, registry.Active, registry.Suspended)
	fmt.Println("resumed, although it was not suspended:", err)
	// Output:
	// being provisioned: true
	// 6f1c2f6e-0d5a-4c8e-9f5e-2f0a3c1d7b42 tenant_acme active <nil>
	// resumed, although it was not suspended: registry: wrong state: set state of org 6f1c2f6e-0d5a-4c8e-9f5e-2f0a3c1d7b42: it is active and not [suspended]
}

// exampleDatabase stands for the database of a service.
func exampleDatabase() (databaseURL string, stop func()) {
	ctx := context.Background()
	server, err := pgtest.Start(ctx, pgtest.WithLog(nil))
	if err != nil {
		panic(err)
	}
	databaseURL, drop, err := server.CreateDatabase(ctx)
	if err != nil {
		panic(err)
	}
	return databaseURL, func() {
		if err := errors.Join(drop(ctx), server.Stop()); err != nil {
			panic(err)
		}
	}
}
