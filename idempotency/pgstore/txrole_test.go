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

// TestInjectedStatementReachesNoOtherTenant: a handler of tenant A puts what its client sends
// into an Exec without arguments, which pgx itself would send so that statements may follow.
func TestInjectedStatementReachesNoOtherTenant(t *testing.T) {
	t.Parallel()
	pool := pgtest.NewPool(t)
	const injected = `x'; RESET ROLE; UPDATE %[1]s.idempotency_steps SET key = 'taken' --`
	update := func(tx interface {
		Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error)
	}, r *http.Request, args ...any,
	) error {
		tag, err := tx.Exec(r.Context(), `UPDATE idempotency_steps SET expires_at = now() WHERE name = '`+r.Header.Get("Name")+`'`, args...)
		if err == nil && tag.String() != "UPDATE 1" {
			err = fmt.Errorf("the statement's tag is %q", tag)
		}
		return err
	}
	for name, run := range map[string]func(tx pgx.Tx, r *http.Request) error{
		"transaction": func(tx pgx.Tx, r *http.Request) error { return update(tx, r) },
		"savepoint": func(tx pgx.Tx, r *http.Request) error {
			inner, err := tx.Begin(r.Context())
			if err != nil {
				return err
			}
			return update(inner, r)
		},
		"options alone":  func(tx pgx.Tx, r *http.Request) error { return update(tx, r, pgx.QueryExecModeExec) },
		"names not used": func(tx pgx.Tx, r *http.Request) error { return update(tx, r, pgx.NamedArgs{"unused": 1}) },
	} {
		for as, opts := range map[string][]pgstore.TxOption{"tenant": {pgstore.WithTenantRole()}, "service": nil} {
			t.Run(name+" as "+as, func(t *testing.T) {
				a, b := storetest.NewTenant(t, pool), storetest.NewTenant(t, pool)
				for _, org := range []uuid.UUID{a, b} {
					newRole(t, pool, org)
					_, err := pool.Exec(t.Context(), `INSERT INTO `+storetest.SchemaOf(t, org).Quoted()+`.idempotency_steps VALUES (now(), now(), gen_random_uuid(), $1, 'kept', '\x00', 'name', '\x00')`, org)
					if err != nil {
						t.Fatal(err)
					}
				}
				var refusal error
				handler := func(_ http.ResponseWriter, r *http.Request) {
					tx, _ := pgstore.Tx(r.Context())
					refusal = run(tx, r)
				}
				protected := withOrg(a, idempotency.Require(storetest.NewStore(t, pool).Transactional(opts...))(http.HandlerFunc(handler)))
				ask := func(name string) {
					r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/", nil)
					r.Header.Set("Name", name)
					r.Header.Set(idempotency.HeaderKey, uuid.NewString())
					protected.ServeHTTP(httptest.NewRecorder(), r)
				}
				if ask("name"); refusal != nil {
					t.Fatalf("its own table: %v", refusal)
				}
				ask(fmt.Sprintf(injected, storetest.SchemaOf(t, b).Quoted()))
				var key string
				if err := pool.QueryRow(t.Context(), `SELECT key FROM `+storetest.SchemaOf(t, b).Quoted()+`.idempotency_steps`).Scan(&key); err != nil {
					t.Fatal(err)
				}
				var pgErr *pgconn.PgError
				refused := errors.As(refusal, &pgErr) && pgErr.Code == "42601" // syntax_error: one statement alone
				if as == "tenant" && (!refused || key != "kept") {
					t.Errorf("tenant B's key is %q, the statement's error %v", key, refusal)
				}
				if as == "service" && key != "taken" {
					t.Errorf("tenant B's key is %q, the statement's error %v; the test proves nothing", key, refusal)
				}
			})
		}
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
