package migrations

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/pgidem/pgidem/internal/moved"
)

// Outcome says what became of a tenant in a run.
type Outcome string

const (
	// Created is for a schema that was missing, or empty, and was made as a whole.
	Created Outcome = "created"
	// Migrated is for one that was behind and has had the migrations that it lacked.
	Migrated Outcome = "migrated"
	// Current is for one that had nothing to be done.
	Current Outcome = "current"
	// Newer is for one that has had a migration that this program does not know, and was
	// left alone.
	Newer Outcome = "newer"
	// Failed is for one whose Err says why. Migrations before the one that failed stay.
	Failed Outcome = "failed"
)

// Result is what became of one tenant.
type Result struct {
	Target
	Outcome Outcome
	// From and To are the newest migration that the schema had had before and has had now;
	// 0 is a schema without any. In a dry run To is what it would come to.
	From, To int64
	// Err is set if Outcome is Failed. It wraps a *pgconn.PgError where the server said it.
	Err error
	// Tries is how often the tenant was tried; more than once if it was busy or being moved. It is
	// 0 if one of the queries that look at many schemas told that there was nothing to do.
	Tries int
	// Duration is the time that the tries took, without the pauses between them.
	Duration time.Duration

	before state // what there was when the run first looked
}

// SQLState returns the code of the SQL error that the tenant failed with, or "".
func (r Result) SQLState() string { return sqlState(r.Err) }

// One makes or migrates one tenant's schema over a connection of the caller's, as [All] does:
// it is for whoever signs a tenant up. Everything it sets on the connection ends with its
// transactions, so the connection may be one of a pool; one with a transaction open is refused.
// It tries a tenant again, after a pause, that is busy or being moved. The error is that of the Result, naming the
// schema.
func One(ctx context.Context, conn *pgx.Conn, target Target, opts ...Option) (Result, error) {
	c, err := newConfig(opts)
	if err != nil {
		return Result{Target: target, Outcome: Failed, Err: err}, err
	}
	p, err := c.plan()
	if err != nil {
		return Result{Target: target, Outcome: Failed, Err: err}, fmt.Errorf("migrations: %w", err)
	}
	target, err = target.check()
	if err != nil {
		return Result{Target: target, Outcome: Failed, Err: err}, fmt.Errorf("migrations: %w", err)
	}
	r := runner{config: c, plan: p}
	result := Result{Target: target}
	if conn.PgConn().TxStatus() != 'I' {
		result.Outcome, result.Err = Failed, errors.New("a transaction is open on the connection, which would be committed with the first migration: end it first")
		return result, fmt.Errorf("migrations: schema %s: %w", target.Schema, result.Err)
	}
	for {
		err := r.try(ctx, conn, &result)
		if err == nil {
			return result, nil
		}
		retry := r.again(&result, err)
		if retry && conn.IsClosed() {
			result.Outcome, result.Err, retry = Failed, err, false
		}
		if !retry {
			return result, fmt.Errorf("migrations: schema %s: %w", target.Schema, result.Err)
		}
		select {
		case <-ctx.Done():
			result.Outcome, result.Err = Failed, errors.Join(err, ctx.Err())
			return result, fmt.Errorf("migrations: schema %s: %w", target.Schema, result.Err)
		case <-time.After(r.wait(result.Tries)):
		}
	}
}

type runner struct {
	config
	plan plan
}

// wait returns how long a tenant is left alone after so many tries.
func (c config) wait(tries int) time.Duration {
	return min(c.pause<<min(tries-1, 20), max(c.pause, maxPause))
}

// again reports whether a tenant is to be tried again after err. If not, it has failed.
func (r *runner) again(result *Result, err error) bool {
	moving := errors.Is(err, ErrMoving)
	if passing(err) && (!moving || !r.dryRun) {
		if result.Tries < r.tries {
			return true
		}
		if !lost(err) && !moving {
			err = fmt.Errorf("%w: %d tries came to nothing, run again when it is less so: %w", ErrBusy, result.Tries, err)
		}
	}
	result.Outcome, result.Err = Failed, err
	return false
}

