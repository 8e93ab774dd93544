package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgconn/ctxwatch"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgidem/pgidem/idempotency/pgstore"
	"github.com/pgidem/pgidem/tenancy"
)

const (
	defaultWorkers = 4
	maxWorkers     = 64
	maxBatch       = 1_000_000

	// connectTimeout applies unless the URL has a connect_timeout.
	connectTimeout = 10 * time.Second

	// After a stop, a statement under way may finish for finishDelay. Then the
	// server is asked to cancel it, and after abandonDelay its answer is no longer
	// waited for.
	finishDelay  = 500 * time.Millisecond
	abandonDelay = 2 * time.Second
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

	pool *pgxpool.Config
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
	if cfg.databaseURL == "" {
		return config{}, errors.New("no database: set DATABASE_URL or give --database-url, such as postgres://user@host:5432/name")
	}
	var err error
	cfg.pool, err = cfg.poolConfig()
	return cfg, err
}

// flags returns the flags, each of which writes to cfg, with the defaults set.
func (cfg *config) flags() *flag.FlagSet {
	cfg.batch, cfg.workers = pgstore.DefaultPurgeBatch, defaultWorkers

	flags := flag.NewFlagSet("idem-janitor", flag.ContinueOnError)
	flags.SetOutput(io.Discard) // errors are printed by run, help by helpText
	flags.Usage = func() {}

	flags.StringVar(&cfg.databaseURL, "database-url", "", "`URL` of the database, or keyword=value pairs. The variable keeps its password out of the list of processes")
	flags.Func("schema", "visit only the tenant schema `NAME`; repeat it, or separate names by commas (default: every schema that holds a table of records)", cfg.addSchemas)
	flags.BoolFunc("dry-run", "count what would be deleted, and delete nothing", boolean(&cfg.dryRun))
	flags.Func("interval", "run a round every `D`, from start to start, until stopped; 0 runs one and exits (default 0). A round that takes longer is followed by the next at once", duration(&cfg.interval))
	flags.Func("batch", fmt.Sprintf("delete at most `N` records in one statement (default %d)", pgstore.DefaultPurgeBatch), number(&cfg.batch, maxBatch))
	flags.Func("pause", "rest for `D` after each statement that deleted something (default 0)", duration(&cfg.pause))
	flags.Func("workers", fmt.Sprintf("visit `N` tenants at the same time, over a connection each (default %d)", defaultWorkers), number(&cfg.workers, maxWorkers))
	flags.Func("max-duration", "end a round after `D`, and leave the rest to the next; 0 sets no limit (default 0)", duration(&cfg.maxDuration))
	flags.Func("statement-timeout", "have the server end each statement after `D`; that tenant then failed. 0 leaves it to the server (default 0)", duration(&cfg.statementTimeout))
	flags.Func("lock-timeout", "have the server end a statement that waits for a lock for `D`, such as a migration's; that tenant then failed. 0 leaves it to the server (default 0)", duration(&cfg.lockTimeout))
	flags.BoolFunc("json", "print one JSON object a round on standard output, and nothing else", boolean(&cfg.json))
	flags.BoolFunc("quiet", "print failures and warnings only; --json prints its object all the same", boolean(&cfg.quiet))
	flags.BoolFunc("version", "print the version and exit", boolean(&cfg.version))
	return flags
}

// variable returns the name of the environment variable behind a flag, or "".
func variable(flagName string) string {
	switch flagName {
	case "version":
		return ""
	case "database-url":
		return "DATABASE_URL"
	}
	return "IDEM_JANITOR_" + strings.ToUpper(strings.ReplaceAll(flagName, "-", "_"))
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

func boolean(to *bool) func(string) error {
	return func(value string) (err error) {
		if *to, err = strconv.ParseBool(value); err != nil {
			return errors.New("give true or false")
		}
		return nil
	}
}

func number(to *int, most int) func(string) error {
	return func(value string) error {
		n, err := strconv.Atoi(value)
		if err != nil || n < 1 || n > most {
			return fmt.Errorf("give a whole number from 1 to %d", most)
		}
		*to = n
		return nil
	}
}

func duration(to *time.Duration) func(string) error {
	return func(value string) error {
		d, err := time.ParseDuration(value)
		if err != nil || d != 0 && d < time.Millisecond {
			return errors.New("give a number with a unit, such as 500ms, 30s, 15m or 1h, of at least 1ms, or 0")
		}
		*to = d
		return nil
	}
}

// poolConfig returns what the pool of a round is made of.
func (cfg *config) poolConfig() (*pgxpool.Config, error) {
	pool, err := pgxpool.ParseConfig(cfg.databaseURL)
	if err != nil {
		return nil, urlError(cfg.databaseURL)
	}
	if strings.Contains(pool.ConnConfig.Database, "@") {
		return nil, errMalformedURL // the end of a password that has a / in it
	}
	pool.MaxConns = int32(cfg.workers)
	pool.MinConns, pool.MinIdleConns = 0, 0

	conn := pool.ConnConfig
	// Each statement text names its tenant and is used once or a few times, and
	// behind PgBouncer nothing prepared can be relied on.
	conn.DefaultQueryExecMode = pgx.QueryExecModeExec
	conn.StatementCacheCapacity, conn.DescriptionCacheCapacity = 0, 0
	if conn.ConnectTimeout == 0 {
		conn.ConnectTimeout = connectTimeout
	}
	conn.BuildContextWatcherHandler = func(c *pgconn.PgConn) ctxwatch.Handler {
		return &pgconn.CancelRequestContextWatcherHandler{Conn: c, CancelRequestDelay: finishDelay, DeadlineDelay: abandonDelay}
	}
	if conn.RuntimeParams["application_name"] == "" {
		conn.RuntimeParams["application_name"] = "idem-janitor"
	}
	for param, d := range map[string]time.Duration{"statement_timeout": cfg.statementTimeout, "lock_timeout": cfg.lockTimeout} {
		if d > 0 {
			conn.RuntimeParams[param] = strconv.FormatInt(d.Milliseconds(), 10)
		}
	}
	return pool, nil
}

var errMalformedURL = errors.New("--database-url or DATABASE_URL cannot be read: give postgres://user:password@host:5432/name, " +
	"with the special characters of the password percent-encoded (/ is %2F, @ is %40), or keyword=value pairs")

// urlError says why pgx refuses a database URL. The reason is found again for the
// URL without its passwords, so that it cannot contain one; where it is not clear
// which part is a password, the reason is left out.
func urlError(databaseURL string) error {
	u, err := url.Parse(databaseURL)
	if err != nil || u.Host == "" || strings.Contains(u.Path, "@") || u.Fragment != "" {
		return errMalformedURL
	}
	if u.User != nil {
		u.User = url.User(u.User.Username())
	}
	query := u.Query()
	query.Del("password")
	query.Del("sslpassword")
	u.RawQuery = query.Encode()
	if _, err = pgxpool.ParseConfig(u.String()); err == nil {
		return errMalformedURL
	}
	return fmt.Errorf("--database-url or DATABASE_URL: %w", err)
}
