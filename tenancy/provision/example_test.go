package provision_test

import (
	"context"
	"fmt"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgidem/pgidem/tenancy/provision"
	"github.com/pgidem/pgidem/tenancy/registry"
)

func Example() {
	ctx := context.Background()
	pool, err := pgxpool.New(ctx, "") // as the role that owns the tenants' schemas
	if err != nil {
		panic(err)
	}
	defer pool.Close()
	tenants, err := registry.New(pool)
	if err != nil {
		panic(err)
	}
	defer tenants.Close()
	p, err := provision.New(tenants, pool, provision.WithServiceRole("payments"))
	if err != nil {
		panic(err)
	}
	// The customer signs up, and may do so twice.
	tenant, err := p.Provision(ctx, uuid.New())
	if err != nil {
		fmt.Println("try again:", err)
		return
	}
	fmt.Println(tenant.Schema, "is", tenant.State)
}
