package provision

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgidem/pgidem/internal/moved"
	"github.com/pgidem/pgidem/migrations"
	"github.com/pgidem/pgidem/tenancy"
	"github.com/pgidem/pgidem/tenancy/registry"
)

// Suspend has the tenant no longer served. What is under way may come to its end. A tenant
// that is suspended already stays so; the error wraps registry.ErrState for one that is
// neither that nor active, and tenancy.ErrUnknownTenant for none.
func (p *Provisioner) Suspend(ctx context.Context, orgID uuid.UUID) (registry.Tenant, error) {
	return p.tenants.SetState(ctx, orgID, registry.Suspended, registry.Active, registry.Suspended)
}

// Resume has a suspended tenant served again, with errors as those of Suspend.
func (p *Provisioner) Resume(ctx context.Context, orgID uuid.UUID) (registry.Tenant, error) {
	return p.tenants.SetState(ctx, orgID, registry.Active, registry.Suspended, registry.Active)
}

// DropOption changes what [Provisioner.Drop] does.
type DropOption func(*dropping)

type dropping struct{ foreign bool }

// WithForeign has Drop also drop what is in the tenant's schema and not of this library: the
// service's own tables, say. What lies in other schemas is never dropped; if it depends on
// something in this one, Drop fails and says so.
func WithForeign() DropOption { return func(d *dropping) { d.foreign = true } }

// Drop takes a suspended tenant, or one that was never made to the end, away for good: its
// tables one by one, each in a short transaction of its own, then the schema, its role, and last
// its entry in the registry.
// Nothing waits for a lock for long, and no other tenant is touched. Confirm must be the name
// of the schema or the org_id.
//
// It may be run again wherever it was cut off; from its first step on the tenant is deleting
// and cannot be resumed. Of a tenant that is still provisioning, for which Provision found a
// schema with tables that are not pinned to it, only the entry goes, and the schema stays as it
// is.
//
// Where the tenant had been before package move took it elsewhere, in those of the clusters
// that the Provisioner knows, the empty schemas that say so go as well, before the entry does. So
// each of these clusters is asked what it has of the tenant before anything is changed: one that
// does not answer within a few seconds stops Drop, as does what a move that was cut off has left
// there, or what somebody has put into such a schema.
//
// A tenant that is not registered is gone: the error wraps tenancy.ErrUnknownTenant. The error
// wraps [ErrNotConfirmed]; [ErrState] for a tenant that is active, or was moved, or dropped and
// made anew, meanwhile, or is elsewhere by what a move has left, or has a move to finish; [ErrRole], under
// [WithTenantRoles], if the role of the schema's name is not the tenant's; [ErrNotPinned] if
// tables in the schema are another tenant's; it is a [*ForeignError] if there is something in the
// schema that is not this library's and WithForeign was not given, or in one that a move has left,
// and a [*DependentError] if
// something elsewhere depends on what is in the one or the other; nothing has been dropped then. It wraps [ErrBusy]
// if others hold a table for too long.
func (p *Provisioner) Drop(ctx context.Context, orgID uuid.UUID, confirm string, opts ...DropOption) error {
	var d dropping
	for _, opt := range opts {
		opt(&d)
	}
	tenant, err := p.tenants.Tenant(ctx, orgID)
	if err != nil {
		return fmt.Errorf("provision: %w", err)
	}
	if confirm != tenant.Schema.String() && confirm != orgID.String() {
		return fmt.Errorf("%w: %q is neither the schema of org %s nor its org_id", ErrNotConfirmed, confirm, orgID)
	}
	if tenant.State == registry.Active {
		return fmt.Errorf("%w: org %s is %s; suspend it first", ErrState, orgID, tenant.State)
	}
	g := p.tenants.Generation(tenant)
	pool, err := p.pool(tenant.Cluster)
	if err != nil {
		return err
	}
	switch tombstone, ok, err := moved.Find(ctx, pool, tenant.Schema.String()); {
	case err != nil:
		return fmt.Errorf("provision: look into schema %s: %w", tenant.Schema, err)
	case ok && tenant.State == registry.Provisioning:
		return p.remove(ctx, g, registry.Provisioning) // the schema never was this tenant's
	case ok:
		return fmt.Errorf("%w: schema %s of cluster %q says that org %s went to cluster %q; correct its placement in the registry, and drop it there", ErrState, tenant.Schema, tenant.Cluster, tombstone.OrgID, tombstone.Cluster)
	}
	tables, objects, outside, err := p.look(ctx, pool, tenant.Schema)
	if err != nil {
		return fmt.Errorf("provision: look into schema %s: %w", tenant.Schema, err)
	}
	for _, table := range tables {
		switch {
		case tenant.State == registry.Provisioning && !table.pinnedTo(orgID):
			return p.remove(ctx, g, registry.Provisioning) // the schema never was the tenant's
		case table.pinnedToAnother(orgID):
			return fmt.Errorf("%w: table %s of schema %s is not pinned to org %s but %v", ErrNotPinned, table.name, tenant.Schema, orgID, table.check)
		}
	}
	if foreign := notOurs(objects); len(foreign) > 0 && !d.foreign {
		return &ForeignError{Schema: tenant.Schema, Objects: foreign, Cluster: tenant.Cluster}
	}
	if len(outside) > 0 {
		return &DependentError{Schema: tenant.Schema, Objects: outside, Cluster: tenant.Cluster}
	}
	stones, err := p.askAll(ctx, tenant)
	if err != nil {
		return err
	}
	if p.tenantRoles {
		r, err := roleOf(ctx, pool, orgID, tenant.Schema)
		if err == nil {
			err = r.refuse(tenant.Schema)
		}
		if err != nil {
			return fmt.Errorf("provision: drop the role of org %s: %w", orgID, err)
		}
	}
	// From now on nobody moves the tenant.
	now, err := g.SetState(ctx, registry.Deleting, tenant.State, registry.Deleting)
	if err != nil {
		return fmt.Errorf("provision: %w", replaced(err))
	}
	if now.Schema != tenant.Schema || now.Cluster != tenant.Cluster {
		return fmt.Errorf("%w: org %s was moved from schema %s of cluster %q to %s of %q meanwhile; nothing has been dropped, so drop again", ErrState, orgID, tenant.Schema, tenant.Cluster, now.Schema, now.Cluster)
	}
	if err := p.step("deleting"); err != nil {
		return err
	}
	_, err = p.take(ctx, pool, g, tenant.Schema, false)
	if errors.Is(err, tenancy.ErrUnknownTenant) {
		return nil // another run was quicker; what is there now is not the tenant's
	}
	if err == nil {
		err = p.step("taken")
	}
	if err == nil {
		err = p.empty(ctx, pool, tenant, g, objects)
	}
	if err != nil {
		return fmt.Errorf("provision: drop schema %s: %w", tenant.Schema, replaced(err))
	}
	for _, stone := range stones {
		if err := p.clear(ctx, tenant, stone); err != nil {
			return err
		}
	}
	return p.remove(ctx, g, registry.Deleting)
}

