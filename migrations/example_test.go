package migrations_test

import (
	"context"
	"fmt"
	"os"

	"github.com/pgidem/pgidem/migrations"
	"github.com/pgidem/pgidem/tenancy"
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
