package db_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgidem/pgidem/internal/db"
)

// spy is a DBTX that keeps the last text it was given and touches no database:
// what is tested here is the text alone.
type spy struct{ text string }

func (s *spy) Exec(_ context.Context, sql string, _ ...any) (pgconn.CommandTag, error) {
	s.text = sql
	return pgconn.CommandTag{}, nil
}

func (s *spy) Query(_ context.Context, sql string, _ ...any) (pgx.Rows, error) {
	s.text = sql
	return nil, nil
}

func (s *spy) QueryRow(_ context.Context, sql string, _ ...any) pgx.Row {
	s.text = sql
	return nil
}

// run sends a text through each way into a Tenant and returns what came out.
func run(tenant db.Tenant, s *spy, sql string) (texts []string, errs []error) {
	s.text = ""
	_, err := tenant.Exec(context.Background(), sql)
	texts, errs = append(texts, s.text), append(errs, err)
	s.text = ""
	_, err = tenant.Query(context.Background(), sql)
	texts, errs = append(texts, s.text), append(errs, err)
	s.text = ""
	if row := tenant.QueryRow(context.Background(), sql); row != nil {
		err = row.Scan()
	} else {
		err = nil
	}
	return append(texts, s.text), append(errs, err)
}

func TestTenantPutsTheSchemaIn(t *testing.T) {
	t.Parallel()
	var texts db.Texts
	s := &spy{}
	const sql = "SELECT 1 FROM /*tenant.*/a JOIN /*tenant.*/b ON true -- /*other*/"
	for _, schema := range []string{`"tenant_x"`, `"tenant_y"`, `"tenant_x"`} {
		got, errs := run(texts.Bind(s, schema), s, sql)
		want := "SELECT 1 FROM " + schema + ".a JOIN " + schema + ".b ON true -- /*other*/"
		for i := range got {
			if got[i] != want || errs[i] != nil {
				t.Errorf("%s: way %d: %q, %v; want %q", schema, i, got[i], errs[i], want)
			}
		}
	}
}

func TestTenantRefusesToGuess(t *testing.T) {
	t.Parallel()
	var texts db.Texts
	s := &spy{}
	for name, c := range map[string]struct{ schema, sql string }{
		"no schema": {"", "SELECT 1 FROM /*tenant.*/a"},
		"no marker": {`"tenant_x"`, "SELECT 1 FROM a"},
		"neither":   {"", "SELECT 1 FROM a"},
	} {
		got, errs := run(texts.Bind(s, c.schema), s, c.sql)
		for i := range got {
			if got[i] != "" || errs[i] == nil {
				t.Errorf("%s: way %d: ran %q, error %v; want an error and nothing run", name, i, got[i], errs[i])
			}
		}
	}
}

func TestTextsAreRememberedWithoutAllocating(t *testing.T) {
	var texts db.Texts
	s := &spy{}
	tenant := texts.Bind(s, `"tenant_x"`)
	sql := "SELECT 1 FROM /*tenant.*/a " + strings.Repeat("-- long enough to be real\n", 20)
	ctx := context.Background()
	if n := testing.AllocsPerRun(100, func() { tenant.Exec(ctx, sql) }); n != 0 {
		t.Errorf("%v allocations for a text that was rewritten before, want 0", n)
	}
}

// TestTextsAreBounded: far more tenants than are remembered still get right texts.
func TestTextsAreBounded(t *testing.T) {
	t.Parallel()
	var texts db.Texts
	s := &spy{}
	for i := range 70_000 {
		schema := fmt.Sprintf(`"tenant_%d"`, i)
		texts.Bind(s, schema).Exec(context.Background(), "SELECT FROM /*tenant.*/a")
		if want := "SELECT FROM " + schema + ".a"; s.text != want {
			t.Fatalf("%q, want %q", s.text, want)
		}
	}
	if n := texts.Len(); n > 1<<16 {
		t.Errorf("%d texts remembered, want at most %d", n, 1<<16)
	}
}

// TestEveryTableHasTheMarker reads the queries as they are written: a table of the
// tenants' schema without the marker would be looked up in search_path.
func TestEveryTableHasTheMarker(t *testing.T) {
	t.Parallel()
	table := regexp.MustCompile(`(?:^|.)\bidempotency_\w+`)
	files, err := filepath.Glob("../../queries/*.sql")
	if err != nil || len(files) == 0 {
		t.Fatalf("no queries found: %v", err)
	}
	found := 0
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if filepath.Base(file) == "catalog.sql" {
			continue // asks the catalog for the table by name, and touches none of a tenant
		}
		for _, line := range strings.Split(string(text), "\n") {
			if strings.HasPrefix(line, "--") {
				continue
			}
			for _, use := range table.FindAllString(line, -1) {
				found++
				if !strings.HasPrefix(use, "/") || !strings.Contains(line, "/*tenant.*/"+use[1:]) {
					t.Errorf("%s: table without its marker: %s", file, line)
				}
			}
		}
	}
	if found < 9 {
		t.Errorf("only %d uses of a table found; the test looks for the wrong thing", found)
	}
}
