package main

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/schollz/progressbar/v3"

	"github.com/pgidem/pgidem/internal/cli"
	"github.com/pgidem/pgidem/migrations"
)

// migrateReporter tells what happens in a migration. Progress and tenant are called one at
// a time.
type migrateReporter interface {
	begin(c chosen)
	progress(p migrations.Progress) // of the tenants of all servers
	tenant(m migrated)
	lost(c cutOff)
	end(r migrateRun)
}

func (a *app) newMigrateReport(terms migrateTerms) migrateReporter {
	if a.json {
		return jsonMigrateReport{a}
	}
	return &textMigrateReport{
		app: a, quiet: terms.quiet, dryRun: terms.dryRun,
		terminal: !terms.quiet && cli.CanDraw(a.getenv, a.stdout, a.stderr), every: progressEvery,
	}
}

// progressEvery is how often a line tells how far a run is where there is no bar.
const progressEvery = 10 * time.Second

// textMigrateReport is for people: failures as they come, a bar or lines, and a table.
type textMigrateReport struct {
	app                     *app
	quiet, dryRun, terminal bool
	every                   time.Duration

	mu   sync.Mutex
	bar  *progressbar.ProgressBar // nil where there is none
	last time.Time
}

func (t *textMigrateReport) begin(c chosen) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.last = time.Now()
	if t.terminal && c.tenants > 0 {
		t.bar = progressbar.NewOptions(c.tenants,
			progressbar.OptionSetWriter(t.app.stderr),
			progressbar.OptionSetWidth(20),
			progressbar.OptionShowCount(),
			progressbar.OptionThrottle(100*time.Millisecond),
			progressbar.OptionUseANSICodes(true),
			progressbar.OptionClearOnFinish(),
			progressbar.OptionSetPredictTime(false),
			progressbar.OptionShowDescriptionAtLineEnd(),
			progressbar.OptionSetDescription("tenants"),
		)
		_ = t.bar.RenderBlank()
	}
}

func (t *textMigrateReport) progress(p migrations.Progress) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.bar != nil {
		t.bar.Describe("tenants" + pace(p))
		_ = t.bar.Set(p.Done)
		return
	}
	if time.Since(t.last) < t.every {
		return
	}
	t.last = time.Now()
	t.outf("%d of %d tenants%s", p.Done, p.Total, pace(p))
}

// pace says how fast a run is, and how long the rest will take.
func pace(p migrations.Progress) string {
	var b strings.Builder
	if p.Failed > 0 {
		_, _ = fmt.Fprintf(&b, ", %d failed", p.Failed)
	}
	if p.Waiting > 0 {
		_, _ = fmt.Fprintf(&b, ", %d busy", p.Waiting)
	}
	if p.Rate > 0 {
		_, _ = fmt.Fprintf(&b, ", %.0f/s", p.Rate)
	}
	if p.Left > 0 {
		_, _ = fmt.Fprintf(&b, ", %s left", span(p.Left))
	}
	return b.String()
}

func (t *textMigrateReport) tenant(m migrated) {
	t.mu.Lock()
	defer t.mu.Unlock()
	about := m.target.about(m.cluster)
	switch {
	case m.Outcome == migrations.Failed:
		t.clear()
		t.app.errf("%s", failure(m))
	case m.Outcome == migrations.Newer:
		t.clear()
		t.outf("%s: at %d, newer than this program, and left alone", about, m.To)
	case t.dryRun && m.Outcome == migrations.Created:
		t.clear()
		t.outf("%s: would be made, at %d", about, m.To)
	case t.dryRun && m.Outcome == migrations.Migrated:
		t.clear()
		t.outf("%s: would be migrated from %d to %d", about, m.From, m.To)
	}
}

func (t *textMigrateReport) lost(c cutOff) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.clear()
	t.app.errf("%s", c.Error())
}

// failure says on one line why a tenant was not migrated.
func failure(m migrated) string {
	text := m.target.about(m.cluster) + ": "
	if m.To > m.From {
		text += fmt.Sprintf("came from %d to %d: ", m.From, m.To)
	}
	return text + cli.OneLine(m.Err)
}

func (t *textMigrateReport) end(r migrateRun) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.clear()
	t.bar = nil
	if r.chosen.unfit != nil {
		t.app.errf("warning: not visited: %s", cli.OneLine(r.chosen.unfit))
	}
	if r.refused != nil {
		t.app.errf("warning: %s", cli.OneLine(r.refused))
	}
	if r.late != nil {
		t.app.errf("warning: %s", cli.OneLine(r.late))
	}
	if r.noted != nil {
		t.app.errf("%s", cli.OneLine(r.noted))
	}
	if !t.quiet {
		t.table(r, t.app.stdout)
	}
}

func (t *textMigrateReport) table(r migrateRun, out io.Writer) {
	f := newFacts(out)
	verb := func(done, would string) string {
		if r.dryRun {
			return would
		}
		return done
	}
	f.row("newest migration", "%d", migrations.Latest())
	f.row("tenants", "%d", r.chosen.tenants)
	f.row(verb("created", "to create"), "%d", r.count(migrations.Created))
	f.row(verb("migrated", "to migrate"), "%d", r.count(migrations.Migrated))
	f.row("up to date", "%d", r.current)
	if n := r.count(migrations.Newer); n > 0 {
		f.row("newer", "%d", n)
	}
	f.row("failed", "%d", r.count(migrations.Failed))
	if n := r.busy(); n > 0 {
		f.row("busy", "%d, left for the next run", n)
	}
	if n := r.moving(); n > 0 {
		f.row("being moved", "%d, left for the next run", n)
	}
	if n := r.left(); n > 0 {
		f.row("not reached", "%d, left for the next run", n)
	}
	if text := r.chosen.leftOut(); text != "" {
		f.row("left out", "%s", strings.TrimPrefix(text, "left out: "))
	}
	if r.stopped != nil {
		f.row("stopped by", "%s", r.stopped)
	}
	rate := ""
	if n := r.count(migrations.Created) + r.count(migrations.Migrated); n > 0 && !r.dryRun && r.duration > 0 {
		rate = fmt.Sprintf(" (%.0f/s)", float64(n)/r.duration.Seconds())
	}
	f.row("duration", "%s%s", cli.ToMillisecond(r.duration), rate)
	_ = f.end()
}

