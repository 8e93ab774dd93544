package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/pgidem/pgidem/internal/cli"
	"github.com/pgidem/pgidem/tenancy"
	"github.com/pgidem/pgidem/tenancy/registry"
)

const program = "idem-tenants"

// Verbs are listed in the order of a tenant's life.
func init() { cobra.EnableCommandSorting = false }

// app is one run of the program.
type app struct {
	getenv         func(string) string
	stdin          io.Reader
	stdout, stderr io.Writer

	databaseURL string
	servers     cli.Servers // by the name of the cluster, but for the nameless one
	control     string
	json        bool
	yes         bool // of the verbs that ask

	workers int                      // of the verbs that have some
	pools   map[string]*pgxpool.Pool // by the name of the cluster
	reached map[string]bool          // the servers of these
	closers []func()
}

// root returns the program's tree of commands.
func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:   program + " VERB",
		Short: "provisions, lists, migrates, inspects, moves and drops the tenants of pgidem.",
		Example: `  idem-tenants init
  idem-tenants provision 6f1c2f6e-0d5a-4c8e-9f5e-2f0a3c1d7b42
  idem-tenants list --state suspended
  idem-tenants migrate --dry-run
  idem-tenants inspect 6f1c2f6e-0d5a-4c8e-9f5e-2f0a3c1d7b42 order-1234`,
		Version:       cli.Version(program),
		Args:          cobra.ArbitraryArgs,
		SilenceErrors: true,
		SilenceUsage:  true,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usagef("no verb given: %s", strings.Join(verbs(cmd), ", "))
			}
			if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
				return usagef("unknown verb %q: is it %s?", args[0], strings.Join(near, " or "))
			}
			return usagef("unknown verb %q: there are %s", args[0], strings.Join(verbs(cmd), ", "))
		},
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error { return a.applyEnv(cmd) },
	}
	root.CompletionOptions.DisableDefaultCmd = true
	root.SetVersionTemplate("{{.Version}}\n")
	root.SuggestionsMinimumDistance = 2
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return exitError{cli.ExitUsage, flagError(err)} })
	root.SetHelpFunc(func(cmd *cobra.Command, _ []string) { _, _ = io.WriteString(a.stdout, helpText(cmd)) })

	flags := root.PersistentFlags()
	flags.SortFlags = false
	flags.StringVar(&a.databaseURL, "database-url", "", "`URL` of the database, or keyword=value pairs. The variable keeps its password out of the list of processes")
	flags.Func("server", "`CLUSTER=URL` of the database of a cluster that the registry names; repeat it, or separate several by spaces. That of the nameless cluster is --database-url, which also holds the registry", a.addServers)
	flags.StringVar(&a.control, "control-schema", registry.DefaultSchema, "`NAME` of the schema that holds the registry (default "+registry.DefaultSchema+")")
	flags.BoolFunc("json", "print JSON on standard output, and nothing else there", cli.Boolean(&a.json))

	for _, verb := range []*cobra.Command{
		a.initVerb(), a.provisionVerb(), a.listVerb(), a.migrateVerb(), a.statusVerb(), a.inspectVerb(), a.releaseVerb(),
		a.suspendVerb(), a.resumeVerb(), a.moveVerb(), a.dropVerb(), a.completionVerb(),
	} {
		verb.Flags().SortFlags = false
		root.AddCommand(verb)
	}
	root.SetHelpCommand(&cobra.Command{
		Use: "help [VERB]", Short: "say what a verb does and takes.", Annotations: offline,
		Example: "  idem-tenants help migrate",
		RunE: func(cmd *cobra.Command, args []string) error {
			verb, _, err := cmd.Root().Find(args)
			if err != nil || verb == nil || verb == cmd.Root() && len(args) > 0 {
				return usagef("unknown verb %q: there are %s", strings.Join(args, " "), strings.Join(verbs(cmd.Root()), ", "))
			}
			return verb.Help()
		},
		ValidArgsFunction: func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
			if len(args) > 0 {
				return nil, cobra.ShellCompDirectiveNoFileComp
			}
			return verbs(cmd.Root()), cobra.ShellCompDirectiveNoFileComp
		},
	})
	return root
}

// flagError leaves out of an error what was given, where that may have a password in it.
func flagError(err error) error {
	if invalid, ok := errors.AsType[*pflag.InvalidValueError](err); ok && invalid.GetFlag().Name == "server" {
		return fmt.Errorf("--server: %w", invalid.Unwrap())
	}
	if unknown, ok := errors.AsType[*pflag.NotExistError](err); ok && unknown.GetSpecifiedShortnames() != "" {
		name, _, _ := strings.Cut(unknown.GetSpecifiedShortnames(), "=")
		return fmt.Errorf("unknown flag -%s: flags have two dashes", name)
	}
	return err
}

// offline marks verbs that need no database, and read no variables.
var offline = map[string]string{"offline": "true"}

func verbs(root *cobra.Command) (names []string) {
	for _, verb := range root.Commands() {
		if verb.IsAvailableCommand() {
			names = append(names, verb.Name())
		}
	}
	return names
}

