package registry

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// Generation is a tenant from the moment it was registered until it is removed. An org_id that
// is registered again is another one, of which what was begun for this one knows nothing: its
// changes are refused with [ErrReplaced], however late they come.
type Generation struct {
	registry *Registry
	tenant   Tenant
}

// Generation returns the generation of a tenant that the registry has returned. It asks nobody.
func (r *Registry) Generation(t Tenant) Generation { return Generation{r, t} }

// String names the generation: no other has that name, of this tenant or of any.
func (g Generation) String() string {
	return g.tenant.OrgID.String() + " of " + g.tenant.CreatedAt.UTC().Format(time.RFC3339Nano)
}

// Tenant returns the tenant as it is now. The error wraps [ErrReplaced] if the org_id has been
// registered again, and tenancy.ErrUnknownTenant if it is not registered.
func (g Generation) Tenant(ctx context.Context) (Tenant, error) {
	return g.now(ctx, "look up org")
}

func (g Generation) now(ctx context.Context, step string) (Tenant, error) {
	t, err := g.registry.tenant(ctx, step, g.tenant.OrgID)
	if err == nil && !t.CreatedAt.Equal(g.tenant.CreatedAt) {
		return Tenant{}, fmt.Errorf("%w: %s %s", ErrReplaced, step, g)
	}
	return t, err
}

// SetState is [Registry.SetState] for this generation alone.
func (g Generation) SetState(ctx context.Context, to State, from ...State) (Tenant, error) {
	const step = "set state of org"
	t, err := g.registry.setState(ctx, g.tenant.OrgID, &g.tenant.CreatedAt, to, from)
	if !errors.Is(err, pgx.ErrNoRows) {
		return t, g.registry.translate(step, g.tenant.OrgID, err)
	}
	if _, err := g.now(ctx, step); err != nil {
		return Tenant{}, err
	}
	return g.registry.unless(ctx, step, g.tenant.OrgID, from)
}

// SetVersion is [Registry.SetVersion] for this generation alone, and where its schema and
// cluster are those that it was made with: the error wraps [ErrConflict] if it was moved.
func (g Generation) SetVersion(ctx context.Context, version int64) error {
	const step = "set version of org"
	_, err := g.registry.one(ctx, `
		UPDATE /*control.*/tenants t SET version = $2
		WHERE t.org_id = $1 AND t.version < $2 AND t.created_at = $3::timestamptz AND (t.schema_name, t.cluster) = ($4, $5) RETURNING `+columns,
		g.tenant.OrgID, version, g.tenant.CreatedAt, g.tenant.Schema.String(), g.tenant.Cluster)
	if !errors.Is(err, pgx.ErrNoRows) {
		return g.registry.translate(step, g.tenant.OrgID, err)
	}
	now, err := g.now(ctx, step)
	if err == nil && (now.Schema != g.tenant.Schema || now.Cluster != g.tenant.Cluster) {
		err = fmt.Errorf("%w: %s %s: it is in schema %s of cluster %q and not %s of %q any more", ErrConflict, step, g.tenant.OrgID, now.Schema, now.Cluster, g.tenant.Schema, g.tenant.Cluster)
	}
	return err
}

// Remove is [Registry.Remove] for this generation alone.
func (g Generation) Remove(ctx context.Context, from ...State) error {
	const step = "remove org"
	err := g.registry.remove(ctx, g.tenant.OrgID, &g.tenant.CreatedAt, from)
	if !errors.Is(err, pgx.ErrNoRows) {
		return g.registry.translate(step, g.tenant.OrgID, err)
	}
	if _, err := g.now(ctx, step); err != nil {
		return err
	}
	_, err = g.registry.unless(ctx, step, g.tenant.OrgID, from)
	return err
}