// clear makes room for a line where the bar is; the bar comes back by itself.
func (t *textMigrateReport) clear() {
	if t.bar != nil {
		_ = t.bar.Clear()
	}
}

func (t *textMigrateReport) outf(format string, args ...any) {
	if !t.quiet {
		_, _ = fmt.Fprintf(t.app.stdout, format+"\n", args...)
	}
}

// jsonMigrateReport prints one object at the end.
type jsonMigrateReport struct{ app *app }

// migrateJSON is that object.
type migrateJSON struct {
	StartedAt time.Time      `json:"started_at"`
	Seconds   float64        `json:"duration_seconds"`
	DryRun    bool           `json:"dry_run"`
	Latest    int64          `json:"newest_migration"`
	Tenants   int            `json:"tenants"`
	Created   int            `json:"tenants_created"`
	Migrated  int            `json:"tenants_migrated"`
	Current   int            `json:"tenants_up_to_date"`
	Newer     int            `json:"tenants_newer"`
	Failed    int            `json:"tenants_failed"`
	Busy      int            `json:"tenants_busy"`
	Moving    int            `json:"tenants_being_moved"`
	Left      int            `json:"tenants_left"`
	LeftOut   int            `json:"tenants_left_out"` // being provisioned or dropped
	Changed   []changeJSON   `json:"changed"`          // created and migrated, or to be, by schema
	Failures  []failedTenant `json:"failures"`         // failed, busy and being moved, by schema
	Unreached []lostServer   `json:"clusters_unreached,omitempty"`
	Stopped   string         `json:"stopped,omitempty"`
	Warning   string         `json:"warning,omitempty"`
	Error     string         `json:"error,omitempty"`
}

type changeJSON struct {
	Schema  string             `json:"schema"`
	OrgID   string             `json:"org_id,omitempty"`
	Cluster string             `json:"cluster,omitempty"`
	Outcome migrations.Outcome `json:"outcome"`
	From    int64              `json:"from"`
	To      int64              `json:"to"`
}

type failedTenant struct {
	changeJSON
	Busy     bool   `json:"busy"`
	Moving   bool   `json:"being_moved"`
	Tries    int    `json:"tries"`
	Error    string `json:"error"`
	SQLState string `json:"sqlstate,omitempty"`
}

// lostServer is a cluster that could not be reached, or not to the end.
type lostServer struct {
	Cluster string `json:"cluster"`
	Tenants int    `json:"tenants_left"`
	Error   string `json:"error"`
}

func (c cutOff) json() lostServer { return lostServer{c.cluster, c.tenants, cli.OneLine(c.err)} }

func (jsonMigrateReport) begin(chosen)                 {}
func (jsonMigrateReport) progress(migrations.Progress) {}
func (jsonMigrateReport) tenant(migrated)              {}
func (jsonMigrateReport) lost(cutOff)                  {}

func (j jsonMigrateReport) end(r migrateRun) {
	object := migrateJSON{
		StartedAt: r.started.UTC(), Seconds: cli.ToMillisecond(r.duration).Seconds(), DryRun: r.dryRun, Latest: migrations.Latest(),
		Tenants: r.chosen.tenants, Created: r.count(migrations.Created), Migrated: r.count(migrations.Migrated), Current: r.current,
		Newer: r.count(migrations.Newer), Failed: r.count(migrations.Failed), Busy: r.busy(), Moving: r.moving(), Left: r.left(),
		LeftOut: r.chosen.provisioning + r.chosen.deleting,
		Changed: []changeJSON{}, Failures: []failedTenant{},
	}
	bySchema := func(a, b migrated) int { return strings.Compare(a.Schema.String(), b.Schema.String()) }
	for _, m := range slices.SortedFunc(slices.Values(r.ended), bySchema) {
		change := changeJSON{Schema: m.Schema.String(), Cluster: m.cluster, Outcome: m.Outcome, From: m.From, To: m.To}
		if m.target.tenant != nil {
			change.OrgID = m.target.OrgID.String()
		}
		switch m.Outcome {
		case migrations.Created, migrations.Migrated:
			object.Changed = append(object.Changed, change)
		case migrations.Failed:
			object.Failures = append(object.Failures, failedTenant{
				changeJSON: change, Busy: m.busy(), Moving: m.moving, Tries: m.Tries, Error: m.Err.Error(), SQLState: m.SQLState(),
			})
		}
	}
	if r.stopped != nil {
		object.Stopped = r.stopped.Error()
	}
	if err := errors.Join(r.chosen.unfit, r.refused, r.late); err != nil {
		object.Warning = cli.OneLine(err)
	}
	var errs []error
	for _, c := range r.cutOff {
		errs = append(errs, c)
		object.Unreached = append(object.Unreached, c.json())
	}
	if err := errors.Join(append(errs, r.noted)...); err != nil {
		object.Error = cli.OneLine(err)
	}
	if err := j.app.printJSON(object); err != nil {
		j.app.errf("%v", err)
	}
}
