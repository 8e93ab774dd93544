package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
)

func TestProgressLines(t *testing.T) {
	t.Parallel()
	var stdout, stderr bytes.Buffer
	report := &textReport{out: &stdout, err: &stderr, every: progressEvery}
	report.begin(10_000)
	for range 10_000 {
		report.tenant(outcome{state: done})
	}
	if stdout.Len() > 0 {
		t.Errorf("idle tenants take lines: %.200q", stdout.String())
	}

	report.every = 0
	report.progress(3)
	if want := "10000 of 10000 tenants, 3 records deleted ("; !strings.Contains(stdout.String(), want) {
		t.Errorf("%q, want %q", stdout.String(), want)
	}
	if stderr.Len() > 0 {
		t.Errorf("stderr %q", stderr.String())
	}
}

func TestNoBarOffATerminal(t *testing.T) {
	t.Parallel()
	file, err := os.Create(t.TempDir() + "/out")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = file.Close() }()
	getenv := func(string) string { return "" }
	if report := newReport(config{}, getenv, file, file).(*textReport); report.terminal {
		t.Error("a file counts as a terminal")
	}
	if report := newReport(config{}, getenv, new(bytes.Buffer), new(bytes.Buffer)).(*textReport); report.terminal {
		t.Error("a buffer counts as a terminal")
	}
	if _, ok := newReport(config{json: true, quiet: true}, getenv, file, file).(*jsonReport); !ok {
		t.Error("no object with --json --quiet")
	}
}

func TestJSONShape(t *testing.T) {
	t.Parallel()
	pool, url := newPool(t)
	schema := newTenant(t, url)
	fill(t, pool, schema, 2, expired)
	fields := func(args ...string) string {
		t.Helper()
		r := janitorRun(t, append(args, "--json", "--database-url", url)...)
		if strings.Count(r.stdout, "\n") != 1 || r.stderr != "" {
			t.Errorf("%+v", r)
		}
		var object map[string]any
		if err := json.Unmarshal([]byte(r.stdout), &object); err != nil {
			t.Fatal(err)
		}
		var fields []string
		for name, value := range object {
			if name == "started_at" || name == "duration_seconds" {
				value = "*"
			}
			fields = append(fields, fmt.Sprint(name, "=", value))
		}
		slices.Sort(fields)
		return strings.Join(fields, " ")
	}
	const common = "dry_run=%t duration_seconds=* failures=[] purged=[map[records:2 schema:%s]] records_deleted=%d %sstarted_at=* tenants=1 tenants_done=1 tenants_dropped=0 tenants_failed=0 tenants_left=0"
	if got, want := fields("--dry-run"), fmt.Sprintf(common, true, schema, 0, "records_to_delete=2 "); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	if got, want := fields(), fmt.Sprintf(common, false, schema, 2, ""); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}
