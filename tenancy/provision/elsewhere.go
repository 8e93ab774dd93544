package provision

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgidem/pgidem/internal/moved"
	"github.com/pgidem/pgidem/migrations"
	"github.com/pgidem/pgidem/tenancy/registry"
)

// patience is how long a cluster may take to say what it has of a tenant, and longer than its
// locks may take, to drop that.
const patience = 5 * time.Second

// tombstone is what a move of a tenant has left in a cluster where it was. A later one of the
// same name, of the tenant that has signed up anew since, has another oid.
type tombstone struct {
	cluster string
	oid     uint32
}

// askAll returns what moves of the tenant have left in all clusters, or what keeps Drop from
// taking that away.
func (p *Provisioner) askAll(ctx context.Context, tenant registry.Tenant) (stones []tombstone, err error) {
	for _, cluster := range slices.Sorted(maps.Keys(p.clusters)) {
		stone, found, err := p.ask(ctx, cluster, tenant)
		if err != nil {
			return nil, err
		}
		if found {
			stones = append(stones, stone)
		}
	}
	return stones, nil
}

func (p *Provisioner) ask(ctx context.Context, cluster string, tenant registry.Tenant) (stone tombstone, found bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	pool, schema, fence := p.clusters[cluster], tenant.Schema, moved.Fence(tenant.OrgID)
	stone.cluster = cluster
	say := func(err error) error {
		return fmt.Errorf("provision: ask cluster %q what moves of org %s have left there: %w; this run has changed nothing: drop again when the cluster answers, or without it if the tenant was never there", cluster, tenant.OrgID, err)
	}
	var comment string
	var fenced bool
	err = pool.QueryRow(ctx, `
		SELECT coalesce(n.oid, 0), coalesce(pg_catalog.obj_description(n.oid, 'pg_namespace'), ''), EXISTS (SELECT FROM pg_catalog.pg_namespace WHERE nspname = $2)
		FROM (VALUES ($1::text)) AS m (name) LEFT JOIN pg_catalog.pg_namespace AS n ON n.nspname = m.name`, schema.String(), fence).Scan(&stone.oid, &comment, &fenced)
	if err != nil {
		return stone, false, say(err)
	}
	if fenced && !tenant.Moving { // nothing is dropped of one that is on its way, and the registry says so
		todo := fmt.Sprintf("move the tenant to cluster %q again, which finishes that and drops it", tenant.Cluster)
		if cluster == tenant.Cluster || tenant.State == registry.Deleting { // which move may find nothing of any more
			todo = "look at what it holds, and drop it yourself"
		}
		return stone, false, fmt.Errorf("%w: cluster %q has a schema %s, which a move of org %s that was cut off has left with its records; %s, and drop the tenant then", ErrState, cluster, fence, tenant.OrgID, todo)
	}
	if t, ok := moved.Parse(comment); !ok || t.OrgID != tenant.OrgID || cluster == tenant.Cluster {
		return stone, false, nil
	}
	_, objects, outside, err := p.look(ctx, pool, schema)
	if err != nil {
		return stone, false, say(err)
	}
	objects = slices.DeleteFunc(objects, func(o object) bool { // the view that move has put there
		return o.kind == "DROP VIEW IF EXISTS" && strings.HasSuffix(o.name, "."+migrations.VersionTable)
	})
	for i := range objects {
		objects[i].ours = false
	}
	if others := notOurs(objects); len(others) > 0 {
		return stone, false, &ForeignError{Schema: schema, Objects: others, Cluster: cluster, Left: true}
	}
	if len(outside) > 0 {
		return stone, false, &DependentError{Schema: schema, Objects: outside, Cluster: cluster, Left: true}
	}
	return stone, true, nil
}

// clear drops a tombstone. The registry has said after it was seen that its tenant is being
// dropped, so it is not a later tenant's; by now what has its name may be.
func (p *Provisioner) clear(ctx context.Context, tenant registry.Tenant, stone tombstone) error {
	ctx, cancel := context.WithTimeout(ctx, patience+time.Duration(p.tries)*(2*p.lockTimeout+p.pause))
	defer cancel()
	schema := tenant.Schema
	err := p.locked(ctx, p.clusters[stone.cluster], schema, func(tx pgx.Tx) error {
		var same bool
		err := tx.QueryRow(ctx, `SELECT EXISTS (SELECT FROM pg_catalog.pg_namespace WHERE nspname = $1 AND oid = $2)`, schema.String(), stone.oid).Scan(&same)
		if err != nil || !same {
			return err
		}
		_, err = moved.Clear(ctx, tx, schema.String(), tenant.OrgID)
		return err
	})
	if err == nil {
		return p.step("cleared")
	}
	return fmt.Errorf("provision: drop the empty schema %s that a move of org %s has left in cluster %q: %w; drop the tenant again, which goes on with that", schema, tenant.OrgID, stone.cluster, err)
}
