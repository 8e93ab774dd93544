package registry

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
)

// durably is a condition that always holds: with it a statement's commit waits for the disk,
// whatever the role or the database say, since what follows a move's end cannot be undone.
const durably = `(current_setting('synchronous_commit') NOT IN ('off', 'local') OR set_config('synchronous_commit', 'on', true) IS NOT NULL)`

// BeginMove notes that the tenant orgID is being moved from one cluster to another, and suspends it;
// nothing makes it active or drops it until [Registry.FinishMove] or [Registry.CancelMove],
// which take the MoveID of the tenant that it returns. Where it is being moved there already,
// only the MoveID is new, and who began before can neither finish nor cancel any more. It
// moves no data: package move does.
//
// The error wraps [ErrState] for a tenant that is neither [Active] nor [Suspended], and
// [ErrConflict] for one that is not in the cluster from, or is being moved to a third one.
func (r *Registry) BeginMove(ctx context.Context, orgID uuid.UUID, from, to string) (Tenant, error) {
	return r.beginMove(ctx, orgID, nil, from, to)
}

// beginMove changes nothing if the tenant was created at another time than the one given.
func (r *Registry) beginMove(ctx context.Context, orgID uuid.UUID, created *time.Time, from, to string) (Tenant, error) {
	t, err := r.one(ctx, `
		UPDATE /*control.*/tenants t
		SET moving_to = $2, move_id = gen_random_uuid(), state = 'suspended',
			resume = CASE WHEN t.moving_to IS NULL THEN t.state = 'active' ELSE t.resume END
		WHERE t.org_id = $1 AND t.cluster = $3 AND $2 <> $3 AND t.state IN ('active', 'suspended') AND (t.moving_to IS NULL OR t.moving_to = $2)
			AND ($4::timestamptz IS NULL OR t.created_at = $4::timestamptz) AND `+durably+` RETURNING `+columns,
		orgID, to, from, created)
	if !errors.Is(err, pgx.ErrNoRows) {
		return t, r.translate("move org", orgID, err)
	}
	t, err = r.tenantOf(ctx, "move org", orgID, created)
	switch {
	case err != nil:
		return Tenant{}, err
	case t.Moving && t.Cluster == from:
		return t, fmt.Errorf("%w: move org %s to cluster %q: it is being moved to %q; finish or cancel that first", ErrConflict, orgID, to, t.MovingTo)
	case t.Cluster != from, from == to:
		return t, fmt.Errorf("%w: move org %s from cluster %q to %q: it is in cluster %q", ErrConflict, orgID, from, to, t.Cluster)
	}
	return t, fmt.Errorf("%w: move org %s: it is %s and not one of %v", ErrState, orgID, t.State, []State{Active, Suspended})
}

// FinishMove notes that the tenant orgID has been moved by the run moveID, and makes it active
// again if it was when the move began.
//
// The error wraps [ErrConflict] if it is not being moved by that run, or if another tenant of
// the cluster has its schema.
func (r *Registry) FinishMove(ctx context.Context, orgID, moveID uuid.UUID) (Tenant, error) {
	return r.endMove(ctx, "finish moving org", orgID, moveID, true)
}

// CancelMove notes that the tenant orgID stays where it is, and makes it active again if it
// was when the move began. The error wraps [ErrConflict] if it is not being moved by the run
// moveID.
func (r *Registry) CancelMove(ctx context.Context, orgID, moveID uuid.UUID) (Tenant, error) {
	return r.endMove(ctx, "cancel moving org", orgID, moveID, false)
}

func (r *Registry) endMove(ctx context.Context, step string, orgID, moveID uuid.UUID, moved bool) (Tenant, error) {
	t, err := r.one(ctx, `
		UPDATE /*control.*/tenants t
		SET cluster = CASE WHEN $3::boolean THEN t.moving_to ELSE t.cluster END, moving_to = NULL, move_id = NULL, resume = false,
			state = CASE WHEN t.resume THEN 'active' ELSE t.state END
		WHERE t.org_id = $1 AND t.move_id = $2::text::uuid AND `+durably+` RETURNING `+columns,
		orgID, moveID.String(), moved)
	if !errors.Is(err, pgx.ErrNoRows) {
		return t, r.translate(step, orgID, err)
	}
	t, err = r.tenant(ctx, step, orgID)
	switch {
	case err != nil:
		return Tenant{}, err
	case t.Moving:
		return t, fmt.Errorf("%w: %s %s: another run moves it to cluster %q", ErrConflict, step, orgID, t.MovingTo)
	}
	return t, fmt.Errorf("%w: %s %s: it is not being moved", ErrConflict, step, orgID)
}
