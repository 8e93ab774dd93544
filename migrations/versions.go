package migrations

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/pgidem/pgidem/tenancy"
)

// state is how far a schema is.
type state struct {
	exists  bool
	comment string  // of the schema
	fenced  bool    // what the schema is the tombstone of is beside it
	table   bool    // the version table is there
	applied []int64 // what is in it
	unknown bool    // it could not be read along with others
}

func (s state) version() int64 {
	var newest int64
	for _, v := range s.applied {
		newest = max(newest, v)
	}
	return newest
}

// send sends statements in one round trip and returns the rows of each, as text. If there is
// an error, the server has ignored the statements after the one that it is of.
func send(ctx context.Context, conn *pgx.Conn, sql string) ([][][]string, error) {
	results, err := conn.PgConn().Exec(ctx, sql).ReadAll()
	if err != nil {
		if sqlState(err) == "" {
			err = lostError{err}
		}
		return nil, err
	}
	tables := make([][][]string, len(results))
	for i, result := range results {
		for _, row := range result.Rows {
			fields := make([]string, len(row))
			for j, field := range row {
				fields[j] = string(field)
			}
			tables[i] = append(tables[i], fields)
		}
	}
	return tables, nil
}

// abandon ends a transaction that came to nothing. If that fails the connection is closed,
// so that it is not used again.
func abandon(ctx context.Context, conn *pgx.Conn) {
	ctx, cancel := parting(ctx)
	defer cancel()
	if _, err := send(ctx, conn, "ROLLBACK"); err != nil {
		_ = conn.PgConn().Close(ctx)
	}
}

// names writes the schemas as an array of SQL. Their names are of letters that need no
// quoting in it.
func names(schemas []tenancy.Schema) string {
	list := make([]string, len(schemas))
	for i, schema := range schemas {
		list[i] = schema.String()
	}
	return "'{" + strings.Join(list, ",") + "}'::pg_catalog.name[]"
}

// reading begins a transaction that only reads and waits for nobody for long. What it reads
// is a small part of a large catalog, also where the planner, which knows the catalog of
// before ten thousand tenants were made, would rather read all of it each time.
func (c config) reading() string {
	return fmt.Sprintf(`BEGIN ISOLATION LEVEL READ COMMITTED READ ONLY;
SET LOCAL search_path = '';
SET LOCAL lock_timeout = %d;
%s`, c.lockTimeout.Milliseconds(), piecemeal)
}

const piecemeal = `SET LOCAL enable_seqscan = off;
SET LOCAL enable_hashjoin = off;
SET LOCAL enable_mergejoin = off;
SET LOCAL jit = off;
`

// states finds out how far schemas are, in the same order, by two queries.
func (c config) states(ctx context.Context, conn *pgx.Conn, schemas []tenancy.Schema) ([]state, error) {
	tables, err := send(ctx, conn, `
		SELECT n.nspname, c.oid IS NOT NULL
		FROM pg_catalog.pg_namespace AS n
		LEFT JOIN pg_catalog.pg_class AS c ON c.relnamespace = n.oid AND c.relname = '`+VersionTable+`' AND c.relkind = 'r'
		WHERE n.nspname = ANY (`+names(schemas)+`)`)
	if err != nil {
		return nil, err
	}
	has := make(map[string]bool)
	for _, row := range tables[0] {
		has[row[0]] = row[1] == "t"
	}
	list := make([]state, len(schemas))
	var union strings.Builder
	for i, schema := range schemas {
		list[i].table, list[i].exists = has[schema.String()]
		if !list[i].table {
			continue
		}
		if union.Len() > 0 {
			union.WriteString("UNION ALL\n")
		}
		fmt.Fprintf(&union, "SELECT %d, pg_catalog.string_agg(version_id::text, ',' ORDER BY id) FROM %s.%s\n", i, schema.Quoted(), VersionTable)
	}
	if union.Len() == 0 {
		return list, nil
	}
	tables, err = send(ctx, conn, c.reading()+union.String()+";\nCOMMIT")
	if err != nil {
		abandon(ctx, conn)
		if lost(err) {
			return nil, err
		}
		// One of the schemas is the reason: dropped in between, locked, or not ours to
		// read. Each is looked at by itself later, and then it is seen which.
		for i := range list {
			list[i].unknown = list[i].table
		}
		return list, nil
	}
	for _, row := range tables[len(tables)-2] {
		i, err := strconv.Atoi(row[0])
		if err != nil {
			return nil, err
		}
		if list[i].applied, err = parseVersions(row[1]); err != nil {
			return nil, err
		}
	}
	return list, nil
}

func parseVersions(text string) ([]int64, error) {
	if text == "" {
		return nil, nil
	}
	var list []int64
	for field := range strings.SplitSeq(text, ",") {
		v, err := strconv.ParseInt(field, 10, 64)
		if err != nil {
			return nil, err
		}
		list = append(list, v)
	}
	return list, nil
}
