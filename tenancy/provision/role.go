package provision

import (
	"context"
	"fmt"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/pgidem/pgidem/tenancy"
)

// role is one of the server's that has the name of a tenant's schema.
type role struct {
	exists, ours bool
	more         bool   // it can log in, or do more than a tenant's should
	mark         string // the comment that makes it the tenant's, as SQL
	comment      string
}

// roleOf looks for the role of a tenant. Names of roles are the server's, so one of the schema's
// name may be anybody's: the tenant's is the one that this package has put its comment on, with
// the database, since another may have a tenant of that org_id.
func roleOf(ctx context.Context, q interface {
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}, orgID uuid.UUID, schema tenancy.Schema,
) (r role, err error) {
	err = q.QueryRow(ctx, `
		SELECT r.oid IS NOT NULL, coalesce(c.text = m.text, false), coalesce(c.text, ''), pg_catalog.format('COMMENT ON ROLE %I IS %L', m.name, m.text),
			coalesce(r.rolcanlogin OR r.rolsuper OR r.rolcreaterole OR r.rolcreatedb OR r.rolreplication OR r.rolbypassrls, false)
			OR EXISTS (SELECT FROM pg_catalog.pg_auth_members AS a WHERE a.member = r.oid)
		FROM (VALUES ($1::text, pg_catalog.format('pgidem: role of tenant %s in database %s', $2::text, pg_catalog.current_database()))) AS m (name, text)
		LEFT JOIN pg_catalog.pg_roles AS r ON r.rolname = m.name
		LEFT JOIN LATERAL (SELECT pg_catalog.shobj_description(r.oid, 'pg_authid')) AS c (text) ON true`,
		schema.String(), orgID.String()).Scan(&r.exists, &r.ours, &r.comment, &r.mark, &r.more)
	return r, err
}

// refuse returns the error of a role that is there and is not the tenant's.
func (r role) refuse(schema tenancy.Schema) error {
	if !r.exists || r.ours {
		return nil
	}
	return fmt.Errorf("%w: there is a role %s with the comment %q, so it was not made for the tenant of this database; rename it, or say that it is the tenant's, as after a move to this database: %s", ErrRole, schema, r.comment, r.mark)
}

// makeRole returns what makes the tenant's role, if it is missing. One that can do more than a
// tenant's is not taken for it.
func makeRole(ctx context.Context, tx pgx.Tx, orgID uuid.UUID, schema tenancy.Schema) ([]string, error) {
	r, err := roleOf(ctx, tx, orgID, schema)
	if err == nil {
		err = r.refuse(schema)
	}
	switch {
	case err != nil:
		return nil, err
	case !r.exists:
		return []string{`CREATE ROLE ` + schema.Quoted() + ` NOLOGIN`, r.mark}, nil
	case r.more:
		return nil, fmt.Errorf("%w: role %s can log in, or do more than a tenant's should; take that away from it", ErrRole, schema)
	}
	return nil, nil
}

// dropRole drops the tenant's role, if it is there, and no other.
func dropRole(ctx context.Context, tx pgx.Tx, orgID uuid.UUID, schema tenancy.Schema) error {
	r, err := roleOf(ctx, tx, orgID, schema)
	if err != nil || !r.exists {
		return err
	}
	if err := r.refuse(schema); err != nil {
		return err
	}
	_, err = tx.Exec(ctx, `DROP ROLE IF EXISTS `+schema.Quoted())
	return err
}
