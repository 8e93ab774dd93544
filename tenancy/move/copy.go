package move

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/pgidem/pgidem/internal/signature"
	"github.com/pgidem/pgidem/tenancy/registry"
)

// copy makes a copy of the fenced schema in the target, compares the two, and gives the copy
// the name of the tenant's schema, and the mark that it is complete.
func (t *transfer) copy(ctx context.Context) (tables []Table, err error) {
	if err := t.dropCopy(ctx); err != nil { // what an earlier run has left may be incomplete
		return nil, err
	}
	// One snapshot for the copy and for what it is compared with: a janitor that finds the
	// fenced schema may still purge it.
	err = pgx.BeginTxFunc(ctx, t.source, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) error {
		t.step(Copying)
		var snapshot string
		if err := tx.QueryRow(ctx, `SELECT pg_export_snapshot()`).Scan(&snapshot); err != nil {
			return fmt.Errorf("move: cluster %q: %w", t.from.name, err)
		}
		if err := t.dumpAndRestore(ctx, snapshot); err != nil {
			return err
		}
		t.step(Verifying)
		before, err := contents(ctx, tx, t.from, t.fenced.String())
		if err != nil {
			return err
		}
		if tables, err = contents(ctx, t.target, t.to, t.fenced.String()); err != nil {
			return err
		}
		return difference(before, tables)
	})
	if err != nil {
		return nil, err
	}
	tables = slices.DeleteFunc(tables, func(t Table) bool { return t.sequence })
	for _, table := range tables {
		if _, err := t.target.Exec(ctx, `ANALYZE `+pgx.Identifier{t.fenced.String(), table.Name}.Sanitize()); err != nil { // statistics are not copied
			return nil, fmt.Errorf("move: cluster %q: %w", t.to.name, err)
		}
	}
	err = t.rename(ctx, t.to, t.target, func(tx pgx.Tx) error { return mark(ctx, tx, t.fenced.String(), t.tenant) })
	if err != nil {
		return nil, fmt.Errorf("move: cluster %q: name the copy %s: %w", t.to.name, t.tenant.Schema, err)
	}
	return tables, nil
}

// dropCopy drops what was copied and has not got the schema's name.
func (t *transfer) dropCopy(ctx context.Context) error {
	return t.dropFenced(ctx, t.to, t.target, "the copy")
}

// dropOriginal drops what was copied, where the tenant was. The move is done by then.
func (t *transfer) dropOriginal(ctx context.Context) error {
	if err := t.dropFenced(ctx, t.from, t.source, "the original"); err != nil {
		return t.undropped(err)
	}
	return nil
}

// undropped says of the error of dropping the original how things are.
func (t *transfer) undropped(err error) error {
	return fmt.Errorf("org %s has been moved to cluster %q, but schema %s, its old copy, is left in cluster %q; move it to cluster %q again, which drops that: %w",
		t.tenant.OrgID, t.to.name, t.fenced, t.from.name, t.to.name, err)
}

// dropLeft drops what an earlier move has left: the original of one that was cut off after the
// switch, or the copy of one that was cancelled. Which of the two it is nothing tells for sure.
func (t *transfer) dropLeft(ctx context.Context) error {
	if err := t.dropFenced(ctx, t.from, t.source, "what a move has left,"); err != nil {
		return fmt.Errorf("org %s is in cluster %q, but schema %s, which an earlier move has left, is still in cluster %q; move it to cluster %q again, which drops that: %w",
			t.tenant.OrgID, t.to.name, t.fenced, t.from.name, t.to.name, err)
	}
	return nil
}

