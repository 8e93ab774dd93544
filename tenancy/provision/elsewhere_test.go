package provision_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgidem/pgidem/internal/moved"
	"github.com/pgidem/pgidem/internal/pgtest"
	"github.com/pgidem/pgidem/migrations"
	"github.com/pgidem/pgidem/tenancy/provision"
	"github.com/pgidem/pgidem/tenancy/registry"
)

// goTo does what package move does, from the nameless cluster to b, but for dropping the fenced
// schema if fenced.
func goTo(t *testing.T, tenants *registry.Registry, from, b *pgxpool.Pool, org uuid.UUID, fenced bool) registry.Tenant {
	t.Helper()
	tenant, err := tenants.BeginMove(t.Context(), org, "", "b")
	if err != nil {
		t.Error(err)
		return tenant
	}
	err = pgx.BeginFunc(t.Context(), from, func(tx pgx.Tx) error {
		if _, err := tx.Exec(t.Context(), `ALTER SCHEMA `+tenant.Schema.Quoted()+` RENAME TO `+moved.Fence(org)); err != nil {
			return err
		}
		return moved.Tombstone{OrgID: org, Cluster: "b"}.Leave(t.Context(), tx, tenant.Schema.String())
	})
	if err != nil {
		t.Error(err)
	}
	conn, err := b.Acquire(t.Context())
	if err != nil {
		t.Error(err)
		return tenant
	}
	_, err = migrations.One(t.Context(), conn.Conn(), migrations.Target{Schema: tenant.Schema, OrgID: org})
	conn.Release()
	if err != nil {
		t.Error(err)
	}
	moveID := tenant.MoveID
	if tenant, err = tenants.FinishMove(t.Context(), org, moveID); err != nil {
		t.Error(err)
	}
	if !fenced {
		if _, err := from.Exec(t.Context(), `DROP SCHEMA `+moved.Fence(org)+` CASCADE`); err != nil {
			t.Error(err)
		}
	}
	return tenant
}

// away returns a suspended tenant that was moved from the nameless cluster to b.
func away(t *testing.T, p *provision.Provisioner, tenants *registry.Registry, from, b *pgxpool.Pool, fenced bool) registry.Tenant {
	t.Helper()
	tenant := suspended(t, p)
	goTo(t, tenants, from, b, tenant.OrgID, fenced)
	tenant, err := tenants.Tenant(t.Context(), tenant.OrgID)
	if err != nil || tenant.Cluster != "b" || tenant.State != registry.Suspended {
		t.Fatalf("%+v, %v", tenant, err)
	}
	return tenant
}

// untouched checks that a run that was refused has changed nothing of a tenant in b.
func untouched(t *testing.T, tenants *registry.Registry, from, b *pgxpool.Pool, tenant registry.Tenant) {
	t.Helper()
	now, err := tenants.Tenant(t.Context(), tenant.OrgID)
	now.UpdatedAt = tenant.UpdatedAt
	if err != nil || now != tenant {
		t.Errorf("%+v, %v; want %+v", now, err, tenant)
	}
	var tables int
	if err := b.QueryRow(t.Context(), `SELECT count(*) FROM pg_tables WHERE schemaname = $1`, tenant.Schema.String()).Scan(&tables); err != nil || tables != len(migrations.Tables()) {
		t.Errorf("%d tables, %v", tables, err)
	}
	if _, found, err := moved.Find(t.Context(), from, tenant.Schema.String()); err != nil || !found {
		t.Errorf("tombstone: %t, %v", found, err)
	}
}

func twoClusters(t *testing.T, opts ...provision.Option) (from, b *pgxpool.Pool, p *provision.Provisioner, tenants *registry.Registry) {
	t.Helper()
	from, _ = newPool(t)
	b = pgtest.NewPool(t)
	p, tenants = newProvisioner(t, from, append(opts, provision.WithClusters(map[string]*pgxpool.Pool{"b": b}))...)
	return from, b, p, tenants
}

// TestDropAfterAMoveCutOff: what a move that did not come to its end has left is not forgotten.
func TestDropAfterAMoveCutOff(t *testing.T) {
	t.Parallel()
	from, b, p, tenants := twoClusters(t)
	tenant := away(t, p, tenants, from, b, true)
	org := tenant.OrgID
	err := p.Drop(t.Context(), org, org.String(), provision.WithForeign())
	if !errors.Is(err, provision.ErrState) || !strings.Contains(err.Error(), moved.Fence(org)) || !strings.Contains(err.Error(), `move the tenant to cluster "b" again`) {
		t.Errorf("error %v", err)
	}
	untouched(t, tenants, from, b, tenant)
	run(t, from, `DROP SCHEMA `+moved.Fence(org)+` CASCADE`)
	run(t, b, `CREATE SCHEMA `+moved.Fence(org))
	if err := p.Drop(t.Context(), org, org.String()); !errors.Is(err, provision.ErrState) || !strings.Contains(err.Error(), "drop it yourself") {
		t.Errorf("beside the tenant: %v", err)
	}
	untouched(t, tenants, from, b, tenant)
	run(t, b, `DROP SCHEMA `+moved.Fence(org))
	if err := p.Drop(t.Context(), org, org.String()); err != nil {
		t.Fatal(err)
	}
	wantGone(t, from, tenants, tenant)
	wantGone(t, b, tenants, tenant)
}

