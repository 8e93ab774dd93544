package main

import (
	"net/url"
	"strings"
	"testing"

	"github.com/google/uuid"
	"github.com/spf13/pflag"

	"github.com/pgidem/pgidem/internal/cli"
	"github.com/pgidem/pgidem/internal/pgtest"
	"github.com/pgidem/pgidem/tenancy/registry"
)

const (
	anyURL = "postgres://operator@127.0.0.1:1/app?sslmode=disable"
	anyOrg = "6f1c2f6e-0d5a-4c8e-9f5e-2f0a3c1d7b42"
)

func TestUsageErrors(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		args []string
		env  map[string]string
		want []string
	}{
		"no verb":            {want: []string{"no verb", "inspect", "Run idem-tenants --help"}},
		"unknown verb":       {args: []string{"delete"}, want: []string{`"delete"`, "release"}},
		"misspelt verb":      {args: []string{"inspct", anyOrg}, want: []string{"is it inspect?"}},
		"unknown flag":       {args: []string{"list", "--stat", "active"}, want: []string{"--stat", "Run idem-tenants list --help"}},
		"no database":        {args: []string{"list"}, env: map[string]string{"DATABASE_URL": ""}, want: []string{"DATABASE_URL", "--database-url"}},
		"control schema":     {args: []string{"init", "--control-schema", "Robert'); DROP"}, want: []string{"--control-schema", "lower-case"}},
		"control variable":   {args: []string{"list"}, env: map[string]string{"IDEM_TENANTS_CONTROL_SCHEMA": "public"}, want: []string{`"public"`}},
		"json variable":      {args: []string{"list"}, env: map[string]string{"IDEM_TENANTS_JSON": "ja"}, want: []string{"IDEM_TENANTS_JSON", "true or false"}},
		"state":              {args: []string{"list", "--state", "active,gone"}, want: []string{"--state", `"gone"`, "provisioning"}},
		"version":            {args: []string{"list", "--older-than", "0"}, want: []string{"--older-than", "from 1"}},
		"argument":           {args: []string{"list", "active"}, want: []string{`"active"`}},
		"no org":             {args: []string{"inspect"}, want: []string{"ORG"}},
		"malformed org":      {args: []string{"inspect", "tenant_a"}, want: []string{`"tenant_a"`, "UUID"}},
		"nil org":            {args: []string{"suspend", "--yes", uuid.Nil.String()}, want: []string{"UUID"}},
		"no key":             {args: []string{"release", anyOrg}, want: []string{"ORG and KEY"}},
		"many keys":          {args: []string{"inspect", anyOrg, "a", "b"}, want: []string{`"b"`}},
		"schema":             {args: []string{"inspect", anyOrg, "--schema", "pg_catalog"}, want: []string{"--schema", "reserved"}},
		"server":             {args: []string{"list", "--server", "postgres://u:hunter2@h/d"}, want: []string{"--server", "CLUSTER=URL"}},
		"server variable":    {args: []string{"list"}, env: map[string]string{"IDEM_TENANTS_SERVER": "postgres://u:hunter2@h/d"}, want: []string{"IDEM_TENANTS_SERVER", "CLUSTER=URL"}},
		"one dash":           {args: []string{"list", "-database-url=postgres://u:hunter2@h/d"}, want: []string{"-database-url", "two dashes"}},
		"shell":              {args: []string{"completion", "tcsh"}, want: []string{`"tcsh"`, "powershell"}},
		"no shell":           {args: []string{"completion"}, want: []string{"bash"}},
		"help of no verb":    {args: []string{"help", "delete"}, want: []string{`"delete"`}},
		"sslmode of the URL": {args: []string{"list"}, env: map[string]string{"DATABASE_URL": "postgres://u:hunter2%2F@h/d?sslmode=sometimes"}, want: []string{"DATABASE_URL", "sslmode"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			env := map[string]string{"DATABASE_URL": anyURL}
			for name, value := range test.env {
				env[name] = value
			}
			r := runEnv(t, env, test.args...).expect(t, cli.ExitUsage, test.want...).without(t, "hunter2")
			if r.stdout != "" {
				t.Errorf("stdout %q", r.stdout)
			}
		})
	}
}

func TestPasswordsAreNotPrinted(t *testing.T) {
	t.Parallel()
	for _, databaseURL := range []string{
		"postgres://operator:hunter2%zz@db/app",
		"postgres://operator:hun/ter2@db/app",
		"postgres://operator:hunter2@db:port/app",
		"postgres://db/app?sslmode=x&password=hunter2",
		"host=db password='hun ter2' sslmode=x",
		"hunter2",
	} {
		for _, args := range [][]string{{"init"}, {"list"}, {"inspect", anyOrg}, {"release", anyOrg, "key", "--schema", "tenant_a"}} {
			runEnv(t, map[string]string{"DATABASE_URL": databaseURL}, args...).expect(t, cli.ExitUsage, "DATABASE_URL").without(t, "hun", "ter2")
		}
	}
}