// try takes a schema as far as it goes, once.
func (r *runner) try(ctx context.Context, conn *pgx.Conn, result *Result) (err error) {
	start := time.Now()
	result.Tries++
	defer func() { result.Duration += time.Since(start) }()
	for {
		done, err := r.advance(ctx, conn, result)
		if err != nil || done {
			return err
		}
	}
}

// advance does what one transaction can: all of a new schema, or one migration of one that is
// there. It reports whether nothing is left to do.
func (r *runner) advance(ctx context.Context, conn *pgx.Conn, result *Result) (done bool, err error) {
	defer func() {
		if err != nil || r.dryRun {
			abandon(ctx, conn)
		}
	}()
	now, err := r.enter(ctx, conn, result.Target)
	if code := sqlState(err); code == "42703" || code == "42P01" { // undefined_column, undefined_table
		// What was a table of versions a moment ago may be gone by now, or a tombstone's view.
		result.before.exists, result.before.table = true, true
		abandon(ctx, conn)
		now, err = r.enter(ctx, conn, result.Target)
	}
	if err != nil {
		return false, err
	}
	if !now.table {
		if err := ifMoved(result.Schema, now.comment, now.fenced); err != nil {
			return false, err
		}
		if r.existingOnly || r.existingSchema && !now.exists || result.before.table || result.before.exists && !now.exists {
			return false, ErrAbsent
		}
		result.before.exists = now.exists
		result.Outcome = Created
		if !r.dryRun {
			if err := r.commit(ctx, conn, result.Target, r.template(result.Target, now.exists)); err != nil {
				return false, err
			}
		}
		result.To = r.plan.latest()
		return true, nil
	}
	result.before.exists, result.before.table = true, true
	first := result.Outcome == ""
	if result.To = now.version(); first {
		result.From = result.To
	}
	if result.To > r.plan.latest() {
		result.Outcome = Newer
		return true, r.leave(ctx, conn)
	}
	lacking, err := r.plan.since(now.applied)
	if err != nil {
		return false, err
	}
	if len(lacking) == 0 {
		if first {
			result.Outcome = Current
		}
		return true, r.leave(ctx, conn)
	}
	if r.dryRun {
		result.Outcome, result.To = Migrated, r.plan.latest()
		return true, nil
	}
	next := lacking[0]
	result.Outcome = Migrated // also if the answer is lost, and the next try finds it done
	if err := r.commit(ctx, conn, result.Target, next.sql); err != nil {
		return false, fmt.Errorf("migration %d: %w", next.version, err)
	}
	result.To = next.version
	return len(lacking) == 1, nil
}

// commit sends statements and commits what they did, unless that leaves a table that is not
// pinned to the tenant of the target: migrations read from the name of a schema whom it belongs
// to, and where it does not say so, only a schema made as a whole is pinned by them.
func (*runner) commit(ctx context.Context, conn *pgx.Conn, target Target, sql string) error {
	if target.OrgID == uuid.Nil {
		_, err := send(ctx, conn, sql+"COMMIT")
		return err
	}
	found, err := send(ctx, conn, sql+pinned(target))
	if err != nil {
		return err
	}
	var loose []string
	for _, row := range found[len(found)-1] {
		if row[1] != "t" {
			loose = append(loose, row[0])
		}
	}
	if len(loose) > 0 {
		return fmt.Errorf("%w: %s would not refuse rows of others than org %s: drop the schema if it holds nothing, so that it is made as a whole; else run the migration by goose, and add the constraints idempotency_..._tenant_check by hand",
			ErrNotPinned, strings.Join(loose, ", "), target.OrgID)
	}
	_, err = send(ctx, conn, "COMMIT")
	return err
}

