package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"slices"
	"strings"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/pgidem/pgidem/internal/cli"
	"github.com/pgidem/pgidem/tenancy"
	"github.com/pgidem/pgidem/tenancy/provision"
	"github.com/pgidem/pgidem/tenancy/registry"
)

// provisionTerms are what the flags of provision say.
type provisionTerms struct {
	file, prefix, schema, cluster string
	roles                         roleTerms
	quiet                         bool
}

// roleTerms say who may use the schemas of tenants.
type roleTerms struct {
	service string
	tenants bool
}

func (r *roleTerms) flags(flags *pflag.FlagSet, service, tenants string) {
	flags.StringVar(&r.service, "service-role", "", "`ROLE` as which the service connects"+service)
	flags.BoolFunc("tenant-roles", tenants, cli.Boolean(&r.tenants))
}

func (a *app) provisionVerb() *cobra.Command {
	var terms provisionTerms
	a.workers = minConnections
	cmd := &cobra.Command{
		Use:   "provision ORG...",
		Short: "make tenants: schema, tables, privileges and entry in the registry.",
		Long: `idem-tenants provision makes tenants: it registers each, makes its schema with all tables
pinned to the tenant's org_id, grants the service's role what it needs, and has the tenant
served. Tenants are named by their UUIDs, as arguments, or a line each in a file, or on
standard input with - ; empty lines and what follows a # are passed over.

A tenant that is there already is left as it is, and one that was cut off halfway is
brought to its end, so the verb may be repeated. One tenant's failure does not stop the
others.

With --json it prints one object for each tenant as it is through, a line each; that of
one that failed has an error.`,
		Example: `  idem-tenants provision 6f1c2f6e-0d5a-4c8e-9f5e-2f0a3c1d7b42 --service-role payments
  idem-tenants provision --file new-tenants.txt --workers 8
  psql -Atc 'SELECT id FROM organisations' | idem-tenants provision -`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 && terms.file == "" {
				return usagef("no tenant: give ORG, once or several times, --file, or - to read them from standard input")
			}
			return nil
		},
		ValidArgsFunction: noFiles,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.provision(cmd.Context(), args, terms)
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&terms.file, "file", "", "`PATH` of a file that names tenants; - is standard input")
	flags.Func("workers", "make `N` tenants at the same time (default 4)", cli.Number(&a.workers, maxWorkers))
	flags.StringVar(&terms.prefix, "prefix", tenancy.DefaultPrefix, "`TEXT` in front of the 32 digits of the UUID in the name of a schema (default "+tenancy.DefaultPrefix+")")
	flags.StringVar(&terms.schema, "schema", "", "`NAME` of the schema of the one tenant that is given, in place of one made of its UUID")
	flags.StringVar(&terms.cluster, "cluster", "", "`NAME` of the cluster on which to make new tenants; see --server")
	terms.roles.flags(flags, ": it is granted the use of the tenant's schema",
		"make a role for each tenant, of the schema's name, that may use that schema alone and that --service-role is a member of: for handlers that run under it (pgstore.WithTenantRole)")
	flags.BoolFunc("quiet", "print failures only; --json prints its objects all the same", cli.Boolean(&terms.quiet))
	return cmd
}

// provisionJSON is what provision prints of a tenant.
type provisionJSON struct {
	OrgID uuid.UUID `json:"org_id"`
	*tenantJSON
	Error    string `json:"error,omitempty"`
	SQLState string `json:"sqlstate,omitempty"`
}

func (a *app) provision(ctx context.Context, args []string, terms provisionTerms) error {
	orgs, err := a.readOrgs(args, terms.file)
	if err != nil {
		return err
	}
	at := tenancy.Placement{Cluster: terms.cluster}
	if terms.schema != "" {
		if len(orgs) != 1 {
			return usagef("--schema: it is the schema of one tenant, and there are %d", len(orgs))
		}
		if at.Schema, err = tenancy.ParseSchema(terms.schema); err != nil {
			return usagef("--schema: %w", err)
		}
	}
	naming, err := tenancy.PerOrg(terms.prefix)
	if err != nil {
		return usagef("--prefix: %w", err)
	}
	p, err := a.provisioner(ctx, terms.roles, provision.WithNaming(naming), provision.WithNewOn(terms.cluster))
	if err != nil {
		return err
	}

	var done, failed int
	var last error
	each := func(org uuid.UUID, tenant registry.Tenant, err error) {
		if err != nil && ctx.Err() != nil {
			return // not reached, or not finished
		}
		if done++; err != nil {
			failed++
			last = err
		}
		a.reportProvisioned(org, tenant, err, terms.quiet)
	}
	if terms.schema != "" {
		tenant, err := p.ProvisionAt(ctx, orgs[0], at)
		each(orgs[0], tenant, err)
	} else {
		err = p.Many(ctx, a.workers, list(orgs), each)
	}
	switch {
	case ctx.Err() != nil:
		if !a.json {
			a.errf("%d of %d tenants are through", done, len(orgs))
		}
		return context.Cause(ctx)
	case err != nil:
		return err
	case isConnectError(last):
		return exitError{code: cli.ExitUnreachable}
	case failed > 0:
		return exitError{code: cli.ExitFailed}
	}
	return nil
}