// dropFenced drops the fenced schema in a cluster, if it is there.
func (t *transfer) dropFenced(ctx context.Context, c cluster, conn *pgx.Conn, what string) error {
	if _, err := conn.Exec(ctx, `SELECT set_config('lock_timeout', $1, false)`, t.lockMillis()); err != nil {
		return fmt.Errorf("move: cluster %q: %w", c.name, err)
	}
	err := t.patiently(ctx, fmt.Sprintf("transactions use %s %s in cluster %q,", what, t.fenced, c.name), func() error {
		return dropSchema(ctx, conn, c, t.fenced.String())
	})
	if _, resetErr := conn.Exec(ctx, `RESET lock_timeout`); resetErr != nil && err == nil {
		err = fmt.Errorf("move: cluster %q: %w", c.name, resetErr)
	}
	return err
}

// markOf is put before a schema's comment when it is a complete copy, until what it is a copy
// of has been dropped. Nobody drops a schema that has it.
func markOf(tenant registry.Tenant) string {
	return "pgidem: complete copy of org " + tenant.OrgID.String() + ". "
}

// commentOf returns a schema's comment, and whether there is such a schema.
func commentOf(ctx context.Context, q querier, schema string) (comment string, found bool, err error) {
	err = q.QueryRow(ctx, `SELECT coalesce(obj_description(oid, 'pg_namespace'), '') FROM pg_namespace WHERE nspname = $1`, schema).Scan(&comment)
	if errors.Is(err, pgx.ErrNoRows) {
		return "", false, nil
	}
	return comment, err == nil, err
}

func setComment(ctx context.Context, q querier, schema, comment string) error {
	var statement string // COMMENT takes no parameters
	if err := q.QueryRow(ctx, `SELECT format('COMMENT ON SCHEMA %I IS %L', $1::text, nullif($2::text, ''))`, schema, comment).Scan(&statement); err != nil {
		return err
	}
	_, err := q.Exec(ctx, statement)
	return err
}

func mark(ctx context.Context, q querier, schema string, tenant registry.Tenant) error {
	comment, _, err := commentOf(ctx, q, schema)
	if err == nil && !strings.HasPrefix(comment, markOf(tenant)) {
		err = setComment(ctx, q, schema, markOf(tenant)+comment)
	}
	return err
}

// unmark gives the tenant's schema in the target its own comment back. Package provision may
// write that comment at the same time, as the lock says.
func (t *transfer) unmark(ctx context.Context) error {
	schema := t.tenant.Schema.String()
	err := t.patiently(ctx, fmt.Sprintf("others have the comment on schema %s in cluster %q locked,", schema, t.to.name), func() error {
		return t.briefly(ctx, t.target, func(tx pgx.Tx) error {
			if _, err := tx.Exec(ctx, `SELECT pg_advisory_xact_lock($1)`, signature.LockID(t.tenant.Schema.String())); err != nil {
				return err
			}
			comment, _, err := commentOf(ctx, tx, schema)
			if own, marked := strings.CutPrefix(comment, markOf(t.tenant)); err == nil && marked {
				err = setComment(ctx, tx, schema, own)
			}
			return err
		})
	})
	if err != nil {
		return fmt.Errorf("move: comment on schema %s, by which it looks like one that is being moved; move the tenant to cluster %q again: %w", schema, t.to.name, err)
	}
	return nil
}

// dumpAndRestore copies the fenced schema, under that name, by PostgreSQL's own programs.
func (t *transfer) dumpAndRestore(ctx context.Context, snapshot string) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	dump, dumpErr := t.command(ctx, t.from, "pg_dump", "--format=custom", "--compress=0", "--schema="+t.fenced.String(),
		"--snapshot="+snapshot, "--no-publications", "--no-subscriptions")
	restore, restoreErr := t.command(ctx, t.to, "pg_restore", "--single-transaction", "--exit-on-error")
	pipe, err := dump.StdoutPipe()
	if err != nil {
		return fmt.Errorf("move: %w", err)
	}
	restore.Stdin = pipe
	if err := dump.Start(); err != nil {
		return fmt.Errorf("move: start pg_dump: %w", err)
	}
	err = restore.Run()
	if err != nil {
		cancel() // it has nobody to write to
	}
	dumped := dump.Wait()
	switch {
	case dumped != nil && dumpErr.Len() > 0: // the other's error follows from it
		return fmt.Errorf("move: pg_dump from cluster %q: %w: %s", t.from.name, dumped, dumpErr)
	case err != nil:
		return fmt.Errorf("move: pg_restore into cluster %q: %w: %s", t.to.name, err, restoreErr)
	case dumped != nil:
		return fmt.Errorf("move: pg_dump from cluster %q: %w", t.from.name, dumped)
	}
	return nil
}