// TestDropWithAFilledTombstone: what somebody has put where the tenant was is found before
// anything is dropped.
func TestDropWithAFilledTombstone(t *testing.T) {
	t.Parallel()
	from, b, p, tenants := twoClusters(t)
	tenant := away(t, p, tenants, from, b, false)
	org, s := tenant.OrgID, tenant.Schema.Quoted()
	for _, table := range []string{"goose_db_version", "idempotency_steps"} {
		run(t, from, `CREATE TABLE `+s+`.`+table+` (id int)`)
		for _, opts := range [][]provision.DropOption{nil, {provision.WithForeign()}} {
			err := p.Drop(t.Context(), org, org.String(), opts...)
			foreign, ok := errors.AsType[*provision.ForeignError](err)
			if !ok || !foreign.Left || foreign.Cluster != "" || foreign.Schema != tenant.Schema || len(foreign.Objects) != 1 || !strings.Contains(err.Error(), table) {
				t.Errorf("error %v", err)
			}
			untouched(t, tenants, from, b, tenant)
		}
		run(t, from, `DROP TABLE `+s+`.`+table)
	}
	run(t, from, `CREATE VIEW public.mine AS SELECT * FROM `+s+`.`+migrations.VersionTable)
	err := p.Drop(t.Context(), org, org.String())
	if dependent, ok := errors.AsType[*provision.DependentError](err); !ok || !dependent.Left || dependent.Cluster != "" || dependent.Schema != tenant.Schema || !strings.Contains(err.Error(), "mine") || !strings.Contains(err.Error(), `cluster ""`) {
		t.Errorf("error %v", err)
	}
	untouched(t, tenants, from, b, tenant)
	run(t, from, `DROP VIEW public.mine`)
	if err := p.Drop(t.Context(), org, org.String()); err != nil {
		t.Fatal(err)
	}
	wantGone(t, from, tenants, tenant)
}

// TestDropBesideAReader of the tombstone, as pg_dump is for as long as it runs.
func TestDropBesideAReader(t *testing.T) {
	t.Parallel()
	from, b, p, tenants := twoClusters(t, provision.WithTries(20*time.Millisecond, 2, time.Millisecond))
	tenant := away(t, p, tenants, from, b, false)
	org := tenant.OrgID
	tx, err := from.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback(context.WithoutCancel(t.Context())) }()
	if _, err := tx.Exec(t.Context(), `SELECT pg_get_viewdef($1::regclass)`, tenant.Schema.String()+"."+migrations.VersionTable); err != nil {
		t.Fatal(err)
	}
	if err := p.Drop(t.Context(), org, org.String()); !errors.Is(err, provision.ErrBusy) || t.Context().Err() != nil {
		t.Errorf("error %v", err)
	}
	if now, err := tenants.Tenant(t.Context(), org); err != nil || now.State != registry.Deleting {
		t.Errorf("%+v, %v", now, err)
	}
	run(t, from, `CREATE SCHEMA `+moved.Fence(org))
	if err := p.Drop(t.Context(), org, org.String()); !errors.Is(err, provision.ErrState) || !strings.Contains(err.Error(), "drop it yourself") {
		t.Errorf("with a fenced schema: %v", err)
	}
	run(t, from, `DROP SCHEMA `+moved.Fence(org))
	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := p.Drop(t.Context(), org, org.String()); err != nil {
		t.Fatal(err)
	}
	wantGone(t, from, tenants, tenant)
}

// TestDropWithAClusterThatDoesNotAnswer ends, and has changed nothing.
func TestDropWithAClusterThatDoesNotAnswer(t *testing.T) {
	t.Parallel()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	silent, err := pgxpool.New(t.Context(), fmt.Sprintf("host=127.0.0.1 port=%d dbname=x user=x password=x sslmode=disable", listener.Addr().(*net.TCPAddr).Port))
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	defer listener.Close() // which has the connections that it has not accepted end
	pool, _ := newPool(t)
	p, tenants := newProvisioner(t, pool, provision.WithClusters(map[string]*pgxpool.Pool{"eu-2": silent}))
	tenant := suspended(t, p)
	err = p.Drop(t.Context(), tenant.OrgID, tenant.OrgID.String())
	if err == nil || t.Context().Err() != nil || !strings.Contains(err.Error(), `"eu-2"`) || !strings.Contains(err.Error(), "has changed nothing") {
		t.Errorf("error %v", err)
	}
	if _, err := p.Resume(t.Context(), tenant.OrgID); err != nil {
		t.Error(err)
	}
	wantWhole(t, pool, tenants, tenant.OrgID, "")
}

