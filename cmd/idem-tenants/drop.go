package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/google/uuid"
	"github.com/spf13/cobra"

	"github.com/pgidem/pgidem/idempotency/pgstore"
	"github.com/pgidem/pgidem/internal/cli"
	"github.com/pgidem/pgidem/tenancy/provision"
	"github.com/pgidem/pgidem/tenancy/registry"
)

// dropTerms are what the flags of drop say.
type dropTerms struct {
	confirm string
	foreign bool
	roles   roleTerms
}

func (a *app) dropVerb() *cobra.Command {
	var terms dropTerms
	cmd := &cobra.Command{
		Use:   "drop ORG",
		Short: "take a suspended tenant away for good.",
		Long: `idem-tenants drop drops a suspended tenant: its tables one by one, its schema, and last its
entry in the registry. There is no way back. From its first step on the tenant is deleting,
and cannot be resumed; where it was cut off, or a table was in use for too long, run it
again. A service that holds no record any more runs the handlers of retries again, as soon
as the tenant is provisioned anew.

It asks for the name of the tenant's schema to be typed in, or takes --yes --confirm NAME.
Where the schema holds what is not the library's, the service's own tables, say, it lists
them and drops nothing, unless --foreign is given.

All servers that are given, by --server, are asked first what moves of the tenant have left
there, and the empty schemas that say where it went are dropped with it. Nothing is dropped
where one of them does not answer within a few seconds, where a move was cut off and has to be
finished, or where somebody has put something into such a schema.

With --json it prints one object.`,
		Example: `  idem-tenants suspend 6f1c2f6e-0d5a-4c8e-9f5e-2f0a3c1d7b42
  idem-tenants drop 6f1c2f6e-0d5a-4c8e-9f5e-2f0a3c1d7b42
  idem-tenants drop 6f1c2f6e-0d5a-4c8e-9f5e-2f0a3c1d7b42 --yes \
      --confirm tenant_6f1c2f6e0d5a4c8e9f5e2f0a3c1d7b42`,
		Args:              arguments(1, 1, "one ORG"),
		ValidArgsFunction: noFiles,
		RunE:              func(cmd *cobra.Command, args []string) error { return a.drop(cmd.Context(), args[0], terms) },
	}
	flags := cmd.Flags()
	a.yesFlag(flags)
	flags.StringVar(&terms.confirm, "confirm", "", "`NAME` of the tenant's schema, in place of typing it in; with --yes")
	flags.BoolVar(&terms.foreign, "foreign", false, "drop what is in the schema and not the library's as well")
	terms.roles.flags(flags, "; to be given with --tenant-roles", "drop the tenant's role as well, where provision made one")
	return cmd
}

// dropJSON is what drop --json prints.
type dropJSON struct {
	OrgID   uuid.UUID `json:"org_id"`
	Schema  string    `json:"schema"`
	Cluster string    `json:"cluster"`
	Dropped bool      `json:"dropped"`
}

func (a *app) drop(ctx context.Context, orgText string, terms dropTerms) error {
	switch {
	case a.yes && terms.confirm == "":
		return usagef("--yes: give --confirm NAME as well, with the name of the tenant's schema")
	case !a.yes && terms.confirm != "":
		return usagef("--confirm: give --yes as well")
	}
	p, err := a.locate(ctx, orgText, "")
	if err != nil {
		return err
	}
	if s := p.tenant.State; s != registry.Suspended && s != registry.Deleting && s != registry.Provisioning {
		return exitError{cli.ExitFailed, fmt.Errorf("%s is %s: suspend it first, and let what is under way come to its end", p.org, s)}
	}
	if p.tenant.Moving {
		return exitError{cli.ExitFailed, beingMoved(p.org)}
	}
	provisioner, err := a.provisioner(ctx, terms.roles)
	if err != nil {
		return err
	}
	name := terms.confirm
	if !a.yes {
		if name, err = a.ask(ctx, dropWarning(ctx, p)+"Type the name of its schema to confirm: "); err != nil {
			return err
		}
	}
	if name != p.schema.String() {
		return exitError{cli.ExitFailed, fmt.Errorf("not confirmed: %q is not the schema of %s: nothing was done", name, p.org)}
	}
	var opts []provision.DropOption
	if terms.foreign {
		opts = append(opts, provision.WithForeign())
	}
	if err := provisioner.Drop(ctx, p.org, name, opts...); err != nil {
		return dropError(p, err)
	}
	if a.json {
		return a.printJSON(dropJSON{p.org, p.schema.String(), p.tenant.Cluster, true})
	}
	_, err = fmt.Fprintf(a.stdout, "%s: dropped, with schema %s\n", p.org, p.schema)
	return err
}

// dropWarning says what there is to lose.
func dropWarning(ctx context.Context, p place) string {
	text := fmt.Sprintf("Tenant %s will be dropped, with schema %s, for good.\n", p.org, p.schema)
	if s, err := pgstore.Summarize(ctx, p.pool, p.schema, p.org); err == nil {
		var bytes int64
		for _, n := range s.Bytes {
			bytes += n
		}
		text += fmt.Sprintf("It holds %s that can be replayed, %d of attempts in progress, and takes %s.\n",
			cli.Plural(s.Completed+s.NotKept, "record"), s.InProgress+s.Interrupted, size(bytes))
	}
	return text
}

func dropError(p place, err error) error {
	if foreign, ok := errors.AsType[*provision.ForeignError](err); ok && foreign.Left {
		return exitError{cli.ExitFailed, fmt.Errorf("schema %s of %s, which a move has left empty to say where the tenant went, holds %s; nothing was dropped: take that away by hand, which --foreign does not, and drop the tenant again",
			foreign.Schema, clusterName(foreign.Cluster), strings.Join(foreign.Objects, ", "))}
	} else if ok {
		return exitError{cli.ExitFailed, fmt.Errorf("schema %s holds what is not the library's: %s; nothing was dropped: take it away by hand, or give --foreign to drop it as well",
			p.schema, strings.Join(foreign.Objects, ", "))}
	}
	if dependent, ok := errors.AsType[*provision.DependentError](err); ok {
		schema := dependent.Schema.String()
		if dependent.Left {
			schema += fmt.Sprintf(" of %s, which a move has left empty to say where the tenant went,", clusterName(dependent.Cluster))
		}
		return exitError{cli.ExitFailed, fmt.Errorf("schema %s cannot be dropped alone: %s; nothing was dropped: drop or detach that by hand, since it may be in use elsewhere, and drop the tenant again",
			schema, strings.Join(dependent.Objects, ", "))}
	}
	switch {
	case errors.Is(err, provision.ErrNotPinned):
		return exitError{cli.ExitFailed, fmt.Errorf("schema %s is another tenant's, by the constraints of its tables; nothing was dropped: correct the schema of %s in the registry's table tenants, or delete its row there if it has none: %w", p.schema, p.org, err)}
	case errors.Is(err, provision.ErrRole):
		return exitError{cli.ExitFailed, fmt.Errorf("%s is not dropped to the end: leave out --tenant-roles to leave the role alone, or do what follows: %w", p.org, err)}
	case errors.Is(err, provision.ErrBusy):
		return exitError{cli.ExitUnfinished, fmt.Errorf("%s is dropped in part, since others use it; drop it again to go on: %w", p.org, err)}
	}
	return err
}
