package migrations_test

import (
	"net"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/pgidem/pgidem/migrations"
)

// TestConnectionsNoticeALostServer by what the system is told: on loopback nothing swallows
// packets without acknowledging them.
func TestConnectionsNoticeALostServer(t *testing.T) {
	t.Parallel()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	cfg, err := migrations.ConnConfig("postgres://127.0.0.1/app", time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := cfg.DialFunc(t.Context(), "tcp", listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	raw, err := conn.(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	const userTimeout = 18 // TCP_USER_TIMEOUT, tcp(7)
	for _, option := range []struct{ level, name, want int }{
		{syscall.SOL_SOCKET, syscall.SO_KEEPALIVE, 1},
		{syscall.IPPROTO_TCP, syscall.TCP_KEEPIDLE, 15},
		{syscall.IPPROTO_TCP, syscall.TCP_KEEPINTVL, 15},
		{syscall.IPPROTO_TCP, syscall.TCP_KEEPCNT, 3},
		{syscall.IPPROTO_TCP, userTimeout, 60_000},
	} {
		var got int
		var optErr error
		err := raw.Control(func(fd uintptr) { got, optErr = syscall.GetsockoptInt(int(fd), option.level, option.name) })
		if err != nil || optErr != nil || got != option.want {
			t.Errorf("option %d of level %d: %d, %v, %v; want %d", option.name, option.level, got, err, optErr, option.want)
		}
	}
}

// TestConnectByAUnixSocket, of which there is nothing to be told.
func TestConnectByAUnixSocket(t *testing.T) {
	t.Parallel()
	address := filepath.Join(t.TempDir(), "s")
	listener, err := net.Listen("unix", address)
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	cfg, err := migrations.ConnConfig("postgres://127.0.0.1/app", time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := cfg.DialFunc(t.Context(), "unix", address)
	if err != nil {
		t.Fatal(err)
	}
	_ = conn.Close()
}
