// Package dependents finds out what a schema cannot be taken away without: what depends on it
// from outside, and would be lost or torn, and what is in it besides tables, functions and
// types.
package dependents

import (
	"context"

	"github.com/jackc/pgx/v5"
)

// Querier is a pool, a connection or a transaction.
type Querier interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
}

// Of lists what depends on a schema, or on what is in it, from outside, each with what it
// depends on: a view, a foreign key or a partition in another schema, say, or a cast or an
// extension, which are in none. A DROP fails for some of them, and takes others with it without
// a word. Publications are not among them.
//
// Inside it lists what is in the schema and is not a relation, a routine, a type, a constraint
// or extended statistics: operators and collations, say.
//
// What goes while it looks is left out, or has it fail with internal_error (XX000).
func Of(ctx context.Context, q Querier, schema string) (outside, inside []string, err error) {
	rows, err := q.Query(ctx, query, schema)
	if err != nil {
		return nil, nil, err
	}
	var line string
	var within bool
	_, err = pgx.ForEachRow(rows, []any{&line, &within}, func() error {
		if within {
			inside = append(inside, line)
		} else {
			outside = append(outside, line)
		}
		return nil
	})
	return outside, inside, err
}

const query = `
WITH n AS (
	SELECT oid FROM pg_catalog.pg_namespace WHERE nspname = $1
), passed (classid) AS ( -- over; the newest of them is of PostgreSQL 15
	SELECT c.oid FROM pg_catalog.pg_class AS c
	WHERE c.relnamespace = 'pg_catalog'::pg_catalog.regnamespace AND c.relname IN ('pg_publication_rel', 'pg_publication_namespace', 'pg_default_acl')
), common (classid, objid) AS (
	SELECT 'pg_catalog.pg_class'::pg_catalog.regclass::oid, c.oid FROM pg_catalog.pg_class AS c JOIN n ON n.oid = c.relnamespace
	UNION ALL SELECT 'pg_catalog.pg_proc'::pg_catalog.regclass, f.oid FROM pg_catalog.pg_proc AS f JOIN n ON n.oid = f.pronamespace
	UNION ALL SELECT 'pg_catalog.pg_type'::pg_catalog.regclass, y.oid FROM pg_catalog.pg_type AS y JOIN n ON n.oid = y.typnamespace
	UNION ALL SELECT 'pg_catalog.pg_constraint'::pg_catalog.regclass, k.oid FROM pg_catalog.pg_constraint AS k JOIN n ON n.oid = k.connamespace
	UNION ALL SELECT 'pg_catalog.pg_statistic_ext'::pg_catalog.regclass, s.oid FROM pg_catalog.pg_statistic_ext AS s JOIN n ON n.oid = s.stxnamespace
), rare (classid, objid) AS (
	-- Whatever else has a schema depends on that. So do extensions, which have none, and what
	-- is passed over: publications of all of its tables, and rights on what is to come.
	SELECT d.classid, d.objid FROM n
	JOIN pg_catalog.pg_depend AS d ON d.refclassid = 'pg_catalog.pg_namespace'::pg_catalog.regclass AND d.refobjid = n.oid
	WHERE d.classid <> 'pg_catalog.pg_extension'::pg_catalog.regclass AND d.classid NOT IN (SELECT p.classid FROM passed AS p)
		AND (d.classid, d.objid) NOT IN (SELECT c.classid, c.objid FROM common AS c)
), within AS (
	SELECT classid, objid FROM common UNION ALL SELECT classid, objid FROM rare
), depending AS (
	SELECT d.classid, d.objid, d.objsubid, d.refclassid, d.refobjid,
		-- These lie where their table does, or their family of operators.
		CASE WHEN coalesce(w.ev_class, f.adrelid, g.tgrelid, p.polrelid) IS NOT NULL THEN 'pg_catalog.pg_class'::pg_catalog.regclass::oid
			WHEN coalesce(o.amopfamily, s.amprocfamily) IS NOT NULL THEN 'pg_catalog.pg_opfamily'::pg_catalog.regclass ELSE d.classid END AS inclass,
		coalesce(w.ev_class, f.adrelid, g.tgrelid, p.polrelid, o.amopfamily, s.amprocfamily, d.objid) AS inobj
	FROM (SELECT classid, objid FROM within UNION ALL SELECT 'pg_catalog.pg_namespace'::pg_catalog.regclass, oid FROM n) AS i
	JOIN pg_catalog.pg_depend AS d ON d.refclassid = i.classid AND d.refobjid = i.objid
	LEFT JOIN pg_catalog.pg_rewrite AS w ON d.classid = 'pg_catalog.pg_rewrite'::pg_catalog.regclass AND w.oid = d.objid
	LEFT JOIN pg_catalog.pg_attrdef AS f ON d.classid = 'pg_catalog.pg_attrdef'::pg_catalog.regclass AND f.oid = d.objid
	LEFT JOIN pg_catalog.pg_trigger AS g ON d.classid = 'pg_catalog.pg_trigger'::pg_catalog.regclass AND g.oid = d.objid
	LEFT JOIN pg_catalog.pg_policy AS p ON d.classid = 'pg_catalog.pg_policy'::pg_catalog.regclass AND p.oid = d.objid
	LEFT JOIN pg_catalog.pg_amop AS o ON d.classid = 'pg_catalog.pg_amop'::pg_catalog.regclass AND o.oid = d.objid
	LEFT JOIN pg_catalog.pg_amproc AS s ON d.classid = 'pg_catalog.pg_amproc'::pg_catalog.regclass AND s.oid = d.objid
	WHERE d.deptype <> 'i' -- a part of what it depends on
		AND d.classid NOT IN (SELECT p.classid FROM passed AS p)
), lines (line, within) AS (
	SELECT pg_catalog.pg_describe_object(d.classid, d.objid, d.objsubid) || ' depends on ' || pg_catalog.pg_describe_object(d.refclassid, d.refobjid, 0), false
	FROM depending AS d
	WHERE NOT EXISTS (SELECT FROM within AS i WHERE i.classid = d.inclass AND i.objid = d.inobj)
		AND NOT EXISTS (SELECT FROM pg_catalog.pg_class AS c -- an index, of a table that is listed
			WHERE d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass AND c.oid = d.objid AND c.relkind IN ('i', 'I'))
	UNION
	SELECT pg_catalog.pg_describe_object(r.classid, r.objid, 0), true FROM rare AS r
)
SELECT line, within FROM lines
WHERE line IS NOT NULL -- of what is gone by now nothing is said
ORDER BY line`
