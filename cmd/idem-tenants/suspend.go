package main

import (
	"errors"
	"fmt"
	"strings"

	"github.com/google/uuid"
	"github.com/spf13/cobra"

	"github.com/pgidem/pgidem/internal/cli"
	"github.com/pgidem/pgidem/tenancy"
	"github.com/pgidem/pgidem/tenancy/registry"
)

func (a *app) suspendVerb() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "suspend ORG...",
		Short: "have tenants served no more, for a while.",
		Long: `idem-tenants suspend has every request of a tenant refused with 403, in all processes
that use the registry, within a second or so. Requests under way come to their end, and
nothing of the tenant's is changed. resume ends it.

With --json it prints one object for each tenant, a line each.`,
		Example:           "  idem-tenants suspend 6f1c2f6e-0d5a-4c8e-9f5e-2f0a3c1d7b42\n  idem-tenants suspend --yes 6f1c2f6e-0d5a-4c8e-9f5e-2f0a3c1d7b42",
		Args:              arguments(1, -1, "ORG, once or several times"),
		ValidArgsFunction: noFiles,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.setState(cmd, args, registry.Suspended, registry.Active)
		},
	}
	a.yesFlag(cmd.Flags())
	return cmd
}

func (a *app) resumeVerb() *cobra.Command {
	return &cobra.Command{
		Use:   "resume ORG...",
		Short: "have suspended tenants served again.",
		Long: `idem-tenants resume has suspended tenants served again. A tenant whose deletion has begun
cannot be resumed.

With --json it prints one object for each tenant, a line each.`,
		Example:           "  idem-tenants resume 6f1c2f6e-0d5a-4c8e-9f5e-2f0a3c1d7b42",
		Args:              arguments(1, -1, "ORG, once or several times"),
		ValidArgsFunction: noFiles,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.setState(cmd, args, registry.Active, registry.Suspended)
		},
	}
}

// setState puts tenants from one state into another. One that is there already is left as it
// is, so that the verb may be repeated.
func (a *app) setState(cmd *cobra.Command, args []string, to, from registry.State) error {
	ctx := cmd.Context()
	orgs := make([]uuid.UUID, 0, len(args))
	for _, arg := range args {
		org, err := parseOrg(arg)
		if err != nil {
			return err
		}
		orgs = append(orgs, org)
	}
	tenants, err := a.registry(ctx)
	if err != nil {
		return err
	}
	if to == registry.Suspended {
		var about strings.Builder
		_, _ = fmt.Fprintf(&about, "Requests of %s will be refused with 403 until resumed:\n", cli.Plural(int64(len(orgs)), "tenant"))
		for _, org := range orgs {
			about.WriteString("  " + org.String() + "\n")
		}
		if err := a.confirm(ctx, about.String()); err != nil {
			return err
		}
	}
	var failed []error
	for _, org := range orgs {
		tenant, err := tenants.SetState(ctx, org, to, from, to)
		switch {
		case err == nil:
			err = a.printTenant(tenant)
		case errors.Is(err, tenancy.ErrUnknownTenant):
			err = exitError{exitNotFound, fmt.Errorf("there is no tenant %s in the registry", org)}
		case errors.Is(err, registry.ErrState) && tenant.State == "": // its state would have done
			err = exitError{cli.ExitFailed, beingMoved(org)}
		case errors.Is(err, registry.ErrState):
			err = exitError{cli.ExitFailed, fmt.Errorf("%s is %s, and only a tenant that is %s can become %s", org, tenant.State, from, to)}
		}
		if err = a.unregistered(err); err != nil {
			if ctx.Err() != nil || len(orgs) == 1 {
				return err
			}
			a.errf("%s", cli.OneLine(err))
			failed = append(failed, err)
		}
	}
	if len(failed) > 0 {
		return exitError{code: cli.ExitFailed}
	}
	return nil
}
