package main

import (
	"slices"
	"strings"

	"golang.org/x/perf/benchfmt"
)

// base is the impl that the others of a row are compared with.
const base = "bare"

// table is all results, in the order in which they came.
type table struct{ rows []*row }

// row is the results of one work on one server.
type row struct {
	name         string // of the benchmarks, without impl
	work, server string
	impls        []*impl
}

// impl is what was measured of one, a value for each round.
type impl struct {
	name   string
	units  []string // in the order in which they came
	values map[string][]float64
}

// add puts a result where it belongs.
func (t *table) add(result *benchfmt.Result) {
	name, parts := result.Name.Parts()
	r, who := row{name: string(name)}, ""
	var others []string
	for _, part := range parts {
		key, value, _ := strings.Cut(string(part), "=")
		if key == "/impl" {
			who = value
			continue
		}
		r.name += string(part)
		switch {
		case key == "/work":
			r.work = value
		case key == "/server":
			r.server = value
		case part[0] == '/': // else it is the number of processors
			others = append(others, string(part[1:]))
		}
	}
	if r.work == "" {
		r.work = string(name)
	}
	r.work = strings.Join(append([]string{r.work}, others...), " ")
	i := t.find(r).find(who)
	for _, v := range result.Values {
		if _, ok := i.values[v.Unit]; !ok {
			i.units = append(i.units, v.Unit)
		}
		i.values[v.Unit] = append(i.values[v.Unit], v.Value)
	}
}

// find returns the row of that name, which is r if there is none yet.
func (t *table) find(r row) *row {
	if n := slices.IndexFunc(t.rows, func(o *row) bool { return o.name == r.name }); n >= 0 {
		return t.rows[n]
	}
	t.rows = append(t.rows, &r)
	return &r
}

// find returns the impl of that name, new if there is none yet.
func (r *row) find(name string) *impl {
	if i := r.get(name); i != nil {
		return i
	}
	i := &impl{name: name, values: make(map[string][]float64)}
	r.impls = append(r.impls, i)
	return i
}

// get returns the impl of that name, or nil.
func (r *row) get(name string) *impl {
	if n := slices.IndexFunc(r.impls, func(i *impl) bool { return i.name == name }); n >= 0 {
		return r.impls[n]
	}
	return nil
}

// median is that of an even number as well: between the two in the middle, as benchstat has it.
func median(values []float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	n := len(sorted)
	return (sorted[(n-1)/2] + sorted[n/2]) / 2
}
