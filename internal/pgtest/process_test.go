//go:build unix

package pgtest_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net/url"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/jackc/pgx/v5"
	"go.uber.org/goleak"

	"github.com/pgidem/pgidem/internal/pgtest"
)

// childEnv tells a run of this test binary how TestChild is to end.
const childEnv = "PGTEST_CHILD"

// TestChild is a test of another process, which the tests below start.
func TestChild(t *testing.T) {
	mode := os.Getenv(childEnv)
	if mode == "" {
		return
	}
	fmt.Printf("url %s\n", pgtest.NewDatabase(t))
	_, _ = bufio.NewReader(os.Stdin).ReadString('\n')
	switch mode {
	case "pass":
	case "fail":
		t.Fail()
	case "exit":
		os.Exit(7)
	case "panic":
		panic("on purpose")
	case "panic elsewhere":
		go func() { panic("on purpose") }()
		select {}
	case "wait":
		select {}
	case "leaks":
		if err := goleak.Find(); err != nil {
			t.Error(err)
		}
	case "catch":
		// A program that handles the signal itself, and takes its time.
		ctx, cancel := signal.NotifyContext(t.Context(), os.Interrupt)
		defer cancel()
		fmt.Println("catching")
		<-ctx.Done()
		conn, err := pgx.Connect(context.Background(), pgtest.NewDatabase(t))
		if err != nil {
			t.Fatal(err)
		}
		_ = conn.Close(context.Background())
	}
}

func TestNothingStaysBehind(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		mode     string
		signal   syscall.Signal
		wantCode int // -1: ended by the signal
	}{
		{mode: "pass", wantCode: 0},
		{mode: "leaks", wantCode: 0},
		{mode: "fail", wantCode: 1},
		{mode: "exit", wantCode: 7},
		{mode: "panic", wantCode: 2},
		{mode: "panic elsewhere", wantCode: 2},
		{mode: "wait", signal: syscall.SIGINT, wantCode: -1},
		{mode: "wait", signal: syscall.SIGTERM, wantCode: -1},
		{mode: "wait", signal: syscall.SIGQUIT, wantCode: 2},
		{mode: "wait", signal: syscall.SIGKILL, wantCode: -1},
		{mode: "catch", signal: syscall.SIGINT, wantCode: 0},
	} {
		name := tt.mode
		if tt.signal != 0 {
			name += " " + tt.signal.String()
		}
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := startChild(t, tt.mode, "PGIDEM_TEST_DATABASE_URL=", "DATABASE_URL=")
			folder := clusterFolder(t, c.url)
			pid := postmasterPID(t, folder)
			_, _ = io.WriteString(c.stdin, "go on\n")
			if tt.mode == "catch" {
				if line, _ := c.stdout.ReadString('\n'); line != "catching\n" {
					t.Fatalf("child says %q", line)
				}
			}
			if tt.signal != 0 {
				// To the group, as a terminal's Ctrl-C would.
				if err := syscall.Kill(-c.cmd.Process.Pid, tt.signal); err != nil {
					t.Fatal(err)
				}
			}
			output, _ := io.ReadAll(c.stdout)
			_ = c.cmd.Wait()
			if code := c.cmd.ProcessState.ExitCode(); code != tt.wantCode {
				t.Errorf("exit code %d, want %d; output:\n%s", code, tt.wantCode, output)
			}
			if tt.wantCode == 0 {
				// Main has waited.
				if _, err := os.Stat(folder); !os.IsNotExist(err) {
					t.Errorf("folder after the end: %v, want it gone", err)
				}
			}
			eventually(t, "the postmaster is gone", func() bool { return !alive(pid) })
			eventually(t, "the folder is gone", func() bool {
				_, err := os.Stat(folder)
				return os.IsNotExist(err)
			})
		})
	}
}

func TestNothingStaysOnExternalServer(t *testing.T) {
	t.Parallel()
	host := pgtest.NewServer(t)
	admin := connect(t, host.URL())
	c := startChild(t, "wait", "PGIDEM_TEST_DATABASE_URL="+host.URL())
	if n := databases(t, admin, "pgidem_test_"); n != 1 {
		t.Errorf("databases before the kill: %d, want 1", n)
	}
	if err := c.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = c.cmd.Wait()
	eventually(t, "the database is gone", func() bool { return databases(t, admin, "pgidem_test_") == 0 })
}

func TestKillLeavesNoProcess(t *testing.T) {
	t.Parallel()
	server := pgtest.NewServer(t)
	conn := connect(t, server.URL())
	pids := []int{postmasterPID(t, clusterFolder(t, server.URL()))}
	rows, _ := conn.Query(t.Context(), "SELECT a.pid::int FROM pg_catalog.pg_stat_activity AS a")
	children, err := pgx.CollectRows(rows, pgx.RowTo[int])
	if err != nil || len(children) < 3 {
		t.Fatalf("children %v (%v), want at least three", children, err)
	}
	busy := make(chan error)
	go func() {
		_, err := conn.Exec(t.Context(), "DO 'BEGIN LOOP END LOOP; END'")
		busy <- err
	}()
	if err := server.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := <-busy; err == nil {
		t.Error("the busy connection outlived the kill")
	}
	for _, pid := range append(pids, children...) {
		if alive(pid) {
			t.Errorf("process %d outlived the kill", pid)
		}
	}
}

// alive counts a zombie as dead: in a container, no one may wait for orphans.
func alive(pid int) bool {
	if syscall.Kill(pid, 0) == syscall.ESRCH {
		return false
	}
	cmdline, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	return err != nil || len(cmdline) > 0
}

type child struct {
	cmd    *exec.Cmd
	url    string // of its database
	stdin  io.Writer
	stdout *bufio.Reader
}

// startChild runs TestChild in a process of its own, up to where it has its
// database.
func startChild(t *testing.T, mode string, env ...string) *child {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe, "-test.run=^TestChild$")
	cmd.Env = append(append(os.Environ(), env...), childEnv+"="+mode)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	c := &child{cmd: cmd, stdin: stdin, stdout: bufio.NewReader(stdout)}
	line, err := c.stdout.ReadString('\n')
	if err != nil || !strings.HasPrefix(line, "url ") {
		t.Fatalf("child says %q (%v), want its URL", line, err)
	}
	c.url = strings.TrimSpace(strings.TrimPrefix(line, "url "))
	return c
}

func clusterFolder(t *testing.T, rawURL string) string {
	t.Helper()
	u, err := url.Parse(rawURL)
	if err != nil {
		t.Fatal(err)
	}
	folder := u.Query().Get("host")
	if _, err := os.Stat(folder); err != nil {
		t.Fatalf("URL %s: %v", rawURL, err)
	}
	return folder
}

func postmasterPID(t *testing.T, folder string) int {
	t.Helper()
	file, err := os.ReadFile(filepath.Join(folder, "data", "postmaster.pid"))
	if err != nil {
		t.Fatal(err)
	}
	line, _, _ := strings.Cut(string(file), "\n")
	pid, err := strconv.Atoi(line)
	if err != nil {
		t.Fatal(err)
	}
	return pid
}
