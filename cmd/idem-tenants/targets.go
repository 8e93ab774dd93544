package main

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strings"
	"sync"

	"github.com/spf13/pflag"

	"github.com/pgidem/pgidem/idempotency/pgstore"
	"github.com/pgidem/pgidem/internal/cli"
	"github.com/pgidem/pgidem/migrations"
	"github.com/pgidem/pgidem/tenancy"
	"github.com/pgidem/pgidem/tenancy/registry"
)

// choice says which tenants a verb is for that is for many.
type choice struct {
	schemas []tenancy.Schema
	all     bool
	cluster *string
}

func (c *choice) flags(flags *pflag.FlagSet) {
	flags.Func("schema", "only the tenant schema `NAME`, without asking the registry or noting anything there; repeat it, or separate names by commas", func(list string) error {
		for name := range strings.SplitSeq(list, ",") {
			schema, err := tenancy.ParseSchema(strings.TrimSpace(name))
			if err != nil {
				return err
			}
			if !slices.Contains(c.schemas, schema) {
				c.schemas = append(c.schemas, schema)
			}
		}
		return nil
	})
	flags.BoolFunc("all-schemas", "every schema of the database that holds a table of records, but for those that are being moved, without asking the registry or noting anything there", cli.Boolean(&c.all))
	flags.Func("cluster", "only the tenants of the cluster `NAME` that the registry knows; an empty one is the nameless cluster", func(name string) error {
		c.cluster = &name
		return nil
	})
}

// target is a tenant of many, and what the registry says of it.
type target struct {
	migrations.Target
	tenant *registry.Tenant // nil where the registry was not asked
}

// server is a cluster and those of its tenants that were chosen.
type server struct {
	cluster string
	url     string
	targets []target
	away    error // it cannot be reached
}

func (s server) seq() iter.Seq2[migrations.Target, error] {
	return func(yield func(migrations.Target, error) bool) {
		for _, t := range s.targets {
			if !yield(t.Target, nil) {
				return
			}
		}
	}
}

func (s server) bySchema() map[tenancy.Schema]target {
	targets := make(map[tenancy.Schema]target, len(s.targets))
	for _, t := range s.targets {
		targets[t.Schema] = t
	}
	return targets
}

// chosen is what a choice comes to.
type chosen struct {
	servers                []server // by name
	tenants                int
	provisioning, deleting int   // left out
	unfit                  error // schemas with a table of records that cannot be a tenant's
}

// choose finds the tenants that are chosen. Those that are being made or dropped are left
// out: what makes and drops them sees to their schemas.
func (a *app) choose(ctx context.Context, c choice) (chosen, error) {
	if c.all && len(c.schemas) > 0 || (c.all || len(c.schemas) > 0) && c.cluster != nil {
		return chosen{}, usagef("give one of --schema, --all-schemas and --cluster, or none for all tenants of the registry")
	}
	if !c.all && len(c.schemas) == 0 {
		return a.chooseRegistered(ctx, c)
	}
	pool, err := a.pool(ctx, "")
	if err != nil {
		return chosen{}, err
	}
	database, err := a.database("")
	if err != nil {
		return chosen{}, err
	}
	var found chosen
	if c.all {
		c.schemas, err = pgstore.Schemas(ctx, pool)
		switch {
		case errors.Is(err, tenancy.ErrInvalidSchema):
			found.unfit = err
		case err != nil:
			return chosen{}, exitError{cli.ExitUnreachable, err}
		}
	}
	list := make([]target, 0, len(c.schemas))
	for _, schema := range c.schemas {
		list = append(list, target{Target: migrations.Target{Schema: schema}})
	}
	found.add(server{url: database.DirectURL(), targets: list})
	return found, nil
}

func (a *app) chooseRegistered(ctx context.Context, c choice) (chosen, error) {
	tenants, err := a.registry(ctx)
	if err != nil {
		return chosen{}, err
	}
	var found chosen
	byCluster := make(map[string][]target)
	for tenant, err := range tenants.Tenants(ctx, registry.Filter{Cluster: c.cluster}) {
		if err != nil {
			err = a.unregistered(err)
			if _, said := errors.AsType[exitError](err); !said && ctx.Err() == nil {
				err = exitError{cli.ExitUnreachable, err}
			}
			return chosen{}, err
		}
		switch tenant.State {
		case registry.Provisioning:
			found.provisioning++
		case registry.Deleting:
			found.deleting++
		default:
			one := target{Target: migrations.Target{Schema: tenant.Schema, OrgID: tenant.OrgID}, tenant: &tenant}
			byCluster[tenant.Cluster] = append(byCluster[tenant.Cluster], one)
		}
	}
	clusters := sortedKeys(byCluster)
	for _, cluster := range clusters { // all of them, before anything is waited for
		if _, err := a.unopened(ctx, cluster); err != nil {
			return chosen{}, err
		}
	}
	away := a.reach(ctx, clusters)
	for _, cluster := range clusters {
		database, err := a.database(cluster)
		if err != nil {
			return chosen{}, err
		}
		if err := away[cluster]; err != nil && ctx.Err() != nil {
			return chosen{}, err
		}
		found.add(server{cluster: cluster, url: database.DirectURL(), targets: byCluster[cluster], away: away[cluster]})
	}
	return found, nil
}

// reach tries all of the clusters at once, each of which has a pool, and returns the errors of
// those that are away.
func (a *app) reach(ctx context.Context, clusters []string) map[string]error {
	errs := make([]error, len(clusters))
	var tries sync.WaitGroup
	for i, cluster := range clusters {
		if pool := a.pools[cluster]; !a.reached[cluster] {
			tries.Go(func() { errs[i] = reach(ctx, cluster, pool) })
		}
	}
	tries.Wait()
	away := make(map[string]error)
	for i, cluster := range clusters {
		a.reached[cluster] = errs[i] == nil
		away[cluster] = errs[i]
	}
	return away
}

func (c *chosen) add(s server) {
	c.servers = append(c.servers, s)
	c.tenants += len(s.targets)
}

// leftOut says which tenants were not looked at.
func (c chosen) leftOut() string {
	var parts []string
	if c.provisioning > 0 {
		parts = append(parts, cli.Plural(int64(c.provisioning), "tenant")+" being provisioned")
	}
	if c.deleting > 0 {
		parts = append(parts, cli.Plural(int64(c.deleting), "tenant")+" being dropped")
	}
	if len(parts) == 0 {
		return ""
	}
	return "left out: " + strings.Join(parts, ", ")
}

// lost says of a tenant whose schema was there, and is missing, what to do.
func (t target) lost(err error) error {
	if t.tenant == nil {
		return fmt.Errorf("%w, or has no table %s, but had records when this run began: it was left alone", err, migrations.VersionTable)
	}
	return fmt.Errorf("%w, and was not made anew; unless the tenant is being moved, or was moved or dropped meanwhile, %s", err, beginAnew)
}

// beginAnew is what to do about a tenant that has been served and whose schema is lost.
// provision alone leaves such a tenant as it is.
const beginAnew = "restore the schema; or suspend, drop and provision the tenant, which then has no records and runs retries again"

// about names a tenant in a line.
func (t target) about(cluster string) string {
	text := t.Schema.String()
	if t.tenant != nil && !strings.HasSuffix(text, strings.ReplaceAll(t.OrgID.String(), "-", "")) {
		text += " of " + t.OrgID.String()
	}
	if cluster != "" {
		text = fmt.Sprintf("%s in %s", text, cluster)
	}
	return text
}
