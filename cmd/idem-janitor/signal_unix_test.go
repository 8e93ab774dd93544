//go:build unix

package main

import (
	"errors"
	"os"
	osexec "os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/pgidem/pgidem/internal/cli/clitest"
)

// TestSignals sends signals to the program itself.
func TestSignals(t *testing.T) {
	t.Parallel()
	pool, url := newPool(t)
	schema := newTenant(t, url)
	program := filepath.Join(t.TempDir(), "idem-janitor")
	if out, err := osexec.Command("go", "build", "-o", program, ".").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}

	t.Run("SIGTERM ends an interval with 0", func(t *testing.T) {
		p := launch(t, program, url, "--json", "--interval", "10ms")
		clitest.Eventually(t, "three rounds", func() bool { return len(parseRounds(t, p.stdout.String())) >= 3 })
		fill(t, pool, schema, 5, expired)
		clitest.Eventually(t, "a purge", func() bool { return size(t, pool, schema) == 0 })
		p.signal(t, syscall.SIGTERM)
		if state := p.wait(t); state.ExitCode() != 0 {
			t.Errorf("%s: %s", state, p.stderr.String())
		}
	})

	t.Run("SIGINT cancels the statement under way", func(t *testing.T) {
		unblock := block(t, pool, schema, "ACCESS EXCLUSIVE")
		defer unblock()
		p := launch(t, program, url, "--json")
		blocked(t, pool)
		began := time.Now()
		p.signal(t, syscall.SIGINT)
		state := p.wait(t)
		if state.ExitCode() != 130 {
			t.Errorf("%s: %s", state, p.stderr.String())
		}
		if took := time.Since(began); took > 5*time.Second {
			t.Errorf("took %s", took)
		}
		clitest.Eventually(t, "the statement is gone from the server", func() bool {
			var n int
			err := pool.QueryRow(t.Context(), `SELECT count(*) FROM pg_catalog.pg_stat_activity
				WHERE application_name = 'idem-janitor' AND datname = current_database()`).Scan(&n)
			return err == nil && n == 0
		})
		if rounds := parseRounds(t, p.stdout.String()); len(rounds) != 1 || rounds[0].Left != 1 || rounds[0].Failed != 0 {
			t.Errorf("%s", p.stdout.String())
		}
	})

	t.Run("a second signal ends it at once", func(t *testing.T) {
		unblock := block(t, pool, schema, "ACCESS EXCLUSIVE")
		defer unblock()
		p := launch(t, program, url, "--interval", "1h")
		blocked(t, pool)
		clitest.Eventually(t, "the process ends", func() bool {
			_ = p.cmd.Process.Signal(syscall.SIGTERM)
			select {
			case <-p.ended:
				return true
			default:
				return false
			}
		})
		if status := p.wait(t).Sys().(syscall.WaitStatus); !status.Signaled() || status.Signal() != syscall.SIGTERM {
			t.Errorf("%v, want an end by SIGTERM", status)
		}
	})
}

// process is a run of the built program.
type process struct {
	cmd            *osexec.Cmd
	stdout, stderr clitest.Buffer
	ended          chan struct{}
	err            error
}

func launch(t *testing.T, program, databaseURL string, args ...string) *process {
	t.Helper()
	p := &process{cmd: osexec.Command(program, args...), ended: make(chan struct{})}
	p.cmd.Env = append(os.Environ(), "DATABASE_URL="+databaseURL)
	p.cmd.Stdout, p.cmd.Stderr = &p.stdout, &p.stderr
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(p.ended)
		p.err = p.cmd.Wait()
	}()
	t.Cleanup(func() {
		_ = p.cmd.Process.Kill()
		<-p.ended
	})
	return p
}

func (p *process) signal(t *testing.T, sig os.Signal) {
	t.Helper()
	if err := p.cmd.Process.Signal(sig); err != nil {
		t.Fatal(err)
	}
}

func (p *process) wait(t *testing.T) *os.ProcessState {
	t.Helper()
	select {
	case <-p.ended:
	case <-time.After(clitest.Patience):
		t.Fatal("the janitor goes on")
	}
	if exit := new(osexec.ExitError); p.err != nil && !errors.As(p.err, &exit) {
		t.Fatal(p.err)
	}
	return p.cmd.ProcessState
}
