package idempotencytest_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/pgidem/pgidem/idempotency"
	"github.com/pgidem/pgidem/idempotency/idempotencytest"
)

// That a suite fails can only be seen from outside. So the tests of this file run
// the test binary again, with the name of a flaw in its environment, and the child
// puts a store with that flaw to one of the suites. Without the name, these entry
// points do nothing.
const flawVariable = "IDEMPOTENCYTEST_FLAW"

func TestEntryStore(t *testing.T) {
	entry(t, idempotencytest.TestStore, func(f flaw) idempotency.Store { return &flawedWatch{flawedStore: newFlawedStore(f)} })
}

func TestEntryPlainStore(t *testing.T) {
	entry(t, idempotencytest.TestStore, newFlawedPlain)
}

func TestEntryMiddleware(t *testing.T) {
	entry(t, idempotencytest.TestMiddleware, func(f flaw) idempotency.Store { return newFlawedStore(f) })
}

func TestEntryMiddlewareOverPlainStore(t *testing.T) {
	entry(t, idempotencytest.TestMiddleware, newFlawedPlain)
}

type suite func(*testing.T, func(testing.TB) idempotency.Store, ...idempotencytest.Option)

func entry(t *testing.T, run suite, newStore func(flaw) idempotency.Store) {
	if name, ok := os.LookupEnv(flawVariable); ok {
		if name != "" { // it will fail, and need not take long over it
			idempotencytest.SetPatience(3 * time.Second)
		}
		run(t, func(testing.TB) idempotency.Store { return newStore(flaw(name)) })
	}
}

// flawedPlain is what a flawedStore is to those who only put and get.
type flawedPlain struct {
	*idempotencytest.Clock
	idempotency.Store
}

func newFlawedPlain(f flaw) idempotency.Store {
	s := newFlawedStore(f)
	return flawedPlain{s.Clock, s}
}

// catch says which subtests of a suite must find a flaw.
type catch struct {
	flaw flaw
	by   []string
}

func TestStoreSuiteCatchesFlaws(t *testing.T) {
	t.Parallel()
	wantCaught(t, "TestEntryStore", flawsOfStores)
}

func TestStoreSuiteCatchesFlawsOfPlainStores(t *testing.T) {
	t.Parallel()
	wantCaught(t, "TestEntryPlainStore", flawsOfPlainStores)
}

func TestMiddlewareSuiteCatchesFlaws(t *testing.T) {
	t.Parallel()
	wantCaught(t, "TestEntryMiddleware", flawsUnderMiddleware)
}

func TestMiddlewareSuiteCatchesFlawsOfPlainStores(t *testing.T) {
	t.Parallel()
	wantCaught(t, "TestEntryMiddlewareOverPlainStore", flawsOfPlainStoresUnderMiddleware)
}

// wantCaught checks that the suite accepts the store without a flaw, and that each
// of the subtests named catches the flaw by itself.
func wantCaught(t *testing.T, entry string, catches []catch) {
	t.Run("unbroken", func(t *testing.T) {
		t.Parallel()
		var by []string
		for _, c := range catches {
			by = append(by, c.by...)
		}
		if out, err := runChild(t, entry, by, ""); err != nil {
			t.Fatalf("a store that keeps the contract does not pass: %v\n%s", err, out)
		}
	})
	for _, c := range catches {
		t.Run(string(c.flaw), func(t *testing.T) {
			t.Parallel()
			out, err := runChild(t, entry, c.by, c.flaw)
			var exit *exec.ExitError
			if !errors.As(err, &exit) {
				t.Fatalf("the suite did not catch it (%v):\n%s", err, out)
			}
			for _, name := range c.by {
				if !strings.Contains(out, fmt.Sprintf("--- FAIL: %s/%s ", entry, name)) {
					t.Errorf("%s did not catch it:\n%s", name, out)
				}
			}
			for _, word := range []string{"panic:", "DATA RACE"} {
				if strings.Contains(out, word) {
					t.Errorf("the suite broke down over it:\n%s", out)
				}
			}
		})
	}
}

// children bounds how many processes run at a time.
var children = make(chan struct{}, 3)

// runChild runs subtests of an entry point over a store with the flaw in a process
// of their own.
func runChild(t *testing.T, entry string, subtests []string, f flaw) (output string, err error) {
	children <- struct{}{}
	defer func() { <-children }()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), self,
		"-test.run=^"+entry+"$/^("+strings.Join(subtests, "|")+")$", "-test.timeout=60s")
	cmd.Env = append(cmd.Environ(), flawVariable+"="+string(f),
		"GORACE=atexit_sleep_ms=0") // the race detector's second of rest at each exit
	out, err := cmd.CombinedOutput()
	return string(out), err
}
