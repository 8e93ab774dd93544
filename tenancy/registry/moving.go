package registry

import (
	"context"
	"errors"
	"fmt"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
)

// BeginMove notes that the tenant orgID is being moved to the cluster to, and suspends it;
// nothing puts it into another state until [Registry.FinishMove] or [Registry.CancelMove].
// Where it is being moved there already, it is left as it is. It moves no data: package move
// does.
//
// The error wraps [ErrState] for a tenant that is neither [Active] nor [Suspended], and
// [ErrConflict] for one that is in that cluster, or being moved to another one.
func (r *Registry) BeginMove(ctx context.Context, orgID uuid.UUID, to string) (Tenant, error) {
	t, err := r.one(ctx, `
		UPDATE /*control.*/tenants t SET moving_to = $2, resume = t.state = 'active', state = 'suspended'
		WHERE t.org_id = $1 AND t.moving_to IS NULL AND t.cluster <> $2 AND t.state IN ('active', 'suspended') RETURNING `+columns,
		orgID, to)
	if !errors.Is(err, pgx.ErrNoRows) {
		return t, r.translate("move org", orgID, err)
	}
	t, err = r.tenant(ctx, "move org", orgID)
	switch {
	case err != nil:
		return Tenant{}, err
	case t.Moving && t.MovingTo == to:
		return t, nil
	case t.Moving:
		return t, fmt.Errorf("%w: move org %s to cluster %q: it is being moved to %q; finish or cancel that first", ErrConflict, orgID, to, t.MovingTo)
	case t.Cluster == to:
		return t, fmt.Errorf("%w: move org %s: it is in cluster %q", ErrConflict, orgID, to)
	}
	return t, fmt.Errorf("%w: move org %s: it is %s and not one of %v", ErrState, orgID, t.State, []State{Active, Suspended})
}

// FinishMove notes that the tenant orgID has been moved to the cluster to, and makes it
// active again if it was when the move began.
//
// The error wraps [ErrConflict] if it is not being moved there, or if another tenant of that
// cluster has its schema.
func (r *Registry) FinishMove(ctx context.Context, orgID uuid.UUID, to string) (Tenant, error) {
	return r.endMove(ctx, "finish moving org", orgID, &to)
}

// CancelMove notes that the tenant orgID stays where it is, and makes it active again if it
// was when the move began. The error wraps [ErrConflict] if it is not being moved.
func (r *Registry) CancelMove(ctx context.Context, orgID uuid.UUID) (Tenant, error) {
	return r.endMove(ctx, "cancel moving org", orgID, nil)
}

func (r *Registry) endMove(ctx context.Context, step string, orgID uuid.UUID, to *string) (Tenant, error) {
	t, err := r.one(ctx, `
		UPDATE /*control.*/tenants t
		SET cluster = coalesce($2::text, t.cluster), moving_to = NULL, resume = false,
			state = CASE WHEN t.resume THEN 'active' ELSE t.state END
		WHERE t.org_id = $1 AND t.moving_to IS NOT NULL AND ($2::text IS NULL OR t.moving_to = $2::text) RETURNING `+columns,
		orgID, to)
	if !errors.Is(err, pgx.ErrNoRows) {
		return t, r.translate(step, orgID, err)
	}
	t, err = r.tenant(ctx, step, orgID)
	switch {
	case err != nil:
		return Tenant{}, err
	case t.Moving:
		return t, fmt.Errorf("%w: %s %s: it is being moved to cluster %q", ErrConflict, step, orgID, t.MovingTo)
	}
	return t, fmt.Errorf("%w: %s %s: it is not being moved", ErrConflict, step, orgID)
}
