package cli

import (
	"context"
	"errors"
	"os"
	"os/signal"
	"syscall"
)

// Signalled is the cause of a context that a signal ended.
type Signalled struct{ syscall.Signal }

// Error implements error.
func (s Signalled) Error() string { return "signal " + s.String() }

// SignalContext returns a context that the first SIGINT or SIGTERM ends, with [Signalled]
// as its cause. A second one ends the process at once.
func SignalContext() context.Context {
	ctx, stop := context.WithCancelCause(context.Background())
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	go func() {
		sig := <-signals
		signal.Reset(os.Interrupt, syscall.SIGTERM)
		stop(Signalled{sig.(syscall.Signal)})
	}()
	return ctx
}

// ExitOf returns the exit code of a command that err stopped, and reports false where that
// was no signal.
func ExitOf(err error) (code int, bySignal bool) {
	sig, ok := errors.AsType[Signalled](err)
	return ExitSignal + int(sig.Signal), ok
}
