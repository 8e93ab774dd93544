package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgidem/pgidem/idempotency/pgstore"
	"github.com/pgidem/pgidem/internal/cli"
	"github.com/pgidem/pgidem/tenancy"
)

const (
	defaultWorkers = 4
	maxWorkers     = 64
	maxBatch       = 1_000_000
)

// config is what flags and environment say.
type config struct {
	databaseURL string
	schemas     []tenancy.Schema // empty: those of the catalog
	dryRun      bool
	interval    time.Duration // 0: once

	batch, workers                int
	pause, maxDuration            time.Duration
	statementTimeout, lockTimeout time.Duration

	json, quiet, version bool

	serverLists []string // of --server, not read yet
	databases   []database
}

// database is one that is visited: that of --database-url, whose cluster has no name, or that
// of a cluster.
type database struct {
	cluster string
	config  *pgxpool.Config
}

// in says of which cluster something is, where it has a name.
func in(cluster string) string {
	if cluster == "" {
		return ""
	}
	return " in " + cluster
}

// parseConfig reads the flags and, for those that are not given, the variables.
// It returns [flag.ErrHelp] when help is asked for.
func parseConfig(args []string, getenv func(string) string) (config, error) {
	var cfg config
	flags := cfg.flags()
	if err := flags.Parse(args); err != nil {
		return config{}, err
	}
	if cfg.version {
		return cfg, nil
	}
	if flags.NArg() > 0 {
		return config{}, fmt.Errorf("unexpected argument %q: everything is said by flags; lists are given with commas and no spaces", flags.Arg(0))
	}
	if err := applyEnv(flags, getenv); err != nil {
		return config{}, err
	}
	return cfg, cfg.readDatabases()
}

// readDatabases finds out which databases are to be visited. It connects to none.
func (cfg *config) readDatabases() error {
	servers := make(cli.Servers)
	for _, list := range cfg.serverLists {
		if err := servers.Add(list); err != nil {
			return fmt.Errorf("--server or %s: %w", variable("server"), err)
		}
	}
	if len(servers) > 0 && len(cfg.schemas) > 0 {
		return errors.New("--schema goes with one database: give it with --database-url alone, as that of the cluster that the tenant is in")
	}
	clusters := slices.Sorted(maps.Keys(servers))
	if cfg.databaseURL != "" || len(servers) == 0 {
		clusters = append([]string{""}, clusters...)
		servers[""] = cfg.databaseURL
	}
	for _, cluster := range clusters {
		pool, err := cli.Database{
			URL: servers[cluster], Application: "idem-janitor", Connections: cfg.workers,
			StatementTimeout: cfg.statementTimeout, LockTimeout: cfg.lockTimeout,
		}.PoolConfig()
		if err != nil && cluster != "" {
			err = fmt.Errorf("--server %s: %w", cluster, err)
		}
		if err != nil {
			return err
		}
		cfg.databases = append(cfg.databases, database{cluster, pool})
	}
	return nil
}

// flags returns the flags, each of which writes to cfg, with the defaults set.
func (cfg *config) flags() *flag.FlagSet {
	cfg.batch, cfg.workers = pgstore.DefaultPurgeBatch, defaultWorkers

	flags := flag.NewFlagSet("idem-janitor", flag.ContinueOnError)
	flags.SetOutput(io.Discard) // errors are printed by run, help by helpText
	flags.Usage = func() {}

	flags.StringVar(&cfg.databaseURL, "database-url", "", "`URL` of the database, or keyword=value pairs. The variable keeps its password out of the list of processes")
	flags.Func("server", "`CLUSTER=URL` of the database of another cluster, visited in the same rounds; repeat it, or separate several by spaces. Give all clusters that the registry names; --database-url is that of the nameless one, and may be left out where it has no tenants", func(list string) error {
		cfg.serverLists = append(cfg.serverLists, list) // read later: an error here would show it, passwords and all
		return nil
	})
	flags.Func("schema", "visit only the tenant schema `NAME`; repeat it, or separate names by commas (default: every schema that holds a table of records)", cfg.addSchemas)
	flags.BoolFunc("dry-run", "count what would be deleted, and delete nothing", cli.Boolean(&cfg.dryRun))
	flags.Func("interval", "run a round every `D`, from start to start, until stopped; 0 runs one and exits (default 0). A round that takes longer is followed by the next at once", cli.Duration(&cfg.interval))
	flags.Func("batch", fmt.Sprintf("delete at most `N` records in one statement (default %d)", pgstore.DefaultPurgeBatch), cli.Number(&cfg.batch, maxBatch))
	flags.Func("pause", "rest for `D` after each statement that deleted something (default 0)", cli.Duration(&cfg.pause))
	flags.Func("workers", fmt.Sprintf("visit `N` tenants of a database at the same time, over a connection each (default %d)", defaultWorkers), cli.Number(&cfg.workers, maxWorkers))
	flags.Func("max-duration", "end a round after `D`, and leave the rest to the next; 0 sets no limit (default 0)", cli.Duration(&cfg.maxDuration))
	flags.Func("statement-timeout", "have the server end each statement after `D`; that tenant then failed. 0 leaves it to the server (default 0)", cli.Duration(&cfg.statementTimeout))
	flags.Func("lock-timeout", "have the server end a statement that waits for a lock for `D`, such as a migration's; that tenant then failed. 0 leaves it to the server (default 0)", cli.Duration(&cfg.lockTimeout))
	flags.BoolFunc("json", "print one JSON object a round on standard output, and nothing else", cli.Boolean(&cfg.json))
	flags.BoolFunc("quiet", "print failures and warnings only; --json prints its object all the same", cli.Boolean(&cfg.quiet))
	flags.BoolFunc("version", "print the version and exit", cli.Boolean(&cfg.version))
	return flags
}

// variable returns the name of the environment variable behind a flag, or "".
func variable(flagName string) string {
	if flagName == "version" {
		return ""
	}
	return cli.Variable("idem-janitor", flagName)
}

// applyEnv sets the flags that were not given from their variables. An empty
// variable counts as unset.
func applyEnv(flags *flag.FlagSet, getenv func(string) string) error {
	given := make(map[string]bool)
	flags.Visit(func(f *flag.Flag) { given[f.Name] = true })

	var errs []error
	flags.VisitAll(func(f *flag.Flag) {
		name := variable(f.Name)
		if name == "" || given[f.Name] || getenv(name) == "" {
			return
		}
		if err := f.Value.Set(getenv(name)); err != nil {
			errs = append(errs, fmt.Errorf("invalid value %q for %s: %w", getenv(name), name, err))
		}
	})
	return errors.Join(errs...)
}

func (cfg *config) addSchemas(list string) error {
	for name := range strings.SplitSeq(list, ",") {
		schema, err := tenancy.ParseSchema(strings.TrimSpace(name))
		if err != nil {
			return err
		}
		if !slices.Contains(cfg.schemas, schema) {
			cfg.schemas = append(cfg.schemas, schema)
		}
	}
	return nil
}
