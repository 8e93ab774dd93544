package provision_test

import (
	"errors"
	"testing"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgidem/pgidem/tenancy/provision"
	"github.com/pgidem/pgidem/tenancy/registry"
)

// TestWhatARoleHoldsAgainst tries the SQL that an attacker could bring into a statement of
// tenant A's. It says as well what a role alone does not hold against, so that nobody is
// promised it.
func TestWhatARoleHoldsAgainst(t *testing.T) {
	t.Parallel()
	pool, role := newPool(t)
	p, tenants := newProvisioner(t, pool, provision.WithServiceRole(role), provision.WithTenantRoles())
	t.Cleanup(func() { dropAll(t, pool, p, tenants) })
	var list []registry.Tenant
	for range 2 {
		tenant, err := p.Provision(t.Context(), uuid.New())
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, tenant)
	}
	a, b := list[0].Schema.Quoted(), list[1].Schema.Quoted()
	// serve runs a handler that puts what its caller sends into its SQL, and then a second
	// statement, as if the first one had opened the way for it.
	serve := func(injected string) error {
		tx, err := pool.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer tx.Rollback(t.Context())
		for _, sql := range []string{`SET LOCAL SESSION AUTHORIZATION ` + role, `SET LOCAL ROLE ` + a, `SET LOCAL search_path = ` + a} {
			if _, err := tx.Exec(t.Context(), sql); err != nil {
				t.Fatal(err)
			}
		}
		rows, err := tx.Query(t.Context(), `SELECT key FROM idempotency_records WHERE key = '`+injected+`'`)
		if err != nil {
			return err
		}
		if rows.Close(); rows.Err() != nil {
			return rows.Err()
		}
		_, err = tx.Exec(t.Context(), `SELECT count(*) FROM `+b+`.idempotency_records`)
		return err
	}
	taken := `' UNION SELECT set_config('role', 'none', true) --`
	if err := serve(taken); err != nil {
		t.Errorf("the documentation says that set_config takes the service's rights back, but: %v", err)
	}
	run(t, pool, `REVOKE EXECUTE ON FUNCTION pg_catalog.set_config(text, text, boolean) FROM PUBLIC`)
	run(t, pool, `GRANT EXECUTE ON FUNCTION pg_catalog.set_config(text, text, boolean) TO `+role)
	for injected, want := range map[string]string{
		`nothing`: "42501", // insufficient_privilege
		taken:     "42501",
		`' UNION SELECT set_config('role', '` + list[1].Schema.String() + `', true) --`:                                             "42501",
		`' UNION SELECT key FROM ` + b + `.idempotency_records --`:                                                                  "42501",
		`' UNION SELECT query_to_xml('SELECT * FROM ` + list[1].Schema.String() + `.idempotency_records', true, true, '')::text --`: "42501",
		`' UNION SELECT query_to_xml('SELECT set_config(''role'', ''none'', true)', true, true, '')::text --`:                       "42501",
		`' UNION SELECT query_to_xml('UPDATE pg_settings SET setting = ''none'' WHERE name = ''role''', true, true, '')::text --`:   "42501",
		`' UNION SELECT query_to_xml('RESET ROLE', true, true, '')::text --`:                                                        "0A000", // SPI runs it in no read-only query
		`'; RESET ROLE; SELECT key FROM ` + b + `.idempotency_records --`:                                                           "42601", // syntax_error: one statement alone
		`'; SET LOCAL ROLE ` + b + `; SELECT key FROM ` + b + `.idempotency_records --`:                                             "42601",
	} {
		err := serve(injected)
		var pgErr *pgconn.PgError
		if !errors.As(err, &pgErr) || pgErr.Code != want && pgErr.Code != "0A000" { // 0A000: also a server built without XML
			t.Errorf("%s: %v; want it to be refused with %s", injected, err, want)
		}
	}
	// The simple protocol takes many statements, so there one may take everything back.
	_, err := pool.Exec(t.Context(), `BEGIN; SET LOCAL SESSION AUTHORIZATION `+role+`; SET LOCAL ROLE `+a+`;
		SELECT ''; RESET ROLE; SELECT key FROM `+b+`.idempotency_records; COMMIT`, pgx.QueryExecModeSimpleProtocol)
	if err != nil {
		t.Errorf("the documentation says not to use the simple protocol, but: %v", err)
	}
}
