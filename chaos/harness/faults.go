package harness

import (
	"context"
	"errors"
	"strconv"
	"syscall"
	"time"

	"github.com/pgidem/pgidem/chaos/history"
)

// Fault does harm to a running system. It returns when it has done enough, or soon after
// ctx has ended, and leaves the system able to recover.
type Fault func(ctx context.Context, s *System) error

func (s *System) note(kind, target, detail string) {
	s.faults.Write(history.Fault{T: history.Now(), Kind: kind, Target: target, Detail: detail})
}

// Note writes into the history that a fault has happened, to what.
func (s *System) Note(kind, target string) { s.note(kind, target, "") }

// Processes returns how many addresses the service has.
func (s *System) Processes() int { return len(s.slots) }

// StopProcess stops the process at the address for a while, wherever it is.
func (s *System) StopProcess(ctx context.Context, n int, d time.Duration) {
	if s.slots[n].signal(syscall.SIGSTOP) {
		s.note(history.StoppedAtRandom, strconv.Itoa(n), d.String())
		wait(ctx.Done(), d)
		s.slots[n].signal(syscall.SIGCONT)
	}
}

// StopProcesses returns a fault that so many times stops some process at a random moment
// for longer than its lease.
func StopProcesses(times int) Fault {
	return func(ctx context.Context, s *System) error {
		for n := range times {
			if !s.AwaitAnswers(ctx, 3) || !wait(ctx.Done(), s.between(0, 50*time.Millisecond)) {
				return nil
			}
			s.StopProcess(ctx, n%s.Processes(), s.stopFor())
		}
		return nil
	}
}

// AwaitAnswers waits until clients have got so many more answers, so that a fault finds the
// system at work. It reports false if ctx ends first.
func (s *System) AwaitAnswers(ctx context.Context, n int64) bool {
	for want := s.answered.Load() + n; s.answered.Load() < want; {
		if !wait(ctx.Done(), 10*time.Millisecond) {
			return false
		}
	}
	return true
}

// RestartPostgres returns a fault that kills the server and starts it again so many
// times, each time when the system is at work again. The scenario has to be Durable.
func RestartPostgres(times int) Fault {
	return func(ctx context.Context, s *System) error {
		if s.Postgres == nil {
			return errors.New("the scenario has no server of its own: set Durable")
		}
		for range times {
			if !s.AwaitAnswers(ctx, 20) || !wait(ctx.Done(), s.between(0, time.Second)) {
				return nil
			}
			s.note(history.PostgresKilled, "postgres", "")
			if err := s.Postgres.Kill(); err != nil {
				return err
			}
			if err := s.Postgres.Restart(context.WithoutCancel(ctx)); err != nil {
				return err
			}
			s.note(history.PostgresBack, "postgres", "")
		}
		return nil
	}
}

// between returns a random time.
func (s *System) between(least, most time.Duration) time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	return least + time.Duration(s.random.Int64N(int64(most-least)))
}
