// Package moved tells what the moving of a tenant leaves in a database from what is a tenant's:
// the schema that is out of use while it is copied, under the name that [Fence] gives, and
// the [Tombstone] in the place where it was.
package moved

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"regexp"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// FencePrefix is that of the names of schemas that are out of use. tenancy.PerOrg makes none
// of them.
const FencePrefix = "moving_"

// Fence returns the name of a tenant's schema while it is being moved, in the cluster that it
// leaves and in the one that it comes to.
func Fence(org uuid.UUID) string { return FencePrefix + hex.EncodeToString(org[:]) }

var fences = regexp.MustCompile(`^` + FencePrefix + `[0-9a-f]{32}$`)

// IsFence reports whether a schema of that name is out of use.
func IsFence(schema string) bool { return fences.MatchString(schema) }

// Tombstone is a schema of a tenant's name where the tenant is not any more: a comment that
// says where it went, and a view in the way of the table with which migrations begin, those
// also that do not read the comment. So nobody makes the tenant's tables there anew, for
// processes that have not heard of the move to take for the tenant's.
type Tombstone struct {
	OrgID   uuid.UUID
	Cluster string // where the tenant went
}

// inTheWay is the name of the view: that of the table with the versions of migrations.
const inTheWay = "idempotency_db_version"

var comments = regexp.MustCompile(`^pgidem: org ([0-9a-f-]{36}) was moved to cluster "([a-z0-9._-]*)"`)

// Parse returns the tombstone that a schema's comment says it is, if it does.
func Parse(comment string) (t Tombstone, ok bool) {
	parts := comments.FindStringSubmatch(comment)
	if parts == nil {
		return Tombstone{}, false
	}
	org, err := uuid.Parse(parts[1])
	return Tombstone{OrgID: org, Cluster: parts[2]}, err == nil
}

// Columns are two, for a query of pg_namespace AS n: the comment of a schema, empty where it has
// none, and whether what it is the tombstone of is beside it, fenced: the move is under way then,
// or was cut off before its end. One statement sees both as they were at one time.
const Columns = `coalesce(pg_catalog.obj_description(n.oid, 'pg_namespace'), ''),
	EXISTS (SELECT FROM pg_catalog.pg_namespace AS f WHERE f.nspname = '` + FencePrefix + `' || pg_catalog.replace(
		pg_catalog.substring(pg_catalog.obj_description(n.oid, 'pg_namespace'), '^pgidem: org ([0-9a-f-]{36}) was moved to cluster '), '-', ''))`

func (t Tombstone) comment() string {
	return fmt.Sprintf("pgidem: org %s was moved to cluster %q; nothing of it is here, nor to be made here", t.OrgID, t.Cluster)
}

// Querier is a pool, a connection or a transaction.
type Querier interface {
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
	Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error)
}

// Find returns the tombstone that a schema is, if it is there and is one.
func Find(ctx context.Context, q Querier, schema string) (t Tombstone, ok bool, err error) {
	var comment string
	err = q.QueryRow(ctx, `SELECT coalesce(pg_catalog.obj_description(n.oid, 'pg_namespace'), '') FROM pg_catalog.pg_namespace AS n WHERE n.nspname = $1`, schema).Scan(&comment)
	if errors.Is(err, pgx.ErrNoRows) {
		return Tombstone{}, false, nil
	}
	t, ok = Parse(comment)
	return t, ok, err
}

// Leave makes the tombstone, in a transaction that takes the schema away.
func (t Tombstone) Leave(ctx context.Context, tx pgx.Tx, schema string) error {
	// Anybody may look into it, so that the service's role finds no table there, and not that
	// it has no right to.
	var statements string
	err := tx.QueryRow(ctx, `SELECT format('CREATE SCHEMA %1$I; GRANT USAGE ON SCHEMA %1$I TO PUBLIC; COMMENT ON SCHEMA %1$I IS %2$L; CREATE VIEW %1$I.%3$I AS SELECT %2$L::text AS moved', $1::text, $2::text, $3::text)`,
		schema, t.comment(), inTheWay).Scan(&statements)
	if err != nil {
		return err
	}
	_, err = tx.Exec(ctx, statements)
	return err
}

// Clear drops the tombstone of org that a schema is, if it is one, and reports whether it
// did. Nothing else is dropped: what somebody has put into it keeps it.
func Clear(ctx context.Context, q Querier, schema string, org uuid.UUID) (cleared bool, err error) {
	t, found, err := Find(ctx, q, schema)
	if err != nil || !found || t.OrgID != org {
		return false, err
	}
	name := pgx.Identifier{schema}.Sanitize()
	_, err = q.Exec(ctx, `DROP VIEW IF EXISTS `+name+`.`+inTheWay+`; DROP SCHEMA `+name)
	return err == nil, err
}
