package main

import (
	"fmt"
	"io"
	"strings"
	"sync"
	"text/tabwriter"
	"time"

	"github.com/schollz/progressbar/v3"

	"github.com/pgidem/pgidem/internal/cli"
)

// reporter tells what happens. Its methods may be called by all workers at once.
type reporter interface {
	begin(tenants int)
	progress(records int64) // so many more
	tenant(o outcome)
	end(r round)
}

func newReport(cfg config, getenv func(string) string, stdout, stderr io.Writer) reporter {
	if cfg.json {
		return &jsonReport{out: stdout, err: stderr, dryRun: cfg.dryRun}
	}
	return &textReport{
		out: stdout, err: stderr, quiet: cfg.quiet, dryRun: cfg.dryRun,
		terminal: !cfg.quiet && cli.CanDraw(getenv, stdout, stderr),
		every:    progressEvery,
	}
}

// progressEvery is how often a line tells how far a round is where there is no bar.
const progressEvery = 10 * time.Second

// textReport is for people: a line for each tenant that had expired records or
// failed, and a summary. Idle tenants get none. A bar shows the progress on a
// terminal, and now and then a line elsewhere.
type textReport struct {
	out, err                io.Writer
	quiet, dryRun, terminal bool
	every                   time.Duration

	mu            sync.Mutex
	bar           *progressbar.ProgressBar // nil where there is none
	started, last time.Time
	tenants, done int
	records       int64
}

func (t *textReport) begin(tenants int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.started = time.Now()
	t.last = t.started
	t.tenants, t.done, t.records = tenants, 0, 0
	if t.terminal && tenants > 0 {
		t.bar = progressbar.NewOptions(tenants,
			progressbar.OptionSetWriter(t.err),
			progressbar.OptionSetWidth(20),
			progressbar.OptionShowCount(),
			progressbar.OptionThrottle(100*time.Millisecond),
			progressbar.OptionUseANSICodes(true),
			progressbar.OptionClearOnFinish(),
			progressbar.OptionShowDescriptionAtLineEnd(),
			progressbar.OptionSetDescription("tenants"),
		)
		_ = t.bar.RenderBlank()
	}
}

func (t *textReport) progress(records int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.records += records
	if t.bar != nil && records > 0 {
		t.bar.Describe("tenants, " + t.count(t.records) + t.rate(t.records, time.Since(t.started)))
	}
	t.tick()
}

func (t *textReport) tenant(o outcome) {
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case o.state == failed:
		t.clear()
		t.errf("%s: %s%s", o.tenant, t.partly(o.records), cli.OneLine(o.err))
	case o.state == dropped:
		t.clear()
		t.outf("%s: dropped meanwhile", o.tenant)
	case o.records > 0:
		t.clear()
		t.outf("%s: %s", o.tenant, t.count(o.records))
	}
	if o.state == left {
		return
	}
	t.done++
	if t.bar != nil {
		_ = t.bar.Add(1)
	}
	t.tick()
}

// tick prints the line that stands in for the bar, when its time has come.
func (t *textReport) tick() {
	if t.terminal || time.Since(t.last) < t.every {
		return
	}
	t.last = time.Now()
	t.outf("%d of %d tenants, %s%s", t.done, t.tenants, t.count(t.records), t.rate(t.records, time.Since(t.started)))
}

func (t *textReport) end(r round) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.clear()
	t.bar = nil
	if r.unfit != nil {
		t.errf("warning: not visited: %s", cli.OneLine(r.unfit))
	}
	if r.err != nil {
		t.errf("%s", cli.OneLine(r.err))
	}
	switch {
	case len(r.tenants) == 0 && r.err == nil && r.stopped == nil:
		t.outf("no tenants: no schema holds a table of idempotency records")
	case t.terminal:
		t.table(r)
	case len(r.tenants) > 0 || r.stopped != nil:
		t.line(r)
	}
}

// line is the summary on one line, for logs and mails.
func (t *textReport) line(r round) {
	var b strings.Builder
	ended := "done in"
	if r.stopped != nil || r.err != nil {
		ended = "ended after"
	}
	_, _ = fmt.Fprintf(&b, "%s %s: %s, %s%s, %d failed", ended, cli.ToMillisecond(r.duration),
		cli.Plural(int64(len(r.tenants)), "tenant"), t.count(r.records()), t.rate(r.records(), r.duration), r.count(failed))
	if n := r.count(dropped); n > 0 {
		_, _ = fmt.Fprintf(&b, ", %d dropped meanwhile", n)
	}
	if n := r.count(left); n > 0 {
		_, _ = fmt.Fprintf(&b, ", %d left for the next run", n)
	}
	if r.stopped != nil {
		_, _ = fmt.Fprintf(&b, " (by %s)", r.stopped)
	}
	t.outf("%s", b.String())
}

// table is the summary on a terminal.
func (t *textReport) table(r round) {
	w := tabwriter.NewWriter(t.out, 0, 0, 2, ' ', 0)
	row := func(name string, value any) { _, _ = fmt.Fprintf(w, "%s\t%v\n", name, value) }
	row("tenants", len(r.tenants))
	row("records "+t.action(), r.records())
	row("failures", r.count(failed))
	if n := r.count(dropped); n > 0 {
		row("dropped meanwhile", n)
	}
	if n := r.count(left); n > 0 {
		row("left for the next run", n)
	}
	if r.stopped != nil {
		row("ended by", r.stopped)
	}
	row("duration", cli.ToMillisecond(r.duration))
	_ = w.Flush()
}

// clear makes room for a line where the bar is; the bar comes back by itself.
func (t *textReport) clear() {
	if t.bar != nil {
		_ = t.bar.Clear()
	}
}

func (t *textReport) outf(format string, args ...any) {
	if !t.quiet {
		_, _ = fmt.Fprintf(t.out, format+"\n", args...)
	}
}

func (t *textReport) errf(format string, args ...any) {
	_, _ = fmt.Fprintf(t.err, "idem-janitor: "+format+"\n", args...)
}

// action is what became of the records, or would have.
func (t *textReport) action() string {
	if t.dryRun {
		return "to delete"
	}
	return "deleted"
}

func (t *textReport) count(records int64) string {
	return cli.Plural(records, "record") + " " + t.action()
}

func (t *textReport) partly(n int64) string {
	if n == 0 {
		return ""
	}
	return "after " + t.count(n) + ": "
}

func (t *textReport) rate(n int64, d time.Duration) string {
	if n == 0 || d <= 0 || t.dryRun {
		return ""
	}
	return fmt.Sprintf(" (%.0f/s)", float64(n)/d.Seconds())
}