func (a *app) reportProvisioned(org uuid.UUID, tenant registry.Tenant, err error, quiet bool) {
	if a.json {
		object := provisionJSON{OrgID: org}
		if err != nil {
			object.Error, object.SQLState = cli.OneLine(err), cli.SQLState(err)
		} else {
			t := asJSON(tenant)
			object.tenantJSON = &t
		}
		if err := a.printJSON(object); err != nil {
			a.errf("%v", err)
		}
		return
	}
	switch {
	case err != nil:
		a.errf("%s: %s", org, cli.OneLine(err))
	case !quiet:
		_, _ = fmt.Fprintf(a.stdout, "%s: %s in schema %s\n", org, tenant.State, tenant.Schema)
	}
}

// provisioner returns what makes and drops tenants, on any of the servers that are known.
func (a *app) provisioner(ctx context.Context, roles roleTerms, opts ...provision.Option) (*provision.Provisioner, error) {
	if roles.tenants && roles.service == "" {
		return nil, usagef("--tenant-roles: give --service-role as well, which is to be a member of them")
	}
	tenants, err := a.registry(ctx)
	if err != nil {
		return nil, err
	}
	// Whether there is a registry is asked once, because a tenant's own schema may lack tables.
	if _, err := tenants.Tenant(ctx, uuid.Max); err != nil && !errors.Is(err, tenancy.ErrUnknownTenant) {
		return nil, a.unregistered(err)
	}
	pool, err := a.pool(ctx, "")
	if err != nil {
		return nil, err
	}
	others := make(map[string]*pgxpool.Pool)
	for cluster := range a.servers {
		if others[cluster], err = a.unopened(ctx, cluster); err != nil {
			return nil, err
		}
	}
	opts = append(opts, provision.WithClusters(others))
	if roles.service != "" {
		opts = append(opts, provision.WithServiceRole(roles.service))
	}
	if roles.tenants {
		opts = append(opts, provision.WithTenantRoles())
	}
	p, err := provision.New(tenants, pool, opts...)
	if err != nil {
		return nil, usagef("%w; see --server", err)
	}
	return p, nil
}

func list(orgs []uuid.UUID) iter.Seq2[uuid.UUID, error] {
	return func(yield func(uuid.UUID, error) bool) {
		for _, org := range orgs {
			if !yield(org, nil) {
				return
			}
		}
	}
}

// readOrgs returns the tenants that arguments and file name, each once. All are read before
// anything is done.
func (a *app) readOrgs(args []string, file string) (orgs []uuid.UUID, err error) {
	read := func(r io.Reader, name string) error {
		more, err := parseOrgs(r, name)
		orgs = append(orgs, more...)
		return err
	}
	for _, arg := range args {
		if arg == "-" {
			if err := read(a.stdin, "standard input"); err != nil {
				return nil, err
			}
			continue
		}
		org, err := parseOrg(arg)
		if err != nil {
			return nil, err
		}
		orgs = append(orgs, org)
	}
	switch file {
	case "":
	case "-":
		err = read(a.stdin, "standard input")
	default:
		f, openErr := os.Open(file)
		if openErr != nil {
			return nil, usagef("--file: %w", openErr)
		}
		err = read(f, file)
		_ = f.Close()
	}
	if err != nil {
		return nil, err
	}
	seen := make(map[uuid.UUID]bool, len(orgs))
	orgs = slices.DeleteFunc(orgs, func(org uuid.UUID) bool {
		again := seen[org]
		seen[org] = true
		return again
	})
	if len(orgs) == 0 {
		return nil, usagef("no tenant is named")
	}
	return orgs, nil
}

func parseOrgs(r io.Reader, name string) (orgs []uuid.UUID, err error) {
	lines := bufio.NewScanner(r)
	for n := 1; lines.Scan(); n++ {
		text, _, _ := strings.Cut(lines.Text(), "#")
		if text = strings.TrimSpace(text); text == "" {
			continue
		}
		org, err := parseOrg(text)
		if err != nil {
			return nil, usagef("%s, line %d: %w", name, n, errors.Unwrap(err))
		}
		orgs = append(orgs, org)
	}
	if err := lines.Err(); err != nil {
		return nil, usagef("%s: %w", name, err)
	}
	return orgs, nil
}
