package provision_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgidem/pgidem/migrations"
	"github.com/pgidem/pgidem/tenancy"
	"github.com/pgidem/pgidem/tenancy/provision"
	"github.com/pgidem/pgidem/tenancy/registry"
)

// holdUp is a tracer that has meanwhile called before the n-th statement that is sent outside of
// a transaction, or that begins one, as if the run had been stopped there for as long.
type holdUp struct {
	n         int
	meanwhile func()
	held      bool
}

func (h *holdUp) TraceQueryStart(ctx context.Context, conn *pgx.Conn, _ pgx.TraceQueryStartData) context.Context {
	if conn.PgConn().TxStatus() == 'I' {
		if h.n--; h.n == 0 {
			h.held = true
			h.meanwhile()
		}
	}
	return ctx
}

func (*holdUp) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}

// late runs do, held up before the n-th statement of its registry or of the tenant's database.
// It reports whether it came to that.
func late(t *testing.T, pool *pgxpool.Pool, n int, meanwhile func(), do func(*provision.Provisioner), opts ...provision.Option) bool {
	t.Helper()
	cfg := pool.Config()
	h := &holdUp{n: n, meanwhile: meanwhile}
	cfg.ConnConfig.Tracer = h
	traced, err := pgxpool.NewWithConfig(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer traced.Close()
	tenants, err := registry.New(traced)
	if err != nil {
		t.Fatal(err)
	}
	defer tenants.Close()
	p, err := provision.New(tenants, traced, opts...)
	if err != nil {
		t.Fatal(err)
	}
	do(p)
	return h.held
}

// TestALateDropTakesNothing of the tenant that signed up anew while it was held up, wherever
// that was.
func TestALateDropTakesNothing(t *testing.T) {
	t.Parallel()
	pool, role := newPool(t)
	opts := []provision.Option{provision.WithServiceRole(role), provision.WithTenantRoles()}
	other, tenants := newProvisioner(t, pool, opts...)
	t.Cleanup(func() { dropAll(t, pool, other, tenants) })
	refused := 0
	for n := 1; ; n++ {
		tenant := suspended(t, other)
		org := tenant.OrgID
		var anew registry.Tenant
		held := late(t, pool, n, func() {
			if err := other.Drop(t.Context(), org, org.String()); err != nil {
				t.Error(err)
			}
			var err error
			if anew, err = other.Provision(t.Context(), org); err != nil {
				t.Error(err)
			}
		}, func(p *provision.Provisioner) {
			err := p.Drop(t.Context(), org, org.String())
			if errors.Is(err, provision.ErrState) {
				refused++
			} else if err != nil || anew.Schema == tenant.Schema {
				t.Errorf("held up before statement %d: error %v", n, err)
			}
		}, opts...)
		if !held {
			break
		}
		if now := wantWhole(t, pool, tenants, org, role); now != anew {
			t.Errorf("held up before statement %d: %+v, want %+v", n, now, anew)
		}
		if err := store(t, pool, tenant.Schema.Quoted(), tenant.Schema, org); err != nil {
			t.Errorf("held up before statement %d: as the tenant: %v", n, err)
		}
	}
	if refused < 10 {
		t.Errorf("held up in %d places: the test proves little", refused)
	}
}

// TestALateProvision neither finishes what another has begun for a tenant that was dropped and
// signed up anew, nor brings one back.
func TestALateProvision(t *testing.T) {
	t.Parallel()
	for name, anew := range map[string]bool{"dropped": false, "dropped and begun anew": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pool, role := newPool(t)
			opts := []provision.Option{provision.WithServiceRole(role), provision.WithTenantRoles()}
			other, tenants := newProvisioner(t, pool, opts...)
			t.Cleanup(func() { dropAll(t, pool, other, tenants) })
			begun, _ := newProvisioner(t, pool, append(opts, provision.WithStep(func(string) error { return errCut }))...)
			tooLate := 0
			for n := 1; ; n++ {
				org := uuid.New()
				schema := parse(t, "tenant_"+strings.ReplaceAll(org.String(), "-", ""))
				var lateErr error
				held := late(t, pool, n, func() {
					_, _ = other.Suspend(t.Context(), org) // if it is active by then
					if err := other.Drop(t.Context(), org, org.String()); err != nil && !errors.Is(err, tenancy.ErrUnknownTenant) {
						t.Error(err)
					}
					if anew {
						if _, err := begun.Provision(t.Context(), org); !errors.Is(err, errCut) {
							t.Error(err)
						}
					}
				}, func(p *provision.Provisioner) { _, lateErr = p.Provision(t.Context(), org) }, opts...)
				if !held {
					break
				}
				switch now, err := tenants.Tenant(t.Context(), org); {
				case lateErr == nil: // it had not begun
					wantWhole(t, pool, tenants, org, role)
				case !errors.Is(lateErr, provision.ErrState) && !errors.Is(lateErr, tenancy.ErrUnknownTenant):
					t.Errorf("held up before statement %d: %v", n, lateErr)
				case !anew:
					tooLate++
					wantGone(t, pool, tenants, registry.Tenant{OrgID: org, Schema: schema})
				case err != nil || now.State != registry.Provisioning || now.Version != 0:
					t.Errorf("held up before statement %d: %+v, %v; error %v", n, now, err, lateErr)
				default:
					tooLate++
					if _, err := other.Provision(t.Context(), org); err != nil {
						t.Errorf("held up before statement %d, and again: %v", n, err)
					}
					wantWhole(t, pool, tenants, org, role)
				}
			}
			if tooLate < 5 {
				t.Errorf("too late in %d places: the test proves little", tooLate)
			}
		})
	}
}

