package pgtest_test

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/pgidem/pgidem/internal/pgtest"
)

func TestSupervisorKilled(t *testing.T) {
	t.Parallel()
	var log strings.Builder
	server, err := pgtest.Start(t.Context(), pgtest.WithLog(&log), pgtest.LocalOnly)
	if err != nil {
		t.Fatal(err)
	}
	folder := clusterFolder(t, server.URL())
	t.Cleanup(func() { _ = os.RemoveAll(folder) })
	pid := postmasterPID(t, folder)
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	// "pid (name) state ppid ..."
	supervisor, err := strconv.Atoi(strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))[1])
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(supervisor, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the server is gone", func() bool { return !alive(pid) })
	if err := server.Kill(); err == nil {
		t.Error("Kill without a supervisor: no error")
	}
	if err := server.Stop(); err == nil {
		t.Error("Stop without a supervisor: no error")
	}
}
