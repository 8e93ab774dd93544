package main

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/pgidem/pgidem/internal/cli"
	"github.com/pgidem/pgidem/migrations"
	"github.com/pgidem/pgidem/tenancy/registry"
)

func (a *app) statusVerb() *cobra.Command {
	var c choice
	workers, versionsOnly := 4, false
	cmd := &cobra.Command{
		Use:   "status",
		Short: "say which tenants are at which version, and which have drifted.",
		Long: `idem-tenants status says which migrations the tenants' schemas have had, which of them are
behind, and which differ from what the migrations make, and how: somebody changed them by
hand. What a service keeps beside the library's tables is no drift. It changes nothing.
The exit code is 5 unless all is in order, and 3 if a cluster could not be reached, whose
tenants it then says nothing of.

With --json it prints one object: counts, and the tenants that are not in order.`,
		Example: `  idem-tenants status
  idem-tenants status --versions-only --json
  idem-tenants status --all-schemas || idem-tenants migrate --all-schemas`,
		Args:              arguments(0, 0, "no arguments"),
		ValidArgsFunction: noFiles,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.status(cmd, c, workers, versionsOnly)
		},
	}
	flags := cmd.Flags()
	c.flags(flags)
	flags.Func("workers", "look over `N` connections at the same time (default 4)", cli.Number(&workers, maxWorkers))
	flags.BoolFunc("versions-only", "do not compare schemas, which takes most of the time and the right to make a schema", cli.Boolean(&versionsOnly))
	return cmd
}

// statusJSON is what status prints.
type statusJSON struct {
	Latest   int64         `json:"newest_migration"`
	Tenants  int           `json:"tenants"`
	UpToDate int           `json:"tenants_up_to_date"`
	Behind   int           `json:"tenants_behind"`
	Newer    int           `json:"tenants_newer"`
	Absent   int           `json:"tenants_absent"`
	Broken   int           `json:"tenants_broken"`
	Drifted  int           `json:"tenants_drifted"`
	LeftOut  int           `json:"tenants_left_out"` // being provisioned or dropped
	Versions map[int64]int `json:"versions"`         // how many tenants are at each
	Disorder []standing    `json:"disorder"`         // tenants that are not up to date, or have drifted
	// Unreached are the clusters of which nothing can be said.
	Unreached []lostServer `json:"clusters_unreached,omitempty"`
	Warning   string       `json:"warning,omitempty"`
}

// standing is how one tenant stands.
type standing struct {
	Schema          string              `json:"schema"`
	OrgID           string              `json:"org_id,omitempty"`
	Cluster         string              `json:"cluster,omitempty"`
	State           registry.State      `json:"state,omitempty"`
	Standing        migrations.Standing `json:"standing"`
	Version         int64               `json:"version"`
	RegistryVersion *int64              `json:"registry_version,omitempty"` // where it is another
	Drift           []string            `json:"drift,omitempty"`
	Error           string              `json:"error,omitempty"`

	about string
}

func (a *app) status(cmd *cobra.Command, c choice, workers int, versionsOnly bool) error {
	ctx := cmd.Context()
	found, err := a.choose(ctx, c)
	if err != nil {
		return err
	}
	opts := []migrations.Option{migrations.WithWorkers(workers)}
	if versionsOnly {
		opts = append(opts, migrations.WithVersionsOnly())
	}
	s := statusJSON{
		Latest: migrations.Latest(), Tenants: found.tenants, LeftOut: found.provisioning + found.deleting,
		Versions: make(map[int64]int), Disorder: []standing{},
	}
	if found.unfit != nil {
		s.Warning = cli.OneLine(found.unfit)
	}
	for _, server := range found.servers {
		var list []migrations.SchemaStatus
		err := server.away
		if err == nil {
			list, err = migrations.Status(ctx, server.url, server.seq(), opts...)
		}
		switch {
		case err != nil && (server.away != nil || ctx.Err() == nil && isAway(err)):
			lost := cutOff{server.cluster, len(server.targets), err}
			s.Unreached = append(s.Unreached, lost.json())
			a.errf("%s", lost.Error())
			continue
		case err != nil:
			return err
		}
		targets := server.bySchema()
		for _, one := range list {
			s.add(server.cluster, targets[one.Schema], one)
		}
	}
	if a.json {
		err = a.printJSON(s)
	} else {
		err = a.printStatus(s, found)
	}
	switch {
	case err != nil:
		return err
	case len(s.Unreached) > 0:
		return exitError{code: cli.ExitUnreachable}
	case len(s.Disorder) > 0:
		return exitError{code: exitDisorder}
	}
	return nil
}

