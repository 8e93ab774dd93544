package dependents_test

import (
	"slices"
	"testing"

	"github.com/pgidem/pgidem/internal/dependents"
	"github.com/pgidem/pgidem/internal/pgtest"
)

// TestOf: what is outside and what is inside, with nothing of what belongs to either.
func TestOf(t *testing.T) {
	t.Parallel()
	pool := pgtest.NewPool(t)
	_, err := pool.Exec(t.Context(), `
		CREATE SCHEMA "in side"; CREATE SCHEMA o;
		CREATE TYPE "in side".colour AS ENUM ('red');
		CREATE TABLE "in side".t (id int PRIMARY KEY, c "in side".colour, long text, n serial, i int GENERATED ALWAYS AS IDENTITY);
		CREATE INDEX ON "in side".t (long);
		CREATE TABLE "in side".parts (id int PRIMARY KEY REFERENCES "in side".t, long text) PARTITION BY LIST (id);
		CREATE TABLE "in side".part PARTITION OF "in side".parts FOR VALUES IN (1);
		CREATE VIEW "in side".v AS SELECT * FROM "in side".t;
		CREATE FUNCTION "in side".f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
		CREATE TRIGGER g BEFORE INSERT ON "in side".t FOR EACH ROW EXECUTE FUNCTION "in side".f();
		CREATE POLICY p ON "in side".t USING (id IN (SELECT id FROM "in side".parts));
		CREATE STATISTICS "in side".s ON id, long FROM "in side".t;
		CREATE PUBLICATION told FOR TABLE "in side".t;
		ALTER DEFAULT PRIVILEGES IN SCHEMA "in side" GRANT SELECT ON TABLES TO PUBLIC`)
	if err != nil {
		t.Fatal(err)
	}
	if outside, inside, err := dependents.Of(t.Context(), pool, "in side"); len(outside)+len(inside) > 0 || err != nil {
		t.Errorf("outside %q, inside %q, %v; want nothing", outside, inside, err)
	}
	_, err = pool.Exec(t.Context(), `
		CREATE COLLATION "in side".coll FROM "C";
		CREATE OPERATOR FAMILY "in side".fam USING hash;
		CREATE TABLE o.part PARTITION OF "in side".parts DEFAULT;
		CREATE STATISTICS o.s ON id, long FROM "in side".t;
		CREATE TABLE o.t (a text COLLATE "in side".coll)`)
	if err != nil {
		t.Fatal(err)
	}
	outside, inside, err := dependents.Of(t.Context(), pool, "in side")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		`table o.part depends on table "in side".parts`, `statistics object o.s depends on table "in side".t`, `column a of table o.t depends on collation "in side".coll`,
	} {
		if !slices.Contains(outside, want) {
			t.Errorf("outside %q; want %q in it", outside, want)
		}
	}
	if want := []string{`collation "in side".coll`, `operator family "in side".fam for access method hash`}; !slices.Equal(inside, want) {
		t.Errorf("inside %q, want %q", inside, want)
	}
	if outside, inside, err := dependents.Of(t.Context(), pool, "missing"); len(outside)+len(inside) > 0 || err != nil {
		t.Errorf("a schema that is not there: %q, %q, %v", outside, inside, err)
	}
}
