package chaos_test

import (
	"slices"
	"testing"
	"time"

	"github.com/pgidem/pgidem/chaos/check"
	"github.com/pgidem/pgidem/chaos/harness"
	"github.com/pgidem/pgidem/chaos/history"
	"github.com/pgidem/pgidem/chaos/service"
)

// rounds bounds how often a scenario is run until its bug has shown.
const rounds = 5

// TestPlantedBugs runs the service with bugs that stores of this kind have had: the
// checker finds each, as what it is. The same scenarios without the bug have nothing
// wrong.
func TestPlantedBugs(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		bug      service.Bug
		scenario harness.Scenario
		want     []check.Kind // all of them
	}{
		{
			service.UncheckedToken,
			harness.Scenario{
				Mode: history.Lease, Payments: 30, Clients: 6, Duplicates: 4, Lease: 400 * time.Millisecond,
				Stops: 4, StopAt: []service.Point{service.BeforeCommit},
			},
			[]check.Kind{check.NotLinearizable, check.StaleComplete, check.CompletedTwice},
		},
		{
			service.EarlyResponse,
			harness.Scenario{
				Mode: history.Transaction, Payments: 40, Kills: 8, KillAt: []service.Point{service.AfterResponse},
			},
			[]check.Kind{check.NotLinearizable, check.ClaimOfCompleted, check.CompletedTwice},
		},
		{
			service.UnfencedSteps,
			harness.Scenario{
				Mode: history.Lease, Payments: 30, Clients: 6, Duplicates: 4, Lease: 400 * time.Millisecond,
				Stops: 4, StopAt: []service.Point{service.AfterReserveEffect},
			},
			[]check.Kind{check.StaleStep, check.StepChanged},
		},
		{
			service.GetThenInsert,
			harness.Scenario{Mode: history.Lease, Payments: 40, Duplicates: 4},
			[]check.Kind{check.DoubleClaim},
		},
	} {
		c.scenario.Seed = seed(t)
		c.scenario.Limit = time.Minute
		t.Run(string(c.bug), func(t *testing.T) {
			t.Parallel()
			scenario := c.scenario
			scenario.Bug = c.bug
			found := make(map[check.Kind]check.Violation)
			for range rounds {
				_, violations := run(t, scenario)
				for _, v := range violations {
					found[v.Kind] = v
				}
				if !slices.ContainsFunc(c.want, func(k check.Kind) bool { return found[k].Kind != k }) {
					break
				}
				scenario.Seed++
			}
			for _, want := range c.want {
				if v, ok := found[want]; ok {
					t.Logf("found: %s", v)
				} else {
					t.Errorf("in %d rounds the checker did not see: %s", rounds, want)
				}
			}
		})
		t.Run("without "+string(c.bug), func(t *testing.T) {
			t.Parallel()
			_, violations := run(t, c.scenario)
			mustBeRight(t, violations)
		})
	}
}