func (s *statusJSON) add(cluster string, t target, one migrations.SchemaStatus) {
	switch one.Standing {
	case migrations.UpToDate:
		s.UpToDate++
	case migrations.Behind:
		s.Behind++
	case migrations.Ahead:
		s.Newer++
	case migrations.Absent:
		s.Absent++
	case migrations.Broken:
		s.Broken++
	}
	if len(one.Drift) > 0 {
		s.Drifted++
	}
	s.Versions[one.Version]++
	row := standing{
		Schema: one.Schema.String(), Cluster: cluster, Standing: one.Standing, Version: one.Version, Drift: one.Drift, about: t.about(cluster),
	}
	if one.Err != nil {
		row.Error = cli.OneLine(one.Err)
	}
	if t.tenant != nil {
		row.OrgID, row.State = t.OrgID.String(), t.tenant.State
		if v := t.tenant.Version; v != 0 && v != one.Version {
			row.RegistryVersion = &t.tenant.Version
		}
	}
	if one.Standing != migrations.UpToDate || len(one.Drift) > 0 || row.RegistryVersion != nil {
		s.Disorder = append(s.Disorder, row)
	}
}

func (a *app) printStatus(s statusJSON, found chosen) error {
	if s.Warning != "" {
		a.errf("warning: not visited: %s", s.Warning)
	}
	f := newFacts(a.stdout)
	f.row("newest migration", "%d", s.Latest)
	f.row("tenants", "%d", s.Tenants)
	f.row("up to date", "%d", s.UpToDate)
	for _, row := range []struct {
		name string
		n    int
	}{{"behind", s.Behind}, {"newer", s.Newer}, {"absent", s.Absent}, {"broken", s.Broken}, {"drifted", s.Drifted}} {
		if row.n > 0 {
			f.row(row.name, "%d", row.n)
		}
	}
	unreached := 0
	for _, server := range s.Unreached {
		unreached += server.Tenants
	}
	if unreached > 0 {
		f.row("not reached", "%d", unreached)
	}
	if text := found.leftOut(); text != "" {
		f.row("left out", "%s", strings.TrimPrefix(text, "left out: "))
	}
	versions := make([]string, 0, len(s.Versions))
	for _, v := range slices.Backward(sortedVersions(s.Versions)) {
		versions = append(versions, fmt.Sprintf("%d at %s", s.Versions[v], strconv.FormatInt(v, 10)))
	}
	if len(versions) > 0 {
		f.row("versions", "%s", strings.Join(versions, ", "))
	}
	if err := f.end(); err != nil {
		return err
	}
	for _, row := range s.Disorder {
		text := row.about + ": " + string(row.Standing)
		if row.Standing != migrations.Absent {
			text += ", at " + strconv.FormatInt(row.Version, 10)
		}
		if row.RegistryVersion != nil {
			text += fmt.Sprintf(" (%d in the registry; migrate notes it)", *row.RegistryVersion)
		}
		if row.Error != "" {
			text += ": " + row.Error
		}
		if len(row.Drift) > 0 {
			text += ", drifted"
		}
		if _, err := fmt.Fprintln(a.stdout, text); err != nil {
			return err
		}
		for _, line := range row.Drift {
			_, _ = fmt.Fprintln(a.stdout, "    "+line)
		}
	}
	return nil
}

func sortedVersions(m map[int64]int) []int64 {
	versions := make([]int64, 0, len(m))
	for v := range m {
		versions = append(versions, v)
	}
	slices.Sort(versions)
	return versions
}