// unset are the flags that no variable stands for: those that say yes to something that
// cannot be taken back are to be given each time.
var unset = []string{"help", "version", "yes", "confirm", "force", "forget", "reveal", "scope", "foreign", "file", "to", "cancel"}

// variable returns the name of the environment variable behind a flag, or "".
func variable(flag string) string {
	if slices.Contains(unset, flag) {
		return ""
	}
	return cli.Variable(program, flag)
}

// applyEnv sets the flags that were not given from their variables. An empty variable
// counts as unset.
func (a *app) applyEnv(cmd *cobra.Command) error {
	if cmd.Annotations["offline"] != "" {
		return nil
	}
	var errs []error
	cmd.Flags().VisitAll(func(f *pflag.Flag) {
		name := variable(f.Name)
		if name == "" || f.Changed || a.getenv(name) == "" {
			return
		}
		if err := f.Value.Set(a.getenv(name)); err != nil {
			shown := fmt.Sprintf(" %q", a.getenv(name))
			if f.Name == "server" {
				shown = "" // it has passwords in it
			}
			errs = append(errs, fmt.Errorf("invalid value%s for %s: %w", shown, name, err))
		}
	})
	if err := errors.Join(errs...); err != nil {
		return exitError{cli.ExitUsage, err}
	}
	return nil
}

func (a *app) addServers(list string) error {
	if a.servers == nil {
		a.servers = make(cli.Servers)
	}
	return a.servers.Add(list)
}

// database says how to connect to the server of a cluster.
func (a *app) database(cluster string) (cli.Database, error) {
	databaseURL := a.databaseURL
	if cluster != "" {
		var ok bool
		if databaseURL, ok = a.servers[cluster]; !ok {
			return cli.Database{}, usagef("no server for cluster %q, which the registry names: give --server %s=URL or IDEM_TENANTS_SERVER", cluster, cluster)
		}
	}
	return cli.Database{URL: databaseURL, Application: program, Connections: max(a.workers, minConnections)}, nil
}

// minConnections is how many connections a verb has at least to the server of a cluster.
const minConnections = 4

// pool returns a pool on the server of a cluster, which can be reached.
func (a *app) pool(ctx context.Context, cluster string) (*pgxpool.Pool, error) {
	pool, err := a.unopened(ctx, cluster)
	if err != nil || a.reached[cluster] {
		return pool, err
	}
	if err := reach(ctx, cluster, pool); err != nil {
		return nil, err
	}
	a.reached[cluster] = true
	return pool, nil
}

// reach reports whether the server of a cluster can be reached.
func reach(ctx context.Context, cluster string, pool *pgxpool.Pool) error {
	err := pool.Ping(ctx)
	if err != nil && cluster != "" {
		err = fmt.Errorf("cluster %s: %w", cluster, err)
	}
	if err != nil {
		return exitError{cli.ExitUnreachable, fmt.Errorf("connect: %w", err)}
	}
	return nil
}

// unopened returns the same before it has opened a connection.
func (a *app) unopened(ctx context.Context, cluster string) (*pgxpool.Pool, error) {
	if pool, ok := a.pools[cluster]; ok {
		return pool, nil
	}
	database, err := a.database(cluster)
	if err != nil {
		return nil, err
	}
	config, err := database.PoolConfig()
	if err != nil && cluster != "" {
		err = fmt.Errorf("--server %s: %w", cluster, err)
	}
	if err != nil {
		return nil, exitError{cli.ExitUsage, err}
	}
	pool, err := pgxpool.NewWithConfig(context.WithoutCancel(ctx), config)
	if err != nil {
		return nil, exitError{cli.ExitUnreachable, err}
	}
	a.closers = append(a.closers, func() { cli.ClosePool(pool) })
	if a.pools == nil {
		a.pools, a.reached = make(map[string]*pgxpool.Pool), make(map[string]bool)
	}
	a.pools[cluster] = pool
	return pool, nil
}

// registry returns the registry, and the pool that it works on.
func (a *app) registry(ctx context.Context) (*registry.Registry, error) {
	schema, err := a.controlSchema()
	if err != nil {
		return nil, err
	}
	pool, err := a.pool(ctx, "")
	if err != nil {
		return nil, err
	}
	tenants, err := registry.New(pool, registry.WithSchema(schema))
	if err != nil {
		return nil, err
	}
	a.closers = append(a.closers, tenants.Close)
	return tenants, nil
}

func (a *app) controlSchema() (tenancy.Schema, error) {
	schema, err := tenancy.ParseSchema(a.control)
	if err != nil {
		return schema, usagef("--control-schema: %w", err)
	}
	return schema, nil
}

// unregistered explains the error of a database that has no registry, and returns any other
// as it is.
func (a *app) unregistered(err error) error {
	switch cli.SQLState(err) {
	case "42P01", "3F000": // undefined_table, invalid_schema_name
		return exitError{cli.ExitFailed, fmt.Errorf("there is no registry of tenants in schema %s: make one with %s init, or name the one there is by --control-schema", a.control, program)}
	}
	return err
}

func (a *app) close() {
	for _, closeIt := range slices.Backward(a.closers) {
		closeIt()
	}
}
