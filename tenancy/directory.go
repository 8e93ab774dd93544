package tenancy

import (
	"context"
	"encoding/hex"
	"fmt"
	"strings"

	"github.com/google/uuid"
)

// DefaultPrefix is the prefix of [PerOrg] when none is given.
const DefaultPrefix = "tenant_"

// movingPrefix is that of schemas that are out of use while package move copies them; what
// visits all schemas passes over them.
const movingPrefix = "moving_"

// Directory finds the schema of a tenant. It is asked once for each request, so
// an implementation that looks tenants up should cache.
//
// Schema returns an error that wraps [ErrUnknownTenant] for an org_id that has
// no schema, [uuid.Nil] among them, and one that wraps [ErrSuspendedTenant] for a
// tenant that is not served at present; any other error is a passing fault of the
// directory. It must be safe for concurrent use. A directory that knows more is a
// [Placer].
type Directory interface {
	Schema(ctx context.Context, orgID uuid.UUID) (Schema, error)
}

// PerOrg returns a Directory that derives each tenant's schema from its org_id:
// the prefix and then the 32 hexadecimal digits of the UUID. It looks nothing
// up and so knows every org_id; a tenant whose schema was never made is found
// out by the store.
//
// The prefix defaults to [DefaultPrefix]. It must leave room for the digits: at
// most 31 bytes, of the letters that [ParseSchema] allows, and not be "moving_". Errors
// wrap [ErrInvalidSchema].
//
// The tables of a schema whose name ends in the 32 digits of a UUID carry a
// CHECK constraint that pins them to that org_id; package migrations adds it.
func PerOrg(prefix string) (Directory, error) {
	if prefix == "" {
		prefix = DefaultPrefix
	}
	if prefix == movingPrefix {
		return nil, fmt.Errorf("%w: prefix %q is that of tenants on their way to another cluster (package move)", ErrInvalidSchema, prefix)
	}
	// The digits are always of the permitted letters and of one length, so a
	// prefix that is right for one org_id is right for all.
	if _, err := ParseSchema(prefix + strings.Repeat("0", hex.EncodedLen(len(uuid.UUID{})))); err != nil {
		return nil, fmt.Errorf("prefix %q: %w", prefix, err)
	}
	return perOrg{prefix: prefix}, nil
}

type perOrg struct{ prefix string }

func (d perOrg) Schema(_ context.Context, orgID uuid.UUID) (Schema, error) {
	if orgID == uuid.Nil {
		return Schema{}, fmt.Errorf("%w: org_id is the nil UUID", ErrUnknownTenant)
	}
	quoted := make([]byte, 0, maxIdentifier+2)
	quoted = append(quoted, '"')
	quoted = append(quoted, d.prefix...)
	quoted = hex.AppendEncode(quoted, orgID[:])
	quoted = append(quoted, '"')
	return Schema{quoted: string(quoted)}, nil
}

// Fixed returns a Directory that puts every tenant into the one schema s: a
// schema for each service, say, with the org_id column keeping tenants apart.
// With the zero Schema it knows no tenant.
func Fixed(s Schema) Directory { return fixed{schema: s} }

type fixed struct{ schema Schema }

func (d fixed) Schema(_ context.Context, orgID uuid.UUID) (Schema, error) {
	switch {
	case orgID == uuid.Nil:
		return Schema{}, fmt.Errorf("%w: org_id is the nil UUID", ErrUnknownTenant)
	case d.schema.IsZero():
		return Schema{}, fmt.Errorf("%w: the directory was made with the zero Schema; make one with ParseSchema", ErrUnknownTenant)
	}
	return d.schema, nil
}
