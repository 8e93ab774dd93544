package provision_test

import (
	"context"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgidem/pgidem/tenancy/provision"
)

// untilSomebodyWaits returns when a connection to the pool's database waits for a lock.
func untilSomebodyWaits(t *testing.T, pool *pgxpool.Pool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(time.Millisecond) {
		var waiting bool
		if err := pool.QueryRow(context.WithoutCancel(t.Context()), `SELECT EXISTS (SELECT FROM pg_locks AS l JOIN pg_stat_activity AS a USING (pid) WHERE NOT l.granted AND a.datname = current_database())`).Scan(&waiting); err != nil {
			t.Error(err)
			return
		}
		if waiting {
			return
		}
		if time.Now().After(deadline) {
			t.Error("nobody waits")
			return
		}
	}
}

// TestProvisionBesideMigrations that make the schema at the same moment.
func TestProvisionBesideMigrations(t *testing.T) {
	t.Parallel()
	pool, role := newPool(t)
	p, tenants := newProvisioner(t, pool, provision.WithServiceRole(role))
	org := uuid.New()
	schema := parse(t, "tenant_"+strings.ReplaceAll(org.String(), "-", ""))
	tx, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback(context.WithoutCancel(t.Context())) }()
	if _, err := tx.Exec(t.Context(), `CREATE SCHEMA `+schema.Quoted()); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { _, err := p.Provision(t.Context(), org); ended <- err }()
	untilSomebodyWaits(t, pool)
	if err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	wantWhole(t, pool, tenants, org, role)
}

// TestALateDropAtRepeatableRead: also where the database's isolation level is stricter than its
// default, a drop that waits for the run that signs the tenant's new schema sees what that has
// signed.
func TestALateDropAtRepeatableRead(t *testing.T) {
	t.Parallel()
	plain, _ := newPool(t)
	with := func(tracer before) *pgxpool.Pool {
		cfg := plain.Config()
		cfg.ConnConfig.RuntimeParams["default_transaction_isolation"] = "repeatable read"
		if tracer != nil {
			cfg.ConnConfig.Tracer = tracer
		}
		pool, err := pgxpool.NewWithConfig(t.Context(), cfg)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(pool.Close)
		return pool
	}
	pool := with(nil)
	other, tenants := newProvisioner(t, pool)
	tenant := suspended(t, other)
	org := tenant.OrgID
	goOn, at := make(chan struct{}), make(chan struct{})
	var hold, held sync.Once
	late, _ := newProvisioner(t, pool, provision.WithStep(func(step string) error {
		if strings.HasSuffix(step, ".idempotency_steps") {
			hold.Do(func() { close(at); <-goOn })
		}
		return nil
	}))
	ended := make(chan error, 1)
	go func() { ended <- late.Drop(t.Context(), org, org.String()) }()
	select {
	case <-at:
	case err := <-ended:
		t.Fatal(err)
	}
	if err := other.Drop(t.Context(), org, org.String()); err != nil {
		t.Error(err)
	}
	// The tenant signs up anew, and the late run meets the transaction that signs its schema.
	again, _ := newProvisioner(t, with(func(sql string) {
		if strings.HasPrefix(sql, "COMMENT ON SCHEMA") {
			held.Do(func() { close(goOn); untilSomebodyWaits(t, plain) })
		}
	}), provision.WithStep(func(step string) error {
		if step == "taken" {
			if err := <-ended; err == nil {
				t.Error("the late drop came to its end")
			}
		}
		return nil
	}))
	if _, err := again.Provision(t.Context(), org); err != nil {
		t.Errorf("signed up anew: %v", err)
	}
	wantWhole(t, plain, tenants, org, "")
}
