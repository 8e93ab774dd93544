//go:build unix

package main

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/pgidem/pgidem/internal/cli"
	"github.com/pgidem/pgidem/internal/cli/clitest"
)

// TestSignals sends signals to the program itself.
func TestSignals(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	stuck, other := f.behind(t), f.behind(t)
	program := filepath.Join(t.TempDir(), "idem-tenants")
	if out, err := exec.Command("go", "build", "-o", program, ".").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	launch := func(t *testing.T) (p *exec.Cmd, out *clitest.Buffer, ended chan error) {
		t.Helper()
		p, out, ended = exec.Command(program, "migrate", "--lock-timeout", "1m", "--json"), new(clitest.Buffer), make(chan error, 1)
		p.Env = append(os.Environ(), "DATABASE_URL="+f.url)
		p.Stdout, p.Stderr = out, os.Stderr
		if err := p.Start(); err != nil {
			t.Fatal(err)
		}
		go func() { ended <- p.Wait() }()
		t.Cleanup(func() { _ = p.Process.Kill() }) // if it goes on
		clitest.Eventually(t, "it waits for a lock, and the other is through", func() bool { return f.waiting(t) == 1 && f.noted(t, other) })
		return p, out, ended
	}
	wait := func(t *testing.T, ended chan error) *os.ProcessState {
		t.Helper()
		select {
		case err := <-ended:
			exit, ok := errors.AsType[*exec.ExitError](err)
			if !ok {
				t.Fatalf("%v", err)
			}
			return exit.ProcessState
		case <-time.After(clitest.Patience):
			t.Fatal("it goes on")
			return nil
		}
	}
	unblock := f.block(t, stuck.Schema)
	defer unblock()

	t.Run("the first ends it cleanly", func(t *testing.T) {
		p, out, ended := launch(t)
		_ = p.Process.Signal(syscall.SIGINT)
		if state := wait(t, ended); state.ExitCode() != cli.ExitSignal+2 {
			t.Errorf("%s: %s", state, out.String())
		}
		got := object[migrateJSON](t, result{stdout: out.String()})
		if got.Left != 1 || got.Stopped != "signal interrupt" {
			t.Errorf("%s", out.String())
		}
		f.idle(t)
	})
	t.Run("a second ends it at once", func(t *testing.T) {
		p, _, ended := launch(t)
		signals, stopped := make(chan struct{}), make(chan struct{})
		go func() { // until it has ended, since the first is to be taken in first
			defer close(stopped)
			for {
				select {
				case <-signals:
					return
				case <-time.After(time.Millisecond):
					_ = p.Process.Signal(syscall.SIGTERM)
				}
			}
		}()
		state := wait(t, ended)
		close(signals)
		<-stopped
		if status := state.Sys().(syscall.WaitStatus); !status.Signaled() && state.ExitCode() != cli.ExitSignal+15 {
			t.Errorf("%v, want an end by SIGTERM", state)
		}
	})
}
