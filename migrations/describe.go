package migrations

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/pgidem/pgidem/tenancy"
)

// Description says what is in a schema, in lines for people and for [Compare]: tables with
// their columns in order (type, collation, nullability, default, identity, storage,
// compression), constraints, indexes, triggers, policies, rules, options and comments, and
// functions. The schema's own name is left out, and its tenant's org_id is written <org>, so
// that two tenants' schemas have the same description. Owners and privileges are not in it:
// they are the installation's.
type Description struct {
	// Objects are the lines of each object, by its kind and name ("table idempotency_records").
	Objects map[string][]string
	// Versions are the migrations that the schema has had, in the order of its version table.
	Versions []int64
}

// Version returns the newest migration that the schema has had, or 0.
func (d Description) Version() int64 { return state{applied: d.Versions}.version() }

// Describe reads what is in the schemas, the tables of others included. Those that do not
// exist are not in the result. The Targets are as for [All]; the org_id of one that has none
// is taken from what its tables are pinned to.
func Describe(ctx context.Context, conn *pgx.Conn, targets ...Target) (map[tenancy.Schema]Description, error) {
	c, err := newConfig(nil)
	if err != nil {
		return nil, err
	}
	targets = slices.Clone(targets)
	for i, target := range targets {
		if targets[i], err = target.check(); err != nil {
			return nil, fmt.Errorf("migrations: %w", err)
		}
	}
	result := make(map[tenancy.Schema]Description)
	for part := range slices.Chunk(targets, chunk) {
		states, err := c.states(ctx, conn, schemasOf(part))
		if err != nil {
			return nil, fmt.Errorf("migrations: %w", err)
		}
		texts, err := c.describe(ctx, conn, part, nil)
		if err != nil {
			return nil, fmt.Errorf("migrations: %w", err)
		}
		for i, target := range part {
			if states[i].unknown {
				return nil, fmt.Errorf("migrations: schema %s: its table %s cannot be read now", target.Schema, VersionTable)
			}
			if states[i].exists {
				result[target.Schema] = Description{Objects: split(texts[i].objects), Versions: states[i].applied}
			}
		}
	}
	return result, nil
}

// text is a Description whose lines are not split, since most are only compared.
type text struct {
	objects map[string]string
	org     uuid.UUID // whom the schema is pinned to, as far as can be told
}

func split(objects map[string]string) map[string][]string {
	lines := make(map[string][]string, len(objects))
	for name, text := range objects {
		lines[name] = strings.Split(text, "\n")
	}
	return lines
}

// Compare says in words how a schema differs from the one that it should be like, or returns
// nothing if it does not. Whole objects that only got has do not count, since a service may
// keep tables of its own in a tenant's schema; what it adds to a table of this library does.
func Compare(want, got Description) []string {
	var differences []string
	for _, name := range slices.Sorted(maps.Keys(want.Objects)) {
		lines, ok := got.Objects[name]
		if !ok {
			differences = append(differences, name+" is missing")
			continue
		}
		differences = append(differences, compareLines(name, want.Objects[name], lines)...)
	}
	if !slices.Equal(want.Versions, got.Versions) {
		differences = append(differences, fmt.Sprintf("migrations applied are %v, want %v", got.Versions, want.Versions))
	}
	return differences
}

// compareLines matches lines by what stands before their colon.
func compareLines(object string, want, got []string) []string {
	var differences []string
	has := make(map[string]string, len(got))
	for _, line := range got {
		part, rest, _ := strings.Cut(line, ": ")
		has[part] = rest
	}
	for _, line := range want {
		part, rest, _ := strings.Cut(line, ": ")
		actual, ok := has[part]
		switch {
		case !ok:
			differences = append(differences, fmt.Sprintf("%s: %s is missing", object, part))
		case actual != rest:
			differences = append(differences, fmt.Sprintf("%s: %s is %q, want %q", object, part, actual, rest))
		}
		delete(has, part)
	}
	for _, part := range slices.Sorted(maps.Keys(has)) {
		differences = append(differences, fmt.Sprintf("%s: %s is not of this library (%s)", object, part, has[part]))
	}
	return differences
}