func (p *Provisioner) remove(ctx context.Context, g registry.Generation, from registry.State) error {
	if err := g.Remove(ctx, from); err != nil && !errors.Is(err, tenancy.ErrUnknownTenant) {
		return fmt.Errorf("provision: %w", replaced(err))
	}
	return p.step("removed")
}

// look finds out what is in a schema and what depends on it. Another Drop may be at it, or one
// that was cut off may still be ending on the server.
func (p *Provisioner) look(ctx context.Context, pool *pgxpool.Pool, schema tenancy.Schema) (tables []table, objects []object, outside []string, err error) {
	for try := 1; ; try++ {
		if tables, err = pins(ctx, pool, schema); err == nil {
			if objects, err = contents(ctx, pool, schema); err == nil {
				outside, err = whatKeeps(ctx, pool, schema)
			}
		}
		// internal_error: what the query met in the catalog was gone when it asked for more.
		if code(err) != "XX000" || try == p.tries {
			return tables, objects, outside, err
		}
		if err := p.rest(ctx); err != nil {
			return nil, nil, nil, err
		}
	}
}

// rest pauses between two tries.
func (p *Provisioner) rest(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(p.pause):
		return nil
	}
}

// object is something in a schema, by what drops it.
type object struct {
	kind, name string // as DROP takes them, qualified and quoted
	ours       bool
}

