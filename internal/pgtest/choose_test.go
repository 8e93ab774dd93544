//go:build unix

package pgtest_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/pgidem/pgidem/internal/pgtest"
)

// The tests of this file set environment variables, so they are not parallel.

func TestBinariesOfPackageFolder(t *testing.T) {
	packaged := packagedBinaries(t)
	noServerNamed(t)
	empty := openFolder(t)
	t.Setenv("PATH", empty)
	t.Setenv("PG_BINDIR", empty)

	server, log := start(t)
	if !strings.Contains(server.Source(), packaged) {
		t.Errorf("Source %q, want the package folder", server.Source())
	}
	if want := "PG_BINDIR is passed over: " + empty; !strings.Contains(log, want) {
		t.Errorf("progress lines %q, want %q in them", log, want)
	}
}

func TestBinariesOfPath(t *testing.T) {
	packaged := packagedBinaries(t)
	noServerNamed(t)
	t.Setenv("PG_BINDIR", "")

	t.Run("before the package folder", func(t *testing.T) {
		fake := fakeServer(t, "99.1")
		t.Setenv("PATH", fake)
		server, log := start(t)
		if want := "a cluster of " + fake + ": initdb: exit status 1: of no use"; !strings.Contains(log, want) {
			t.Errorf("progress lines %q, want %q in them", log, want)
		}
		if !strings.Contains(server.Source(), packaged) {
			t.Errorf("Source %q, want the next folder, %s", server.Source(), packaged)
		}
	})
}

func TestBinariesOfBinDir(t *testing.T) {
	packaged := packagedBinaries(t)
	noServerNamed(t)
	t.Setenv("PATH", fakeServer(t, "99.1"))

	t.Run("good", func(t *testing.T) {
		t.Setenv("PG_BINDIR", packaged)
		_, log := start(t)
		if strings.Contains(log, "PG_BINDIR") || strings.Count(log, "\n") != 1 {
			t.Errorf("progress lines %q, want one that says which server is used", log)
		}
	})
	t.Run("too old", func(t *testing.T) {
		t.Setenv("PG_BINDIR", fakeServer(t, "13.9"))
		_, log := start(t)
		if want := "PostgreSQL 13.9, 14 is the oldest supported"; !strings.Contains(log, want) {
			t.Errorf("progress lines %q, want %q in them", log, want)
		}
	})
	t.Run("unreadable version", func(t *testing.T) {
		t.Setenv("PG_BINDIR", fakeServer(t, "of today"))
		_, log := start(t)
		if want := "no version in"; !strings.Contains(log, want) {
			t.Errorf("progress lines %q, want %q in them", log, want)
		}
	})
}

func TestClusterFolder(t *testing.T) {
	noServerNamed(t)

	t.Run("closed or too deep", func(t *testing.T) {
		closed := openFolder(t)
		deep := filepath.Join(openFolder(t), strings.Repeat("d", 90))
		if err := os.Mkdir(deep, 0o755); err != nil {
			t.Fatal(err)
		}
		t.Setenv("TMPDIR", deep)
		server := pgtest.NewServer(t)
		if strings.Contains(server.URL(), "ddd") {
			t.Errorf("URL %s, want another folder", server.URL())
		}
		connect(t, server.URL())
		if os.Geteuid() != 0 {
			return
		}
		if err := os.Chmod(closed, 0o700); err != nil {
			t.Fatal(err)
		}
		t.Setenv("TMPDIR", closed)
		connect(t, pgtest.NewServer(t).URL())
		expectEmpty(t, closed)
	})
	t.Run("empty after a start that was cut short", func(t *testing.T) {
		stuck := fakeServer(t, "99.1")
		program(t, filepath.Join(stuck, "initdb"), "while :; do sleep 1; done")
		t.Setenv("PG_BINDIR", stuck)
		base := openFolder(t)
		t.Setenv("TMPDIR", base)
		ctx, cancel := context.WithCancelCause(t.Context())
		cause := errors.New("enough")
		go func() {
			defer cancel(cause)
			for len(entries(base)) == 0 && ctx.Err() == nil {
				time.Sleep(time.Millisecond)
			}
		}()
		_, err := pgtest.Start(ctx)
		if !errors.Is(err, cause) {
			t.Errorf("Start: %v, want the cause", err)
		}
		expectEmpty(t, base)
	})
	t.Run("empty after a start in vain", func(t *testing.T) {
		t.Setenv("PATH", openFolder(t)) // no engine, no apt-get
		base := openFolder(t)
		t.Setenv("TMPDIR", base)
		_, err := pgtest.Start(t.Context(), pgtest.WithParameter("no_such_parameter", "1"))
		if err == nil || !strings.Contains(err.Error(), "no_such_parameter") {
			t.Errorf("Start: %v, want the server's own words", err)
		}
		expectEmpty(t, base)
	})
}

// start starts a server and returns it with its progress lines.
func start(t *testing.T) (*pgtest.Server, string) {
	t.Helper()
	var log bytes.Buffer
	server, err := pgtest.Start(t.Context(), pgtest.WithLog(&log))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := server.Stop(); err != nil {
			t.Error(err)
		}
	})
	connect(t, server.URL())
	return server, log.String()
}

func noServerNamed(t *testing.T) {
	t.Helper()
	t.Setenv("PGIDEM_TEST_DATABASE_URL", "")
	t.Setenv("DATABASE_URL", "")
}

// packagedBinaries returns the folder of the newest server binaries that a
// package of Debian's put there.
func packagedBinaries(t *testing.T) string {
	t.Helper()
	if _, err := os.Stat("/etc/debian_version"); err == nil && os.Getenv("CI") == "true" {
		pgtest.NewServer(t, pgtest.WithLog(nil)) // installs the package where it is missing
	}
	found, _ := filepath.Glob("/usr/lib/postgresql/*/bin/initdb")
	if len(found) == 0 {
		if os.Getenv("CI") == "true" {
			t.Fatal("needs the server package of Debian or Ubuntu")
		}
		t.Skip("needs the server package of Debian or Ubuntu")
	}
	return filepath.Dir(found[len(found)-1])
}

// openFolder is a temporary folder that every user can enter; the ones of
// testing are closed.
func openFolder(t *testing.T) string {
	t.Helper()
	folder, err := os.MkdirTemp("", "pgtest-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(folder) })
	if err := os.Chmod(folder, 0o755); err != nil {
		t.Fatal(err)
	}
	return folder
}

// fakeServer returns a folder with programs that say that they are PostgreSQL
// and then fail.
func fakeServer(t *testing.T, version string) string {
	t.Helper()
	folder := openFolder(t)
	program(t, filepath.Join(folder, "postgres"), fmt.Sprintf("echo 'postgres (PostgreSQL) %s'", version))
	program(t, filepath.Join(folder, "initdb"), "echo of no use; exit 1")
	return folder
}

func program(t *testing.T, path, script string) {
	t.Helper()
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+script+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
}

func entries(folder string) []string {
	found, _ := filepath.Glob(filepath.Join(folder, "*"))
	return found
}

// expectEmpty waits for a folder to become empty.
func expectEmpty(t *testing.T, folder string) {
	t.Helper()
	eventually(t, folder+" is empty", func() bool { return len(entries(folder)) == 0 })
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("still not so: %s", what)
		}
		time.Sleep(10 * time.Millisecond)
	}
}
