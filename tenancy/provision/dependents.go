package provision

import (
	"context"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgidem/pgidem/tenancy"
)

// dependents lists what would keep the schema from being dropped, or be dropped with it though
// it lies elsewhere, each with what it depends on. A DROP fails for a view in another schema,
// and takes a partition there with it without a word.
func dependents(ctx context.Context, pool *pgxpool.Pool, schema tenancy.Schema) ([]string, error) {
	rows, err := pool.Query(ctx, `
		WITH n AS (
			SELECT oid FROM pg_catalog.pg_namespace WHERE nspname = $1
		), inside (classid, objid) AS (
			SELECT 'pg_catalog.pg_class'::regclass::oid, c.oid FROM pg_catalog.pg_class AS c JOIN n ON n.oid = c.relnamespace
			UNION ALL SELECT 'pg_catalog.pg_proc'::regclass, f.oid FROM pg_catalog.pg_proc AS f JOIN n ON n.oid = f.pronamespace
			UNION ALL SELECT 'pg_catalog.pg_type'::regclass, y.oid FROM pg_catalog.pg_type AS y JOIN n ON n.oid = y.typnamespace
			UNION ALL SELECT 'pg_catalog.pg_constraint'::regclass, k.oid FROM pg_catalog.pg_constraint AS k JOIN n ON n.oid = k.connamespace
		), depending AS (
			SELECT d.classid, d.objid, d.objsubid, d.refclassid, d.refobjid, d.deptype, coalesce(w.ev_class, f.adrelid, g.tgrelid, p.polrelid) AS relation
			FROM inside AS i JOIN pg_catalog.pg_depend AS d ON d.refclassid = i.classid AND d.refobjid = i.objid
			-- These lie where their table does.
			LEFT JOIN pg_catalog.pg_rewrite AS w ON d.classid = 'pg_catalog.pg_rewrite'::regclass AND w.oid = d.objid
			LEFT JOIN pg_catalog.pg_attrdef AS f ON d.classid = 'pg_catalog.pg_attrdef'::regclass AND f.oid = d.objid
			LEFT JOIN pg_catalog.pg_trigger AS g ON d.classid = 'pg_catalog.pg_trigger'::regclass AND g.oid = d.objid
			LEFT JOIN pg_catalog.pg_policy AS p ON d.classid = 'pg_catalog.pg_policy'::regclass AND p.oid = d.objid
		)
		SELECT line FROM (
		SELECT pg_catalog.pg_describe_object(d.classid, d.objid, d.objsubid) || ' depends on ' || pg_catalog.pg_describe_object(d.refclassid, d.refobjid, 0)
		FROM depending AS d
		WHERE NOT EXISTS (SELECT FROM inside AS i WHERE i.objid = coalesce(d.relation, d.objid)
				AND i.classid = CASE WHEN d.relation IS NULL THEN d.classid ELSE 'pg_catalog.pg_class'::regclass END)
			-- A partition goes with its table without being asked for.
			AND (d.deptype = 'n' OR EXISTS (SELECT FROM pg_catalog.pg_class AS c WHERE d.classid = 'pg_catalog.pg_class'::regclass AND c.oid = d.objid AND c.relkind NOT IN ('t', 'i', 'I')))
		UNION
		SELECT pg_catalog.pg_describe_object(d.classid, d.objid, d.objsubid) || ' is in it, which has to be dropped by hand'
		FROM n JOIN pg_catalog.pg_depend AS d ON d.refclassid = 'pg_catalog.pg_namespace'::regclass AND d.refobjid = n.oid
		WHERE d.deptype = 'n' AND d.classid NOT IN ('pg_catalog.pg_class'::regclass, 'pg_catalog.pg_proc'::regclass, 'pg_catalog.pg_type'::regclass,
			'pg_catalog.pg_constraint'::regclass, 'pg_catalog.pg_statistic_ext'::regclass)
		) AS found (line)
		WHERE line IS NOT NULL -- of what is gone by now nothing is said
		ORDER BY 1`, schema.String())
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowTo[string])
}