// TestALateDropAndTombstones: what says where the tenant went that has signed up anew stays,
// wherever the drop of the one before it was held up.
func TestALateDropAndTombstones(t *testing.T) {
	t.Parallel()
	from, b, other, tenants := twoClusters(t)
	after := 0
	for n := 1; ; n++ {
		tenant := away(t, other, tenants, from, b, false)
		org := tenant.OrgID
		var anew registry.Tenant
		var lateErr error
		held := late(t, from, n, func() {
			if now, err := tenants.Tenant(t.Context(), org); err == nil && now.State == registry.Deleting {
				after++
			}
			if err := other.Drop(t.Context(), org, org.String()); err != nil {
				t.Error(err)
			}
			if _, err := other.Provision(t.Context(), org); err != nil {
				t.Error(err)
			}
			anew = goTo(t, tenants, from, b, org, false)
		}, func(p *provision.Provisioner) { lateErr = p.Drop(t.Context(), org, org.String()) }, provision.WithClusters(map[string]*pgxpool.Pool{"b": b}))
		if !held {
			break
		}
		if lateErr != nil && !errors.Is(lateErr, provision.ErrState) {
			t.Errorf("held up before statement %d: %v", n, lateErr)
		}
		if lateErr == nil || anew.Cluster != "b" {
			t.Errorf("held up before statement %d: %+v", n, anew)
			continue
		}
		untouched(t, tenants, from, b, anew)
	}
	if after < 2 {
		t.Errorf("held up in %d places after the first step: the test proves little", after)
	}
}

// TestALateProvisionAndAMove: a run that is held up while another makes the tenant, and it is
// moved, makes nothing where it was, and advises nobody to drop it.
func TestALateProvisionAndAMove(t *testing.T) {
	t.Parallel()
	for name, fenced := range map[string]bool{"to its end": false, "cut off": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			lateProvisionAndAMove(t, fenced)
		})
	}
}

func lateProvisionAndAMove(t *testing.T, fenced bool) {
	t.Helper()
	from, b, other, tenants := twoClusters(t)
	refused := 0
	for n := 1; ; n++ {
		org := uuid.New()
		var moved registry.Tenant
		var lateErr error
		held := late(t, from, n, func() {
			if _, err := other.Provision(t.Context(), org); err != nil {
				t.Error(err)
			}
			moved = goTo(t, tenants, from, b, org, fenced)
		}, func(p *provision.Provisioner) { _, lateErr = p.Provision(t.Context(), org) },
			provision.WithClusters(map[string]*pgxpool.Pool{"b": b}), provision.WithMigrationOptions(migrations.WithTries(1, time.Millisecond)))
		if !held {
			break
		}
		switch {
		case errors.Is(lateErr, provision.ErrState) && strings.Contains(lateErr.Error(), "was moved meanwhile") && !strings.Contains(lateErr.Error(), "drop"):
			refused++
		case lateErr != nil && !errors.Is(lateErr, registry.ErrConflict):
			t.Errorf("held up before statement %d: %v", n, lateErr)
		}
		untouched(t, tenants, from, b, moved)
	}
	if refused < 5 {
		t.Errorf("refused in %d places: the test proves little", refused)
	}
}

// TestDropWithARoleAfterAMove: the tenant's role where it is now was made by hand. It is dropped
// once it has the comment that the error names.
func TestDropWithARoleAfterAMove(t *testing.T) {
	t.Parallel()
	from, role := newPool(t)
	b := pgtest.NewPool(t)
	p, tenants := newProvisioner(t, from, provision.WithClusters(map[string]*pgxpool.Pool{"b": b}), provision.WithServiceRole(role), provision.WithTenantRoles())
	tenant := away(t, p, tenants, from, b, false)
	org := tenant.OrgID
	t.Cleanup(func() {
		_, _ = from.Exec(context.WithoutCancel(t.Context()), `DROP ROLE IF EXISTS `+tenant.Schema.Quoted())
	})
	err := p.Drop(t.Context(), org, org.String())
	if !errors.Is(err, provision.ErrRole) {
		t.Fatal(err)
	}
	untouched(t, tenants, from, b, tenant)
	_, comment, found := strings.Cut(err.Error(), "COMMENT ON ROLE")
	if !found {
		t.Fatal(err)
	}
	run(t, from, "COMMENT ON ROLE"+comment)
	if err := p.Drop(t.Context(), org, org.String()); err != nil {
		t.Fatal(err)
	}
	wantGone(t, from, tenants, tenant)
	wantGone(t, b, tenants, tenant)
}
