package chaos_test

import (
	"testing"
	"time"

	"github.com/pgidem/pgidem/chaos/harness"
	"github.com/pgidem/pgidem/chaos/history"
)

// TestPostgresKilled kills the database's server with SIGKILL and starts it again, over and
// over, under load; processes of the service are killed beside that.
func TestPostgresKilled(t *testing.T) {
	t.Parallel()
	for _, mode := range []string{history.Lease, history.Transaction} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			times := number(t, "PGIDEM_CHAOS_POSTGRES_KILLS", 2)
			h, violations := run(t, harness.Scenario{
				Mode: mode, Seed: seed(t), Kills: times, Durable: true, Limit: time.Minute + time.Duration(times)*time.Minute/2,
				Faults: []harness.Fault{harness.RestartPostgres(times)},
			})
			mustBeRight(t, violations)
			if s := h.Summarise(); s.Postgres != times {
				t.Errorf("the server was killed %d times, want %d", s.Postgres, times)
			}
		})
	}
}
