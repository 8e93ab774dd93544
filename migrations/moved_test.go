package migrations_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgidem/pgidem/internal/moved"
	"github.com/pgidem/pgidem/internal/pgtest"
	"github.com/pgidem/pgidem/migrations"
	"github.com/pgidem/pgidem/tenancy"
)

// fence does what package move does when it begins to copy a tenant.
func fence(ctx context.Context, tx pgx.Tx, schema tenancy.Schema, org uuid.UUID) error {
	if _, err := tx.Exec(ctx, `LOCK TABLE `+schema.Quoted()+`.`+migrations.VersionTable+` IN ACCESS EXCLUSIVE MODE; ALTER SCHEMA `+schema.Quoted()+` RENAME TO `+moved.Fence(org)); err != nil {
		return err
	}
	return moved.Tombstone{OrgID: org, Cluster: "eu-2"}.Leave(ctx, tx, schema.String())
}

// unfence does what it does when the move is cancelled.
func unfence(ctx context.Context, pool *pgxpool.Pool, schema tenancy.Schema, org uuid.UUID) error {
	return pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
		if _, err := moved.Clear(ctx, tx, schema.String(), org); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, `ALTER SCHEMA `+moved.Fence(org)+` RENAME TO `+schema.Quoted())
		return err
	})
}

// newMoving returns tenants that lack a migration, the first of which is on its way.
func newMoving(t *testing.T, pool *pgxpool.Pool, n int) []migrations.Target {
	t.Helper()
	var list []migrations.Target
	for i := range n {
		list = append(list, migrations.Target{Schema: parse(t, fmt.Sprintf("tenant_%d", i)), OrgID: uuid.New()})
	}
	if _, err := migrations.All(t.Context(), pool.Config().ConnString(), each(list), migrations.WithFS(upTo(t, latest-1))); err != nil {
		t.Fatal(err)
	}
	if err := pgx.BeginFunc(t.Context(), pool, func(tx pgx.Tx) error { return fence(t.Context(), tx, list[0].Schema, list[0].OrgID) }); err != nil {
		t.Fatal(err)
	}
	return list
}

func each(list []migrations.Target) func(func(migrations.Target, error) bool) {
	return func(yield func(migrations.Target, error) bool) {
		for _, target := range list {
			if !yield(target, nil) {
				return
			}
		}
	}
}

// TestAllWaitsForWhoIsBeingMoved, while the others go on, and migrates who comes back.
func TestAllWaitsForWhoIsBeingMoved(t *testing.T) {
	t.Parallel()
	pool := pgtest.NewPool(t)
	list := newMoving(t, pool, 3)
	away, others := list[0], 0
	report, err := migrations.All(t.Context(), pool.Config().ConnString(), each(list), migrations.WithWorkers(1), migrations.WithExistingOnly(), migrations.WithTries(1000, time.Millisecond),
		migrations.WithResult(func(r migrations.Result) {
			if others++; others == 2 {
				if err := unfence(t.Context(), pool, away.Schema, away.OrgID); err != nil {
					t.Error(err)
				}
			}
			if r.Schema == away.Schema && (others != 3 || r.Tries < 2) {
				t.Errorf("number %d, after %d tries", others, r.Tries)
			}
		}))
	if err != nil || report.Migrated != 3 {
		t.Errorf("%+v, %v", report, err)
	}
}

// TestWhoIsBeingMovedIsToldApart from one that was moved, and has not failed for being busy.
func TestWhoIsBeingMovedIsToldApart(t *testing.T) {
	t.Parallel()
	pool := pgtest.NewPool(t)
	url := pool.Config().ConnString()
	list := newMoving(t, pool, 2)
	away := list[0]
	conn, err := pool.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Release()
	try := func(want, not error, tries int) {
		t.Helper()
		for name, opt := range map[string]migrations.Option{"": migrations.WithWorkers(1), ", dry": migrations.WithDryRun(), ", existing": migrations.WithExistingOnly()} {
			report, err := migrations.All(t.Context(), url, each(list), migrations.WithTries(3, time.Millisecond), opt)
			if !errors.Is(err, want) || errors.Is(err, not) || errors.Is(err, migrations.ErrBusy) || report.Failed != 1 || report.Failures[0].Schema != away.Schema {
				t.Fatalf("All%s: %+v, %v; want %v", name, report, err, want)
			}
			if got := report.Failures[0].Tries; got != tries && name != ", dry" || got != 1 && name == ", dry" {
				t.Errorf("All%s: %d tries", name, got)
			}
		}
		result, err := migrations.One(t.Context(), conn.Conn(), away, migrations.WithTries(3, time.Millisecond))
		if !errors.Is(err, want) || errors.Is(err, not) || result.Tries != tries {
			t.Errorf("One: %+v, %v; want %v", result, err, want)
		}
		if err := migrations.Up(t.Context(), url, away.Schema); !errors.Is(err, want) || errors.Is(err, not) || !strings.Contains(err.Error(), away.OrgID.String()) || !strings.Contains(err.Error(), "ask the registry where it is") {
			t.Errorf("Up: %v; want %v", err, want)
		}
	}
	try(migrations.ErrMoving, migrations.ErrMoved, 3)
	run(t, pool, `DROP SCHEMA `+moved.Fence(away.OrgID)+` CASCADE; CREATE SCHEMA `+moved.Fence(uuid.New()))
	try(migrations.ErrMoved, migrations.ErrMoving, 1)
}

// TestMovedUnderARun: the move locks the tables after the run has looked at the schema, and
// before it has read what the schema has had.
func TestMovedUnderARun(t *testing.T) {
	t.Parallel()
	oneBeside(t, func(tx pgx.Tx, target migrations.Target) error {
		return fence(t.Context(), tx, target.Schema, target.OrgID)
	}, func(_ *pgxpool.Pool, result migrations.Result, err error) {
		if !errors.Is(err, migrations.ErrMoving) {
			t.Errorf("%+v, %v", result, err)
		}
	}, migrations.WithTries(1, time.Millisecond))
}
