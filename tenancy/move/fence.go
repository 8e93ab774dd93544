package move

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgidem/pgidem/internal/dependents"
	"github.com/pgidem/pgidem/internal/moved"
	"github.com/pgidem/pgidem/internal/signature"
	"github.com/pgidem/pgidem/tenancy/registry"
)

// state tells whether the source has the tenant's schema under its name, which a tombstone is
// not, and whether it has it fenced.
func (t *transfer) state(ctx context.Context) (open, fenced bool, err error) {
	var comment string
	err = t.source.QueryRow(ctx, `SELECT EXISTS (SELECT FROM pg_namespace WHERE nspname = $1), EXISTS (SELECT FROM pg_namespace WHERE nspname = $2),
		coalesce((SELECT obj_description(oid, 'pg_namespace') FROM pg_namespace WHERE nspname = $1), '')`,
		t.tenant.Schema.String(), t.fenced.String()).Scan(&open, &fenced, &comment)
	if err != nil {
		return false, false, fmt.Errorf("move: cluster %q: %w", t.from.name, err)
	}
	return open && !t.isTombstone(comment), fenced, nil
}

// isTombstone tells whether a comment is that of a tombstone of the tenant.
func (t *transfer) isTombstone(comment string) bool {
	tombstone, ok := moved.Parse(comment)
	return ok && tombstone.OrgID == t.tenant.OrgID
}

// bury leaves the tenant's tombstone in the source if nothing has the name of its schema
// there: an earlier run of a version that left none had fenced it, say.
func (t *transfer) bury(ctx context.Context) error {
	_, found, err := commentOf(ctx, t.source, t.tenant.Schema.String())
	if err == nil && !found {
		err = t.briefly(ctx, t.source, func(tx pgx.Tx) error { return t.tombstone().Leave(ctx, tx, t.tenant.Schema.String()) })
	}
	if err != nil {
		return fmt.Errorf("move: cluster %q: leave an empty schema %s that says where the tenant is: %w", t.from.name, t.tenant.Schema, err)
	}
	return nil
}

func (t *transfer) tombstone() moved.Tombstone {
	return moved.Tombstone{OrgID: t.tenant.OrgID, Cluster: t.to.name}
}

// fence keeps everybody from the tenant's schema, when nothing is in progress in it any
// more.
func (t *transfer) fence(ctx context.Context) error {
	switch open, fenced, err := t.state(ctx); {
	case err != nil:
		return err
	case open && fenced:
		return t.twofold()
	case fenced: // by an earlier run
		return t.bury(ctx)
	case !open:
		return fmt.Errorf("move: cluster %q has lost schema %s", t.from.name, t.tenant.Schema)
	}
	t.step(Draining)
	if err := sleep(ctx, t.settle); err != nil { // until all processes have heard
		return err
	}
	for deadline := time.Now().Add(t.drainTimeout); ; {
		n, err := t.inProgress(ctx, t.source)
		if err != nil {
			return err
		}
		if n == 0 {
			t.step(Fencing)
			var done bool
			if done, err = t.tryFence(ctx); done || err != nil {
				return err
			}
		}
		if time.Now().After(deadline) {
			if n > 0 {
				return fmt.Errorf("%w: %d attempts of org %s are still in progress after %s; try again, or give it longer", ErrBusy, n, t.tenant.OrgID, t.drainTimeout)
			}
			return fmt.Errorf("%w: transactions use tables of schema %s and do not end; try again, or give it longer", ErrBusy, t.tenant.Schema)
		}
		if err := sleep(ctx, drainPause); err != nil {
			return err
		}
	}
}

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// querier is a connection or a transaction.
type querier interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
	Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error)
}

// inProgress counts the attempts that have a lease. One whose lease has lapsed died with its
// process, and a retry takes it over in the other cluster.
func (t *transfer) inProgress(ctx context.Context, q querier) (n int64, err error) {
	records := pgx.Identifier{t.tenant.Schema.String(), "idempotency_records"}.Sanitize()
	err = q.QueryRow(ctx, `SELECT count(*) FROM `+records+` WHERE completed_at IS NULL AND lease_until > now()`).Scan(&n)
	if err != nil {
		return 0, fmt.Errorf("move: cluster %q: count attempts in progress of org %s: %w", t.from.name, t.tenant.OrgID, err)
	}
	return n, nil
}

