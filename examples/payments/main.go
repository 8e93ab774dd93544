// Payments shows the library's main job: it starts a throw-away PostgreSQL, runs
// the payments service of package service on it for two tenants, drives it with
// real HTTP requests, and proves what it says on the way.
//
//	go run ./examples/payments            # the demo
//	go run ./examples/payments --serve    # the service, to try with curl
//	go run ./examples/payments --help
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/pgidem/pgidem/examples/payments/internal/demo"
	"github.com/pgidem/pgidem/internal/pgtest"
)

const help = `payments shows what pgidem does, with a payments service for two tenants.

Usage:
  go run ./examples/payments           play the demo, which takes a few seconds
  go run ./examples/payments --serve   run the service until Ctrl-C, to try it with curl
  go run ./examples/payments --help

The database is a throw-away PostgreSQL, from the binaries on this machine or a
container, or the server that PGIDEM_TEST_DATABASE_URL or DATABASE_URL names, where
a database is made and dropped again.

Output is coloured on a terminal, unless NO_COLOR is set.

Exit codes:
  0   every step showed what it should; with --serve: stopped by a signal
  1   a step did not, there is no PostgreSQL, or the demo was interrupted
  2   the command line is wrong
`

const (
	startTimeout   = 5 * time.Minute // an image or a package may have to be fetched
	cleanUpTimeout = 30 * time.Second
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

func run(ctx context.Context, args []string, stdout *os.File, stderr io.Writer) int {
	flags := flag.NewFlagSet("payments", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	serve := flags.Bool("serve", false, "")
	err := flags.Parse(args)
	if err == nil && flags.NArg() > 0 {
		err = fmt.Errorf("unexpected argument %q", flags.Arg(0))
	}
	switch {
	case errors.Is(err, flag.ErrHelp):
		_, _ = io.WriteString(stdout, help)
		return 0
	case err != nil:
		_, _ = fmt.Fprintf(stderr, "payments: %v; see --help\n", err)
		return 2
	}
	out := demo.NewTranscript(stdout, wantsColour(stdout))
	if err := onDatabase(ctx, out, func(databaseURL string) error {
		if *serve {
			logger := slog.New(slog.NewTextHandler(stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
			return demo.Serve(ctx, databaseURL, out, logger)
		}
		return demo.Run(ctx, databaseURL, out, demo.Options{})
	}); err != nil {
		_, _ = fmt.Fprintf(stderr, "payments: %v\n", err)
		return 1
	}
	if *serve {
		out.Note("Stopped and cleaned up.")
	}
	return 0
}

// onDatabase calls use with an empty database, and takes the database and its
// server away afterwards.
func onDatabase(ctx context.Context, out *demo.Transcript, use func(databaseURL string) error) (err error) {
	starting, cancel := context.WithTimeoutCause(ctx, startTimeout, fmt.Errorf("no PostgreSQL within %s", startTimeout))
	defer cancel()
	news := &progress{out: out}
	server, err := pgtest.Start(starting, pgtest.WithLog(news))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, server.Stop()) }()
	if news.lines == 0 { // pgtest does not announce a server that was asked for
		out.Note("Using %s.", server.Source())
	}
	databaseURL, drop, err := server.CreateDatabase(starting)
	if err != nil {
		return err
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanUpTimeout)
		defer cancel()
		err = errors.Join(err, drop(ctx))
	}()
	return use(databaseURL)
}

// progress passes on what pgtest says about where the server comes from.
type progress struct {
	out   *demo.Transcript
	lines int
}

// Write implements [io.Writer]; pgtest calls it with one line at a time.
func (p *progress) Write(line []byte) (int, error) {
	p.lines++
	text := strings.TrimSpace(strings.TrimPrefix(string(line), "pgtest: "))
	p.out.Note("%s%s.", strings.ToUpper(text[:1]), text[1:])
	return len(line), nil
}

// wantsColour reports whether f is a terminal whose user has nothing against
// colours (https://no-color.org).
func wantsColour(f *os.File) bool {
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0 && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"
}