// TestTheCommentOnASchema keeps what it said before, and is put right where it was changed.
func TestTheCommentOnASchema(t *testing.T) {
	t.Parallel()
	pool, _ := newPool(t)
	p, tenants := newProvisioner(t, pool)
	org := uuid.New()
	schema := parse(t, "tenant_"+strings.ReplaceAll(org.String(), "-", ""))
	comment := func() (text string) {
		t.Helper()
		if err := pool.QueryRow(t.Context(), `SELECT coalesce(obj_description($1::regnamespace, 'pg_namespace'), '')`, schema.String()).Scan(&text); err != nil {
			t.Fatal(err)
		}
		return text
	}
	if err := migrations.Up(t.Context(), pool.Config().ConnString(), schema); err != nil {
		t.Fatal(err)
	}
	run(t, pool, `COMMENT ON SCHEMA `+schema.Quoted()+` IS 'the customer''s own'`)
	tenant, err := p.Provision(t.Context(), org)
	if err != nil {
		t.Fatal(err)
	}
	g := tenants.Generation(tenant)
	if want := "the customer's own [pgidem: tenant " + g.String() + "]"; comment() != want {
		t.Errorf("comment %q, want %q", comment(), want)
	}

	// Registered again by hand, with its records.
	if err := tenants.Remove(t.Context(), org); err != nil {
		t.Fatal(err)
	}
	if tenant, err = p.Provision(t.Context(), org); err != nil {
		t.Fatal(err)
	}
	if again := tenants.Generation(tenant); again.String() == g.String() || comment() != "the customer's own [pgidem: tenant "+again.String()+"]" {
		t.Errorf("comment %q", comment())
	}
	wantWhole(t, pool, tenants, org, "")
	if _, err := p.Suspend(t.Context(), org); err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{`NULL`, `'of nobody'`, `'[pgidem: tenant somebody]'`} {
		run(t, pool, `COMMENT ON SCHEMA `+schema.Quoted()+` IS `+text)
		stop, _ := newProvisioner(t, pool, provision.WithStep(func(step string) error {
			if step == "taken" {
				return errCut
			}
			return nil
		}))
		if err := stop.Drop(t.Context(), org, org.String()); !errors.Is(err, errCut) || !strings.HasSuffix(comment(), "[pgidem: tenant "+tenants.Generation(tenant).String()+"]") {
			t.Errorf("%s: comment %q, error %v", text, comment(), err)
		}
	}
	if err := p.Drop(t.Context(), org, org.String()); err != nil {
		t.Fatal(err)
	}
	wantGone(t, pool, tenants, tenant)
}

// TestALateProvisionBringsNobodyBack: also where it is held up on its way to what it sends by
// other means.
func TestALateProvisionBringsNobodyBack(t *testing.T) {
	t.Parallel()
	pool, role := newPool(t)
	other, tenants := newProvisioner(t, pool, provision.WithServiceRole(role))
	for _, at := range []string{"registered", "taken", "schema", "granted", "version"} {
		org := uuid.New()
		late, _ := newProvisioner(t, pool, provision.WithServiceRole(role), provision.WithStep(func(step string) error {
			if step != at {
				return nil
			}
			return other.Drop(t.Context(), org, org.String())
		}))
		tenant, err := late.Provision(t.Context(), org)
		if !errors.Is(err, provision.ErrState) && !errors.Is(err, tenancy.ErrUnknownTenant) {
			t.Errorf("dropped after %s: %v", at, err)
		}
		wantGone(t, pool, tenants, registry.Tenant{OrgID: org, Schema: parse(t, "tenant_"+strings.ReplaceAll(org.String(), "-", ""))})
		if tenant.State == registry.Active {
			t.Errorf("dropped after %s: %+v", at, tenant)
		}
	}
}

// TestOneConnectionIsEnough, for the registry as well: no step asks for a second one while it
// has the first.
func TestOneConnectionIsEnough(t *testing.T) {
	t.Parallel()
	pool, role := newPool(t)
	cfg := pool.Config()
	cfg.MaxConns = 1
	single, err := pgxpool.NewWithConfig(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(single.Close)
	p, tenants := newProvisioner(t, single, provision.WithServiceRole(role))
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	org := uuid.New()
	schema := parse(t, "tenant_"+strings.ReplaceAll(org.String(), "-", ""))
	if err := migrations.Up(ctx, pool.Config().ConnString(), schema); err != nil { // to be taken over
		t.Fatal(err)
	}
	err = p.Many(ctx, 3, func(yield func(uuid.UUID, error) bool) {
		_ = yield(org, nil) && yield(uuid.New(), nil) && yield(uuid.New(), nil)
	}, func(org uuid.UUID, _ registry.Tenant, err error) {
		if err != nil {
			t.Errorf("%s: %v", org, err)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	tenant, err := p.Suspend(ctx, org)
	if err != nil {
		t.Fatal(err)
	}
	run(t, pool, `COMMENT ON SCHEMA `+schema.Quoted()+` IS 'of nobody'`)
	if err := p.Drop(ctx, org, org.String()); err != nil {
		t.Fatal(err)
	}
	wantGone(t, pool, tenants, tenant)
}
