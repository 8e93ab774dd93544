package move_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgidem/pgidem/internal/moved"
	"github.com/pgidem/pgidem/tenancy/move"
	"github.com/pgidem/pgidem/tenancy/registry"
)

// reads has a transaction read the tenant's tombstone in a cluster, as pg_dump does, until what
// it returns is called.
func (w *world) reads(t *testing.T, tenant registry.Tenant, cluster string) (end func()) {
	t.Helper()
	tx, err := w.pools[cluster].Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	end = func() { _ = tx.Rollback(context.WithoutCancel(t.Context())) }
	if _, err := tx.Exec(t.Context(), `LOCK TABLE `+tenant.Schema.Quoted()+`.idempotency_db_version IN ACCESS SHARE MODE`); err != nil {
		end()
		t.Fatal(err)
	}
	return end
}

// impatient is a mover that does not wait for others for long.
func (w *world) impatient(t *testing.T, opts ...move.Option) *move.Mover {
	t.Helper()
	return w.mover(t, append([]move.Option{move.WithDrainTimeout(200 * time.Millisecond), move.WithLockTimeout(20 * time.Millisecond)}, opts...)...)
}

// TestMoveBackBesideAReader: somebody reads what an earlier move has left in the place to which
// the tenant comes back. It is served where it is, and comes later.
func TestMoveBackBesideAReader(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	tenant := w.newTenant(t, "a")
	if _, err := w.mover(t).Move(t.Context(), tenant.OrgID, "b"); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()

	end := w.reads(t, tenant, "a")
	var seen []move.Step
	_, err := w.impatient(t, move.WithProgress(func(s move.Step) { seen = append(seen, s) })).Move(ctx, tenant.OrgID, "a")
	if !errors.Is(err, move.ErrBusy) || len(seen) > 0 {
		t.Errorf("%v, after %v; want ErrBusy before anything", err, seen)
	}
	end()
	w.is(t, tenant, "b", registry.Active)
	w.refuses(t, tenant, "a", "b")

	// The reader comes when the copy is there already.
	report, err := w.impatient(t, move.WithProgress(func(s move.Step) {
		if s == move.Verifying {
			end = w.reads(t, tenant, "a")
		}
	})).Move(ctx, tenant.OrgID, "a")
	end()
	if !errors.Is(err, move.ErrBusy) || report.Tenant.State != registry.Active {
		t.Errorf("%+v, %v; want ErrBusy and the tenant active", report, err)
	}
	w.is(t, tenant, "b", registry.Active)
	w.refuses(t, tenant, "a", "b")

	if _, err := w.mover(t).Move(ctx, tenant.OrgID, "a"); err != nil {
		t.Fatal(err)
	}
	w.is(t, tenant, "a", registry.Active)
}

// TestCancelBesideAReader of the tombstone in the cluster that the tenant was to leave.
func TestCancelBesideAReader(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	tenant := w.newTenant(t, "a")
	ctx, cancel := context.WithCancel(t.Context())
	_, err := w.mover(t, move.WithProgress(func(s move.Step) {
		if s == move.Verifying {
			cancel()
		}
	})).Move(ctx, tenant.OrgID, "b")
	if err == nil {
		t.Fatal("it was not broken off")
	}
	ctx, cancel = context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	end := w.reads(t, tenant, "a")
	_, err = w.impatient(t).Cancel(ctx, tenant.OrgID)
	end()
	if !errors.Is(err, move.ErrBusy) || !strings.Contains(err.Error(), "stays suspended") {
		t.Errorf("%v; want ErrBusy, and that the tenant stays suspended", err)
	}
	if _, err := w.mover(t).Cancel(ctx, tenant.OrgID); err != nil {
		t.Fatal(err)
	}
	w.is(t, tenant, "a", registry.Active)
}

