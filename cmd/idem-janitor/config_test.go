package main

import (
	"flag"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgidem/pgidem/internal/cli"
)

const anyURL = "postgres://janitor@localhost/app"

func TestBadFlagsAndVariables(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		args []string
		env  map[string]string
		want []string
	}{
		"no database":        {want: []string{"DATABASE_URL", "--database-url"}},
		"unknown flag":       {args: []string{"--bach", "5"}, want: []string{"-bach", "--help"}},
		"argument":           {args: []string{"now"}, want: []string{`"now"`}},
		"batch":              {args: []string{"--batch", "0"}, want: []string{"-batch", "1 to 1000000"}},
		"batch variable":     {env: map[string]string{"IDEM_JANITOR_BATCH": "many"}, want: []string{"IDEM_JANITOR_BATCH", `"many"`, "1 to 1000000"}},
		"workers":            {args: []string{"-workers=65"}, want: []string{"-workers", "1 to 64"}},
		"interval unit":      {args: []string{"--interval", "60"}, want: []string{"-interval", `"60"`, "with a unit"}},
		"interval negative":  {args: []string{"--interval", "-1s"}, want: []string{"-interval", "at least 1ms"}},
		"interval variable":  {env: map[string]string{"IDEM_JANITOR_INTERVAL": "hourly"}, want: []string{"IDEM_JANITOR_INTERVAL", "with a unit"}},
		"pause too short":    {args: []string{"--pause", "1us"}, want: []string{"-pause", "at least 1ms"}},
		"dry run":            {args: []string{"--dry-run=perhaps"}, want: []string{"-dry-run", "true or false"}},
		"json variable":      {env: map[string]string{"IDEM_JANITOR_JSON": "ja"}, want: []string{"IDEM_JANITOR_JSON", "true or false"}},
		"schema":             {args: []string{"--schema", "tenant_a,Robert'); DROP"}, want: []string{"-schema", "lower-case letters"}},
		"schema empty":       {args: []string{"--schema", "tenant_a,"}, want: []string{"-schema", "empty"}},
		"schema variable":    {env: map[string]string{"IDEM_JANITOR_SCHEMA": "public"}, want: []string{"IDEM_JANITOR_SCHEMA", `"public"`}},
		"server":             {args: []string{"--server", "postgres://u:hunter2@h/d"}, want: []string{"--server", "CLUSTER=URL"}},
		"server variable":    {env: map[string]string{"IDEM_JANITOR_SERVER": "eu=postgres://u:hunter2@h/d us"}, want: []string{"IDEM_JANITOR_SERVER", "CLUSTER=URL"}},
		"server's URL":       {args: []string{"--server", "eu=postgres://u:hunter2@h:port/d"}, want: []string{"--server eu"}},
		"server twice":       {args: []string{"--server", "eu=postgres://u:hunter2@h/d eu=postgres://u:hunter2@h2/d"}, want: []string{"cluster eu is given twice"}},
		"server and schema":  {args: []string{"--server", "eu=" + anyURL, "--schema", "tenant_a"}, want: []string{"--schema goes with one database"}},
		"two variables":      {env: map[string]string{"IDEM_JANITOR_BATCH": "x", "IDEM_JANITOR_PAUSE": "y"}, want: []string{"IDEM_JANITOR_BATCH", "IDEM_JANITOR_PAUSE"}},
		"sslmode of the URL": {env: map[string]string{"DATABASE_URL": "postgres://u:hunter2%2F@h/d?sslmode=sometimes"}, want: []string{"DATABASE_URL", "sslmode"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			args := test.args
			if name != "no database" && test.env["DATABASE_URL"] == "" {
				args = append([]string{"--database-url", anyURL}, args...)
			}
			r := janitorRunEnv(t, test.env, args...)
			r.expect(t, cli.ExitUsage, test.want...)
			if r.stdout != "" || strings.Contains(r.stderr, "hunter2") {
				t.Errorf("%+v", r)
			}
		})
	}
}

func TestMalformedURLIsNotPrinted(t *testing.T) {
	t.Parallel()
	for _, databaseURL := range []string{
		"postgres://janitor:hunter2%zz@db/app",
		"postgres://janitor:hun/ter2@db/app",
		"postgres://janitor:123/hunter2@db/app",
		"postgres://janitor:hunter2:hun:ter2@db:port/app",
		"postgres://janitor:hunter2@db:port/app",
		"postgres://janitor:hun#ter2@db:port/app",
		"postgres://db/app?sslmode=x&password=hunter2",
		"postgres://db:port/app?password=hunter2",
		"mysql://janitor:hunter2@db/app",
		"host=db password=hunter2 sslmode=x",
		"host=db password='hun ter2' sslmode=x",
		"host=db password = hunter2 port=x",
		"hunter2",
	} {
		r := janitorRunEnv(t, map[string]string{"DATABASE_URL": databaseURL})
		r.expect(t, cli.ExitUsage, "DATABASE_URL")
		for _, part := range []string{"hun", "ter2"} {
			if strings.Contains(r.stdout+r.stderr, part) {
				t.Errorf("%s: the output has part of the password: %s", databaseURL, r.stderr)
			}
		}
	}
}

