package move_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"strconv"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"
	"go.uber.org/goleak"

	"github.com/pgidem/pgidem/internal/pgtest"
	"github.com/pgidem/pgidem/tenancy/move"
	"github.com/pgidem/pgidem/tenancy/registry"
)

// moverEnv makes the test's program a process that moves a tenant.
const moverEnv = "PGIDEM_TEST_MOVER"

// order is what such a process is to do.
type order struct {
	URLs map[string]string
	Org  uuid.UUID
	To   string
}

// tooLate is the exit code of a process that was told to look again: what a killed one had sent
// to the registry was carried out after the test had looked.
const tooLate = 3

func TestMain(m *testing.M) {
	if text := os.Getenv(moverEnv); text != "" {
		if err := obey(text); err != nil {
			fmt.Fprintln(os.Stderr, err)
			if errors.Is(err, registry.ErrConflict) {
				os.Exit(tooLate)
			}
			os.Exit(1)
		}
		return
	}
	goleak.VerifyTestMain(pgtest.Tests{M: m})
}

func obey(text string) error {
	var o order
	if err := json.Unmarshal([]byte(text), &o); err != nil {
		return err
	}
	pool, err := pgxpool.New(context.Background(), o.URLs["a"])
	if err != nil {
		return err
	}
	tenants, err := registry.New(pool)
	if err != nil {
		return err
	}
	m, err := move.New(tenants, o.URLs, move.WithSettle(10*time.Millisecond))
	if err != nil {
		return err
	}
	_, err = m.Move(context.Background(), o.Org, o.To)
	return err
}

// setting returns how often something is done: make kill-tenants has it done more often.
func setting(t *testing.T, variable string, usual int) int {
	t.Helper()
	text := os.Getenv(variable)
	if text == "" {
		return usual
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 {
		t.Fatalf("%s is %q; give a number", variable, text)
	}
	return n
}

// TestMoveKilled: the process is killed at random moments, and the next one goes on, without
// waiting for what pg_dump and pg_restore may still be doing for the last.
func TestMoveKilled(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	tenant := w.newTenant(t, "a")
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	rounds := setting(t, "PGIDEM_MOVE_KILLS", 10)
	at := "a"
	took := 500 * time.Millisecond // about what a whole move takes
	var killed, ended, late int
	for range rounds {
		to := w.clusters[rand.IntN(len(w.clusters))]
		if got, err := w.tenants.Tenant(t.Context(), tenant.OrgID); err != nil {
			t.Fatal(err)
		} else if got.Moving {
			to = got.MovingTo
		}
		text, err := json.Marshal(order{w.urls, tenant.OrgID, to})
		if err != nil {
			t.Fatal(err)
		}
		cmd := exec.CommandContext(t.Context(), program)
		cmd.Env = append(os.Environ(), moverEnv+"="+string(text))
		cmd.Stderr = os.Stderr
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		timer := time.AfterFunc(rand.N(2*took), func() { _ = cmd.Process.Kill() })
		switch err := cmd.Wait(); {
		case err == nil:
			ended++
			took = time.Since(began)
		case cmd.ProcessState.ExitCode() == tooLate:
			late++
			to = at
		case cmd.ProcessState.ExitCode() == 1:
			t.Errorf("it gave up: %v", err)
		default:
			killed++
		}
		timer.Stop()
		at = to
	}
	if now, err := w.tenants.Tenant(t.Context(), tenant.OrgID); err != nil {
		t.Fatal(err)
	} else if now.Moving {
		at = now.MovingTo
	}
	for range 2 { // what it has left in the third cluster, and moved on, is dropped by the second
		if _, err := w.mover(t).Move(t.Context(), tenant.OrgID, at); err != nil {
			t.Fatal(err)
		}
	}
	w.is(t, tenant, at, registry.Active)
	t.Logf("%d killed, %d ended, %d too late", killed, ended, late)
	if killed == 0 || late > killed {
		t.Error("none was killed, or one was too late for nothing")
	}
}
