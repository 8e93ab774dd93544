package integration_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"go.uber.org/goleak"

	"github.com/pgidem/pgidem/internal/pgtest"
)

// pgtest takes a container where the machine has no server binaries. To bring that
// about on a machine that has some, its caller is a second process of this
// executable, with a PATH that leads to container engines only and with a mount
// namespace of its own, in which /dev/null lies over each packaged initdb.

// callerEnv marks a process as that caller.
const callerEnv = "PGIDEM_INTEGRATION_CALLER"

// packagedServers is where pgtest looks besides PATH, on Linux.
var packagedServers = []string{
	"/usr/lib/postgresql/*/bin/initdb",
	"/usr/pgsql-*/bin/initdb",
	"/usr/libexec/postgresql*/initdb",
	"/usr/local/pgsql/bin/initdb",
}

func findPackagedServers() []string {
	var found []string
	for _, pattern := range packagedServers {
		matches, _ := filepath.Glob(pattern) // the patterns are well-formed
		found = append(found, matches...)
	}
	return found
}

// report is what the caller says, in one line of JSON, once it has used its
// server.
type report struct {
	Source   string
	Database string // the one that it was connected to
	WorkMem  string
}

func TestMain(m *testing.M) {
	if os.Getenv(callerEnv) != "" {
		if err := call(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	goleak.VerifyTestMain(m)
}

// call is what the caller does: it starts a server, uses it, reports, and stops
// it at the end of its input.
func call() error {
	for _, initdb := range findPackagedServers() {
		if err := syscall.Mount("/dev/null", initdb, "", syscall.MS_BIND, ""); err != nil {
			return fmt.Errorf("hide %s: %w", initdb, err)
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	server, err := pgtest.Start(ctx, pgtest.WithParameter("work_mem", "1234kB"))
	if err != nil {
		return err
	}
	said, err := use(ctx, server)
	if err == nil {
		err = json.NewEncoder(os.Stdout).Encode(said)
	}
	if err == nil {
		_, err = io.Copy(io.Discard, os.Stdin)
	}
	return errors.Join(err, server.Stop())
}

func use(ctx context.Context, server *pgtest.Server) (said report, err error) {
	url, drop, err := server.CreateDatabase(ctx)
	if err != nil {
		return report{}, err
	}
	defer func() { err = errors.Join(err, drop(ctx)) }()
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return report{}, err
	}
	defer func() { err = errors.Join(err, conn.Close(ctx)) }()
	said.Source = server.Source()
	err = conn.QueryRow(ctx, "SELECT pg_catalog.current_database(), pg_catalog.current_setting('work_mem')").
		Scan(&said.Database, &said.WorkMem)
	return said, err
}

func TestPgtestContainer(t *testing.T) {
	t.Parallel()
	needEngine(t)

	t.Run("stopped", func(t *testing.T) {
		t.Parallel()
		c := startCaller(t)
		said := c.report(t)
		if !strings.HasPrefix(said.Database, "pgidem_test_") || said.WorkMem != "1234kB" {
			t.Errorf("database %q with work_mem %q, want a pgidem_test_ one with 1234kB", said.Database, said.WorkMem)
		}
		box := findBox(t, said.Source)
		if err := c.in.Close(); err != nil {
			t.Fatal(err)
		}
		if err := c.cmd.Wait(); err != nil {
			t.Fatalf("the caller: %v, want Stop without an error", err)
		}
		if left := box.left(t); left != "" {
			t.Errorf("after Stop: %s", left)
		}
	})

	t.Run("killed", func(t *testing.T) {
		t.Parallel()
		c := startCaller(t)
		box := findBox(t, c.report(t).Source)
		if err := c.cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = c.cmd.Wait()
		// Its supervisor goes on for a moment.
		for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(50 * time.Millisecond) {
			left := box.left(t)
			if left == "" {
				return
			}
			if time.Now().After(deadline) {
				t.Fatalf("long after the process was killed: %s", left)
			}
		}
	})
}

type caller struct {
	cmd *exec.Cmd
	in  io.Closer
	out *bufio.Reader
}

func startCaller(t *testing.T) *caller {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	engines := t.TempDir()
	for _, name := range []string{"docker", "podman"} {
		if path, err := exec.LookPath(name); err == nil {
			if err := os.Symlink(path, filepath.Join(engines, name)); err != nil {
				t.Fatal(err)
			}
		}
	}

	cmd := exec.Command(self)
	cmd.Env = append(slices.DeleteFunc(os.Environ(), func(kv string) bool {
		name, _, _ := strings.Cut(kv, "=")
		return slices.Contains([]string{"PATH", "PG_BINDIR", "PGIDEM_TEST_DATABASE_URL", "DATABASE_URL"}, name)
	}), "PATH="+engines, "PGIDEM_TEST_IMAGE="+image(), callerEnv+"=yes")
	cmd.Stderr = os.Stderr // for errors, and pgtest's lines on the ways it tries
	if servers := findPackagedServers(); len(servers) > 0 {
		if os.Geteuid() != 0 {
			cannotRun(t, fmt.Sprintf("only root can hide %s, without which pgtest takes no container", servers))
		}
		cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	}
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	switch err := cmd.Start(); {
	case errors.Is(err, fs.ErrPermission):
		cannotRun(t, fmt.Sprintf("this root may not make a mount namespace: %v", err))
	case err != nil:
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = in.Close()
		_ = cmd.Wait() // an error is the test's, or there was none to wait for
	})
	return &caller{cmd: cmd, in: in, out: bufio.NewReader(out)}
}

func (c *caller) report(t *testing.T) report {
	t.Helper()
	line, err := c.out.ReadString('\n')
	if err != nil {
		t.Fatalf("the caller said %q: %v", line, err)
	}
	var said report
	if err := json.Unmarshal([]byte(line), &said); err != nil {
		t.Fatalf("the caller said %q: %v", line, err)
	}
	return said
}

// box is a container of pgtest's with its volumes.
type box struct {
	engine, name string
	volumes      []string
}

var sourceOfContainer = regexp.MustCompile(`^PostgreSQL .+ of \S+, (docker|podman) container (pgidem-pgtest-\w+)$`)

// findBox returns the container that a server says to come from.
func findBox(t *testing.T, source string) box {
	t.Helper()
	match := sourceOfContainer.FindStringSubmatch(source)
	if match == nil {
		t.Fatalf("Source %q, want a container", source)
	}
	b := box{engine: match[1], name: match[2]}
	b.volumes = strings.Fields(b.command(t, "inspect", "--format", "{{range .Mounts}}{{println .Name}}{{end}}", b.name))
	if len(b.volumes) == 0 {
		t.Errorf("container %s has no volume, so that it does not show that volumes are removed", b.name)
	}
	return b
}

// left says what there still is of the container.
func (b box) left(t *testing.T) string {
	t.Helper()
	if id := b.command(t, "ps", "--all", "--quiet", "--filter", "name="+b.name); id != "" {
		return "container " + b.name + " is there"
	}
	there := strings.Fields(b.command(t, "volume", "ls", "--quiet"))
	for _, volume := range b.volumes {
		if slices.Contains(there, volume) {
			return "volume " + volume + " of container " + b.name + " is there"
		}
	}
	return ""
}

func (b box) command(t *testing.T, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, b.engine, args...).Output()
	if err != nil {
		t.Fatalf("%s %s: %v", b.engine, args[0], err)
	}
	return strings.TrimSpace(string(out))
}
