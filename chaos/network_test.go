package chaos_test

import (
	"testing"
	"time"

	"github.com/pgidem/pgidem/chaos/harness"
	"github.com/pgidem/pgidem/chaos/history"
)

// TestNetworkFails cuts, delays, resets and black-holes the connections between the service
// and the database, at random and at the statements that matter, while clients pay and
// processes are killed.
func TestNetworkFails(t *testing.T) {
	t.Parallel()
	for _, mode := range []string{history.Lease, history.Transaction} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			network := harness.NewNetwork(t)
			strikes := harness.Rounds(number(t, "PGIDEM_CHAOS_NETWORK", 1))
			h, violations := run(t, harness.Scenario{
				Mode: mode, Seed: seed(t), Kills: strikes / 6, Wait: 300 * time.Millisecond,
				Through: network.Through, Faults: []harness.Fault{network.Break(strikes)},
				Limit: time.Minute + time.Duration(strikes)*10*time.Second,
			})
			mustBeRight(t, violations)
			struck := make(map[string]int)
			for strike, n := range h.Summarise().Strikes {
				struck[strike.Kind+" at "+strike.Statement] += n
			}
			for _, kind := range harness.Kinds {
				for _, statement := range harness.Statements {
					if what := kind.String() + " at " + statement; struck[what] == 0 && strikes > 0 {
						t.Errorf("no %s", what)
					}
				}
			}
		})
	}
}
