package tenancy_test

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/pgidem/pgidem/tenancy"
)

func TestOrgID(t *testing.T) {
	t.Parallel()
	org := uuid.New()
	ctx := tenancy.WithOrgID(t.Context(), org)
	if got, ok := tenancy.OrgID(ctx); got != org || !ok {
		t.Errorf("OrgID = %v, %t; want %v", got, ok, org)
	}
	for name, none := range map[string]context.Context{
		"nothing was put in":    t.Context(),
		"nil UUID":              tenancy.WithOrgID(t.Context(), uuid.Nil),
		"nil UUID over another": tenancy.WithOrgID(ctx, uuid.Nil),
	} {
		if got, ok := tenancy.OrgID(none); got != uuid.Nil || ok {
			t.Errorf("%s: OrgID = %v, %t; want none", name, got, ok)
		}
	}
}

func TestParseSchema(t *testing.T) {
	t.Parallel()
	for _, name := range []string{
		"a", "_", "tenant_1", "select", "user", strings.Repeat("x", 63), "tenant_" + strings.Repeat("f", 32), "pg", "publics",
	} {
		schema, err := tenancy.ParseSchema(name)
		if err != nil {
			t.Errorf("%q: %v", name, err)
			continue
		}
		if schema.String() != name || schema.IsZero() {
			t.Errorf("%q: String is %q, IsZero is %t", name, schema.String(), schema.IsZero())
		}
		if want := (pgx.Identifier{name}).Sanitize(); schema.Quoted() != want {
			t.Errorf("%q: Quoted is %s, want %s", name, schema.Quoted(), want)
		}
	}
	for _, name := range []string{
		"", strings.Repeat("x", 64), "1tenant", "Tenant", "ten-ant", "ten ant", `ten"ant`, "ten.ant", "ten\x00ant", "ténant",
		"public", "pg_catalog", "pg_toast", "pg_", "information_schema", `"quoted"`, "a;drop", "тенант", " a", "a ",
	} {
		if schema, err := tenancy.ParseSchema(name); !errors.Is(err, tenancy.ErrInvalidSchema) || !schema.IsZero() {
			t.Errorf("%q: %v, %v; want ErrInvalidSchema", name, schema, err)
		}
	}
	var zero tenancy.Schema
	if !zero.IsZero() || zero.String() != "" || zero.Quoted() != "" {
		t.Errorf("the zero Schema is %q, %q", zero.String(), zero.Quoted())
	}
}

func FuzzParseSchema(f *testing.F) {
	for _, seed := range []string{"tenant_a", "public", `a"b`, "pg_x", "", "\xff"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, name string) {
		schema, err := tenancy.ParseSchema(name)
		if err != nil {
			return
		}
		if want := (pgx.Identifier{name}).Sanitize(); schema.Quoted() != want || schema.String() != name || strings.ToLower(name) != name {
			t.Errorf("%q: Quoted is %s, want %s", name, schema.Quoted(), want)
		}
	})
}

func TestPerOrg(t *testing.T) {
	t.Parallel()
	org := uuid.MustParse("0123abcd-4567-89ef-0123-456789ABCDEF")
	for prefix, want := range map[string]string{
		"":                      "tenant_0123abcd456789ef0123456789abcdef",
		"tenant_":               "tenant_0123abcd456789ef0123456789abcdef",
		"t":                     "t0123abcd456789ef0123456789abcdef",
		strings.Repeat("p", 31): strings.Repeat("p", 31) + "0123abcd456789ef0123456789abcdef",
	} {
		dir, err := tenancy.PerOrg(prefix)
		if err != nil {
			t.Errorf("prefix %q: %v", prefix, err)
			continue
		}
		schema, err := dir.Schema(t.Context(), org)
		if err != nil || schema.String() != want {
			t.Errorf("prefix %q: %v, %v; want %s", prefix, schema, err, want)
		}
		if parsed, err := tenancy.ParseSchema(schema.String()); err != nil || parsed != schema {
			t.Errorf("prefix %q: the schema does not parse as itself: %v, %v", prefix, parsed, err)
		}
		if _, err := dir.Schema(t.Context(), uuid.Nil); !errors.Is(err, tenancy.ErrUnknownTenant) {
			t.Errorf("prefix %q: nil UUID: %v", prefix, err)
		}
	}
	for _, prefix := range []string{strings.Repeat("p", 32), "Tenant_", "1", "pg_", "a-", `a"`, "moving_"} {
		if _, err := tenancy.PerOrg(prefix); !errors.Is(err, tenancy.ErrInvalidSchema) {
			t.Errorf("prefix %q: %v; want ErrInvalidSchema", prefix, err)
		}
	}
}

func TestFixed(t *testing.T) {
	t.Parallel()
	schema, err := tenancy.ParseSchema("payments")
	if err != nil {
		t.Fatal(err)
	}
	dir := tenancy.Fixed(schema)
	for range 3 {
		if got, err := dir.Schema(t.Context(), uuid.New()); got != schema || err != nil {
			t.Errorf("%v, %v; want %v", got, err, schema)
		}
	}
	if _, err := dir.Schema(t.Context(), uuid.Nil); !errors.Is(err, tenancy.ErrUnknownTenant) {
		t.Errorf("nil UUID: %v", err)
	}
	if _, err := tenancy.Fixed(tenancy.Schema{}).Schema(t.Context(), uuid.New()); !errors.Is(err, tenancy.ErrUnknownTenant) {
		t.Errorf("zero Schema: %v", err)
	}
}

// FuzzPerOrg: two org_ids never have one schema, whatever they are, and each schema says
// whose it is.
func FuzzPerOrg(f *testing.F) {
	one := uuid.MustParse("aaaaaaaa-0000-4000-8000-00000000000a")
	f.Add("tenant_", one[:], uuid.Nil[:])
	f.Add("a", one[:], one[:])
	f.Add("", uuid.Max[:], one[:])
	f.Add("0", one[:], one[:])
	f.Fuzz(func(t *testing.T, prefix string, a, b []byte) {
		dir, err := tenancy.PerOrg(prefix)
		if err != nil {
			return
		}
		schemas := make(map[tenancy.Schema]uuid.UUID)
		for _, id := range [][]byte{a, b} {
			org, err := uuid.FromBytes(id)
			if err != nil {
				continue
			}
			schema, err := dir.Schema(t.Context(), org)
			if org == uuid.Nil {
				if !errors.Is(err, tenancy.ErrUnknownTenant) || !schema.IsZero() {
					t.Errorf("the nil UUID has schema %s, %v", schema, err)
				}
				continue
			}
			if err != nil {
				t.Fatal(err)
			}
			if holder, ok := schemas[schema]; ok && holder != org {
				t.Errorf("%s and %s have one schema, %s", holder, org, schema)
			}
			schemas[schema] = org
			if want := strings.ReplaceAll(org.String(), "-", ""); !strings.HasSuffix(schema.String(), want) || schema.Quoted() != (pgx.Identifier{schema.String()}).Sanitize() {
				t.Errorf("schema of %s is %s", org, schema.Quoted())
			}
			if parsed, err := tenancy.ParseSchema(schema.String()); err != nil || parsed != schema {
				t.Errorf("%s does not parse as itself: %v", schema, err)
			}
		}
	})
}
