package registry_test

import (
	"errors"
	"regexp"
	"strings"
	"testing"

	"github.com/google/uuid"

	"github.com/pgidem/pgidem/tenancy"
	"github.com/pgidem/pgidem/tenancy/registry"
)

// digits are the end of a name that belongs to one org_id alone.
var digits = regexp.MustCompile(`[0-9a-f]{32}$`)

// FuzzNames: the table takes a name exactly if ParseSchema does, and no two org_ids, however
// their names are chosen, are ever placed in one schema.
func FuzzNames(f *testing.F) {
	one, other := uuid.MustParse("aaaaaaaa-0000-4000-8000-00000000000a"), uuid.MustParse("bbbbbbbb-0000-4000-8000-00000000000b")
	hex := strings.ReplaceAll(other.String(), "-", "")
	for _, name := range []string{
		"a", "tenant_" + hex, hex, "t" + hex, "Tenant_" + hex, hex[1:], "x" + hex + "x", "public", "pg_x", "pgidem", "information_schema",
		`a"b`, "a;b", "a\n", "a\x00", "ä", "\xff", "1a", "_", strings.Repeat("x", 63), strings.Repeat("x", 64), `a\`, "$1", "'", "select",
	} {
		f.Add(one[:], name, "b")
		f.Add(other[:], name, name)
	}
	pool := newPool(f)
	r := newRegistry(f, pool)
	f.Fuzz(func(t *testing.T, id []byte, name, second string) {
		ctx := t.Context()
		org, err := uuid.FromBytes(id)
		if err != nil || org == uuid.Nil {
			return
		}
		schema, parsed := tenancy.ParseSchema(name)
		hexOfOrg := strings.ReplaceAll(org.String(), "-", "")
		possible := parsed == nil && name != registry.DefaultSchema && (digits.FindString(name) == "" || digits.FindString(name) == hexOfOrg)

		_, err = pool.Exec(ctx, `INSERT INTO pgidem.tenants (org_id, schema_name, state) VALUES ($1, $2, 'active')`, org, name)
		if (err == nil) != possible {
			t.Fatalf("org %s in schema %q by hand: %v; want it taken: %t", org, name, err, possible)
		}
		defer pool.Exec(ctx, `DELETE FROM pgidem.tenants`)
		if !possible {
			return
		}
		if _, err := r.Add(ctx, registry.Tenant{OrgID: org, Schema: schema}); err != nil {
			t.Fatalf("org %s in schema %q again: %v", org, name, err)
		}
		eventually(t, "the tenant", func() bool {
			got, err := r.Schema(ctx, org)
			return err == nil && got == schema && got.String() == name
		})
		// Another org gets a schema of its own, or none.
		stranger := uuid.New()
		their, err := tenancy.ParseSchema(second)
		if err != nil {
			return
		}
		tenant, err := r.Add(ctx, registry.Tenant{OrgID: stranger, Schema: their, State: registry.Active})
		switch {
		case their == schema && !errors.Is(err, registry.ErrConflict) && !errors.Is(err, registry.ErrInvalid):
			t.Fatalf("schema %s is given away twice: %v", schema, err)
		case err != nil:
			return
		}
		if got, err := r.Schema(ctx, stranger); err != nil || got == schema || got != tenant.Schema {
			t.Fatalf("the stranger is in %s, %v", got, err)
		}
	})
}