func TestEachFlagHasAVariable(t *testing.T) {
	t.Parallel()
	values := map[string]string{
		"DATABASE_URL": anyURL, "IDEM_JANITOR_SCHEMA": "tenant_a, tenant_b,tenant_a", "IDEM_JANITOR_DRY_RUN": "true",
		"IDEM_JANITOR_INTERVAL": "1h", "IDEM_JANITOR_BATCH": "10", "IDEM_JANITOR_WORKERS": "2", "IDEM_JANITOR_PAUSE": "3ms",
		"IDEM_JANITOR_MAX_DURATION": "4m", "IDEM_JANITOR_STATEMENT_TIMEOUT": "5s", "IDEM_JANITOR_LOCK_TIMEOUT": "6s",
		"IDEM_JANITOR_JSON": "1", "IDEM_JANITOR_QUIET": "t",
	}
	asked := make(map[string]bool)
	getenv := func(name string) string { asked[name] = true; return values[name] }

	cfg, err := parseConfig(nil, getenv)
	if err != nil {
		t.Fatal(err)
	}
	if len(cfg.schemas) != 2 || !cfg.dryRun || cfg.interval != time.Hour || cfg.batch != 10 || cfg.workers != 2 ||
		cfg.pause != 3*time.Millisecond || cfg.maxDuration != 4*time.Minute || !cfg.json || !cfg.quiet {
		t.Errorf("%+v", cfg)
	}
	if p := cfg.databases[0].config.ConnConfig.RuntimeParams; p["statement_timeout"] != "5000" || p["lock_timeout"] != "6000" || p["application_name"] != "idem-janitor" {
		t.Errorf("parameters %v", p)
	}
	if cfg.databases[0].config.MaxConns != 2 || cfg.databases[0].config.ConnConfig.DefaultQueryExecMode != pgx.QueryExecModeExec {
		t.Errorf("pool %+v", cfg.databases[0].config)
	}
	for name := range asked {
		if values[name] == "" && name != "IDEM_JANITOR_SERVER" { // which goes without schemas, see below
			t.Errorf("no value for %s in this test", name)
		}
	}

	cfg, err = parseConfig([]string{"-batch", "77", "--schema=tenant_c", "--json=false"}, getenv)
	if err != nil {
		t.Fatal(err)
	}
	if cfg.batch != 77 || len(cfg.schemas) != 1 || cfg.json || cfg.workers != 2 {
		t.Errorf("flags do not win: %+v", cfg)
	}

	values["IDEM_JANITOR_SCHEMA"], values["IDEM_JANITOR_SERVER"] = "", "eu=postgres://j@eu/app us=postgres://j@us/app"
	for databaseURL, want := range map[string][]string{anyURL: {"", "eu", "us"}, "": {"eu", "us"}} {
		values["DATABASE_URL"] = databaseURL
		if cfg, err = parseConfig(nil, getenv); err != nil {
			t.Fatal(err)
		}
		var clusters []string
		for _, db := range cfg.databases {
			if clusters = append(clusters, db.cluster); db.cluster != "" && db.config.ConnConfig.Host != db.cluster {
				t.Errorf("cluster %s is at %s", db.cluster, db.config.ConnConfig.Host)
			}
			if p := db.config.ConnConfig.RuntimeParams; p["statement_timeout"] != "5000" || db.config.MaxConns != 2 {
				t.Errorf("cluster %s: %+v", db.cluster, p)
			}
		}
		if !slices.Equal(clusters, want) {
			t.Errorf("clusters %q, want %q", clusters, want)
		}
	}
}

func TestDefaults(t *testing.T) {
	t.Parallel()
	cfg, err := parseConfig([]string{"--database-url", anyURL + "?pool_min_conns=3&pool_max_conns=50"}, func(string) string { return "" })
	if err != nil {
		t.Fatal(err)
	}
	if cfg.interval != 0 || cfg.batch != 2000 || cfg.workers != 4 || cfg.maxDuration != 0 || cfg.dryRun {
		t.Errorf("%+v", cfg)
	}
	if cfg.databases[0].config.MinConns != 0 || cfg.databases[0].config.MaxConns != 4 || cfg.databases[0].config.ConnConfig.ConnectTimeout != cli.ConnectTimeout {
		t.Errorf("%+v", cfg.databases[0].config)
	}
	// PgBouncer refuses parameters that it does not know.
	if p := cfg.databases[0].config.ConnConfig.RuntimeParams; len(p) != 1 {
		t.Errorf("parameters %v, want the application's name only", p)
	}
}

func TestHelpAndVersion(t *testing.T) {
	t.Parallel()
	for _, arg := range []string{"--help", "-help", "-h"} {
		r := janitorRun(t, arg)
		r.expect(t, cli.ExitOK, "Examples:", "Exit codes:", "--dry-run   [IDEM_JANITOR_DRY_RUN]", "--database-url URL   [DATABASE_URL]")
		new(config).flags().VisitAll(func(f *flag.Flag) {
			if !strings.Contains(r.stdout, "  --"+f.Name) || !strings.Contains(r.stdout, variable(f.Name)) {
				t.Errorf("--%s is not in the help", f.Name)
			}
		})
		if r.stderr != "" {
			t.Errorf("stderr %q", r.stderr)
		}
	}
	if r := janitorRun(t, "--version"); r.code != cli.ExitOK || !strings.HasPrefix(r.stdout, "idem-janitor ") || r.stderr != "" {
		t.Errorf("%+v", r)
	}
}
