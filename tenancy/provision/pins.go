package provision

import (
	"context"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/pgidem/pgidem/migrations"
	"github.com/pgidem/pgidem/tenancy"
)

// table is one of the library's in a schema.
type table struct {
	name  string
	org   bool     // has rows of tenants
	check []string // what its constraint ..._tenant_check says
}

// pinnedTo reports whether the table refuses rows of others than the tenant.
func (t table) pinnedTo(org uuid.UUID) bool {
	return !t.org || len(t.check) == 1 && t.check[0] == "CHECK ((org_id = '"+org.String()+"'::uuid))"
}

// pinnedToAnother reports whether the table is by its constraint somebody else's.
func (t table) pinnedToAnother(org uuid.UUID) bool { return len(t.check) > 0 && !t.pinnedTo(org) }

// pins lists the tables of the library that are in a schema.
func pins(ctx context.Context, q interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
}, schema tenancy.Schema,
) ([]table, error) {
	rows, err := q.Query(ctx, `
		SELECT c.relname::text,
			EXISTS (SELECT FROM pg_catalog.pg_attribute AS a WHERE a.attrelid = c.oid AND a.attname = 'org_id' AND NOT a.attisdropped),
			ARRAY(SELECT pg_catalog.pg_get_constraintdef(k.oid) FROM pg_catalog.pg_constraint AS k
				WHERE k.conrelid = c.oid AND k.contype = 'c' AND k.conname = c.relname || '_tenant_check')
		FROM pg_catalog.pg_class AS c
		JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
		WHERE n.nspname = $1 AND c.relkind = 'r' AND c.relname = ANY ($2::text[])
		ORDER BY 1`, schema.String(), migrations.Tables())
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, func(row pgx.CollectableRow) (t table, err error) {
		return t, row.Scan(&t.name, &t.org, &t.check)
	})
}
