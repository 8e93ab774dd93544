package db_test

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/pgidem/pgidem/internal/pgtest"
)

// singleServer are the statements that schema-based sharding does not allow, with what they
// are for: see docs/citus.md.
var singleServer = map[string]string{
	"KeepRequest":    "completer of transactions",
	"ForgetAttempt":  "completer of transactions",
	"PickRequests":   "completer",
	"GiveUpDead":     "completer",
	"LoadLockedStep": "steps in transactions",
	"SaveLockedStep": "steps in transactions",
}

// TestCitus: our statements keep to what schema-based sharding in Citus allows, as far as
// their text tells; the volatility of functions is the server's word. No Citus takes part.
func TestCitus(t *testing.T) {
	t.Parallel()
	rules := newCitusRules(t)
	offenders := make(map[string]bool)
	for _, file := range glob(t, "../../queries/*.sql") {
		for name, sql := range namedStatements(t, file) {
			broken := rules.broken(sql)
			if _, known := singleServer[name]; known && len(broken) > 0 {
				offenders[name] = true
				continue
			}
			for _, b := range broken {
				t.Errorf("%s: %s: %s", filepath.Base(file), name, b)
			}
		}
	}
	for name := range singleServer {
		if !offenders[name] {
			t.Errorf("%s is listed and breaks no rule", name)
		}
	}
	for _, file := range glob(t, "../../migrations/tenant/*.sql") {
		for _, b := range rules.broken(up(t, file)) {
			t.Errorf("%s: %s", filepath.Base(file), b)
		}
	}
}

// TestCitusControl: the control schema has triggers, and so is not to be sharded; nothing else
// keeps it from that. See docs/citus.md.
func TestCitusControl(t *testing.T) {
	t.Parallel()
	rules := newCitusRules(t)
	triggers := false
	for _, file := range glob(t, "../../migrations/control/*.sql") {
		for _, b := range rules.broken(up(t, file)) {
			if b == brokenByTrigger {
				triggers = true
				continue
			}
			t.Errorf("%s: %s", filepath.Base(file), b)
		}
	}
	if !triggers {
		t.Error("it is said to have triggers, and has none")
	}
}

// TestCitusRules: each rule is seen to be broken where it is, and only there.
func TestCitusRules(t *testing.T) {
	t.Parallel()
	rules := newCitusRules(t)
	for sql, want := range map[string]string{
		`UPDATE /*tenant.*/t SET a = now() WHERE b <= now() RETURNING a`:                                                   "",
		`UPDATE /*tenant.*/t SET a = clock_timestamp()`:                                                                    "volatile clock_timestamp in UPDATE",
		`UPDATE /*tenant.*/t SET a = 1 WHERE random() < 0.5`:                                                               "volatile random in UPDATE",
		`UPDATE /*tenant.*/t SET a = date_trunc('day', t.a)`:                                                               "stable date_trunc of a column in UPDATE",
		`UPDATE /*tenant.*/t SET a = upper(t.b) RETURNING lower(b)`:                                                        "",
		`UPDATE /*tenant.*/t SET a = CASE WHEN b THEN now() END`:                                                           "now inside CASE",
		`UPDATE /*tenant.*/t SET a = CASE WHEN b THEN c END, d = now()`:                                                    "",
		`INSERT INTO /*tenant.*/t (a) VALUES (COALESCE($1, now()))`:                                                        "now inside COALESCE",
		`INSERT INTO /*tenant.*/t (a) VALUES (now()) ON CONFLICT (b) DO UPDATE SET a = EXCLUDED.a WHERE t.a <= EXCLUDED.a`: "",
		`INSERT INTO /*tenant.*/t (a) VALUES (1) ON CONFLICT (b) DO UPDATE SET a = now()`:                                  "now in ON CONFLICT",
		`INSERT INTO /*tenant.*/t (a) VALUES (1) ON CONFLICT (b) DO UPDATE SET a = 1 WHERE t.a <= now()`:                   "now in ON CONFLICT",
		`INSERT INTO /*tenant.*/t (a) VALUES (1) ON CONFLICT (b) DO UPDATE SET a = 1 WHERE t.a <= CURRENT_TIMESTAMP`:       "current_timestamp in ON CONFLICT",
		`INSERT INTO /*tenant.*/t (a) VALUES (1) RETURNING now()`:                                                          "now in RETURNING",
		`WITH x AS (INSERT INTO /*tenant.*/t (a) VALUES (1) RETURNING a) SELECT a, now() FROM x`:                           "",
		`WITH x AS (UPDATE /*tenant.*/t SET a = 1 RETURNING a) SELECT clock_timestamp()`:                                   "",
		`DELETE FROM /*tenant.*/t WHERE pg_try_advisory_xact_lock(a)`:                                                      "an advisory lock beside a tenant's table; volatile pg_try_advisory_xact_lock in DELETE",
		`DELETE FROM /*tenant.*/t WHERE a < random()`:                                                                      "volatile random in DELETE",
		`DELETE FROM /*tenant.*/t WHERE a IN (SELECT a FROM /*tenant.*/u WHERE b <= now() FOR UPDATE SKIP LOCKED)`:         "",
		`SELECT a FROM /*tenant.*/t WHERE EXISTS (SELECT 1 FROM pg_catalog.pg_locks)`:                                      "a catalog beside a tenant's table",
		`SELECT nspname FROM pg_catalog.pg_namespace`:                                                                      "",
		`SELECT 'now() RETURNING now()' FROM /*tenant.*/t -- UPDATE clock_timestamp()`:                                     "",
		`CREATE SCHEMA s CREATE TABLE t (a int)`:                                                                           "CREATE SCHEMA is not a statement of its own",
		`CREATE SCHEMA s; CREATE TABLE s.t (a int)`:                                                                        "",
		`ALTER TABLE t ADD CONSTRAINT a CHECK (b > 0), ADD CONSTRAINT c CHECK (d > 0)`:                                     "ADD CONSTRAINT beside another subcommand",
		`ALTER TABLE t ADD CONSTRAINT a CHECK (b IN (1, 2))`:                                                               "",
		`CREATE TRIGGER tell AFTER INSERT ON t FOR EACH ROW EXECUTE FUNCTION tell()`:                                       brokenByTrigger,
		`CREATE CONSTRAINT TRIGGER tell AFTER INSERT ON t FOR EACH ROW EXECUTE FUNCTION tell()`:                            brokenByTrigger,
		`CREATE FUNCTION tell() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$`:                          "",
		`COMMENT ON TABLE t IS 'create trigger'`:                                                                           "",
		`ALTER TABLE t ADD COLUMN a int NOT NULL DEFAULT 0`:                                                                "",
	} {
		if got := strings.Join(rules.broken(sql), "; "); got != want {
			t.Errorf("%s\n got %q\nwant %q", sql, got, want)
		}
	}
}

