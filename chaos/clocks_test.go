package chaos_test

import (
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/pgidem/pgidem/chaos/faults/skew"
	"github.com/pgidem/pgidem/chaos/harness"
	"github.com/pgidem/pgidem/chaos/history"
)

// TestWrongClocks kills processes of which one is seven hours ahead, one seven hours behind,
// and one right.
func TestWrongClocks(t *testing.T) {
	// Not in parallel: compiling takes the whole machine.
	program := filepath.Join(t.TempDir(), "service")
	if err := skew.Build(t.Context(), ".", "./service/program", t.TempDir(), program); err != nil {
		t.Fatal(err)
	}
	wrong := []time.Duration{7 * time.Hour, -7 * time.Hour, 0}
	for _, mode := range []string{history.Lease, history.Transaction} {
		t.Run(mode, func(t *testing.T) {
			scenario := harness.Scenario{
				Mode: mode, Seed: seed(t), Kills: number(t, "PGIDEM_CHAOS_CLOCK_KILLS", 24), Processes: len(wrong),
				Stops: 0.1, Wait: 300 * time.Millisecond,
				Executable: func(int) string { return program },
				Environ:    func(process int) []string { return []string{skew.Environ(wrong[process])} },
			}
			scenario.Limit = time.Minute + time.Duration(scenario.Kills)*3*time.Second
			h, violations := run(t, scenario)
			mustBeRight(t, violations)
			if deaths := h.Summarise().Deaths; deaths < scenario.Kills {
				t.Errorf("%d processes were killed, want %d", deaths, scenario.Kills)
			}
			wantClocks(t, h, wrong)
		})
	}
}

// wantClocks proves that the processes of each address had clocks that were wrong by so much.
func wantClocks(t *testing.T, h *history.History, wrong []time.Duration) {
	t.Helper()
	const tolerance = 30 * time.Minute // for how long the run may have been
	seen := make(map[string]int)
	for _, e := range h.Events {
		if e.Kind != history.Prepared {
			continue
		}
		address, _, _ := strings.Cut(e.Process, ".")
		seen[address]++
		off := time.Until(time.Unix(e.Clock, 0)) - wrong[int(address[0]-'0')]
		if off.Abs() > tolerance {
			t.Errorf("the clock of process %s said %s; it should be wrong by %s", e.Process, time.Unix(e.Clock, 0), wrong[int(address[0]-'0')])
		}
	}
	if len(seen) != len(wrong) {
		t.Errorf("processes served at %d addresses, want %d", len(seen), len(wrong))
	}
}
