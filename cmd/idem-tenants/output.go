package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"text/tabwriter"
	"time"

	"github.com/pgidem/pgidem/internal/cli"
)

// printJSON prints one object on a line of its own.
func (a *app) printJSON(object any) error {
	if err := json.NewEncoder(a.stdout).Encode(object); err != nil {
		return exitError{cli.ExitFailed, fmt.Errorf("write the answer: %w", err)}
	}
	return nil
}

// facts is a table of names and values.
type facts struct{ w *tabwriter.Writer }

func newFacts(w io.Writer) facts { return facts{tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)} }

func (f facts) row(name, format string, args ...any) {
	_, _ = fmt.Fprintf(f.w, "%s\t"+format+"\n", append([]any{name}, args...)...)
}

func (f facts) end() error { return f.w.Flush() }

// size is a number of bytes for people.
func size(bytes int64) string {
	const units = "KMGTPE"
	if bytes < 1024 {
		return cli.Plural(bytes, "byte")
	}
	value, unit := float64(bytes)/1024, 0
	for value >= 1024 && unit < len(units)-1 {
		value, unit = value/1024, unit+1
	}
	return strconv.FormatFloat(value, 'f', 1, 64) + " " + units[unit:unit+1] + "iB"
}

// moment is a time for people, who mostly want to know how long ago it is or how far ahead.
func moment(t, now time.Time) string {
	at := t.UTC().Format(time.DateTime) + "Z"
	switch d := now.Sub(t); {
	case d < 0:
		return at + " (in " + span(-d) + ")"
	default:
		return at + " (" + span(d) + " ago)"
	}
}

// span is a duration of two units at most.
func span(d time.Duration) string {
	const day = 24 * time.Hour
	switch {
	case d >= 2*day:
		return fmt.Sprintf("%dd%dh", d/day, d%day/time.Hour)
	case d >= time.Hour:
		return fmt.Sprintf("%dh%dm", d/time.Hour, d%time.Hour/time.Minute)
	case d >= time.Minute:
		return fmt.Sprintf("%dm%ds", d/time.Minute, d%time.Minute/time.Second)
	case d >= time.Second:
		return d.Round(100 * time.Millisecond).String()
	}
	return d.Round(time.Millisecond).String()
}

func utc(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	t = t.UTC()
	return &t
}
