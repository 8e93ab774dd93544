package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/spf13/cobra"

	"github.com/pgidem/pgidem/internal/cli"
	"github.com/pgidem/pgidem/migrations"
	"github.com/pgidem/pgidem/tenancy"
	"github.com/pgidem/pgidem/tenancy/move"
	"github.com/pgidem/pgidem/tenancy/registry"
)

// moveTerms are what the flags of move say.
type moveTerms struct {
	to       string
	cancel   bool
	drain    time.Duration
	programs string
}

func (a *app) moveVerb() *cobra.Command {
	terms := moveTerms{drain: move.DefaultDrainTimeout}
	cmd := &cobra.Command{
		Use:   "move ORG --to CLUSTER",
		Short: "move a tenant to another cluster, while the others are served.",
		Long: `idem-tenants move suspends a tenant, waits until nothing of it is in progress, copies its
schema to another cluster by pg_dump and pg_restore, with the service's own tables in it,
compares the copy, has the tenant served there, and drops the schema where it was. Its
requests are refused meanwhile, with 403, or 503 by a process that has not heard of it yet.

Where the tenant was it leaves an empty schema that says where it went, and keeps everybody
from making its tables there anew. That goes when the tenant comes back or is dropped.

A move that was cut off, or failed, leaves the tenant suspended: run it again, and it goes
on, or take it back with --cancel. A tenant that could not be stopped in time is served
where it is. One that has been moved, of which only the dropping of what it has left failed,
is served where it was to go: run it again, which drops that. The servers of both
clusters are given by --server as URLs, and that of the nameless cluster by
--database-url; their roles have to own the tenant's schema, or be allowed to make one.

With --json it prints one object.`,
		Example: `  idem-tenants move 6f1c2f6e-0d5a-4c8e-9f5e-2f0a3c1d7b42 --to eu-2 \
      --server eu-2=postgres://migrator@db2/app
  idem-tenants move 6f1c2f6e-0d5a-4c8e-9f5e-2f0a3c1d7b42 --cancel`,
		Args:              arguments(1, 1, "one ORG"),
		ValidArgsFunction: noFiles,
		RunE:              func(cmd *cobra.Command, args []string) error { return a.move(cmd, args[0], terms) },
	}
	flags := cmd.Flags()
	flags.StringVar(&terms.to, "to", "", "`CLUSTER` to move the tenant to; empty is the nameless one")
	flags.BoolVar(&terms.cancel, "cancel", false, "take back a move that was begun and not finished")
	flags.Func("drain-timeout", fmt.Sprintf("wait for `D` at most until nothing is in progress (default %s)", move.DefaultDrainTimeout), cli.Duration(&terms.drain))
	flags.StringVar(&terms.programs, "programs", "", "`FOLDER` of pg_dump and pg_restore (default: where PATH leads)")
	a.yesFlag(flags)
	return cmd
}

// moveJSON is what move --json prints.
type moveJSON struct {
	tenantJSON
	From    string          `json:"from"`
	Tables  []moveTableJSON `json:"tables"`
	Seconds float64         `json:"away_seconds"`
}

type moveTableJSON struct {
	Name     string `json:"name"`
	Rows     int64  `json:"rows"`
	Checksum string `json:"checksum"`
}

func (a *app) move(cmd *cobra.Command, orgText string, terms moveTerms) error {
	ctx := cmd.Context()
	to := cmd.Flags().Changed("to")
	switch {
	case terms.cancel == to:
		return usagef("give --to CLUSTER, or --cancel")
	case terms.drain <= 0:
		return usagef("--drain-timeout: give more than 0")
	}
	p, err := a.locate(ctx, orgText, "")
	if err != nil {
		return err
	}
	other := terms.to
	if terms.cancel {
		other = p.tenant.MovingTo
	}
	if _, err := a.database(other); err != nil { // before anything is asked
		return err
	}
	mover, err := a.mover(ctx, terms)
	if err != nil {
		return err
	}
	if terms.cancel {
		tenant, err := mover.Cancel(ctx, p.org)
		if err != nil {
			return a.moveError(ctx, p, err)
		}
		return a.printTenant(tenant)
	}
	if p.tenant.Cluster != terms.to {
		about := fmt.Sprintf("Tenant %s will be moved from %s to %s. Its requests are refused with 403 until that is done.\n", p.org, clusterName(p.tenant.Cluster), clusterName(terms.to))
		if err := a.confirm(ctx, about); err != nil {
			return err
		}
	}
	report, err := mover.Move(ctx, p.org, terms.to)
	if err != nil {
		if now := report.Tenant; now.OrgID == p.org && now.Cluster == terms.to && !now.Moving {
			return a.leftOver(ctx, now, err)
		}
		return a.moveError(ctx, p, err)
	}
	return a.reportMove(report)
}