// command returns one of PostgreSQL's programs, and what it will have said of what went
// wrong. The password goes by the environment, where only the account's own processes see
// it.
func (t *transfer) command(ctx context.Context, c cluster, program string, args ...string) (*exec.Cmd, *words) {
	cmd := exec.CommandContext(ctx, filepath.Join(t.programs, program), append(args, "--no-password", "--dbname="+c.urlFor(t.application()))...)
	cmd.Env = os.Environ()
	if c.password != "" {
		cmd.Env = append(cmd.Env, "PGPASSWORD="+c.password)
	}
	said := new(words)
	cmd.Stderr = said
	return cmd, said
}

// words keeps the beginning of what is written to it.
type words struct{ bytes.Buffer }

const maxWords = 4096

func (w *words) Write(p []byte) (int, error) {
	if room := maxWords - w.Len(); room > 0 {
		w.Buffer.Write(p[:min(room, len(p))])
	}
	return len(p), nil
}

func (w *words) String() string {
	return strings.Join(strings.Fields(w.Buffer.String()), " ")
}

// contents returns what is compared of the tables and sequences of a schema, by name.
func contents(ctx context.Context, q querier, c cluster, schema string) (tables []Table, err error) {
	say := func(err error) error {
		return fmt.Errorf("move: cluster %q: read schema %s: %w", c.name, schema, err)
	}
	rows, err := q.Query(ctx, `SELECT c.relname::text, c.relkind = 'S' FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
		WHERE n.nspname = $1 AND c.relkind IN ('r', 'S') ORDER BY c.relname`, schema)
	if err != nil {
		return nil, say(err)
	}
	tables, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (t Table, err error) {
		return t, row.Scan(&t.Name, &t.sequence)
	})
	if err != nil {
		return nil, say(err)
	}
	for i, t := range tables {
		name := pgx.Identifier{schema, t.Name}.Sanitize()
		query := `SELECT count(*), coalesce(sum(hashtextextended(t::text, 0)), 0)::text || ' ' || coalesce(sum(hashtextextended(t::text, 1)), 0)::text FROM ` + name + ` AS t`
		if t.sequence {
			query = `SELECT 1, last_value::text || ' ' || is_called::text FROM ` + name
		}
		if err := q.QueryRow(ctx, query).Scan(&tables[i].Rows, &tables[i].Checksum); err != nil {
			return nil, say(err)
		}
	}
	return tables, nil
}

// difference returns an error that says where a copy is not what was copied.
func difference(before, after []Table) error {
	of := make(map[string]Table)
	for _, t := range after {
		of[t.Name] = t
	}
	var errs []error
	for _, t := range before {
		switch c, found := of[t.Name]; {
		case !found:
			errs = append(errs, fmt.Errorf("%w: %s is missing", ErrDiffers, t.Name))
		case c.Rows != t.Rows:
			errs = append(errs, fmt.Errorf("%w: %s has %d rows and not %d", ErrDiffers, t.Name, c.Rows, t.Rows))
		case c != t:
			errs = append(errs, fmt.Errorf("%w: %s has the checksum %s and not %s", ErrDiffers, t.Name, c.Checksum, t.Checksum))
		}
		delete(of, t.Name)
	}
	for name := range of {
		errs = append(errs, fmt.Errorf("%w: %s is there in addition", ErrDiffers, name))
	}
	return errors.Join(errs...)
}
