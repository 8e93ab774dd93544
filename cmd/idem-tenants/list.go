package main

import (
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/pgidem/pgidem/internal/cli"
	"github.com/pgidem/pgidem/tenancy/registry"
)

var states = []registry.State{registry.Provisioning, registry.Active, registry.Suspended, registry.Deleting}

func (a *app) listVerb() *cobra.Command {
	var filter registry.Filter
	var cluster string
	cmd := &cobra.Command{
		Use:   "list",
		Short: "list the tenants of the registry.",
		Long: `idem-tenants list lists the tenants of the registry, in the order of their org_ids. They
are read in pages and printed as they come, so that ten thousand take neither memory nor
patience.

With --json it prints one object for each tenant, a line each.`,
		Example: `  idem-tenants list
  idem-tenants list --state suspended,deleting
  idem-tenants list --cluster eu --older-than 5 --json | jq -r .org_id`,
		Args:              arguments(0, 0, "no arguments"),
		ValidArgsFunction: noFiles,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if cmd.Flags().Changed("cluster") || cluster != "" {
				filter.Cluster = &cluster
			}
			return a.list(cmd, filter)
		},
	}
	flags := cmd.Flags()
	flags.Func("state", "only tenants in the state `NAME`: provisioning, active, suspended or deleting; repeat it, or separate names by commas", func(list string) error {
		for name := range strings.SplitSeq(list, ",") {
			state := registry.State(strings.TrimSpace(name))
			if !slices.Contains(states, state) {
				return fmt.Errorf("%q is no state: give provisioning, active, suspended or deleting", state)
			}
			filter.States = append(filter.States, state)
		}
		return nil
	})
	flags.StringVar(&cluster, "cluster", "", "only tenants of the cluster `NAME`; an empty one is the nameless cluster")
	flags.Func("older-than", "only tenants whose schema has not had migration `N`, as far as the registry knows", func(value string) error {
		var n int
		err := cli.Number(&n, 1_000_000_000)(value)
		filter.OlderThan = int64(n)
		return err
	})
	_ = cmd.RegisterFlagCompletionFunc("state", cobra.FixedCompletions(stateNames(), cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

func stateNames() (names []string) {
	for _, state := range states {
		names = append(names, string(state))
	}
	return names
}

// listRow fits the schemas of tenancy.PerOrg; longer ones push the rest of their line.
const listRow = "%-36s  %-39s  %-12s  %7v  %-10s  %s\n"

func (a *app) list(cmd *cobra.Command, filter registry.Filter) error {
	ctx := cmd.Context()
	tenants, err := a.registry(ctx)
	if err != nil {
		return err
	}
	n := 0
	for tenant, err := range tenants.Tenants(ctx, filter) {
		if err != nil {
			if err = a.unregistered(err); ctx.Err() == nil && n == 0 {
				return err
			}
			return exitError{cli.ExitUnreachable, fmt.Errorf("after %s: %w", cli.Plural(int64(n), "tenant"), err)}
		}
		if a.json {
			err = a.printJSON(asJSON(tenant))
		} else {
			if n == 0 {
				_, _ = fmt.Fprintf(a.stdout, listRow, "ORG", "SCHEMA", "STATE", "VERSION", "CLUSTER", "CREATED")
			}
			_, err = fmt.Fprintf(a.stdout, listRow, tenant.OrgID, tenant.Schema, tenant.State, tenant.Version, dash(tenant.Cluster), tenant.CreatedAt.UTC().Format("2006-01-02 15:04"))
		}
		if err != nil {
			return err
		}
		n++
	}
	if n == 0 && !a.json {
		_, err = fmt.Fprintln(a.stdout, "no tenants")
	}
	return err
}

// dash stands for what is empty in a table.
func dash(text string) string {
	if text == "" {
		return "-"
	}
	return text
}