// mover returns what moves tenants, between any of the servers that are known.
func (a *app) mover(ctx context.Context, terms moveTerms) (*move.Mover, error) {
	tenants, err := a.registry(ctx)
	if err != nil {
		return nil, err
	}
	urls := make(map[string]string)
	for _, cluster := range append(sortedKeys(a.servers), "") {
		if _, err := a.unopened(ctx, cluster); err != nil { // which tells what cannot be read
			return nil, err
		}
		database, err := a.database(cluster)
		if err != nil {
			return nil, err
		}
		urls[cluster] = database.DirectURL()
	}
	opts := []move.Option{move.WithDrainTimeout(terms.drain), move.WithPrograms(terms.programs)}
	if !a.json {
		opts = append(opts, move.WithProgress(func(step move.Step) { _, _ = fmt.Fprintln(a.stderr, step) }))
	}
	mover, err := move.New(tenants, urls, opts...)
	if err != nil {
		return nil, exitError{cli.ExitUsage, err}
	}
	return mover, nil
}

func (a *app) moveError(ctx context.Context, p place, err error) error {
	const after = "may be suspended now: run it again to go on, or with --cancel to take it back"
	switch {
	case ctx.Err() != nil:
		a.errf("%s "+after, p.org)
		return err
	case errors.Is(err, move.ErrBusy):
		return exitError{cli.ExitUnfinished, err}
	case errors.Is(err, registry.ErrConflict), errors.Is(err, registry.ErrState):
		return exitError{cli.ExitFailed, err}
	case errors.Is(err, tenancy.ErrUnknownTenant):
		return err // others have dropped it meanwhile
	}
	return fmt.Errorf("%w\n%s "+after, err, p.org)
}

// leftOver is moveError of a tenant that has been moved, and is not suspended for what is left.
func (a *app) leftOver(ctx context.Context, now registry.Tenant, err error) error {
	switch {
	case ctx.Err() != nil:
		a.errf("%s has been moved: run it again to drop what it has left where it was", now.OrgID)
		return err
	case errors.Is(err, move.ErrBusy):
		return exitError{cli.ExitUnfinished, err}
	case errors.Is(err, registry.ErrConflict), errors.Is(err, tenancy.ErrUnknownTenant), errors.Is(err, move.ErrMissing):
		return err // it is not, by now, or the registry is wrong
	}
	return fmt.Errorf("%w\n%s is in %s, as the registry says: run it again to drop what it has left", err, now.OrgID, clusterName(now.Cluster))
}

func (a *app) reportMove(r move.Report) error {
	if a.json {
		object := moveJSON{tenantJSON: asJSON(r.Tenant), From: r.From, Tables: []moveTableJSON{}, Seconds: r.Away.Seconds()}
		for _, t := range r.Tables {
			object.Tables = append(object.Tables, moveTableJSON{t.Name, t.Rows, t.Checksum})
		}
		return a.printJSON(object)
	}
	if r.From == r.To {
		_, err := fmt.Fprintf(a.stdout, "%s: is in %s\n", r.Tenant.OrgID, clusterName(r.To))
		return err
	}
	var rows int64
	for _, t := range r.Tables {
		rows += t.Rows
	}
	_, err := fmt.Fprintf(a.stdout, "%s: moved from %s to %s with %s in %s, and %s; away for %s\n", r.Tenant.OrgID, clusterName(r.From), clusterName(r.To),
		cli.Plural(rows, "row"), cli.Plural(int64(len(r.Tables)), "table"), r.Tenant.State, span(r.Away))
	return err
}

// lookTimeout bounds a look into the registry for which workers wait.
const lookTimeout = 10 * time.Second

// onTheMove tells of a tenant in whose place a migration has found what a move leaves there, as
// err says, whether it is left out for that alone, and what to do then. Where no registry says
// that the tenant goes elsewhere, or has gone since the run began, it is not.
func (a *app) onTheMove(ctx context.Context, t target, err error) (bool, error) {
	moving := errors.Is(err, migrations.ErrMoving)
	if t.tenant == nil {
		return moving, err
	}
	tenants, lookErr := a.registry(ctx)
	if lookErr != nil {
		return moving, errors.Join(err, lookErr)
	}
	ctx, cancel := context.WithTimeout(ctx, lookTimeout)
	defer cancel()
	now, lookErr := tenants.Tenant(ctx, t.OrgID)
	switch {
	case lookErr != nil:
		return moving, errors.Join(err, lookErr)
	case now.Moving:
		return true, fmt.Errorf("it is being moved to %s: run migrate again after that; if no move is under way, %s move %s --to %q goes on with it, or --cancel takes it back",
			clusterName(now.MovingTo), program, t.OrgID, now.MovingTo)
	case now.Cluster != t.tenant.Cluster:
		return true, fmt.Errorf("it was moved to %s while this run was at others: run migrate again", clusterName(now.Cluster))
	}
	return moving, err
}

// beingMoved refuses what is not for a tenant that is between two clusters.
func beingMoved(org uuid.UUID) error {
	return fmt.Errorf("%s is being moved to another cluster: %s move %s --to goes on with that, or --cancel takes it back", org, program, org)
}

func clusterName(name string) string {
	if name == "" {
		return "the nameless cluster"
	}
	return "cluster " + name
}
