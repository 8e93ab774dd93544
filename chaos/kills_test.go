package chaos_test

import (
	"testing"
	"time"

	"github.com/pgidem/pgidem/chaos/harness"
	"github.com/pgidem/pgidem/chaos/history"
	"github.com/pgidem/pgidem/chaos/service"
)

// kills is how many processes each of the two modes loses by default.
const kills = 24

// TestKills kills processes of the service at every point of a payment and at random
// moments, and stops some for longer than their lease, while clients pay.
func TestKills(t *testing.T) {
	t.Parallel()
	for _, mode := range []string{history.Lease, history.Transaction} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			scenario := harness.Scenario{
				Mode: mode, Seed: seed(t), Kills: number(t, "PGIDEM_CHAOS_KILLS", kills),
				Stops: 0.1, Wait: 300 * time.Millisecond,
			}
			scenario.Limit = time.Minute + time.Duration(scenario.Kills)*3*time.Second
			h, violations := run(t, scenario)
			mustBeRight(t, violations)
			summary := h.Summarise()
			if summary.Deaths < scenario.Kills {
				t.Errorf("%d processes were killed, want %d", summary.Deaths, scenario.Kills)
			}
			for _, at := range service.Points {
				if summary.Kills[string(at)] == 0 && scenario.Kills >= kills {
					t.Errorf("no process was killed %s", at)
				}
			}
			if summary.Kills[history.KilledAtRandom] == 0 {
				t.Error("no process was killed at a random moment")
			}
		})
	}
}
