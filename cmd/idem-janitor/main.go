package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime/debug"
	"strings"
	"syscall"
	"time"
)

// Exit codes, for cron and supervisors to act on.
const (
	exitOK          = 0
	exitFailed      = 1
	exitUsage       = 2
	exitUnreachable = 3
	exitUnfinished  = 4
	exitSignal      = 128 // plus the number of the signal
)

func main() {
	ctx, stop := context.WithCancelCause(context.Background())
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	go func() {
		sig := <-signals
		signal.Reset(os.Interrupt, syscall.SIGTERM) // a second one ends the process
		stop(signalled{sig.(syscall.Signal)})
	}()
	os.Exit(run(ctx, os.Args[1:], os.Getenv, os.Stdout, os.Stderr))
}

// signalled is the cause of a context that a signal ended.
type signalled struct{ syscall.Signal }

func (s signalled) Error() string { return "signal " + s.String() }

// run is the program. It ends early, but cleanly, when ctx ends.
func run(ctx context.Context, args []string, getenv func(string) string, stdout, stderr io.Writer) int {
	cfg, err := parseConfig(args, getenv)
	switch {
	case errors.Is(err, flag.ErrHelp):
		_, _ = io.WriteString(stdout, helpText())
		return exitOK
	case err != nil:
		_, _ = fmt.Fprintf(stderr, "idem-janitor: %v\nRun idem-janitor --help for what it takes.\n", err)
		return exitUsage
	case cfg.version:
		_, _ = fmt.Fprintln(stdout, versionText())
		return exitOK
	}

	j := &janitor{cfg: cfg, report: newReport(cfg, getenv, stdout, stderr)}
	if cfg.interval == 0 {
		return j.round(ctx).exitCode()
	}
	for ctx.Err() == nil {
		next := time.NewTimer(cfg.interval)
		j.round(ctx)
		select {
		case <-next.C:
		case <-ctx.Done():
		}
		next.Stop()
	}
	return exitOK
}

func versionText() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "idem-janitor (unknown version)"
	}
	parts := []string{"idem-janitor", info.Main.Version}
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" {
			parts = append(parts, s.Value)
		}
	}
	return strings.Join(append(parts, info.GoVersion), " ")
}
