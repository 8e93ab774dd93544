package main

import (
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
)

// seconds is benchfmt's unit for ns/op.
const seconds = "sec/op"

// print writes the table.
func (t *table) print(out io.Writer) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
	line := func(cells ...string) { _, _ = fmt.Fprintln(w, strings.Join(cells, "\t")) } // Flush tells
	line("work", "server", "impl", "median", "times bare", "in each round", "B/op", "allocs/op", "  and")
	for _, r := range t.rows {
		bare := r.get(base)
		for _, i := range r.impls {
			times, spread := "", ""
			if bare != nil {
				times, spread = i.times(bare)
			}
			line(r.work, r.server, i.name, i.time(), times, spread, i.count("B/op"), i.count("allocs/op"), "  "+i.others())
		}
	}
	return w.Flush()
}

// time is how long the work takes.
func (i *impl) time() string {
	values := i.values[seconds]
	if len(values) == 0 {
		return ""
	}
	d := median(values) * float64(time.Second)
	switch {
	case d < 1e3:
		return fmt.Sprintf("%.1f ns", d)
	case d < 1e6:
		return fmt.Sprintf("%.2f µs", d/1e3)
	}
	return fmt.Sprintf("%.2f ms", d/1e6)
}

// times is how many times as long it takes as bare does: by the medians, and the least and the most
// of any round by itself.
func (i *impl) times(bare *impl) (medians, rounds string) {
	own, others := i.values[seconds], bare.values[seconds]
	if len(own) == 0 || len(others) == 0 {
		return "", ""
	}
	medians = short(median(own) / median(others))
	if i == bare || len(own) != len(others) || len(own) < 2 {
		return medians, ""
	}
	ratios := make([]float64, len(own))
	for n := range own {
		ratios[n] = own[n] / others[n]
	}
	return medians, short(slices.Min(ratios)) + "-" + short(slices.Max(ratios))
}

func (i *impl) count(unit string) string {
	if values := i.values[unit]; len(values) > 0 {
		return strconv.FormatFloat(median(values), 'f', 0, 64)
	}
	return ""
}

// others is what has no column of its own.
func (i *impl) others() string {
	var all []string
	for _, unit := range i.units {
		if unit != seconds && unit != "B/op" && unit != "allocs/op" {
			all = append(all, short(median(i.values[unit]))+" "+unit)
		}
	}
	return strings.Join(all, ", ")
}

// short is a figure with as many decimals as say something.
func short(f float64) string {
	switch {
	case f < 10:
		return strconv.FormatFloat(f, 'f', 2, 64)
	case f < 100:
		return strconv.FormatFloat(f, 'f', 1, 64)
	}
	return strconv.FormatFloat(f, 'f', 0, 64)
}
