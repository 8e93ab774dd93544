package provision

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgidem/pgidem/internal/moved"
	"github.com/pgidem/pgidem/migrations"
	"github.com/pgidem/pgidem/tenancy/registry"
)

// checkRemains refuses the empty schema that a move has left beside what it had fenced, and has
// not dropped. Migrations would wait for the end of that move, and advise to bring it about. But a
// tenant that is provisioning is not being moved: its org_id, or its schema, was another's before,
// who was dropped by somebody that did not know of this cluster, say.
func checkRemains(ctx context.Context, pool *pgxpool.Pool, tenant registry.Tenant, g registry.Generation) error {
	var comment string
	var fenced bool
	err := pool.QueryRow(ctx, `SELECT `+moved.Columns+` FROM pg_catalog.pg_namespace AS n WHERE n.nspname = $1`, tenant.Schema.String()).Scan(&comment, &fenced)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("look at schema %s: %w", tenant.Schema, err)
	}
	stone, ok := moved.Parse(comment)
	if !ok || !fenced {
		return nil
	}
	fence := moved.Fence(stone.OrgID)
	if stone.OrgID != tenant.OrgID {
		return fmt.Errorf("%w: schema %s was that of org %s, which went to cluster %q, and schema %s is left of it: move that org to the cluster where the registry has it again, which drops the latter, or look at what it holds and drop it by hand if no registry knows that org; drop the empty schema %s by hand, and provision again",
			migrations.ErrMoved, tenant.Schema, stone.OrgID, stone.Cluster, fence, tenant.Schema)
	}
	// Another run may have made the tenant since this one looked, and it may be moved now.
	now, err := g.Tenant(ctx)
	if err != nil {
		return err
	}
	if now.State != registry.Provisioning {
		return fmt.Errorf("%w: another run has made org %s, which is %s, and is being moved to another cluster or has been; there is nothing to be made here any more: provision again to see", ErrState, now.OrgID, now.State)
	}
	return fmt.Errorf("%w: an earlier tenant of the org_id went to cluster %q, and schema %s is left of it in cluster %q; the registry knows of no move: look at what that schema holds, drop it and the empty schema %s by hand, and provision again",
		migrations.ErrMoved, stone.Cluster, fence, tenant.Cluster, tenant.Schema)
}
