package chaos_test

import (
	"testing"
	"time"

	"github.com/pgidem/pgidem/chaos/harness"
	"github.com/pgidem/pgidem/chaos/history"
	"github.com/pgidem/pgidem/chaos/service"
)

// TestPausedPastStoreTimeout stops processes as they are about to complete, for longer
// than their lease and than the time that they give the store. When they wake up that time
// is over, though the store is well: what they have is to be stored yet, or not to be sent.
func TestPausedPastStoreTimeout(t *testing.T) {
	t.Parallel()
	for _, mode := range []string{history.Lease, history.Transaction} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			_, violations := run(t, harness.Scenario{
				Mode: mode, Seed: seed(t), Payments: 40, Duplicates: 4, Clients: 6, Processes: 6,
				Lease: 1200 * time.Millisecond, StoreTimeout: 1300 * time.Millisecond,
				Stops: 1, StopAt: []service.Point{service.BeforeCommit}, Limit: time.Minute,
			})
			mustBeRight(t, violations)
		})
	}
}

// TestStoppedAtRandom stops processes at random moments, and so in the middle of round trips,
// for longer than their lease.
func TestStoppedAtRandom(t *testing.T) {
	t.Parallel()
	for _, mode := range []string{history.Lease, history.Transaction} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			times := number(t, "PGIDEM_CHAOS_STOPS", 6)
			h, violations := run(t, harness.Scenario{
				Mode: mode, Seed: seed(t), Duplicates: 4, Lease: 400 * time.Millisecond,
				Faults: []harness.Fault{harness.StopProcesses(times)}, Limit: time.Minute + time.Duration(times)*5*time.Second,
			})
			mustBeRight(t, violations)
			if stops := h.Summarise().Stops[history.StoppedAtRandom]; stops != times {
				t.Errorf("processes were stopped %d times, want %d", stops, times)
			}
		})
	}
}
