package main

import (
	"context"
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"github.com/pgidem/pgidem/idempotency/pgstore"
	"github.com/pgidem/pgidem/internal/cli"
	"github.com/pgidem/pgidem/internal/cli/clitest"
	"github.com/pgidem/pgidem/tenancy/registry"
)

// terminal is a pseudo-terminal that the program runs on.
type terminal struct {
	outside, inside *os.File
	seen            clitest.Buffer
	ended           chan struct{} // reading
}

func openTerminal(t *testing.T) *terminal {
	t.Helper()
	outside, err := os.OpenFile("/dev/ptmx", os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatalf("no pseudo-terminals here: %v", err)
		}
		t.Skipf("no pseudo-terminals here: %v", err)
	}
	control := func(request uintptr, value *int32) {
		t.Helper()
		if _, _, errno := syscall.Syscall(syscall.SYS_IOCTL, outside.Fd(), request, uintptr(unsafe.Pointer(value))); errno != 0 {
			t.Fatal(errno)
		}
	}
	var unlocked, number int32
	control(syscall.TIOCSPTLCK, &unlocked)
	control(syscall.TIOCGPTN, &number)
	// Non-blocking, so that closing it ends a read that nobody answers.
	inside, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|syscall.O_NOCTTY|syscall.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	term := &terminal{outside: outside, inside: inside, ended: make(chan struct{})}
	go func() {
		defer close(term.ended)
		buf := make([]byte, 4096)
		for {
			n, err := outside.Read(buf)
			_, _ = term.seen.Write(buf[:n])
			if err != nil { // EIO once the inside is closed
				return
			}
		}
	}()
	t.Cleanup(func() {
		_ = inside.Close()
		<-term.ended
		_ = outside.Close()
	})
	return term
}

// run runs the program on the terminal. When it asks, the line is typed.
func (term *terminal) run(t *testing.T, env map[string]string, line string, args ...string) result {
	t.Helper()
	return term.runUntil(t.Context(), t, env, line, args...)
}

func (term *terminal) runUntil(ctx context.Context, t *testing.T, env map[string]string, line string, args ...string) result {
	t.Helper()
	typed, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(typed)
		for !strings.Contains(term.seen.String(), "[y/N]") && !strings.Contains(term.seen.String(), "to confirm: ") {
			select {
			case <-done:
				return
			case <-time.After(time.Millisecond):
			}
		}
		if line != "" {
			_, _ = term.outside.WriteString(line)
		}
	}()
	code := run(ctx, args, func(name string) string { return env[name] }, term.inside, term.inside, term.inside)
	close(done)
	<-typed
	_ = term.inside.Close()
	<-term.ended
	return result{code: code, stdout: term.seen.String()}
}

func (f fixture) onTerminal() map[string]string {
	return map[string]string{"DATABASE_URL": f.url, "TERM": "xterm"}
}

func TestConfirmationOnATerminal(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	for answer, want := range map[string]registry.State{
		"y\n": registry.Suspended, "YES\n": registry.Suspended, "n\n": registry.Active, "\n": registry.Active, "yep\n": registry.Active, "\x04": registry.Active,
	} {
		tenant := f.register(t, registry.Active)
		r := openTerminal(t).run(t, f.onTerminal(), answer, "suspend", tenant.OrgID.String())
		code := cli.ExitOK
		if want == registry.Active {
			code = cli.ExitFailed
			r.expect(t, code, "not confirmed: nothing was done")
		}
		r.expect(t, code, "Requests of 1 tenant will be refused", tenant.OrgID.String(), "[y/N]")
		if got := f.state(t, tenant.OrgID); got != want {
			t.Errorf("%q: %s, want %s", answer, got, want)
		}
	}
	tenant := f.register(t, registry.Active)
	openTerminal(t).run(t, f.onTerminal(), "", "suspend", "--yes", tenant.OrgID.String()).expect(t, cli.ExitOK).without(t, "[y/N]")
}

func TestReleaseAsksOnATerminal(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	tenant := f.tenant(t)
	claim(t, f.store(t), claimRequest(tenant.OrgID, "key", time.Hour/2))
	org := tenant.OrgID.String()
	state := func() pgstore.KeyState {
		return object[keyJSON](t, f.run(t, "inspect", org, "key", "--json")).State
	}
	openTerminal(t).run(t, f.onTerminal(), "n\n", "release", "--force", org, "key").
		expect(t, cli.ExitFailed, "its handler may be running", "may be done again by the retry")
	if state() != pgstore.KeyInProgress {
		t.Error("released without having been confirmed")
	}
	openTerminal(t).run(t, f.onTerminal(), "y\n", "release", "--force", "--forget", org, "key").
		expect(t, cli.ExitOK, "cannot tell that an attempt came before", "is released")
	f.run(t, "inspect", org, "key").expect(t, exitNotFound)
}

func TestInterruptedQuestion(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	tenant := f.register(t, registry.Active)
	ctx, stop := context.WithCancelCause(t.Context())
	term := openTerminal(t)
	go func() {
		for !strings.Contains(term.seen.String(), "[y/N]") {
			time.Sleep(time.Millisecond)
		}
		stop(cli.Signalled{Signal: syscall.SIGINT})
	}()
	term.runUntil(ctx, t, f.onTerminal(), "", "suspend", tenant.OrgID.String()).expect(t, cli.ExitSignal+2, "stopped by signal interrupt")
	if f.state(t, tenant.OrgID) != registry.Active {
		t.Error("suspended without having been confirmed")
	}
}

func TestMigrateBarOnATerminal(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	for range 3 {
		f.behind(t)
	}
	for _, test := range []struct {
		term string
		args []string
		bar  bool
	}{
		{"xterm", []string{"--dry-run"}, true},
		{"dumb", []string{"--dry-run"}, false},
		{"xterm", []string{"--dry-run", "--quiet"}, false},
		{"xterm", []string{"--dry-run", "--json"}, false},
		{"xterm", nil, true},
	} {
		env := f.onTerminal()
		env["TERM"] = test.term
		r := openTerminal(t).run(t, env, "", append([]string{"migrate"}, test.args...)...).expect(t, cli.ExitOK)
		if bar := strings.Contains(r.stdout, "[2K") && strings.Contains(r.stdout, "0/3"); bar != test.bar {
			t.Errorf("%+v: bar %t: %q", test, bar, r.stdout)
		}
		if test.bar && !strings.Contains(r.stdout, "up to date        0") {
			t.Errorf("no table: %q", r.stdout)
		}
	}
}

func TestDropAsksForTheSchemasName(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	tenant := f.tenant(t)
	org := tenant.OrgID.String()
	claim(t, f.store(t), claimRequest(tenant.OrgID, "key", time.Hour/2))
	f.run(t, "suspend", "--yes", org).expect(t, cli.ExitOK)
	for _, answer := range []string{"y\n", "\n", tenant.Schema.String() + "0\n", "\x04"} {
		openTerminal(t).run(t, f.onTerminal(), answer, "drop", org).expect(t, cli.ExitFailed, "for good", "1 of attempts in progress", "not confirmed")
		if f.state(t, tenant.OrgID) != registry.Suspended {
			t.Fatalf("dropped by %q", answer)
		}
	}
	openTerminal(t).run(t, f.onTerminal(), tenant.Schema.String()+"\n", "drop", org).expect(t, cli.ExitOK, "dropped, with schema")
	f.run(t, "inspect", org).expect(t, exitNotFound)
}