// citusRules finds what single-shard tables of Citus refuse: its documentation, "SQL Support
// and Workarounds", and the messages of its planner.
type citusRules struct{ volatility map[string]byte }

// newCitusRules asks a server for the volatility of its functions: i, s or v, the worst where
// several share a name.
func newCitusRules(t *testing.T) citusRules {
	t.Helper()
	rows, err := pgtest.NewPool(t).Query(t.Context(), `SELECT proname::text, max(provolatile::text) FROM pg_catalog.pg_proc WHERE prokind = 'f' GROUP BY proname`)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	rules := citusRules{make(map[string]byte)}
	for _, name := range calledBare {
		rules.volatility[name] = 's'
	}
	for rows.Next() {
		var name, volatility string
		if err := rows.Scan(&name, &volatility); err != nil {
			t.Fatal(err)
		}
		rules.volatility[name] = volatility[0]
	}
	if err := rows.Err(); err != nil || rules.volatility["now"] != 's' || rules.volatility["random"] != 'v' {
		t.Fatal("no volatilities: ", err)
	}
	return rules
}

// calledBare are functions that are called without parentheses.
var calledBare = []string{"current_timestamp", "current_date", "current_time", "localtimestamp", "localtime"}

var citusToken = regexp.MustCompile(`(?s)--[^\n]*|/\*tenant\.\*/|/\*.*?\*/|'(?:[^']|'')*'|\$\$.*?\$\$|"[^"]*"|[\w.$@]+|\S`)

// clause is where in a statement a token stands. Each parenthesis begins a new one, which
// ends with it and is part of the one around it.
type clause struct {
	verb     string // insert, update, delete, or empty: what the statement that it is in does
	part     string // conflict, returning, or empty
	inCase   int
	coalesce bool
	stable   string // the function whose argument it is
}

// broken says which rules a text of statements breaks.
func (c citusRules) broken(sql string) (broken []string) {
	for _, statement := range splitStatements(citusTokens(sql)) {
		for _, b := range slices.Concat(c.brokenByAll(statement), c.brokenByCalls(statement)) {
			if !slices.Contains(broken, b) {
				broken = append(broken, b)
			}
		}
	}
	return broken
}

const brokenByTrigger = "a trigger on a table"

func citusTokens(sql string) (tokens []string) {
	for _, token := range citusToken.FindAllString(sql, -1) {
		switch {
		case token == "/*tenant.*/":
			tokens = append(tokens, token)
		case strings.HasPrefix(token, "--"), strings.HasPrefix(token, "/*"):
		case strings.HasPrefix(token, "'"), strings.HasPrefix(token, "$$"):
			tokens = append(tokens, "''")
		default:
			tokens = append(tokens, strings.ToLower(token))
		}
	}
	return tokens
}