// tryFence renames the schema, with a tombstone in its place, and locks all of its tables, so
// that whoever writes to them has ended when it commits. It reports false, and has done nothing, where somebody is in the
// way.
func (t *transfer) tryFence(ctx context.Context) (done bool, err error) {
	err = t.briefly(ctx, t.source, func(tx pgx.Tx) error {
		tables, err := tablesOf(ctx, tx, t.tenant.Schema.String())
		if err != nil {
			return err
		}
		for _, table := range tables {
			if _, err := tx.Exec(ctx, `LOCK TABLE `+pgx.Identifier{t.tenant.Schema.String(), table}.Sanitize()+` IN ACCESS EXCLUSIVE MODE`); err != nil {
				return err
			}
		}
		if n, err := t.inProgress(ctx, tx); err != nil || n > 0 { // somebody came in between
			return errors.Join(err, errInProgress)
		}
		if _, err := tx.Exec(ctx, `ALTER SCHEMA `+t.tenant.Schema.Quoted()+` RENAME TO `+t.fenced.Quoted()); err != nil {
			return err
		}
		return t.tombstone().Leave(ctx, tx, t.tenant.Schema.String())
	})
	switch {
	case err == nil:
		return true, nil
	case errors.Is(err, errInProgress), inTheWay(err):
		return false, nil
	}
	return false, fmt.Errorf("move: cluster %q: fence schema %s: %w", t.from.name, t.tenant.Schema, err)
}

var errInProgress = errors.New("in progress")

// twofold is the error of a cluster that has the tenant's schema twice: the fenced one is the
// original if somebody has made the other since, and is left of an earlier tenant of the org_id
// if that was dropped before a move of it had come to its end.
func (t *transfer) twofold() error {
	return fmt.Errorf("move: cluster %q has schema %s, which a move has fenced, and %s beside it; find out which of the two is that of org %s as it is now, drop or rename the other, and run it again",
		t.from.name, t.fenced, t.tenant.Schema, t.tenant.OrgID)
}

// leftBehind tells whether the fenced schema in the source is another generation's than the
// tenant's, to which the open one is signed by package provision: no move of it has fenced that.
func (t *transfer) leftBehind(ctx context.Context, tenant registry.Tenant) (bool, error) {
	generation := t.tenants.Generation(tenant).String()
	open, _, err := commentOf(ctx, t.source, tenant.Schema.String())
	if err != nil {
		return false, fmt.Errorf("move: cluster %q: %w", t.from.name, err)
	}
	fenced, _, err := commentOf(ctx, t.source, t.fenced.String())
	if err != nil {
		return false, fmt.Errorf("move: cluster %q: %w", t.from.name, err)
	}
	return signature.Of(open) == generation && signature.Of(fenced) != generation, nil
}

// unfence gives the schema its name back, if it is fenced.
func (t *transfer) unfence(ctx context.Context, tenant registry.Tenant) error {
	open, fenced, err := t.state(ctx)
	if err != nil || !fenced {
		return err
	}
	if open {
		left, err := t.leftBehind(ctx, tenant)
		if err != nil || left {
			return err
		}
		return t.twofold()
	}
	if err := t.rename(ctx, t.from, t.source, func(pgx.Tx) error { return nil }); err != nil {
		return fmt.Errorf("move: cluster %q: take the fence of schema %s away: %w", t.from.name, t.tenant.Schema, err)
	}
	return nil
}

// rename gives the fenced schema the name of the tenant's, in the place of a tombstone if
// there is one, after what first does in the same transaction.
func (t *transfer) rename(ctx context.Context, c cluster, conn *pgx.Conn, first func(pgx.Tx) error) error {
	return t.replaceTombstone(ctx, c, conn, func(tx pgx.Tx) error {
		if err := first(tx); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, `ALTER SCHEMA `+t.fenced.Quoted()+` RENAME TO `+t.tenant.Schema.Quoted())
		return err
	})
}

