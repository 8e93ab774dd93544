// Package skew builds programs whose clock can be set wrong, for tests. Go asks the
// kernel's vDSO for the time, so libfaketime has no effect on it, and the clock of a
// machine on which tests run is not to be touched.
//
// The program is built with an overlay of two files of package time: its own time.go, of
// the toolchain at hand, with one line changed in Now, and a file that says by how much.
// Time then differs by as many seconds as the environment variable [Variable] says, which
// the program may set anew while it runs. The monotonic clock is left alone, as it is when
// somebody sets a machine's clock.
package skew

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// Variable is the environment variable with the seconds by which a program's clock is
// wrong.
const Variable = "PGIDEM_CLOCK_SKEW"

// Environ returns the setting of [Variable] for a clock that is ahead by d, or behind where
// d is negative.
func Environ(d time.Duration) string { return fmt.Sprintf("%s=%d", Variable, int64(d/time.Second)) }

const (
	original = "\tsec, nsec, mono := runtimeNow()\n\tif mono == 0 {"
	patched  = "\tsec, nsec, mono := runtimeNow()\n\tsec += clockSkew()\n\tif mono == 0 {"
)

// clockSkew may use nothing that package time is imported by.
const clockSkew = `package time

import "syscall"

func clockSkew() (seconds int64) {
	text, _ := syscall.Getenv("` + Variable + `")
	negative := len(text) > 0 && text[0] == '-'
	if negative {
		text = text[1:]
	}
	for _, digit := range []byte(text) {
		seconds = 10*seconds + int64(digit-'0')
	}
	if negative {
		return -seconds
	}
	return seconds
}
`

// Build builds the program of a package, which it names as go does in the folder dir, to the
// path out. It keeps the overlay in the folder work. The first time takes a minute or so, as
// nearly all of the standard library is compiled anew.
func Build(ctx context.Context, dir, pkg, work, out string) error {
	overlay, err := writeOverlay(ctx, work)
	if err != nil {
		return fmt.Errorf("skew: %w", err)
	}
	build := exec.CommandContext(ctx, "go", "build", "-overlay", overlay, "-o", out, pkg)
	build.Dir = dir
	if output, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("skew: build %s: %w: %s", pkg, err, output)
	}
	return nil
}

func writeOverlay(ctx context.Context, work string) (path string, err error) {
	root, err := exec.CommandContext(ctx, "go", "env", "GOROOT").Output()
	if err != nil {
		return "", fmt.Errorf("ask go for its root: %w", err)
	}
	timeFolder := filepath.Join(strings.TrimSpace(string(root)), "src", "time")
	source, err := os.ReadFile(filepath.Join(timeFolder, "time.go"))
	if err != nil {
		return "", err
	}
	if strings.Count(string(source), original) != 1 {
		return "", errors.New("this toolchain's time.Now does not read as expected; adapt the overlay")
	}
	files := map[string]string{
		"time.go":       strings.Replace(string(source), original, patched, 1),
		"clock_skew.go": clockSkew,
	}
	replace := make(map[string]string)
	for name, text := range files {
		replace[filepath.Join(timeFolder, name)] = filepath.Join(work, name)
		if err := os.WriteFile(filepath.Join(work, name), []byte(text), 0o600); err != nil {
			return "", err
		}
	}
	list, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		return "", err
	}
	path = filepath.Join(work, "overlay.json")
	return path, os.WriteFile(path, list, 0o600)
}