// describe reads what is in schemas, in the same order, or those tables and functions alone
// whose names are given.
func (c config) describe(ctx context.Context, conn *pgx.Conn, targets []Target, only []string) ([]text, error) {
	tables, err := send(ctx, conn, c.reading()+describeSQL(schemasOf(targets), only)+";\nCOMMIT")
	if err != nil {
		abandon(ctx, conn)
		return nil, err
	}
	return c.texts(targets, tables[len(tables)-2]), nil
}

func (config) texts(targets []Target, rows [][]string) []text {
	texts := make([]text, len(targets))
	at := make(map[string]int, len(targets))
	for i, target := range targets {
		texts[i] = text{objects: make(map[string]string), org: target.OrgID}
		at[target.Schema.String()] = i
	}
	for _, row := range rows {
		i := at[row[0]]
		if texts[i].org == uuid.Nil {
			texts[i].org, _ = uuid.Parse(row[3])
		}
		texts[i].objects[row[1]] = unnamed(row[2], row[0])
	}
	for _, t := range texts {
		if t.org == uuid.Nil {
			continue
		}
		for name, lines := range t.objects {
			t.objects[name] = strings.ReplaceAll(lines, t.org.String(), "<org>")
		}
	}
	return texts
}

// unnamed takes the schema's name out of what the server qualified with it.
func unnamed(text, schema string) string {
	for _, prefix := range []string{schema + ".", `"` + schema + `".`} {
		var b strings.Builder
		for rest := text; ; {
			before, after, found := strings.Cut(rest, prefix)
			b.WriteString(before)
			if !found {
				break
			}
			if before != "" && inName(before[len(before)-1]) {
				b.WriteString(prefix) // the end of a longer name
			}
			rest = after
		}
		text = b.String()
	}
	return text
}

func inName(c byte) bool {
	return c == '_' || c == '$' || c == '"' || c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= 0x80
}

