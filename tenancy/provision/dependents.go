package provision

import (
	"context"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgidem/pgidem/internal/dependents"
	"github.com/pgidem/pgidem/tenancy"
)

// whatKeeps lists what would keep the schema from being dropped, or be dropped with it though
// it lies elsewhere.
func whatKeeps(ctx context.Context, pool *pgxpool.Pool, schema tenancy.Schema) ([]string, error) {
	list, inside, err := dependents.Of(ctx, pool, schema.String())
	for _, object := range inside {
		list = append(list, object+" is in it, which has to be dropped by hand")
	}
	return list, err
}
