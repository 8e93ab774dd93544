package chaos_test

import (
	"testing"
	"time"

	"github.com/pgidem/pgidem/chaos/harness"
	"github.com/pgidem/pgidem/chaos/history"
)

// TestCompleter kills processes that each run a completer beside the service. Half of the
// clients go away when they hear nothing, and come back at the end: what was begun for them
// is then finished.
func TestCompleter(t *testing.T) {
	t.Parallel()
	for _, mode := range []string{history.Lease, history.Transaction} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			times := number(t, "PGIDEM_CHAOS_COMPLETER_KILLS", 8)
			h, violations := run(t, harness.Scenario{
				Mode: mode, Seed: seed(t), Kills: times, Payments: 50, Completer: 100 * time.Millisecond, Leaves: 0.5,
				Limit: 3*time.Minute + time.Duration(times)*3*time.Second,
			})
			mustBeRight(t, violations)
			if s := h.Summarise(); times > 0 && (s.Begun == 0 || s.Recovered == 0) {
				t.Errorf("%d clients went away from requests that were begun, and completers completed %d: the run shows nothing", s.Begun, s.Recovered)
			}
		})
	}
}