// describeSQL asks for a row for each table and function: schema, kind and name, lines, and
// the org_id that a constraint called ..._tenant_check pins it to.
//
// It is read with an empty search_path, so that all names but those of PostgreSQL itself
// are qualified.
func describeSQL(schemas []tenancy.Schema, only []string) string {
	wanted := "true"
	if only != nil {
		wanted = "%s = ANY ('{" + strings.Join(only, ",") + "}'::name[])" // names of the library's own
	}
	return `
WITH s AS (
    SELECT n.oid, n.nspname FROM pg_namespace AS n WHERE n.nspname = ANY (` + names(schemas) + `)
), t AS (
    SELECT c.oid, c.relname, c.relkind, c.relam, c.relpersistence, c.reloptions, c.relrowsecurity, c.relforcerowsecurity, c.relreplident, s.nspname
    FROM pg_class AS c JOIN s ON s.oid = c.relnamespace
    WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f') AND ` + strings.ReplaceAll(wanted, "%s", "c.relname") + `
), line (nspname, relname, oid, rank, place, part, says) AS (
    SELECT t.nspname, t.relname, t.oid, 0, 0, 'table', concat_ws(' ', 'kind', t.relkind, 'access', (SELECT amname FROM pg_am WHERE oid = t.relam), 'persistence', t.relpersistence,
        'options', t.reloptions, 'row security', t.relrowsecurity, t.relforcerowsecurity, 'replica identity', t.relreplident, 'comment', obj_description(t.oid, 'pg_class'))
    FROM t
    UNION ALL
    SELECT t.nspname, t.relname, t.oid, 1, a.attnum, 'column ' || a.attname, concat_ws(' ',
        'number', (SELECT count(*) FROM pg_attribute AS b WHERE b.attrelid = a.attrelid AND b.attnum BETWEEN 1 AND a.attnum AND NOT b.attisdropped),
        format_type(a.atttypid, a.atttypmod), CASE WHEN a.attnotnull THEN 'not null' END,
        'collate ' || (SELECT quote_ident(l.collname) FROM pg_collation AS l WHERE l.oid = a.attcollation),
        'default ' || pg_get_expr(d.adbin, d.adrelid), 'identity ' || nullif(a.attidentity::text, ''), 'generated ' || nullif(a.attgenerated::text, ''),
        'storage', a.attstorage, 'compression ' || nullif(a.attcompression::text, ''), 'options ' || a.attoptions::text, 'comment ' || col_description(t.oid, a.attnum))
    FROM t JOIN pg_attribute AS a ON a.attrelid = t.oid AND a.attnum > 0 AND NOT a.attisdropped
    LEFT JOIN pg_attrdef AS d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
    UNION ALL
    SELECT t.nspname, t.relname, t.oid, 2, 0, 'constraint ' || k.conname, concat_ws(' ', pg_get_constraintdef(k.oid), 'comment ' || obj_description(k.oid, 'pg_constraint'))
    FROM t JOIN pg_constraint AS k ON k.conrelid = t.oid
    UNION ALL
    SELECT t.nspname, t.relname, t.oid, 3, 0, 'index ' || x.relname, concat_ws(' ', pg_get_indexdef(i.indexrelid), CASE WHEN NOT i.indisvalid THEN 'invalid' END,
        CASE WHEN i.indisreplident THEN 'replica identity' END, CASE WHEN i.indisclustered THEN 'clustered' END, 'comment ' || obj_description(x.oid, 'pg_class'))
    FROM t JOIN pg_index AS i ON i.indrelid = t.oid JOIN pg_class AS x ON x.oid = i.indexrelid
    UNION ALL
    SELECT t.nspname, t.relname, t.oid, 4, 0, 'trigger ' || g.tgname, concat_ws(' ', pg_get_triggerdef(g.oid), 'enabled', g.tgenabled)
    FROM t JOIN pg_trigger AS g ON g.tgrelid = t.oid AND NOT g.tgisinternal
    UNION ALL
    SELECT t.nspname, t.relname, t.oid, 5, 0, 'policy ' || p.polname, concat_ws(' ', p.polcmd, p.polpermissive, pg_get_expr(p.polqual, p.polrelid), 'check ' || pg_get_expr(p.polwithcheck, p.polrelid))
    FROM t JOIN pg_policy AS p ON p.polrelid = t.oid
    UNION ALL
    SELECT t.nspname, t.relname, t.oid, 6, 0, 'rule ' || r.rulename, concat_ws(' ', pg_get_ruledef(r.oid), 'enabled', r.ev_enabled)
    FROM t JOIN pg_rewrite AS r ON r.ev_class = t.oid
)
SELECT l.nspname, 'table ' || l.relname, string_agg(replace(l.part || ': ' || l.says, E'\n', ' '), E'\n' ORDER BY l.rank, l.place, l.part),
    min(substring(l.says FROM '''([0-9a-f]{8}-[0-9a-f-]{27})''')) FILTER (WHERE l.part LIKE 'constraint %\_tenant\_check')
FROM line AS l
GROUP BY l.oid, l.nspname, l.relname
UNION ALL
SELECT s.nspname, 'function ' || f.proname || '(' || pg_get_function_identity_arguments(f.oid) || ')',
    concat_ws(' ', 'function:', replace(CASE WHEN f.prokind IN ('f', 'p') THEN pg_get_functiondef(f.oid) ELSE f.prokind::text END, E'\n', ' '), 'comment ' || obj_description(f.oid, 'pg_proc')), ''
FROM s JOIN pg_proc AS f ON f.pronamespace = s.oid
WHERE ` + strings.ReplaceAll(wanted, "%s", "f.proname")
}