func TestUnreachable(t *testing.T) {
	t.Parallel()
	base := pgtest.NewPool(t).Config().ConnString()
	const password = "s3cret-Passw0rd"
	noDatabase, err := url.Parse(base)
	if err != nil {
		t.Fatal(err)
	}
	noDatabase.Path = "/pgidem_no_such_database"
	for _, databaseURL := range []string{
		"postgres://operator:" + password + "@127.0.0.1:1/app?sslmode=disable",
		"host=127.0.0.1 port=1 user=operator dbname=app password=" + password,
		noDatabase.String(),
	} {
		for _, args := range [][]string{{"init"}, {"list", "--json"}, {"inspect", anyOrg}, {"suspend", "--yes", anyOrg}} {
			runEnv(t, map[string]string{"DATABASE_URL": databaseURL}, args...).expect(t, cli.ExitUnreachable, "connect: ").without(t, password)
		}
	}
}

func TestHelp(t *testing.T) {
	t.Parallel()
	root := (&app{getenv: func(string) string { return "" }}).root()
	text := runEnv(t, nil, "--help").expect(t, cli.ExitOK, "Examples:", "Exit codes:", "--database-url URL   [DATABASE_URL]", "--server CLUSTER=URL   [IDEM_TENANTS_SERVER]")
	for _, verb := range root.Commands() {
		if !strings.Contains(text.stdout, "\n  "+verb.Name()+" ") {
			t.Errorf("%s is not in the help", verb.Name())
		}
		r := runEnv(t, nil, verb.Name(), "--help").expect(t, cli.ExitOK, "Usage:\n  idem-tenants "+verb.Use, "Examples:\n  ")
		if again := runEnv(t, nil, "help", verb.Name()); again != r {
			t.Errorf("help %s is another text: %s%s", verb.Name(), again.stdout, again.stderr)
		}
		if r.stderr != "" || verb.Annotations["offline"] == "" && !strings.Contains(r.stdout, "Exit codes:") {
			t.Errorf("%s: %+v", verb.Name(), r)
		}
		verb.LocalNonPersistentFlags().VisitAll(func(f *pflag.Flag) {
			if f.Name == "help" {
				return
			}
			if !strings.Contains(r.stdout, "\n  --"+f.Name) || !strings.Contains(r.stdout, variable(f.Name)) {
				t.Errorf("%s: --%s is not in the help", verb.Name(), f.Name)
			}
		})
		for line := range strings.Lines(r.stdout) {
			if len(line) > 100 {
				t.Errorf("%s: a line of %d characters: %s", verb.Name(), len(line), line)
			}
		}
	}
	if r := runEnv(t, nil, "--version"); r.code != cli.ExitOK || !strings.HasPrefix(r.stdout, "idem-tenants ") || strings.Count(r.stdout, "\n") != 1 {
		t.Errorf("%+v", r)
	}
}

// TestVariables sets a variable for each flag that has one; flags win.
func TestVariables(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.run(t, "init", "--control-schema", "others").expect(t, cli.ExitOK, "others")
	active, suspended := f.register(t, registry.Active), f.register(t, registry.Suspended)

	env := map[string]string{"DATABASE_URL": f.url, "IDEM_TENANTS_STATE": "suspended", "IDEM_TENANTS_JSON": "1", "IDEM_TENANTS_CONTROL_SCHEMA": "others"}
	if r := runEnv(t, env, "list").expect(t, cli.ExitOK); r.stdout != "" {
		t.Errorf("the other registry has %s", r.stdout)
	}
	delete(env, "IDEM_TENANTS_CONTROL_SCHEMA")
	if got := object[tenantJSON](t, runEnv(t, env, "list")); got.OrgID != suspended.OrgID {
		t.Errorf("%+v, want the suspended one", got)
	}
	if got := object[tenantJSON](t, runEnv(t, env, "list", "--state", "active")); got.OrgID != active.OrgID {
		t.Errorf("%+v, want the active one", got)
	}
	runEnv(t, env, "list", "--json=false").expect(t, cli.ExitOK, "ORG  ")

	// What says yes to danger has to be given each time.
	env["IDEM_TENANTS_YES"] = "true"
	runEnv(t, env, "suspend", active.OrgID.String()).expect(t, cli.ExitUsage, "--yes")
}

func TestCompletion(t *testing.T) {
	t.Parallel()
	for shell, want := range map[string]string{
		"bash": "complete -o default", "zsh": "#compdef idem-tenants", "fish": "complete -c idem-tenants", "powershell": "Register-ArgumentCompleter",
	} {
		if r := runEnv(t, nil, "completion", shell).expect(t, cli.ExitOK, want); r.stderr != "" {
			t.Errorf("%s: %q", shell, r.stderr)
		}
	}
	for line, want := range map[string]string{
		"list --state ":            "suspended",
		"re":                       "release",
		"inspect --sc":             "--scope",
		"completion ":              "powershell",
		"help in":                  "inspect",
		"inspect " + anyOrg + " ":  ":4", // no names of files
		"list --control-schema x ": ":4",
	} {
		args := append([]string{"__complete"}, strings.Split(line, " ")...)
		runEnv(t, nil, args...).expect(t, cli.ExitOK, want)
	}
}
