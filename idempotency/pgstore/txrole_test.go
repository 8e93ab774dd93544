package pgstore_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgidem/pgidem/idempotency"
	"github.com/pgidem/pgidem/idempotency/idempotencytest"
	"github.com/pgidem/pgidem/idempotency/pgstore"
	"github.com/pgidem/pgidem/internal/pgtest"
	"github.com/pgidem/pgidem/internal/storetest"
)

// newRole makes the role of a tenant, as package provision does.
func newRole(t testing.TB, pool *pgxpool.Pool, org uuid.UUID) {
	t.Helper()
	s := storetest.SchemaOf(t, org).Quoted()
	_, err := pool.Exec(t.Context(), fmt.Sprintf(`CREATE ROLE %[1]s NOLOGIN; GRANT USAGE ON SCHEMA %[1]s TO %[1]s;
		GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA %[1]s TO %[1]s`, s), pgx.QueryExecModeSimpleProtocol)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if _, err := pool.Exec(context.Background(), `DROP OWNED BY `+s+`; DROP ROLE `+s, pgx.QueryExecModeSimpleProtocol); err != nil {
			t.Error(err)
		}
	})
}

// TestMiddlewareConformanceAsTenantRoles: all that the middleware promises, by roles that may
// do nothing outside of their schemas.
func TestMiddlewareConformanceAsTenantRoles(t *testing.T) {
	t.Parallel()
	pool := pgtest.NewPool(t)
	idempotencytest.TestMiddleware(t,
		func(t testing.TB) idempotency.Store {
			return &txStore{LeaseStore: storetest.NewStore(t, pool).Transactional(pgstore.WithTenantRole()).(idempotency.LeaseStore)}
		},
		idempotencytest.WithTransactions(),
		idempotencytest.WithTenant(func(t testing.TB, s idempotency.Store) uuid.UUID {
			of, org := s.(*txStore), storetest.NewTenant(t, pool)
			newRole(t, pool, org)
			of.orgs = append(of.orgs, org)
			return org
		}),
		idempotencytest.WithAdvance(func(t testing.TB, s idempotency.Store, d time.Duration) {
			for _, org := range s.(*txStore).orgs {
				storetest.Advance(t, pool, org, d)
			}
		}))
}

// TestInjectedSQLReachesNoOtherTenant: a handler of tenant A puts what its client sends into
// its SQL, and the client sends SQL that reads what is tenant B's.
func TestInjectedSQLReachesNoOtherTenant(t *testing.T) {
	t.Parallel()
	pool := pgtest.NewPool(t)
	a, b := storetest.NewTenant(t, pool), storetest.NewTenant(t, pool)
	newRole(t, pool, a)
	newRole(t, pool, b)
	// The pool's role is a superuser's here; a service's is granted this function again.
	if _, err := pool.Exec(t.Context(), `REVOKE EXECUTE ON FUNCTION pg_catalog.set_config(text, text, boolean) FROM PUBLIC`); err != nil {
		t.Fatal(err)
	}
	secret := storetest.SchemaOf(t, b).Quoted()
	_, err := pool.Exec(t.Context(), `INSERT INTO `+secret+`.idempotency_steps VALUES (now(), now(), gen_random_uuid(), $1, 'secret', '\x00', 'name', '\x00')`, b)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		opts    []pgstore.TxOption
		reaches bool // that without the roles it does is what makes the test one
	}{"as the tenant's role": {[]pgstore.TxOption{pgstore.WithTenantRole()}, false}, "as the service": {nil, true}} {
		t.Run(name, func(t *testing.T) {
			var mu sync.Mutex
			var refusal error
			handler := func(w http.ResponseWriter, r *http.Request) {
				mu.Lock()
				defer mu.Unlock()
				tx, _ := pgstore.Tx(r.Context())
				rows, err := tx.Query(r.Context(), `SELECT key FROM idempotency_steps WHERE name = '`+r.Header.Get("Name")+`'`)
				var keys []string
				if err == nil {
					keys, err = pgx.CollectRows(rows, pgx.RowTo[string])
				}
				if refusal = err; err != nil {
					w.WriteHeader(http.StatusBadRequest)
				}
				fmt.Fprint(w, keys)
			}
			store := storetest.NewStore(t, pool).Transactional(c.opts...)
			server := httptest.NewServer(withOrg(a, idempotency.Require(store)(http.HandlerFunc(handler))))
			defer server.Close()
			ask := func(injected string) string {
				r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, server.URL, nil)
				if err != nil {
					t.Fatal(err)
				}
				r.Header.Set("Name", injected)
				r.Header.Set(idempotency.HeaderKey, uuid.NewString())
				resp, err := server.Client().Do(r)
				if err != nil {
					t.Fatal(err)
				}
				defer resp.Body.Close()
				body, err := io.ReadAll(resp.Body)
				if err != nil {
					t.Fatal(err)
				}
				return string(body)
			}
			if body := ask("nobody"); body != "[]" || refusal != nil {
				t.Fatalf("its own table: %s, %v", body, refusal)
			}
			for injected, want := range map[string]string{
				`' UNION SELECT key FROM ` + secret + `.idempotency_steps --`:                   "42501", // insufficient_privilege
				`' UNION SELECT set_config('role', 'none', true) --`:                            "42501",
				`'; RESET ROLE; SELECT key FROM ` + secret + `.idempotency_steps --`:            "42601", // syntax_error: one statement alone
				`'; SET ROLE ` + secret + `; SELECT 1 FROM ` + secret + `.idempotency_steps --`: "42601",
			} {
				body := ask(injected)
				var pgErr *pgconn.PgError
				refused := errors.As(refusal, &pgErr) && pgErr.Code == want
				if !c.reaches && (!refused || strings.Contains(body, "secret")) {
					t.Errorf("%s: %s, %v; want it to be refused with %s", injected, body, refusal, want)
				}
				if c.reaches && strings.Contains(injected, "UNION SELECT key") && !strings.Contains(body, "secret") {
					t.Errorf("%s: %s, %v; the test proves nothing", injected, body, refusal)
				}
			}
		})
	}
}

// TestATenantWithoutARoleIsRefused, rather than served as the service.
func TestATenantWithoutARoleIsRefused(t *testing.T) {
	t.Parallel()
	pool := pgtest.NewPool(t)
	ran := false
	b := newBank(t, pool, func(http.ResponseWriter, *http.Request) { ran = true }, []pgstore.TxOption{pgstore.WithTenantRole()})
	if status, body := b.send(t, "key"); status != http.StatusServiceUnavailable || ran {
		t.Errorf("%d %s, the handler ran: %t", status, body, ran)
	}
}
