package harness

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/pgidem/pgidem/chaos/history"
	"github.com/pgidem/pgidem/chaos/service"
)

// slot is an address of the service and the process that serves there at the moment. The
// listener outlives the processes: who connects while none is there waits for the next.
type slot struct {
	system   *System
	number   int
	address  string
	listener *os.File

	mu      sync.Mutex
	current *os.Process // nil while there is none
}

func newSlot(ctx context.Context, system *System, number int) (*slot, error) {
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	defer func() { _ = listener.Close() }() // the file has a descriptor of its own
	file, err := listener.(*net.TCPListener).File()
	if err != nil {
		return nil, err
	}
	return &slot{system: system, number: number, address: listener.Addr().String(), listener: file}, nil
}

// signal sends a signal to the process that serves, if there is one.
func (s *slot) signal(sig os.Signal) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.current != nil && s.current.Signal(sig) == nil
}

// keep has a process serve, and the next when it dies, until ending is closed; then it lets
// the last one shut down.
func (s *slot) keep(ctx context.Context, ending <-chan struct{}) error {
	for n := 1; ; n++ {
		plan, random := s.system.deal()
		ended, err := s.run(ctx, fmt.Sprintf("%d.%d", s.number, n), plan, random, ending)
		if err != nil || ended {
			return err
		}
	}
}

// run runs one process to its end. It reports whether it was let go, and did not die.
func (s *slot) run(ctx context.Context, name string, plan service.Plan, killAfter time.Duration, ending <-chan struct{}) (ended bool, err error) {
	notices, theirNotices, err := os.Pipe()
	if err != nil {
		return false, err
	}
	defer func() { _ = notices.Close() }()
	stderr, err := os.OpenFile(filepath.Join(s.system.Dir, "service.log"), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return false, errors.Join(err, theirNotices.Close())
	}
	defer func() { _ = stderr.Close() }()

	cmd := exec.CommandContext(ctx, s.system.executable(s.number)) // its context's end kills it
	cmd.Env = append(os.Environ(), s.system.config(name, s.number, plan).Environ(),
		"GORACE=halt_on_error=1") // under the race detector, a race is then a process that ends by itself
	if environ := s.system.scenario.Environ; environ != nil {
		cmd.Env = append(cmd.Env, environ(s.number)...)
	}
	cmd.ExtraFiles = []*os.File{s.listener, theirNotices}
	cmd.Stdout, cmd.Stderr = stderr, stderr
	lifeline, err := cmd.StdinPipe()
	if err == nil {
		err = cmd.Start()
	}
	_ = theirNotices.Close()
	if err != nil {
		return false, err
	}
	s.set(cmd.Process)

	var watchers sync.WaitGroup
	dead := make(chan struct{})
	ready := make(chan struct{})
	watchers.Go(func() { s.listen(notices, ready, dead) })
	if killAfter > 0 {
		watchers.Go(func() { s.killAtRandom(cmd.Process, name, killAfter, ready, dead) })
	}
	watchers.Go(func() {
		select {
		case <-ending:
			_ = lifeline.Close()
			s.awaken(dead)
		case <-dead:
		}
	})
	err = cmd.Wait()
	s.set(nil)
	close(dead)
	_ = lifeline.Close()
	_ = notices.Close()
	watchers.Wait()

	select {
	case <-ending:
		ended = true
	default:
	}
	status, _ := cmd.ProcessState.Sys().(syscall.WaitStatus)
	switch {
	case status.Signaled() && status.Signal() == syscall.SIGKILL && ctx.Err() == nil:
		s.system.note(history.Died, name, "")
		s.system.deaths.Add(1)
	case err == nil && ended, ctx.Err() != nil:
	default:
		s.system.note(history.DiedOtherwise, name, fmt.Sprint(cmd.ProcessState))
		return true, fmt.Errorf("process %s of the service ended: %v; see service.log", name, cmd.ProcessState)
	}
	return ended, nil
}

func (s *slot) set(process *os.Process) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.current = process
}

// listen hears the notices of a process until it has ended: that it is ready, and that it
// stops itself, upon which it is continued after a while.
func (s *slot) listen(notices io.Reader, ready, dead chan struct{}) {
	var notice [1]byte
	for {
		if _, err := notices.Read(notice[:]); err != nil {
			return
		}
		switch notice[0] {
		case service.Ready:
			close(ready)
		case service.Stopping:
			if wait(dead, s.system.stopFor()) {
				s.awaken(dead)
			}
		}
	}
}

// awaken continues a process that has stopped itself, or is about to.
func (s *slot) awaken(dead <-chan struct{}) {
	for range 3 {
		s.signal(syscall.SIGCONT)
		if !wait(dead, 100*time.Millisecond) {
			return
		}
	}
}

// killAtRandom kills the process a while after it is ready, wherever it is.
func (s *slot) killAtRandom(process *os.Process, name string, after time.Duration, ready, dead <-chan struct{}) {
	select {
	case <-ready:
	case <-dead:
		return
	}
	if wait(dead, after) && process.Kill() == nil {
		s.system.note(history.KilledAtRandom, name, "")
	}
}

// wait waits so long. It reports false if the channel was closed before.
func wait(closed <-chan struct{}, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-closed:
		return false
	}
}
