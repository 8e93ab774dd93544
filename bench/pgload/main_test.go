package main

import (
	"strings"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// TestParse: a part of the works comes with those that it is compared with, in the order of the
// report, and nothing is measured on terms whose figures could be misread.
func TestParse(t *testing.T) {
	t.Parallel()
	s, err := parse([]string{"-work", "replay-64k, storm", "-rounds", "3"})
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, w := range s.works {
		names = append(names, w.name)
	}
	if got := strings.Join(names, " "); got != "pgbench-pair storm pgbench-select replay-64k" {
		t.Errorf("works: %s", got)
	}
	for args, complaint := range map[string]string{
		"-rounds 2":     "odd number",
		"-rounds 0":     "1 or more",
		"-duration 1ms": "100ms or more",
		"-work storms":  "no work is called",
		"first":         "no other arguments",
	} {
		if _, err := parse(strings.Fields(args)); err == nil || !strings.Contains(err.Error(), complaint) {
			t.Errorf("%s: %v", args, err)
		}
	}
}

// TestWorks: each is compared with one that there is, and is called by a name of its own.
func TestWorks(t *testing.T) {
	t.Parallel()
	for i, w := range works {
		if w.index() != i {
			t.Errorf("%s: two works of that name", w.name)
		}
		if w.base != "" && (work{name: w.base}).index() < 0 {
			t.Errorf("%s: no work %s to compare it with", w.name, w.base)
		}
		if (w.script == "") == (w.mode == "") {
			t.Errorf("%s: pgbench's or the service's?", w.name)
		}
	}
}

// TestMedian: every figure is one that was measured, whichever of the results had it.
func TestMedian(t *testing.T) {
	t.Parallel()
	m := median([]result{{rate: 3, p50: 20, refused: 0.1}, {rate: 1, p50: 10, refused: 0.3}, {rate: 2, p50: 30, refused: 0.2}})
	if want := (result{rate: 2, p50: 20, refused: 0.2}); m != want {
		t.Errorf("%+v, want %+v", m, want)
	}
}
