package chaos_test

import (
	"os"
	"strconv"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/pgidem/pgidem/chaos/check"
	"github.com/pgidem/pgidem/chaos/harness"
	"github.com/pgidem/pgidem/chaos/history"
	"github.com/pgidem/pgidem/chaos/service"
	"github.com/pgidem/pgidem/internal/pgtest"
)

func TestMain(m *testing.M) {
	service.MainIfAsked()
	goleak.VerifyTestMain(pgtest.Tests{M: m})
}

// number returns what the environment variable says, or the default.
func number(t *testing.T, name string, otherwise int) int {
	t.Helper()
	text := os.Getenv(name)
	if text == "" {
		return otherwise
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 0 {
		t.Fatalf("%s=%s: want a number", name, text)
	}
	return n
}

// seed returns the seed of a run: the one that is asked for, or a new one.
func seed(t *testing.T) uint64 {
	t.Helper()
	return uint64(number(t, "PGIDEM_CHAOS_SEED", int(time.Now().UnixNano()%1e9)))
}

// run runs a scenario, prints what happened, and returns what the checker says of it.
func run(t *testing.T, scenario harness.Scenario) (*history.History, []check.Violation) {
	t.Helper()
	scenario.Name = t.Name()
	dir := harness.Folder(t, os.Getenv("PGIDEM_CHAOS_DIR"))
	began := time.Now()
	h := harness.Run(t, dir, scenario)
	ran := time.Since(began)
	violations := check.History(h)
	t.Logf("seed %d, %s mode, run in %s, checked in %s\n%s\nviolations: %d", scenario.Seed, scenario.Mode,
		ran.Round(time.Millisecond), (time.Since(began) - ran).Round(time.Millisecond), h.Summarise(), len(violations))
	return h, violations
}

// mustBeRight fails the test for each violation.
func mustBeRight(t *testing.T, violations []check.Violation) {
	t.Helper()
	const most = 20
	for i, v := range violations {
		if i == most {
			t.Errorf("and %d more", len(violations)-most)
			break
		}
		t.Error(v)
	}
}
