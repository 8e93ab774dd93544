package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"runtime"
	"strings"
	"text/tabwriter"
	"time"
)

// print writes the table, or JSON lines.
func (b *bench) print(out io.Writer, source string, medians map[string]result) error {
	if b.json {
		return b.printJSON(out, medians)
	}
	var text bytes.Buffer
	fmt.Fprintf(&text, "%s; %d CPUs; %d clients, %d connections; %s\n\n",
		source, runtime.NumCPU(), b.clients, b.conns, b.terms())
	t := tabwriter.NewWriter(&text, 0, 0, 2, ' ', tabwriter.AlignRight)
	line := func(cells ...string) { _, _ = fmt.Fprintln(t, strings.Join(cells, "\t")) } // to memory
	line("work", "requests/s", "ratio", "p50", "p99", "service CPU", "database CPU", "commits", "WAL bytes", "updates", "409s", " ")
	for _, w := range b.works {
		m := medians[w.name]
		ratio, service, refused := "", "", ""
		if base, ok := medians[w.base]; ok {
			ratio = fmt.Sprintf("%.2f", m.rate/base.rate)
		}
		if w.script == "" {
			service = short(m.serviceCPU)
		}
		if w.keys == threeOf {
			refused = fmt.Sprintf("%.2f", m.refused)
		}
		line(w.name, fmt.Sprintf("%.0f", m.rate), ratio, short(m.p50), short(m.p99), service, short(m.databaseCPU),
			fmt.Sprintf("%.2f", m.commits), fmt.Sprintf("%.0f", m.wal), fmt.Sprintf("%.2f", m.updates), refused, "  "+w.what)
	}
	err := t.Flush()
	if err == nil {
		_, err = out.Write(text.Bytes())
	}
	return err
}

// terms says what a printed figure is of.
func (s settings) terms() string {
	if s.rounds == 1 {
		return fmt.Sprintf("one round of %v", s.duration)
	}
	return fmt.Sprintf("each figure is the median of %d rounds of %v", s.rounds, s.duration)
}

func short(d time.Duration) string { return d.Round(time.Microsecond).String() }

func (b *bench) printJSON(out io.Writer, medians map[string]result) error {
	lines := json.NewEncoder(out)
	for _, w := range b.works {
		m := medians[w.name]
		line := map[string]any{
			"work": w.name, "requests_per_second": m.rate,
			"p50_us": m.p50.Microseconds(), "p99_us": m.p99.Microseconds(),
			"service_cpu_us": m.serviceCPU.Microseconds(), "database_cpu_us": m.databaseCPU.Microseconds(),
			"commits": m.commits, "wal_bytes": m.wal, "updates": m.updates,
		}
		if base, ok := medians[w.base]; ok {
			line["base"], line["ratio"] = w.base, m.rate/base.rate
		}
		if w.script == "" {
			line["handler_runs"] = m.handlers
			line["refused_in_flight"] = m.refused
		}
		if err := lines.Encode(line); err != nil {
			return err
		}
	}
	return nil
}
