package migrations_test

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgidem/pgidem/internal/pgtest"
	"github.com/pgidem/pgidem/migrations"
	"github.com/pgidem/pgidem/tenancy"
	"github.com/pgidem/pgidem/tenancy/registry"
)

func ExampleAll() {
	ctx, databaseURL := context.Background(), os.Getenv("DATABASE_URL")
	var schemas []tenancy.Schema // of all tenants
	report, err := migrations.All(ctx, databaseURL, migrations.Schemas(schemas...),
		migrations.WithWorkers(8),
		migrations.WithProgress(func(p migrations.Progress) {
			fmt.Printf("%d of %d, %.0f/s, %s left\n", p.Done, p.Total, p.Rate, p.Left)
		}))
	for _, failure := range report.Failures {
		fmt.Println(failure.Schema, failure.SQLState(), failure.Err)
	}
	if err != nil {
		os.Exit(1)
	}
}

// Stores go by the versions that the registry has noted, so what is migrated is noted there,
// as idem-tenants migrate does. Up and All alone would leave all tenants refused.
func ExampleWithResult() {
	ctx := context.Background()
	databaseURL, tenants, stop := exampleRegistry()
	defer stop()

	// Those of one server, of which the registry names none here. Tenants that are being made or
	// dropped are for whoever does that.
	filter := registry.Filter{Cluster: new(""), States: []registry.State{registry.Active, registry.Suspended}}
	placements := make(map[uuid.UUID]tenancy.Placement)
	targets := func(yield func(migrations.Target, error) bool) {
		for tenant, err := range tenants.Tenants(ctx, filter) {
			placements[tenant.OrgID] = tenant.Placement()
			if !yield(migrations.Target{Schema: tenant.Schema, OrgID: tenant.OrgID}, err) {
				return
			}
		}
	}
	var unnoted []error
	report, err := migrations.All(ctx, databaseURL, targets, migrations.WithWorkers(8), migrations.WithExistingOnly(),
		migrations.WithResult(func(r migrations.Result) {
			at := placements[r.OrgID]
			if r.To > at.Version { // also of a tenant that was up to date: Up may have migrated it
				at.Version = r.To
				if err := tenants.SetVersion(ctx, r.OrgID, at); err != nil {
					unnoted = append(unnoted, err) // it is elsewhere by now, say: run this again
				}
			}
		}))
	for _, failure := range report.Failures {
		fmt.Println(failure.Schema, failure.SQLState(), failure.Err)
	}
	fmt.Println("migrated:", report.Migrated, "up to date:", report.Current, err, errors.Join(unnoted...))
	for tenant, err := range tenants.Tenants(ctx, registry.Filter{}) {
		fmt.Println(tenant.Schema, "is noted as migrated:", tenant.Version == migrations.Latest(), err)
	}
	// Output:
	// migrated: 0 up to date: 2 <nil> <nil>
	// tenant_a is noted as migrated: true <nil>
	// tenant_b is noted as migrated: true <nil>
}

// exampleRegistry stands for a service's registry, after an upgrade and migrations.Up.
func exampleRegistry() (databaseURL string, tenants *registry.Registry, stop func()) {
	ctx := context.Background()
	databaseURL, drop := exampleDatabase()
	control, err := tenancy.ParseSchema(registry.DefaultSchema)
	if err == nil {
		err = migrations.UpControl(ctx, databaseURL, control)
	}
	if err != nil {
		panic(err)
	}
	pool, err := pgxpool.New(ctx, databaseURL)
	if err != nil {
		panic(err)
	}
	if tenants, err = registry.New(pool); err != nil {
		panic(err)
	}
	for i, name := range []string{"tenant_a", "tenant_b"} {
		schema, err := tenancy.ParseSchema(name)
		if err != nil {
			panic(err)
		}
		if err := migrations.Up(ctx, databaseURL, schema); err != nil {
			panic(err)
		}
		tenant := registry.Tenant{OrgID: uuid.UUID{15: byte(i + 1)}, Schema: schema, State: registry.Active, Version: migrations.Latest() - 1}
		if _, err := tenants.Add(ctx, tenant); err != nil {
			panic(err)
		}
	}
	return databaseURL, tenants, func() {
		tenants.Close()
		pool.Close()
		drop()
	}
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

func ExampleStatus() {
	ctx, databaseURL := context.Background(), os.Getenv("DATABASE_URL")
	var schemas []tenancy.Schema // of all tenants
	list, err := migrations.Status(ctx, databaseURL, migrations.Schemas(schemas...))
	if err != nil {
		fmt.Println(err)
		return
	}
	for _, s := range list {
		fmt.Println(s.Schema, s.Standing, s.Version)
		for _, difference := range s.Drift {
			fmt.Println("   ", difference)
		}
	}
}