// replaceTombstone drops the tenant's tombstone in a cluster, if there is one, and runs fn in
// the same transaction. Whoever reads a view, as pg_dump does, keeps it from being dropped.
func (t *transfer) replaceTombstone(ctx context.Context, c cluster, conn *pgx.Conn, fn func(pgx.Tx) error) error {
	by := fmt.Sprintf("transactions use the empty schema %s that a move has left in cluster %q,", t.tenant.Schema, c.name)
	err := t.patiently(ctx, by, func() error {
		return t.briefly(ctx, conn, func(tx pgx.Tx) error {
			if _, err := moved.Clear(ctx, tx, t.tenant.Schema.String(), t.tenant.OrgID); err != nil {
				return fmt.Errorf("drop the empty schema that a move has left: %w", err)
			}
			return fn(tx)
		})
	})
	var pgErr *pgconn.PgError
	if errors.As(err, &pgErr) && pgErr.Code == codeDependentObjectsExist {
		return fmt.Errorf("schema %s, which a move has left empty, has something in it: %s; take that away first: %w",
			t.tenant.Schema, strings.ReplaceAll(pgErr.Detail, "\n", ", "), err)
	}
	return err
}

// errRehearsed takes back what was done to see whether it can be.
var errRehearsed = errors.New("rehearsed")

// rehearse finds out whether the tenant's tombstone in the target, if there is one, can be
// replaced, and leaves it.
func (t *transfer) rehearse(ctx context.Context) error {
	err := t.replaceTombstone(ctx, t.to, t.target, func(pgx.Tx) error { return errRehearsed })
	var pgErr *pgconn.PgError
	switch {
	case errors.Is(err, errRehearsed):
		return nil
	case errors.As(err, &pgErr) && pgErr.Code == codeDependentObjectsExist:
		return fmt.Errorf("%w: cluster %q: %w", ErrOccupied, t.to.name, err)
	}
	return fmt.Errorf("move: cluster %q: %w", t.to.name, err)
}

// tablesOf lists the tables of a schema.
func tablesOf(ctx context.Context, q querier, schema string) ([]string, error) {
	rows, err := q.Query(ctx, `SELECT c.relname::text FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
		WHERE n.nspname = $1 AND c.relkind IN ('r', 'p') ORDER BY c.relname`, schema)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowTo[string])
}

// noDependants returns an error that lists what depends on a schema from outside, and would
// neither go along nor survive.
func noDependants(ctx context.Context, q querier, c cluster, schema string) error {
	outside, _, err := dependents.Of(ctx, q, schema)
	if err == nil && len(outside) > 0 {
		err = fmt.Errorf("others depend on it: %s; take these away first", strings.Join(outside, ", "))
	}
	if err != nil {
		return fmt.Errorf("move: cluster %q: schema %s: %w", c.name, schema, err)
	}
	return nil
}

// dropSchema drops a schema that nobody uses, if it is there, a table at a time, so that no
// transaction has more locks than one table and what depends on it take. What depends on it
// from outside keeps it from being dropped.
func dropSchema(ctx context.Context, conn *pgx.Conn, c cluster, schema string) error {
	say := func(err error) error {
		return fmt.Errorf("move: cluster %q: drop schema %s: %w", c.name, schema, err)
	}
	tables, err := tablesOf(ctx, conn, schema)
	if err != nil {
		return say(err)
	}
	for _, table := range append(tables, "") {
		if err := noDependants(ctx, conn, c, schema); err != nil {
			return say(err)
		}
		drop := `DROP TABLE IF EXISTS ` + pgx.Identifier{schema, table}.Sanitize() + ` CASCADE`
		if table == "" {
			drop = `DROP SCHEMA IF EXISTS ` + pgx.Identifier{schema}.Sanitize() + ` CASCADE`
		}
		if _, err := conn.Exec(ctx, drop); err != nil {
			return say(err)
		}
	}
	return nil
}