func splitStatements(tokens []string) (statements [][]string) {
	for {
		end := slices.Index(tokens, ";")
		if end < 0 {
			return append(statements, tokens)
		}
		statements, tokens = append(statements, tokens[:end]), tokens[end+1:]
	}
}

// brokenByAll says which rules a statement breaks by what stands in it.
func (citusRules) brokenByAll(tokens []string) (broken []string) {
	text := " " + strings.Join(tokens, " ") + " "
	tenant := strings.Contains(text, " /*tenant.*/ ")
	if tenant && strings.Contains(text, " pg_catalog.") {
		broken = append(broken, "a catalog beside a tenant's table")
	}
	if tenant && strings.Contains(text, "_advisory_") {
		broken = append(broken, "an advisory lock beside a tenant's table")
	}
	if strings.HasPrefix(text, " create schema ") && strings.Count(text, " create ") > 1 {
		broken = append(broken, "CREATE SCHEMA is not a statement of its own")
	}
	if create, _, found := strings.Cut(text, " trigger "); found && strings.HasPrefix(create+" ", " create ") && !strings.Contains(create, " function ") {
		broken = append(broken, brokenByTrigger)
	}
	if strings.HasPrefix(text, " alter table ") && strings.Contains(text, " add constraint ") {
		for depth := 0; len(tokens) > 0; tokens = tokens[1:] {
			switch token := tokens[0]; {
			case token == "(":
				depth++
			case token == ")":
				depth--
			case token == "," && depth == 0:
				return append(broken, "ADD CONSTRAINT beside another subcommand")
			}
		}
	}
	return broken
}

// brokenByCalls says which rules a statement breaks by where it calls which functions.
func (c citusRules) brokenByCalls(tokens []string) (broken []string) {
	stack := []clause{{}}
	before := ""
	for i, token := range tokens {
		here := &stack[len(stack)-1]
		switch token {
		case "(":
			inner := *here
			inner.coalesce = here.coalesce || before == "coalesce"
			if c.volatility[before] == 's' {
				inner.stable = before
			}
			stack = append(stack, inner)
		case ")":
			if len(stack) > 1 {
				stack = stack[:len(stack)-1]
			}
		case "insert", "delete":
			*here = clause{verb: token}
		case "update":
			switch before {
			case "for", "on":
			case "do":
				here.part = "conflict"
			default:
				*here = clause{verb: token}
			}
		case "select":
			// After a WITH it is a statement of its own. In parentheses, or behind an INSERT, it
			// is part of that.
			if before != "(" && here.verb != "insert" {
				*here = clause{}
			}
		case "returning":
			here.part = "returning"
		case "case":
			here.inCase++
		case "end":
			here.inCase = max(here.inCase-1, 0)
		}
		before = token
		if here.stable != "" && here.verb == "update" && strings.Contains(token, ".") && !strings.HasPrefix(token, "@") {
			broken = append(broken, fmt.Sprintf("stable %s of a column in UPDATE", here.stable))
		}
		volatility, isFunction := c.volatility[token]
		called := i+1 < len(tokens) && tokens[i+1] == "(" || slices.Contains(calledBare, token)
		if !isFunction || !called || volatility == 'i' {
			continue
		}
		switch {
		case here.part == "conflict":
			broken = append(broken, token+" in ON CONFLICT")
		case here.part == "returning":
			broken = append(broken, token+" in RETURNING")
		case volatility == 'v' && (here.verb == "update" || here.verb == "delete"):
			broken = append(broken, fmt.Sprintf("volatile %s in %s", token, strings.ToUpper(here.verb)))
		case here.inCase > 0 && here.verb != "":
			broken = append(broken, token+" inside CASE")
		case here.coalesce && here.verb != "":
			broken = append(broken, token+" inside COALESCE")
		}
	}
	return broken
}

// up returns the part of a migration that makes something.
func up(t *testing.T, file string) string {
	t.Helper()
	up, _, _ := strings.Cut(read(t, file), "-- +goose Down")
	return up
}

func glob(t *testing.T, pattern string) []string {
	t.Helper()
	files, err := filepath.Glob(pattern)
	if err != nil || len(files) == 0 {
		t.Fatalf("%s: %d files, %v", pattern, len(files), err)
	}
	return files
}

func read(t *testing.T, file string) string {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// namedStatements returns the statements of a file of queries by name.
func namedStatements(t *testing.T, file string) map[string]string {
	t.Helper()
	statements := make(map[string]string)
	for _, part := range strings.Split(read(t, file), "-- name: ")[1:] {
		head, sql, _ := strings.Cut(part, "\n")
		name, _, _ := strings.Cut(head, " ")
		statements[name] = sql
	}
	if names := slices.Collect(maps.Keys(statements)); len(names) == 0 {
		t.Fatalf("%s has no statements", file)
	}
	return statements
}
