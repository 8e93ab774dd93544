package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/pgidem/pgidem/internal/cli"
	"github.com/pgidem/pgidem/tenancy"
	"github.com/pgidem/pgidem/tenancy/registry"
)

// arguments checks that a verb gets as many arguments as it names.
func arguments(least, most int, names string) cobra.PositionalArgs {
	return func(_ *cobra.Command, args []string) error {
		switch {
		case len(args) < least:
			return usagef("%d arguments, but it takes %s", len(args), names)
		case most >= 0 && len(args) > most:
			return usagef("unexpected argument %q: it takes %s", args[most], names)
		}
		return nil
	}
}

// noFiles keeps shells from completing arguments by the names of files.
func noFiles(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	return nil, cobra.ShellCompDirectiveNoFileComp
}

func parseOrg(text string) (uuid.UUID, error) {
	org, err := uuid.Parse(text)
	if err != nil || org == uuid.Nil {
		return uuid.Nil, usagef("%q is no ORG: give the UUID of a tenant, such as 6f1c2f6e-0d5a-4c8e-9f5e-2f0a3c1d7b42", text)
	}
	return org, nil
}

// place is a tenant and where its records are.
type place struct {
	org    uuid.UUID
	schema tenancy.Schema
	pool   *pgxpool.Pool
	tenant *registry.Tenant // nil where the registry was not asked
}

const schemaUsage = "`NAME` of the tenant's schema, for services without a registry, which is then not asked"

func schemaFlag(flags *pflag.FlagSet, schema *string) {
	flags.StringVar(schema, "schema", "", schemaUsage)
}

// locate asks the registry for a tenant, unless its schema is given.
func (a *app) locate(ctx context.Context, orgText, schema string) (place, error) {
	org, err := parseOrg(orgText)
	if err != nil {
		return place{}, err
	}
	p := place{org: org}
	if schema != "" {
		if p.schema, err = tenancy.ParseSchema(schema); err != nil {
			return place{}, usagef("--schema: %w", err)
		}
		p.pool, err = a.pool(ctx, "")
		return p, err
	}
	tenants, err := a.registry(ctx)
	if err != nil {
		return place{}, err
	}
	tenant, err := tenants.Tenant(ctx, org)
	if errors.Is(err, tenancy.ErrUnknownTenant) {
		return place{}, exitError{exitNotFound, fmt.Errorf("there is no tenant %s in the registry", org)}
	}
	if err != nil {
		return place{}, a.unregistered(err)
	}
	p.tenant, p.schema = &tenant, tenant.Schema
	p.pool, err = a.pool(ctx, tenant.Cluster)
	return p, err
}

// explain says of a tenant without tables, which the registry knows, that it is half-made, or
// that they are lost.
func (p place) explain(err error) error {
	if p.tenant == nil || !errors.Is(err, tenancy.ErrUnknownTenant) {
		return err
	}
	advice := beginAnew
	switch p.tenant.State {
	case registry.Provisioning:
		advice = fmt.Sprintf("%s provision %s makes them", program, p.org)
	case registry.Deleting:
		advice = fmt.Sprintf("%s drop %s goes on", program, p.org)
	}
	return exitError{cli.ExitFailed, fmt.Errorf("%s is registered as %s, but its schema %s does not hold the tables: %s", p.org, p.tenant.State, p.schema, advice)}
}

// tenantJSON is a tenant as the registry knows it.
type tenantJSON struct {
	OrgID     uuid.UUID      `json:"org_id"`
	Schema    string         `json:"schema"`
	Cluster   string         `json:"cluster"`
	State     registry.State `json:"state"`
	Version   int64          `json:"version"`
	MovingTo  *string        `json:"moving_to,omitempty"` // the cluster, while it is being moved
	CreatedAt time.Time      `json:"created_at"`
	UpdatedAt time.Time      `json:"updated_at"`
}

func asJSON(t registry.Tenant) tenantJSON {
	object := tenantJSON{
		OrgID: t.OrgID, Schema: t.Schema.String(), Cluster: t.Cluster, State: t.State, Version: t.Version,
		CreatedAt: t.CreatedAt.UTC(), UpdatedAt: t.UpdatedAt.UTC(),
	}
	if t.Moving {
		object.MovingTo = &t.MovingTo
	}
	return object
}

// printTenant says what has become of a tenant.
func (a *app) printTenant(t registry.Tenant) error {
	if a.json {
		return a.printJSON(asJSON(t))
	}
	_, err := fmt.Fprintf(a.stdout, "%s: %s\n", t.OrgID, t.State)
	return err
}
