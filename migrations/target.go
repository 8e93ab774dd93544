package migrations

import (
	"encoding/hex"
	"errors"
	"fmt"
	"iter"
	"regexp"

	"github.com/google/uuid"

	"github.com/pgidem/pgidem/tenancy"
)

// Target names a schema to migrate.
type Target struct {
	Schema tenancy.Schema
	// OrgID is the tenant that the schema is pinned to when it is made: its tables refuse a
	// row of any other by a CHECK. A schema whose name ends in the 32 digits of a UUID
	// (tenancy.PerOrg) is pinned to that one, and OrgID may be left out; it is an error for
	// the two to differ. The nil UUID pins a schema of any other name to nobody. What is there
	// already and not pinned to OrgID stays as it is: to migrate it is [ErrNotPinned].
	OrgID uuid.UUID
}

// Schemas returns the schemas as targets, for [All] and [Status].
func Schemas(schemas ...tenancy.Schema) iter.Seq2[Target, error] {
	return func(yield func(Target, error) bool) {
		for _, schema := range schemas {
			if !yield(Target{Schema: schema}, nil) {
				return
			}
		}
	}
}

// collect reads the targets to the end, so that it is known how many there are and so that
// the list that they come from need not stay open for the run.
func collect(targets iter.Seq2[Target, error]) ([]Target, error) {
	var list []Target
	known := make(map[tenancy.Schema]Target)
	for target, err := range targets {
		if err != nil {
			return nil, fmt.Errorf("migrations: the list of schemas: %w", err)
		}
		target, err = target.check()
		if err != nil {
			return nil, fmt.Errorf("migrations: %w", err)
		}
		if other, ok := known[target.Schema]; ok {
			if other != target {
				return nil, fmt.Errorf("migrations: schema %s is listed for two tenants, %s and %s", target.Schema, other.OrgID, target.OrgID)
			}
			continue
		}
		known[target.Schema] = target
		list = append(list, target)
	}
	return list, nil
}

// check returns the target with the org_id that its name ends in, if it does.
func (t Target) check() (Target, error) {
	if t.Schema.IsZero() {
		return t, errors.New("the zero Schema names none; make one with tenancy.ParseSchema or a Directory")
	}
	named := orgOf(t.Schema)
	if t.OrgID != uuid.Nil && named != uuid.Nil && named != t.OrgID {
		return t, fmt.Errorf("schema %s is by its name that of %s and cannot be pinned to %s", t.Schema, named, t.OrgID)
	}
	if t.OrgID == uuid.Nil {
		t.OrgID = named
	}
	return t, nil
}

var orgDigits = regexp.MustCompile(`[0-9a-f]{32}$`)

// orgOf returns the org_id that the name of a schema ends in, as the migrations read it, or
// the nil UUID.
func orgOf(schema tenancy.Schema) uuid.UUID {
	org, err := uuid.Parse(orgDigits.FindString(schema.String()))
	if err != nil {
		return uuid.Nil
	}
	return org
}

// scratch returns the name of a schema that ends in the digits of org.
func scratch(prefix string, org uuid.UUID) string { return prefix + hex.EncodeToString(org[:]) }
