package pgtest

import (
	"bufio"
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"time"
)

// supervisorEnv marks a process as a supervisor.
const supervisorEnv = "PGIDEM_PGTEST_SUPERVISOR"

// The process and its supervisor talk in lines of JSON: a request down the
// supervisor's standard input, any number of log messages and one reply up its
// standard output. The end of the input, which the kernel brings about however
// the process ends, is the order to clean up.
type request struct {
	Op   string
	Spec spec   // of opStart
	Run  string // of opStart: prefix of the databases of this process
}

const (
	opStart   = "start"
	opKill    = "kill"
	opRestart = "restart"
)

type message struct {
	Pgtest string // kind of message; tells ours from what others may print
	Text   string // a log line, or the error of a reply
	Server serverInfo
}

const (
	kindLog   = "log"
	kindReply = "reply"
	kindEnd   = "end" // clean-up is over
)

// supervisor is the process's end of its supervisor: a second process of the
// same executable which owns one server, outlives this process and cleans up.
type supervisor struct {
	cmd *exec.Cmd
	log io.Writer

	mu     sync.Mutex // one conversation at a time
	in     *os.File
	out    *os.File
	lines  *bufio.Reader
	closed bool
	end    error // result of stop
}

func startSupervisor(log io.Writer) (*supervisor, error) {
	exe, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("supervisor: %w", err)
	}
	childIn, in, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("supervisor: %w", err)
	}
	out, childOut, err := os.Pipe()
	if err != nil {
		_, _ = childIn.Close(), in.Close()
		return nil, fmt.Errorf("supervisor: %w", err)
	}
	// Standard error stays closed: go test waits for whoever holds that of a
	// test. Files instead of readers and writers: exec needs no goroutine then.
	cmd := &exec.Cmd{
		Path:        exe,
		Args:        []string{"pgtest-supervisor"},
		Env:         append(supervisorEnviron(), supervisorEnv+"=1"),
		Stdin:       childIn,
		Stdout:      childOut,
		SysProcAttr: ownSession(),
	}
	err = cmd.Start()
	_, _ = childIn.Close(), childOut.Close()
	if err != nil {
		_, _ = in.Close(), out.Close()
		return nil, fmt.Errorf("supervisor: %w", err)
	}
	return &supervisor{cmd: cmd, log: log, in: in, out: out, lines: bufio.NewReader(out)}, nil
}

// supervisorEnviron is the environment without what would make a second process
// of a test binary write coverage, or wait for a second before its exit.
func supervisorEnviron() []string {
	env := make([]string, 0, len(os.Environ()))
	for _, kv := range os.Environ() {
		if !strings.HasPrefix(kv, "GOCOVERDIR=") && !strings.HasPrefix(kv, "GORACE=") {
			env = append(env, kv)
		}
	}
	return append(env, "GORACE=atexit_sleep_ms=0")
}

// call sends a request and waits for its reply. When ctx ends first, the
// conversation is broken off, and with it goes the server.
func (s *supervisor) call(ctx context.Context, req request) (serverInfo, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return serverInfo{}, errors.New("the server was stopped")
	}
	if ctx.Err() != nil {
		return serverInfo{}, context.Cause(ctx)
	}
	line, err := json.Marshal(req)
	if err != nil {
		return serverInfo{}, err
	}
	if _, err := s.in.Write(append(line, '\n')); err != nil {
		return serverInfo{}, fmt.Errorf("the supervisor is gone: %w", err)
	}
	// The deadline wakes the read below.
	release := context.AfterFunc(ctx, func() { _ = s.out.SetReadDeadline(time.Unix(1, 0)) })
	defer release()
	reply, err := s.read(kindReply)
	switch {
	case err != nil && ctx.Err() != nil:
		s.close(true)
		return serverInfo{}, context.Cause(ctx)
	case err != nil:
		return serverInfo{}, fmt.Errorf("the supervisor is gone: %w", err)
	case reply.Text != "":
		return serverInfo{}, errors.New(reply.Text)
	}
	return reply.Server, nil
}

// read returns the next message of the given kind and logs on the way.
func (s *supervisor) read(kind string) (message, error) {
	for {
		line, err := s.lines.ReadBytes('\n')
		if err != nil {
			return message{}, err
		}
		var msg message
		if json.Unmarshal(line, &msg) != nil {
			continue // some other package's init printed something
		}
		switch msg.Pgtest {
		case kind:
			return msg, nil
		case kindLog:
			_, _ = fmt.Fprintf(s.log, "pgtest: %s\n", msg.Text)
		}
	}
}

// stop orders the clean-up and waits until it is over.
func (s *supervisor) stop() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.close(false)
	return s.end
}

// close ends the conversation. An abandoned supervisor is left to its work,
// which may be an installation that must not be cut short.
func (s *supervisor) close(abandon bool) {
	if s.closed {
		return
	}
	s.closed = true
	_ = s.in.Close()
	defer func() { _ = s.out.Close() }()
	if abandon {
		_ = s.cmd.Process.Release()
		return
	}
	msg, err := s.read(kindEnd)
	switch {
	case err != nil:
		s.end = fmt.Errorf("the supervisor ended before its clean-up: %w", err)
	case msg.Text != "":
		s.end = errors.New(msg.Text)
	}
	if err := s.cmd.Wait(); err != nil && s.end == nil {
		s.end = fmt.Errorf("supervisor: %w", err)
	}
}

func randomHex(bytes int) string {
	b := make([]byte, bytes)
	_, _ = rand.Read(b) // never fails
	return hex.EncodeToString(b)
}
