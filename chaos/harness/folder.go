package harness

import (
	"os"
	"path/filepath"
	"testing"
)

// Folder returns a new folder for a history, below the one given, or below that of
// temporary files. It is kept when the test fails, and its path is then logged.
func Folder(t testing.TB, below string) string {
	t.Helper()
	dir, err := os.MkdirTemp(below, "pgidem-chaos-") //nolint:usetesting // it is kept when the test fails
	if err != nil {
		t.Fatal(err)
	}
	if dir, err = filepath.Abs(dir); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the history is kept in %s", dir)
			return
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}
