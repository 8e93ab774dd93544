package moved_test

import (
	"errors"
	"testing"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgidem/pgidem/internal/moved"
	"github.com/pgidem/pgidem/internal/pgtest"
	"github.com/pgidem/pgidem/migrations"
)

func TestFence(t *testing.T) {
	t.Parallel()
	org := uuid.MustParse("0b8f0f4e-4a53-4fc1-9a0f-0a7c1e1d6a11")
	if got := moved.Fence(org); got != "moving_0b8f0f4e4a534fc19a0f0a7c1e1d6a11" || !moved.IsFence(got) {
		t.Errorf("%q", got)
	}
	for _, name := range []string{"moving_", "moving_company", "tenant_0b8f0f4e4a534fc19a0f0a7c1e1d6a11", "re" + moved.Fence(org), moved.Fence(org) + "0"} {
		if moved.IsFence(name) {
			t.Errorf("%s is taken for one that is being moved", name)
		}
	}
}

func TestTombstone(t *testing.T) {
	t.Parallel()
	pool := pgtest.NewPool(t)
	const schema = `of "one"`
	for _, cluster := range []string{"", "eu-2", "a.b_c-9"} {
		want := moved.Tombstone{OrgID: uuid.New(), Cluster: cluster}
		if _, ok, err := moved.Find(t.Context(), pool, schema); ok || err != nil {
			t.Fatalf("before there is one: %t, %v", ok, err)
		}
		if err := pgx.BeginFunc(t.Context(), pool, func(tx pgx.Tx) error { return want.Leave(t.Context(), tx, schema) }); err != nil {
			t.Fatal(err)
		}
		if got, ok, err := moved.Find(t.Context(), pool, schema); got != want || !ok || err != nil {
			t.Errorf("%+v, %t, %v; want %+v", got, ok, err, want)
		}
		if cleared, err := moved.Clear(t.Context(), pool, schema, uuid.New()); cleared || err != nil {
			t.Errorf("another's: %t, %v", cleared, err)
		}
		if cleared, err := moved.Clear(t.Context(), pool, schema, want.OrgID); !cleared || err != nil {
			t.Errorf("%t, %v", cleared, err)
		}
	}
	// A schema of somebody's is none, and stays.
	exec(t, pool, `CREATE SCHEMA "of ""one"""; COMMENT ON SCHEMA "of ""one""" IS 'pgidem: mine'`)
	if cleared, err := moved.Clear(t.Context(), pool, schema, uuid.New()); cleared || err != nil {
		t.Errorf("%t, %v", cleared, err)
	}
	exec(t, pool, `DROP SCHEMA "of ""one"""`)
}

// TestTombstoneInTheWay: nobody begins migrations in it, whoever looks finds no table, and what
// somebody has put into it is not dropped.
func TestTombstoneInTheWay(t *testing.T) {
	t.Parallel()
	pool := pgtest.NewPool(t)
	stone := moved.Tombstone{OrgID: uuid.New(), Cluster: "eu-2"}
	if err := pgx.BeginFunc(t.Context(), pool, func(tx pgx.Tx) error { return stone.Leave(t.Context(), tx, "acme") }); err != nil {
		t.Fatal(err)
	}
	expect(t, pool, `CREATE TABLE acme.`+migrations.VersionTable+` (a int)`, "42P07") // duplicate_table
	expect(t, pool, `INSERT INTO acme.`+migrations.VersionTable+` VALUES ('5')`, "55000")
	role := "nobody_" + uuid.NewString()[:8]
	exec(t, pool, `CREATE ROLE `+role)
	defer exec(t, pool, `DROP ROLE `+role)
	err := pgx.BeginFunc(t.Context(), pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(t.Context(), `SET LOCAL ROLE `+role); err != nil {
			return err
		}
		_, err := tx.Exec(t.Context(), `SELECT FROM acme.idempotency_records`)
		return err
	})
	if code(err) != "42P01" { // undefined_table, and not insufficient_privilege
		t.Errorf("who has no rights gets %v", err)
	}
	exec(t, pool, `CREATE TABLE acme.mine (a int)`)
	if cleared, err := moved.Clear(t.Context(), pool, "acme", stone.OrgID); cleared || code(err) != "2BP01" {
		t.Errorf("with a table in it: %t, %v", cleared, err)
	}
}

func exec(t *testing.T, q moved.Querier, sql string) {
	t.Helper()
	if _, err := q.Exec(t.Context(), sql); err != nil {
		t.Fatal(err)
	}
}

func expect(t *testing.T, q moved.Querier, sql, want string) {
	t.Helper()
	if _, err := q.Exec(t.Context(), sql); code(err) != want {
		t.Errorf("%s: %v; want %s", sql, err, want)
	}
}

func code(err error) string {
	var pgErr *pgconn.PgError
	if errors.As(err, &pgErr) {
		return pgErr.Code
	}
	return ""
}
