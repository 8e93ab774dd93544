//go:build unix

package pgtest

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"time"
)

// postmaster is the root process of a cluster. It is a child of this process,
// so that its pid is its own until it has been waited for.
type postmaster struct {
	cmd   *exec.Cmd
	ended chan struct{} // closed when it was waited for
	err   error         // of the wait
}

// startPostmaster starts a postmaster that ends with this process at the latest,
// where the system has means for that.
func startPostmaster(c *cluster) (*postmaster, error) {
	log, err := os.OpenFile(c.logFile(), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	defer func() { _ = log.Close() }()
	cmd := exec.Command(c.bin.path("postgres"), "-D", c.data())
	cmd.Dir = c.folder
	cmd.Env = serverEnviron()
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = c.as.attributes()
	endWithParent(cmd.SysProcAttr, syscall.SIGQUIT)
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	p := &postmaster{cmd: cmd, ended: make(chan struct{})}
	go func() {
		defer close(p.ended)
		if p.err = cmd.Wait(); p.err == nil {
			p.err = errors.New("exit status 0")
		}
	}()
	return p, nil
}

func (p *postmaster) isOver() bool {
	select {
	case <-p.ended:
		return true
	default:
		return false
	}
}

// kill ends the postmaster and its children with SIGKILL. The children have
// sessions of their own, so that no signal to a group reaches them; and the
// postmaster, stopped first, makes no new ones.
func (p *postmaster) kill() error {
	pid := p.cmd.Process.Pid
	if err := p.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		return err
	}
	children, err := childrenOf(pid)
	_ = p.cmd.Process.Kill()
	<-p.ended
	for _, child := range children {
		_ = syscall.Kill(child, syscall.SIGKILL)
	}
	if err != nil {
		return fmt.Errorf("children of the postmaster: %w", err)
	}
	deadline := time.Now().Add(10 * time.Second)
	for _, child := range children {
		for !isGone(child) {
			if time.Now().After(deadline) {
				return fmt.Errorf("process %d survives SIGKILL", child)
			}
			time.Sleep(5 * time.Millisecond)
		}
	}
	return nil
}