// TestCancelBesideAReaderOfTheCopy: the tenant is served again, and what is left of the copy
// goes when somebody asks for it.
func TestCancelBesideAReaderOfTheCopy(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	tenant := w.newTenant(t, "a")
	ctx, cancel := context.WithCancel(t.Context())
	_, err := w.mover(t, move.WithProgress(func(s move.Step) {
		if s == move.Verifying {
			cancel()
		}
	})).Move(ctx, tenant.OrgID, "b")
	if err == nil {
		t.Fatal("it was not broken off")
	}
	ctx, cancel = context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	err = pgx.BeginFunc(ctx, w.pools["b"], func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, fmt.Sprintf(`SELECT count(*) FROM moving_%x.payments`, tenant.OrgID[:])); err != nil {
			return err
		}
		now, err := w.impatient(t).Cancel(ctx, tenant.OrgID)
		if !errors.Is(err, move.ErrBusy) || now.State != registry.Active || now.Moving {
			t.Errorf("%+v, %v; want ErrBusy and the tenant active", now, err)
		}
		_, err = w.impatient(t).Move(ctx, tenant.OrgID, "a")
		if !errors.Is(err, move.ErrBusy) || strings.Contains(err.Error(), "has been moved") || strings.Contains(err.Error(), "original") ||
			!strings.Contains(err.Error(), `is in cluster "a", but schema `+moved.Fence(tenant.OrgID)+`, which an earlier move has left, is still in cluster "b"; move it to cluster "a" again`) {
			t.Errorf("%v; want ErrBusy, and what is left where", err)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.mover(t).Move(ctx, tenant.OrgID, "a"); err != nil {
		t.Fatal(err)
	}
	w.is(t, tenant, "a", registry.Active)
}

// TestMoveBackOntoAFilledTombstone: what somebody has put into the place to which the tenant
// comes back is found before it is suspended, and stays.
func TestMoveBackOntoAFilledTombstone(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	tenant := w.newTenant(t, "a")
	if _, err := w.mover(t).Move(t.Context(), tenant.OrgID, "b"); err != nil {
		t.Fatal(err)
	}
	for fill, mend := range map[string]string{
		`CREATE TABLE %s.goose_db_version (id int)`:                                      `DROP TABLE %s.goose_db_version`, // of the service's own migrations
		`CREATE VIEW public.goose_db_version AS SELECT * FROM %s.idempotency_db_version`: `DROP VIEW public.goose_db_version; SELECT '%s'`,
	} {
		w.exec(t, "a", fmt.Sprintf(fill, tenant.Schema.Quoted()))
		var seen []move.Step
		_, err := w.mover(t, move.WithProgress(func(s move.Step) { seen = append(seen, s) })).Move(t.Context(), tenant.OrgID, "a")
		if !errors.Is(err, move.ErrOccupied) || !strings.Contains(err.Error(), `cluster "a"`) || !strings.Contains(err.Error(), "goose_db_version depends on") || len(seen) > 0 {
			t.Errorf("%s: %v, after %v", fill, err, seen)
		}
		w.is(t, tenant, "b", registry.Active)
		w.exec(t, "a", fmt.Sprintf(mend, tenant.Schema.Quoted()))
	}
	w.refuses(t, tenant, "a", "b")
	if _, err := w.mover(t).Move(t.Context(), tenant.OrgID, "a"); err != nil {
		t.Fatal(err)
	}
	w.is(t, tenant, "a", registry.Active)
}

// TestMoveBesideAReaderOfTheOriginal: the tenant is served where it has come to, and what it has
// left goes when the move is run again.
func TestMoveBesideAReaderOfTheOriginal(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	tenant := w.newTenant(t, "a")
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	tx, err := w.pools["a"].Begin(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback(context.WithoutCancel(ctx)) }()
	m := w.impatient(t, move.WithProgress(func(s move.Step) {
		if s != move.Dropping {
			return
		}
		if _, err := tx.Exec(ctx, fmt.Sprintf(`SELECT count(*) FROM moving_%x.payments`, tenant.OrgID[:])); err != nil {
			t.Error(err)
		}
	}))
	for _, say := range [][]string{
		{`has been moved to cluster "b"`, fmt.Sprintf(`schema moving_%x, its old copy, is left in cluster "a"`, tenant.OrgID[:])},
		{`is in cluster "b"`, fmt.Sprintf(`schema moving_%x, which an earlier move has left, is still in cluster "a"`, tenant.OrgID[:])}, // which has nothing but that to do
	} {
		report, err := m.Move(ctx, tenant.OrgID, "b")
		if now := report.Tenant; !errors.Is(err, move.ErrBusy) || now.Cluster != "b" || now.Moving || now.State != registry.Active {
			t.Fatalf("%+v, %v; want ErrBusy and the tenant active in b", now, err)
		}
		for _, says := range append(say, `move it to cluster "b" again, which drops that`) {
			if !strings.Contains(err.Error(), says) {
				t.Errorf("%v; want it to say %q", err, says)
			}
		}
	}
	if err := tx.Rollback(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := w.mover(t).Move(ctx, tenant.OrgID, "b"); err != nil {
		t.Fatal(err)
	}
	w.is(t, tenant, "b", registry.Active)
	w.refuses(t, tenant, "a", "b")
}

// TestMoveThatLosesACluster after the switch: nobody can look whether the copy is there, or drop
// what it is a copy of. The tenant is served where it has come to, and the error says what to do.
func TestMoveThatLosesACluster(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for _, lost := range []string{"a", "b"} {
		tenant := w.newTenant(t, "a")
		report, err := w.mover(t, move.WithProgress(func(s move.Step) {
			if s == move.Dropping {
				w.hangUp(t, lost)
			}
		})).Move(t.Context(), tenant.OrgID, "b")
		if now := report.Tenant; err == nil || now.Cluster != "b" || now.Moving || now.State != registry.Active {
			t.Fatalf("cluster %s: %+v, %v; want the tenant active in b", lost, now, err)
		}
		if strings.Contains(err.Error(), "is missing") || !strings.Contains(err.Error(), `has been moved to cluster "b"`) || !strings.Contains(err.Error(), `move it to cluster "b" again, which drops that: move: cluster "`+lost+`"`) {
			t.Errorf("cluster %s: %v", lost, err)
		}
		if _, err := w.mover(t).Move(t.Context(), tenant.OrgID, "b"); err != nil {
			t.Fatal(err)
		}
		w.is(t, tenant, "b", registry.Active)
	}
}

// hangUp ends the connections of movers in a cluster.
func (w *world) hangUp(t *testing.T, cluster string) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(time.Millisecond) {
		var n int
		err := w.pools[cluster].QueryRow(t.Context(), `SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name = 'pgidem move' AND datname = current_database()`).Scan(&n)
		if err != nil || n == 0 {
			if err != nil {
				t.Error(err)
			}
			return
		}
		if time.Now().After(deadline) {
			t.Error("they do not end")
			return
		}
	}
}
