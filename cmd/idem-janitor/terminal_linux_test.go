package main

import (
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/term"

	"github.com/pgidem/pgidem/internal/cli"
)

// openTerminal returns the two ends of a pseudo-terminal.
func openTerminal(t *testing.T) (outside, inside *os.File) {
	t.Helper()
	outside, err := os.OpenFile("/dev/ptmx", os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatalf("no pseudo-terminals here: %v", err)
		}
		t.Skipf("no pseudo-terminals here: %v", err)
	}
	t.Cleanup(func() { _ = outside.Close() })
	control := func(request uintptr, value *int32) {
		t.Helper()
		if _, _, errno := syscall.Syscall(syscall.SYS_IOCTL, outside.Fd(), request, uintptr(unsafe.Pointer(value))); errno != 0 {
			t.Fatal(errno)
		}
	}
	var unlocked, number int32
	control(syscall.TIOCSPTLCK, &unlocked)
	control(syscall.TIOCGPTN, &number)
	inside, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = inside.Close() })
	return outside, inside
}

func TestBarOnATerminal(t *testing.T) {
	t.Parallel()
	pool, url := newPool(t)
	for range 5 {
		fill(t, pool, newTenant(t, url), 100, expired)
	}
	newTenant(t, url)

	for name, test := range map[string]struct {
		args []string
		term string
		bar  bool
	}{
		"bar":       {args: []string{"--dry-run"}, term: "xterm", bar: true},
		"dumb":      {args: []string{"--dry-run"}, term: "dumb"},
		"quiet":     {args: []string{"--dry-run", "--quiet"}, term: "xterm"},
		"json":      {args: []string{"--dry-run", "--json"}, term: "xterm"},
		"bar purge": {args: []string{"--schema", "tenant_nobody"}, term: "xterm", bar: true},
	} {
		t.Run(name, func(t *testing.T) {
			outside, inside := openTerminal(t)
			if !term.IsTerminal(int(inside.Fd())) {
				t.Fatal("the pseudo-terminal is none")
			}
			read := make(chan string)
			go func() {
				var seen strings.Builder
				buf := make([]byte, 4096)
				for {
					n, err := outside.Read(buf)
					seen.Write(buf[:n])
					if err != nil { // EIO once the inside is closed
						read <- seen.String()
						return
					}
				}
			}()
			env := func(name string) string {
				return map[string]string{"TERM": test.term, "DATABASE_URL": url}[name]
			}
			code := run(t.Context(), test.args, env, inside, inside)
			_ = inside.Close()
			seen := <-read
			if bar := strings.Contains(seen, "[2K") && strings.Contains(seen, "0/"); bar != test.bar {
				t.Errorf("bar %t, want %t: %q", bar, test.bar, seen)
			}
			switch name {
			case "bar":
				if code != cli.ExitOK || !strings.Contains(seen, "records to delete  500") || !strings.Contains(seen, ": 100 records to delete") {
					t.Errorf("code %d: %q", code, seen)
				}
			case "bar purge":
				if code != cli.ExitFailed || !strings.Contains(seen, "failures         1") {
					t.Errorf("code %d: %q", code, seen)
				}
			}
		})
	}
}
