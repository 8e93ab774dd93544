package main

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/uuid"

	"github.com/pgidem/pgidem/internal/cli"
	"github.com/pgidem/pgidem/internal/pgtest"
	"github.com/pgidem/pgidem/tenancy/registry"
)

func TestInit(t *testing.T) {
	t.Parallel()
	url := pgtest.NewPool(t).Config().ConnString()
	env := map[string]string{"DATABASE_URL": url}
	for _, verb := range [][]string{{"list"}, {"inspect", anyOrg}, {"suspend", "--yes", anyOrg}, {"resume", anyOrg}} {
		runEnv(t, env, verb...).expect(t, cli.ExitFailed, "no registry of tenants in schema pgidem", "idem-tenants init")
	}
	runEnv(t, env, "init").expect(t, cli.ExitOK, "ready in schema pgidem")
	r := object[struct {
		ControlSchema string `json:"control_schema"`
	}](t, runEnv(t, env, "init", "--json").expect(t, cli.ExitOK))
	if r.ControlSchema != "pgidem" {
		t.Errorf("%+v", r)
	}
	runEnv(t, env, "list").expect(t, cli.ExitOK, "no tenants")
}

func TestList(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	const many = 2500 // some pages
	f.exec(t, `INSERT INTO pgidem.tenants (org_id, schema_name, cluster, state, version)
		SELECT id, 'tenant_' || replace(id::text, '-', ''), CASE WHEN i % 10 = 0 THEN 'eu' ELSE '' END,
			CASE WHEN i % 5 = 0 THEN 'suspended' ELSE 'active' END, i % 2 + 4
		FROM (SELECT i, gen_random_uuid() AS id FROM generate_series(1, $1::integer) AS i) AS t`, many)

	all := objects[tenantJSON](t, f.run(t, "list", "--json").expect(t, cli.ExitOK))
	if len(all) != many || !slices.IsSortedFunc(all, func(a, b tenantJSON) int { return strings.Compare(a.OrgID.String(), b.OrgID.String()) }) {
		t.Errorf("%d tenants, want %d in order", len(all), many)
	}
	if one := all[7]; one.Schema != schemaOf(t, one.OrgID).String() || one.CreatedAt.IsZero() || one.UpdatedAt.IsZero() || one.Version < 4 {
		t.Errorf("%+v", one)
	}
	for flags, want := range map[string]int{
		"--state active":                           many * 4 / 5,
		"--state=active,suspended":                 many,
		"--state active --state suspended":         many,
		"--state provisioning":                     0,
		"--cluster eu":                             many / 10,
		"--cluster=":                               many * 9 / 10,
		"--older-than 5":                           many / 2,
		"--cluster eu --older-than 5":              many / 10,
		"--cluster eu --state active":              0,
		"--state suspended --older-than 5":         many / 10,
		"--state suspended --cluster=":             many / 10,
		"--state suspended --older-than 4":         0,
		"--state deleting --control-schema pgidem": 0,
	} {
		args := append([]string{"list", "--json"}, strings.Fields(flags)...)
		if got := len(objects[tenantJSON](t, f.run(t, args...).expect(t, cli.ExitOK))); got != want {
			t.Errorf("%s: %d tenants, want %d", flags, got, want)
		}
	}
	text := f.run(t, "list").expect(t, cli.ExitOK, "ORG ", "SCHEMA ", all[3].Schema)
	if lines := strings.Count(text.stdout, "\n"); lines != many+1 {
		t.Errorf("%d lines, want %d and a head", lines, many)
	}
	f.run(t, "list", "--state", "deleting").expect(t, cli.ExitOK, "no tenants")
}

func TestSuspendAndResume(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	a, b, deleting := f.register(t, registry.Active), f.register(t, registry.Active), f.register(t, registry.Deleting)

	f.run(t, "suspend", a.OrgID.String()).expect(t, cli.ExitUsage, "no terminal", "--yes")
	if f.state(t, a.OrgID) != registry.Active {
		t.Error("suspended without having been confirmed")
	}
	f.run(t, "suspend", "--yes", a.OrgID.String()).expect(t, cli.ExitOK, a.OrgID.String()+": suspended")
	f.run(t, "suspend", "--yes", a.OrgID.String()).expect(t, cli.ExitOK, "suspended") // again
	got := objects[tenantJSON](t, f.run(t, "resume", "--json", a.OrgID.String(), strings.ReplaceAll(b.OrgID.String(), "-", "")).expect(t, cli.ExitOK))
	if len(got) != 2 || got[0].State != registry.Active || got[1].OrgID != b.OrgID {
		t.Errorf("%+v", got)
	}

	unknown := uuid.New()
	r := f.run(t, "suspend", "--yes", unknown.String(), deleting.OrgID.String(), a.OrgID.String())
	r.expect(t, cli.ExitFailed, fmt.Sprintf("%s is deleting", deleting.OrgID), unknown.String(), "no tenant", a.OrgID.String()+": suspended")
	if f.state(t, a.OrgID) != registry.Suspended || f.state(t, deleting.OrgID) != registry.Deleting {
		t.Error("the failures of two have kept the third from being suspended, or worse")
	}
	f.run(t, "resume", deleting.OrgID.String()).expect(t, cli.ExitFailed, "is deleting")
	f.run(t, "resume", unknown.String()).expect(t, exitNotFound, "no tenant")
}
