package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/pgidem/pgidem/internal/cli"
)

func main() {
	os.Exit(run(cli.SignalContext(), os.Args[1:], os.Getenv, os.Stdout, os.Stderr))
}

// run is the program. It ends early, but cleanly, when ctx ends.
func run(ctx context.Context, args []string, getenv func(string) string, stdout, stderr io.Writer) int {
	cfg, err := parseConfig(args, getenv)
	switch {
	case errors.Is(err, flag.ErrHelp):
		_, _ = io.WriteString(stdout, helpText())
		return cli.ExitOK
	case err != nil:
		_, _ = fmt.Fprintf(stderr, "idem-janitor: %v\nRun idem-janitor --help for what it takes.\n", err)
		return cli.ExitUsage
	case cfg.version:
		_, _ = fmt.Fprintln(stdout, cli.Version("idem-janitor"))
		return cli.ExitOK
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
	return cli.ExitOK
}
