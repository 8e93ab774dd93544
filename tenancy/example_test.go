package tenancy_test

import (
	"context"
	"fmt"

	"github.com/google/uuid"

	"github.com/pgidem/pgidem/tenancy"
)

func ExamplePerOrg() {
	dir, err := tenancy.PerOrg("tenant_")
	if err != nil {
		panic(err)
	}
	orgID := uuid.MustParse("6f1c2f6e-0d5a-4c8e-9f5e-2f0a3c1d7b42")
	schema, err := dir.Schema(context.Background(), orgID)
	fmt.Println(schema, err)
	// Output: tenant_6f1c2f6e0d5a4c8e9f5e2f0a3c1d7b42 <nil>
}

func ExampleFixed() {
	schema, err := tenancy.ParseSchema("payments")
	if err != nil {
		panic(err)
	}
	dir := tenancy.Fixed(schema)
	schema, err = dir.Schema(context.Background(), uuid.New())
	fmt.Println(schema.Quoted(), err)
	// Output: "payments" <nil>
}

func ExampleParseSchema() {
	_, err := tenancy.ParseSchema("Robert'); DROP TABLE students")
	fmt.Println(err)
	// Output: tenancy: invalid schema name: "Robert'); DROP TABLE students": use lower-case letters, digits and underscores, and no digit first
}
