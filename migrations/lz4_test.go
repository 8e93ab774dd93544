package migrations_test

import (
	"testing"

	"github.com/pgidem/pgidem/internal/pgtest"
	"github.com/pgidem/pgidem/migrations"
)

// TestServerWithoutLZ4: bodies are compressed as the server's default is where it knows no lz4,
// and that is no drift. An event trigger refuses lz4 as a server that was built without it does:
// by the same SQLSTATE, and undoing the statement.
func TestServerWithoutLZ4(t *testing.T) {
	t.Parallel()
	pool := pgtest.NewPool(t)
	run(t, pool, `
		CREATE FUNCTION public.refuse_lz4() RETURNS event_trigger LANGUAGE plpgsql AS $$
		BEGIN
			IF EXISTS (
				SELECT FROM pg_event_trigger_ddl_commands() c JOIN pg_attribute a ON a.attrelid = c.objid
				WHERE c.classid = 'pg_class'::regclass AND a.attcompression = 'l'
			) THEN
				RAISE feature_not_supported USING MESSAGE = 'compression method lz4 not supported';
			END IF;
		END $$;
		CREATE EVENT TRIGGER refuse_lz4 ON ddl_command_end EXECUTE FUNCTION public.refuse_lz4()`)
	schemas := tenants(t, 3)
	if err := migrations.Up(t.Context(), pool.Config().ConnString(), schemas[0]); err != nil {
		t.Fatal(err)
	}
	all(t, pool, schemas[1:2], migrations.WithFS(upTo(t, 4)))
	all(t, pool, schemas[1:]) // one that was behind and a new one
	intact(t, pool, schemas, latest)
	var chosen int
	if err := pool.QueryRow(t.Context(), `
		SELECT count(*) FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid
		WHERE c.relname LIKE 'idempotency%' AND a.attcompression <> ''`).Scan(&chosen); err != nil || chosen != 0 {
		t.Errorf("%d columns have a compression of their own, %v; want none", chosen, err)
	}
}