// contents lists what is in a schema and does not belong to something else in it.
func contents(ctx context.Context, pool *pgxpool.Pool, schema tenancy.Schema) ([]object, error) {
	rows, err := pool.Query(ctx, `
		SELECT 'ALTER TABLE ' || c.oid::regclass || ' DROP CONSTRAINT IF EXISTS', pg_catalog.quote_ident(k.conname), false, 0
		FROM pg_catalog.pg_constraint AS k JOIN pg_catalog.pg_class AS c ON c.oid = k.conrelid
		JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
		WHERE n.nspname = $1 AND k.contype = 'f' AND k.conparentid = 0
		UNION ALL
		SELECT CASE c.relkind WHEN 'v' THEN 'DROP VIEW IF EXISTS' WHEN 'm' THEN 'DROP MATERIALIZED VIEW IF EXISTS'
			WHEN 'S' THEN 'DROP SEQUENCE IF EXISTS' WHEN 'f' THEN 'DROP FOREIGN TABLE IF EXISTS' WHEN 'c' THEN 'DROP TYPE IF EXISTS' ELSE 'DROP TABLE IF EXISTS' END,
			pg_catalog.quote_ident(n.nspname) || '.' || pg_catalog.quote_ident(c.relname), c.relname = ANY ($2::text[]) AND c.relkind = 'r', 1
		FROM pg_catalog.pg_class AS c JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
		WHERE n.nspname = $1 AND c.relkind IN ('r', 'p', 'v', 'm', 'S', 'f', 'c') AND NOT c.relispartition
			AND NOT EXISTS (SELECT FROM pg_catalog.pg_depend AS d WHERE d.classid = 'pg_catalog.pg_class'::regclass AND d.objid = c.oid AND d.objsubid = 0 AND d.refobjid <> c.oid AND d.deptype IN ('a', 'i', 'e') AND d.refclassid = 'pg_catalog.pg_class'::regclass)
		UNION ALL
		SELECT 'DROP ROUTINE IF EXISTS', pg_catalog.quote_ident(n.nspname) || '.' || pg_catalog.quote_ident(f.proname) || '(' || pg_catalog.pg_get_function_identity_arguments(f.oid) || ')', false, 2
		FROM pg_catalog.pg_proc AS f JOIN pg_catalog.pg_namespace AS n ON n.oid = f.pronamespace
		WHERE n.nspname = $1 AND NOT EXISTS (SELECT FROM pg_catalog.pg_depend AS d WHERE d.classid = 'pg_catalog.pg_proc'::regclass AND d.objid = f.oid AND d.deptype IN ('i', 'e'))
		UNION ALL
		SELECT CASE y.typtype WHEN 'd' THEN 'DROP DOMAIN IF EXISTS' ELSE 'DROP TYPE IF EXISTS' END, pg_catalog.quote_ident(n.nspname) || '.' || pg_catalog.quote_ident(y.typname), false, 3
		FROM pg_catalog.pg_type AS y JOIN pg_catalog.pg_namespace AS n ON n.oid = y.typnamespace
		WHERE n.nspname = $1 AND y.typtype IN ('e', 'd', 'r', 'b') AND NOT EXISTS (SELECT FROM pg_catalog.pg_depend AS d WHERE d.classid = 'pg_catalog.pg_type'::regclass AND d.objid = y.oid AND d.deptype IN ('i', 'e', 'a') AND d.refclassid <> 'pg_catalog.pg_namespace'::regclass)
		ORDER BY 4, 1, 2`, schema.String(), migrations.Tables())
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, func(row pgx.CollectableRow) (o object, err error) {
		var order int
		return o, row.Scan(&o.kind, &o.name, &o.ours, &order)
	})
}

// notOurs names what of the objects is another's. A foreign key is its table's.
func notOurs(objects []object) []string {
	var names []string
	for _, o := range objects {
		if kind, ok := strings.CutPrefix(o.kind, "DROP "); ok && !o.ours {
			names = append(names, strings.ToLower(strings.TrimSuffix(kind, " IF EXISTS"))+" "+o.name)
		}
	}
	return names
}

// empty drops the objects, the schema and the role. What another depends on is dropped after
// that, so it goes round until nothing is left, or nothing more can be dropped.
func (p *Provisioner) empty(ctx context.Context, pool *pgxpool.Pool, tenant registry.Tenant, g registry.Generation, objects []object) error {
	schema := tenant.Schema
	for len(objects) > 0 {
		var held []object
		var last error
		for _, o := range objects {
			err := p.alone(ctx, pool, schema, g, o.kind+" "+o.name)
			if code(err) == "2BP01" { // dependent_objects_still_exist
				held, last = append(held, o), err
				continue
			}
			if err != nil {
				return fmt.Errorf("%s: %w", o.name, err)
			}
			if err := p.step(o.name); err != nil {
				return err
			}
		}
		if len(held) == len(objects) {
			return fmt.Errorf("others depend on %s: %w", held[0].name, last)
		}
		objects = slices.Clip(held)
	}
	if err := p.alone(ctx, pool, schema, g, `DROP SCHEMA IF EXISTS `+schema.Quoted()); err != nil {
		var pgErr *pgconn.PgError
		if errors.As(err, &pgErr) && pgErr.Detail != "" {
			return fmt.Errorf("%w: %s", err, pgErr.Detail)
		}
		return err
	}
	if err := p.step("schema"); err != nil {
		return err
	}
	if !p.tenantRoles {
		return nil
	}
	err := p.as(ctx, pool, g, schema, true, func(tx pgx.Tx) error { return dropRole(ctx, tx, tenant.OrgID, schema) })
	if err != nil {
		return fmt.Errorf("its role: %w", err)
	}
	return p.step("role")
}

// alone runs a statement in a transaction of its own.
func (p *Provisioner) alone(ctx context.Context, pool *pgxpool.Pool, schema tenancy.Schema, g registry.Generation, sql string) error {
	return p.as(ctx, pool, g, schema, true, func(tx pgx.Tx) error {
		_, err := tx.Exec(ctx, sql)
		return err
	})
}

func code(err error) string {
	var pgErr *pgconn.PgError
	if errors.As(err, &pgErr) {
		return pgErr.Code
	}
	return ""
}
