//go:build unix

package main_test

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// build compiles the program once for all tests.
var build = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "payments-")
	if err != nil {
		return "", err
	}
	program := filepath.Join(dir, "payments")
	if out, err := exec.Command("go", "build", "-o", program, ".").CombinedOutput(); err != nil {
		return "", fmt.Errorf("%w\n%s", err, out)
	}
	return program, nil
})

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.Cleanup(func(code int) {
		if program, err := build(); err == nil {
			_ = os.RemoveAll(filepath.Dir(program))
		}
		os.Exit(code)
	}))
}

// command returns the program, with a folder of its own for what it leaves.
func command(t *testing.T, args ...string) (cmd *exec.Cmd, folder string) {
	t.Helper()
	program, err := build()
	if err != nil {
		t.Fatal(err)
	}
	//nolint:usetesting // the server's account cannot enter t.TempDir, and a socket's path must be short
	folder, err = os.MkdirTemp("", "pay")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(folder, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(folder) })
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	t.Cleanup(cancel)
	cmd = exec.CommandContext(ctx, program, args...)
	cmd.Env = append(os.Environ(), "TMPDIR="+folder)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	return cmd, folder
}

// wantEmpty checks that nothing is left in the folder.
func wantEmpty(t *testing.T, folder string) {
	t.Helper()
	entries, err := os.ReadDir(folder)
	if err != nil {
		t.Fatal(err)
	}
	for _, entry := range entries {
		t.Errorf("%s is left behind", entry.Name())
	}
}

// postmasters returns the process ids of the servers that run in the folder: none
// where the server is a container or somebody else's.
func postmasters(t *testing.T, folder string) (pids []int) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(folder, "*", "data", "postmaster.pid"))
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		content, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		line, _, _ := strings.Cut(string(content), "\n")
		pid, err := strconv.Atoi(line)
		if err != nil {
			t.Fatal(err)
		}
		pids = append(pids, pid)
	}
	t.Logf("servers of processes %v", pids)
	return pids
}

func TestDemo(t *testing.T) {
	t.Parallel()
	cmd, folder := command(t)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v\n%s%s", err, out, stderr.Bytes())
	}
	if !bytes.Contains(out, []byte("All 8 steps showed what they should")) || bytes.Contains(out, []byte("\x1b")) {
		t.Errorf("want a transcript to its end, without colours in a pipe; got\n%s", out)
	}
	if stderr.Len() > 0 {
		t.Errorf("standard error has %s", stderr.Bytes())
	}
	wantEmpty(t, folder)
}

func TestServe(t *testing.T) {
	t.Parallel()
	cmd, folder := command(t, "--serve")
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(stdout)
	var url string
	var commands []string
	for lines.Scan() && !strings.HasPrefix(lines.Text(), "Ctrl-C") {
		if found := regexp.MustCompile(`http://127\.0\.0\.1:\d+`).FindString(lines.Text()); found != "" && url == "" {
			url = found
		}
		if command, ok := strings.CutPrefix(lines.Text(), "  "); ok {
			commands = append(commands, command)
		}
	}
	resp, err := http.Get(url + "/healthz")
	if err != nil {
		t.Fatalf("%v\n%s", err, stderr.Bytes())
	}
	_ = resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		t.Errorf("/healthz is %s", resp.Status)
	}
	t.Run("the commands that it prints", func(t *testing.T) {
		if _, err := exec.LookPath("curl"); err != nil {
			if os.Getenv("CI") == "true" {
				t.Fatal("install curl: the commands that the demo prints are tried with it")
			}
			t.Skip("no curl")
		}
		out, err := exec.Command("sh", "-e", "-c", strings.Join(commands, "\n")).CombinedOutput()
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		got := regexp.MustCompile(`HTTP/1.1 \d+|Idempotency-Replayed: true`).FindAllString(string(out), -1)
		want := []string{"HTTP/1.1 201", "HTTP/1.1 201", "Idempotency-Replayed: true", "HTTP/1.1 201", "HTTP/1.1 422"}
		if fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("they gave %q, want %q\n%s", got, want, out)
		}
	})

	servers := postmasters(t, folder)
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	rest, err := io.ReadAll(stdout)
	if err != nil {
		t.Fatal(err)
	}
	for lines.Scan() {
		rest = append(rest, lines.Bytes()...)
	}
	if err := cmd.Wait(); err != nil {
		t.Fatalf("%v\n%s", err, stderr.Bytes())
	}
	if !bytes.Contains(rest, []byte("Stopped and cleaned up.")) {
		t.Errorf("it ended with %q", rest)
	}
	wantEmpty(t, folder)
	for _, pid := range servers {
		if err := syscall.Kill(pid, 0); err == nil {
			t.Errorf("the PostgreSQL of process %d still runs", pid)
		}
	}
}

func TestInterrupt(t *testing.T) {
	t.Parallel()
	cmd, folder := command(t)
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(stdout)
	for lines.Scan() && !strings.HasPrefix(lines.Text(), "4.") {
	}
	if err := cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	for lines.Scan() {
	}
	_ = cmd.Wait()
	if code := cmd.ProcessState.ExitCode(); code != 1 || !strings.Contains(stderr.String(), "interrupt") {
		t.Errorf("exit code %d, standard error %q: want 1, and that it was interrupted", code, stderr.String())
	}
	wantEmpty(t, folder)
}

func TestCommandLine(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		args           []string
		code           int
		stdout, stderr string
	}{
		"help":             {[]string{"--help"}, 0, "Usage:", ""},
		"unknown flag":     {[]string{"--frobnicate"}, 2, "", "frobnicate"},
		"unknown argument": {[]string{"serve"}, 2, "", `unexpected argument "serve"`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cmd, folder := command(t, tc.args...)
			var stdout, stderr bytes.Buffer
			cmd.Stdout, cmd.Stderr = &stdout, &stderr
			_ = cmd.Run()
			if code := cmd.ProcessState.ExitCode(); code != tc.code {
				t.Errorf("exit code %d, want %d", code, tc.code)
			}
			for _, text := range []struct{ got, want string }{{stdout.String(), tc.stdout}, {stderr.String(), tc.stderr}} {
				if !strings.Contains(text.got, text.want) || (text.want == "") != (text.got == "") {
					t.Errorf("printed %q, want %q in it", text.got, text.want)
				}
			}
			wantEmpty(t, folder)
		})
	}
}
