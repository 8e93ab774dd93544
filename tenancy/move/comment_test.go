package move_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgidem/pgidem/tenancy/move"
	"github.com/pgidem/pgidem/tenancy/provision"
	"github.com/pgidem/pgidem/tenancy/registry"
)

// locks is a tracer that notes the advisory lock that somebody takes.
type locks struct{ key int64 }

func (l *locks) TraceQueryStart(ctx context.Context, _ *pgx.Conn, d pgx.TraceQueryStartData) context.Context {
	if strings.Contains(d.SQL, "pg_advisory_xact_lock") {
		l.key, _ = d.Args[0].(int64)
	}
	return ctx
}

func (*locks) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}

// TestMoveBesideAComment: what package provision writes into the comment on the schema, under
// its lock, while the move's mark is taken away from it, stays.
func TestMoveBesideAComment(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	var provisioned locks
	config := w.pools["a"].Config()
	config.ConnConfig.Tracer = &provisioned
	pool, err := pgxpool.NewWithConfig(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	p, err := provision.New(w.tenants, pool, provision.WithClusters(map[string]*pgxpool.Pool{"a": pool}), provision.WithNewOn("a"))
	if err != nil {
		t.Fatal(err)
	}
	tenant, err := p.Provision(t.Context(), uuid.New())
	if err != nil || provisioned.key == 0 {
		t.Fatal(provisioned.key, err)
	}
	s := tenant.Schema.Quoted()
	comment := func() (text string) {
		t.Helper()
		if err := w.pools["b"].QueryRow(t.Context(), `SELECT obj_description($1::regnamespace, 'pg_namespace')`, tenant.Schema.String()).Scan(&text); err != nil {
			t.Fatal(err)
		}
		return text
	}

	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	tx, err := w.pools["b"].Begin(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback(context.WithoutCancel(ctx)) }()
	if _, err := tx.Exec(ctx, `SELECT pg_advisory_xact_lock($1)`, provisioned.key); err != nil {
		t.Fatal(err)
	}
	report, err := w.impatient(t).Move(ctx, tenant.OrgID, "b")
	if !errors.Is(err, move.ErrBusy) || report.Tenant.Cluster != "b" || report.Tenant.State != registry.Active {
		t.Fatalf("%+v, %v; want ErrBusy and the tenant served in b", report, err)
	}
	marked := comment()
	if !strings.Contains(marked, "complete copy of org ") {
		t.Fatalf("%q has no mark", marked)
	}

	ended := make(chan error, 1)
	go func() {
		_, err := w.mover(t).Move(ctx, tenant.OrgID, "b")
		ended <- err
	}()
	for waiting := false; !waiting; time.Sleep(time.Millisecond) {
		err := w.pools["b"].QueryRow(ctx, `SELECT EXISTS (SELECT FROM pg_locks AS l JOIN pg_database AS d ON d.oid = l.database WHERE d.datname = current_database() AND l.locktype = 'advisory' AND NOT l.granted)`).Scan(&waiting)
		if err != nil {
			t.Fatal(err)
		}
	}
	if _, err := tx.Exec(ctx, `COMMENT ON SCHEMA `+s+` IS '`+marked+` and more'`); err != nil {
		t.Fatal(err)
	}
	if err := tx.Commit(ctx); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	if got := comment(); "pgidem: complete copy of org "+tenant.OrgID.String()+". "+got != marked+" and more" {
		t.Errorf("%q; before %q", got, marked)
	}
}
