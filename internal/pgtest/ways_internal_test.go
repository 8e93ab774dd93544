//go:build unix

package pgtest

import (
	"context"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
)

// The ways are tried in this process here, without a supervisor, because only
// so can the folders of packages be hidden. Not parallel for the same reason.

func hidePackages(t *testing.T) {
	t.Helper()
	folders := packageFolders
	packageFolders = nil
	t.Cleanup(func() { packageFolders = folders })
}

func TestNoWay(t *testing.T) {
	hidePackages(t)
	t.Setenv("PATH", t.TempDir())
	var log []string
	_, err := choose(t.Context(), spec{Env: environment{BinDir: "/nowhere"}}, "pgidem_test_x_", func(format string, args ...any) {
		log = append(log, fmt.Sprintf(format, args...))
	})
	if err == nil {
		t.Fatal("a server out of nothing")
	}
	for _, want := range []string{
		"/nowhere holds no initdb and postgres", "docker is not installed", "podman is not installed", "apt-get",
		"install PostgreSQL 14 or newer", "PGIDEM_TEST_DATABASE_URL",
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("error:\n%v\nwant %q in it", err, want)
		}
	}
	if len(log) != 1 || !strings.HasPrefix(log[0], "PG_BINDIR is passed over") {
		t.Errorf("progress lines %q, want one about PG_BINDIR", log)
	}
}

func TestEngineDoesNotRun(t *testing.T) {
	fakeEngine(t, `echo 'Server:'; echo 'Cannot connect to the daemon'; exit 1`)
	_, err := startContainer(t.Context(), spec{}, t.Logf)
	if err == nil || !strings.Contains(err.Error(), "docker does not run: Cannot connect to the daemon") {
		t.Errorf("error %v, want the engine's last line", err)
	}
}

func TestContainer(t *testing.T) {
	// The engine is a stand-in that remembers its calls; the server is real, and
	// lets everybody in.
	server := NewServer(t, WithTCP())
	u, err := url.Parse(server.URL())
	if err != nil {
		t.Fatal(err)
	}
	trustEverybody(t, server)

	calls := fakeEngine(t, fmt.Sprintf(`
echo "$@ $POSTGRES_PASSWORD" >>"$(dirname_of "$0")/calls"
case $1 in
image) test "$3" = present ;;
port) echo "0.0.0.0:%[1]s"; echo "[::]:%[1]s" ;;
esac`, u.Port()))

	t.Run("start and stop", func(t *testing.T) {
		var log []string
		s := spec{Parameters: []parameter{{"work_mem", "1MB"}}, Env: environment{Image: "absent"}}
		c, err := startContainer(t.Context(), s, func(format string, args ...any) {
			log = append(log, fmt.Sprintf(format, args...))
		})
		if err != nil {
			t.Fatal(err)
		}
		conn, err := pgx.Connect(t.Context(), c.info().URL)
		if err != nil {
			t.Fatal(err)
		}
		_ = conn.Close(context.Background())
		if _, ok := c.(crashable); ok {
			t.Error("a container can be killed as a cluster")
		}
		if err := c.stop(); err != nil {
			t.Fatal(err)
		}
		if len(log) != 2 || log[0] != "pulling absent with docker" || !strings.Contains(log[1], "docker container pgidem-pgtest-") {
			t.Errorf("progress lines %q", log)
		}
		name := c.(*container).name
		wantCalls(t, calls, []string{
			"info", "image inspect absent", "pull --quiet absent",
			"run --detach --rm --name " + name + " --publish 127.0.0.1::5432",
			"port " + name + " 5432/tcp", "rm --force --volumes " + name,
		})
		run, _ := os.ReadFile(calls)
		for _, want := range []string{"absent postgres -c max_connections=200", "-c fsync=off", "-c work_mem=1MB", c.(*container).password} {
			if !strings.Contains(string(run), want) {
				t.Errorf("calls:\n%s\nwant %q in them", run, want)
			}
		}
	})

	t.Run("removed when the start is in vain", func(t *testing.T) {
		calls := fakeEngine(t, `
echo "$@" >>"$(dirname_of "$0")/calls"
case $1 in
port) echo 127.0.0.1:1 ;;
logs) echo "no such container" >&2; exit 1 ;;
esac`)
		_, err := startContainer(t.Context(), spec{}, t.Logf)
		if err == nil || !strings.Contains(err.Error(), "the container ended") {
			t.Errorf("error %v, want to hear that the container ended", err)
		}
		wantCalls(t, calls, []string{
			"info", "image inspect docker.io/library/postgres:17-alpine", "run --detach --rm", "port", "logs", "rm --force --volumes",
		})
	})
}

func wantCalls(t *testing.T, file string, want []string) {
	t.Helper()
	calls, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	got := strings.Split(strings.TrimSpace(string(calls)), "\n")
	if len(got) != len(want) {
		t.Fatalf("calls:\n%s\nwant %d", calls, len(want))
	}
	for i := range want {
		if !strings.HasPrefix(got[i], want[i]) {
			t.Errorf("call %d is %q, want %q", i, got[i], want[i])
		}
	}
}

// fakeEngine puts a docker that is a shell script into PATH, alone, and returns
// the file for its calls.
func fakeEngine(t *testing.T, script string) (calls string) {
	t.Helper()
	folder := t.TempDir()
	// Some engines say something beside each answer.
	script = "#!/bin/sh\ndirname_of() { echo \"${1%/*}\"; }\necho 'Emulating another engine.' >&2\n" + script + "\n"
	if err := os.WriteFile(filepath.Join(folder, "docker"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", folder)
	return filepath.Join(folder, "calls")
}

func trustEverybody(t *testing.T, server *Server) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), server.URL())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(context.Background()) }()
	var file string
	if err := conn.QueryRow(t.Context(), "SELECT pg_catalog.current_setting('hba_file')").Scan(&file); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte("host all all 127.0.0.1/32 trust\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Exec(t.Context(), "SELECT pg_catalog.pg_reload_conf()"); err != nil {
		t.Fatal(err)
	}
}