// pinned asks of the tables of the library in the target's schema whether they refuse rows of
// others than its tenant.
//
// pg_get_constraintdef takes a lock on the table of the constraint, so it stands where it is
// called for the tables of this schema alone. In a condition on pg_constraint the planner may
// call it first, for the constraints of all tenants: this one would wait for whoever else is
// migrated, with its own tables locked, and the two for each other.
func pinned(target Target) string {
	return fmt.Sprintf(`
SELECT c.relname, ('CHECK ((org_id = ''%s''::uuid))' = ANY (ARRAY(
    SELECT pg_catalog.pg_get_constraintdef(k.oid) FROM pg_catalog.pg_constraint AS k
    WHERE k.conrelid = c.oid AND k.contype = 'c' AND k.convalidated
))) IS TRUE
FROM pg_catalog.pg_class AS c
JOIN pg_catalog.pg_attribute AS a ON a.attrelid = c.oid AND a.attname = 'org_id' AND NOT a.attisdropped
WHERE c.relnamespace = (SELECT n.oid FROM pg_catalog.pg_namespace AS n WHERE n.nspname = '%s')
    AND c.relkind = 'r' AND c.relname = ANY ('{%s}'::pg_catalog.name[])
ORDER BY c.relname`, target.OrgID, target.Schema, strings.Join(tables, ","))
}

func (r *runner) leave(ctx context.Context, conn *pgx.Conn) error {
	if r.dryRun {
		return nil // advance ends the transaction
	}
	_, err := send(ctx, conn, "COMMIT")
	return err
}

// enter begins a transaction in a schema, takes its lock, and looks how far it is. The lock
// is the one that Up takes, and goes with the transaction.
func (r *runner) enter(ctx context.Context, conn *pgx.Conn, target Target) (state, error) {
	lock := fmt.Sprintf("pg_catalog.pg_try_advisory_xact_lock(%d)", lockID(target.Schema))
	if r.dryRun {
		lock = "true"
	}
	// Each SELECT has a snapshot of its own. What the last one sees was there once the lock
	// was held.
	tables, err := send(ctx, conn, fmt.Sprintf(`BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE;
		SET LOCAL search_path = %s;
		SET LOCAL lock_timeout = %d;
		SET LOCAL statement_timeout = %d;
		SELECT %s;
		SELECT n.oid IS NOT NULL, c.oid IS NOT NULL, `+moved.Columns+`
		FROM (VALUES ('%s'::name)) AS v (name)
		LEFT JOIN pg_catalog.pg_namespace AS n ON n.nspname = v.name
		LEFT JOIN pg_catalog.pg_class AS c ON c.relnamespace = n.oid AND c.relname = '%s' AND c.relkind = 'r'`,
		target.Schema.Quoted(), r.lockTimeout.Milliseconds(), r.statementTimeout.Milliseconds(), lock, target.Schema, VersionTable))
	if err != nil {
		return state{}, err
	}
	if tables[4][0][0] != "t" {
		return state{}, errHeld
	}
	now := state{exists: tables[5][0][0] == "t", table: tables[5][0][1] == "t", comment: tables[5][0][2], fenced: tables[5][0][3] == "t"}
	if !now.table {
		return now, nil
	}
	tables, err = send(ctx, conn, `SELECT pg_catalog.string_agg(version_id::text, ',' ORDER BY id) FROM `+target.Schema.Quoted()+`.`+VersionTable)
	if err != nil {
		return state{}, err
	}
	now.applied, err = parseVersions(tables[0][0][0])
	return now, err
}

// template returns the statements that make a schema as a whole.
//
// The migrations read from the name of a schema whom it belongs to. A schema of another name
// that has a tenant all the same goes by a name that says so until they are through.
func (r *runner) template(target Target, exists bool) string {
	name := target.Schema.Quoted()
	during := name
	if target.OrgID != uuid.Nil && orgOf(target.Schema) == uuid.Nil {
		during = scratch("pgidem_template_", target.OrgID)
	}
	var b strings.Builder
	if !exists {
		fmt.Fprintf(&b, "CREATE SCHEMA %s;\n", during)
	} else if during != name {
		fmt.Fprintf(&b, "ALTER SCHEMA %s RENAME TO %s;\n", name, during)
	}
	fmt.Fprintf(&b, "SET LOCAL search_path = %s;\n", during)
	b.WriteString(r.plan.whole())
	if during != name {
		fmt.Fprintf(&b, "ALTER SCHEMA %s RENAME TO %s;\n", during, name)
	}
	return b.String()
}
