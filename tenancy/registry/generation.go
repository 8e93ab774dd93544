package registry

import (
	"context"
	"time"

	"github.com/google/uuid"

	"github.com/pgidem/pgidem/tenancy"
)

// Generation is a tenant from the moment it was registered until it is removed. An org_id that
// is registered again is another one, of which what was begun for this one knows nothing: its
// changes are refused with [ErrReplaced], however late they come.
type Generation struct {
	registry *Registry
	orgID    uuid.UUID
	created  time.Time
	at       tenancy.Placement
}

// Generation returns the generation of a tenant that the registry has returned. It asks nobody.
func (r *Registry) Generation(t Tenant) Generation {
	return Generation{r, t.OrgID, t.CreatedAt, t.Placement()}
}

// String names the generation: no other has that name, of this tenant or of any.
func (g Generation) String() string { return generationName(g.orgID, g.created) }

func generationName(orgID uuid.UUID, created time.Time) string {
	return orgID.String() + " of " + created.UTC().Format(time.RFC3339Nano)
}

// Tenant returns the tenant as it is now. The error wraps [ErrReplaced] if the org_id has been
// registered again, and tenancy.ErrUnknownTenant if it is not registered.
func (g Generation) Tenant(ctx context.Context) (Tenant, error) {
	return g.registry.tenantOf(ctx, "look up org", g.orgID, &g.created)
}

// SetState is [Registry.SetState] for this generation alone.
func (g Generation) SetState(ctx context.Context, to State, from ...State) (Tenant, error) {
	return g.registry.setState(ctx, g.orgID, &g.created, to, from)
}

// SetVersion is [Registry.SetVersion] for this generation alone, and where its schema and
// cluster are those that it was made with: the error wraps [ErrConflict] if it was moved.
func (g Generation) SetVersion(ctx context.Context, version int64) error {
	at := g.at
	at.Version = version
	return g.registry.setVersion(ctx, g.orgID, &g.created, at)
}

// BeginMove is [Registry.BeginMove] for this generation alone. What ends the move, by its MoveID,
// is for this one alone in any case.
func (g Generation) BeginMove(ctx context.Context, from, to string) (Tenant, error) {
	return g.registry.beginMove(ctx, g.orgID, &g.created, from, to)
}

// Remove is [Registry.Remove] for this generation alone.
func (g Generation) Remove(ctx context.Context, from ...State) error {
	return g.registry.remove(ctx, g.orgID, &g.created, from)
}
