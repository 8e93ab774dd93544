package provision_test

import (
	"errors"
	"strings"
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

// TestRolesOfOthers that have the name of a tenant's schema are neither taken nor dropped.
func TestRolesOfOthers(t *testing.T) {
	t.Parallel()
	pool, role := newPool(t)
	opts := []provision.Option{provision.WithServiceRole(role), provision.WithTenantRoles()}
	p, tenants := newProvisioner(t, pool, opts...)
	plain, _ := newProvisioner(t, pool, provision.WithServiceRole(role))
	t.Cleanup(func() { dropAll(t, pool, p, tenants) })
	attributes := func(name string) (text string) {
		t.Helper()
		if err := pool.QueryRow(t.Context(), `SELECT coalesce((SELECT concat(rolcanlogin, rolcreatedb, shobj_description(oid, 'pg_authid')) FROM pg_authid WHERE rolname = $1), 'none')`, name).Scan(&text); err != nil {
			t.Fatal(err)
		}
		return text
	}
	for _, create := range []string{`NOLOGIN`, `LOGIN CREATEDB`} {
		// To be made for a tenant.
		org := uuid.New()
		name := "tenant_" + strings.ReplaceAll(org.String(), "-", "")
		run(t, pool, `CREATE ROLE `+name+` `+create)
		was := attributes(name)
		_, err := p.Provision(t.Context(), org)
		if !errors.Is(err, provision.ErrRole) || !strings.Contains(err.Error(), "COMMENT ON ROLE "+name) {
			t.Errorf("%s: made: %v", create, err)
		}
		if tenant, err := tenants.Tenant(t.Context(), org); err != nil || tenant.State != registry.Provisioning {
			t.Errorf("%s: %+v, %v", create, tenant, err)
		}
		var rights int
		if err := pool.QueryRow(t.Context(), `SELECT count(*) FROM pg_shdepend WHERE refobjid = $1::regrole`, name).Scan(&rights); err != nil || rights != 0 || attributes(name) != was {
			t.Errorf("%s: it has %d rights now, and is %s, before %s, %v", create, rights, attributes(name), was, err)
		}
		// With a tenant that was made without one.
		run(t, pool, `DROP ROLE `+name)
		if _, err := plain.Provision(t.Context(), org); err != nil {
			t.Fatal(err)
		}
		if _, err := p.Suspend(t.Context(), org); err != nil {
			t.Fatal(err)
		}
		run(t, pool, `CREATE ROLE `+name+` `+create)
		if err := p.Drop(t.Context(), org, org.String()); !errors.Is(err, provision.ErrRole) {
			t.Errorf("%s: dropped: %v", create, err)
		}
		if tenant, err := p.Resume(t.Context(), org); err != nil || attributes(name) != was {
			t.Errorf("%s: %+v, %v, and the role is %s", create, tenant, err, attributes(name))
		}
		wantWhole(t, pool, tenants, org, role)
		// What the error says to do.
		var sql string
		if err := pool.QueryRow(t.Context(), `SELECT format('COMMENT ON ROLE %I IS %L', $1::text, format('pgidem: role of tenant %s in database %s', $2::text, current_database()))`, name, org.String()).Scan(&sql); err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(err.Error(), sql) {
			t.Errorf("error %v, want it to have %s", err, sql)
		}
		run(t, pool, sql)
		if _, err := tenants.SetState(t.Context(), org, registry.Provisioning); err != nil {
			t.Fatal(err)
		}
		switch _, err := p.Provision(t.Context(), org); {
		case create == "NOLOGIN" && err != nil:
			t.Error(err)
		case create != "NOLOGIN" && (!errors.Is(err, provision.ErrRole) || !strings.Contains(err.Error(), "can log in")):
			t.Errorf("a tenant's role that can log in: %v", err)
		}
	}
}
