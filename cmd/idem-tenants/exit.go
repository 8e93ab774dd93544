package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/spf13/cobra"

	"github.com/pgidem/pgidem/idempotency"
	"github.com/pgidem/pgidem/internal/cli"
	"github.com/pgidem/pgidem/tenancy"
)

// Exit codes of this command alone, beside those of package cli.
const (
	exitDisorder = 5 // status: a tenant is not as it should be
	exitNotFound = 6 // no such tenant, or no such key
)

// exitError is an error with an exit code. One without an error has been reported.
type exitError struct {
	code int
	err  error
}

func (e exitError) Error() string {
	if e.err == nil {
		return fmt.Sprintf("exit code %d", e.code)
	}
	return e.err.Error()
}

func (e exitError) Unwrap() error { return e.err }

func usagef(format string, args ...any) error {
	return exitError{cli.ExitUsage, fmt.Errorf(format, args...)}
}

// exit reports an error and returns the exit code that it stands for.
func (a *app) exit(ctx context.Context, cmd *cobra.Command, err error) int {
	if err == nil {
		return cli.ExitOK
	}
	known, isKnown := errors.AsType[exitError](err)
	if code, bySignal := cli.ExitOf(context.Cause(ctx)); bySignal && (!isKnown || known.code == cli.ExitUnreachable) {
		a.errf("stopped by %v", context.Cause(ctx))
		return code
	}
	code := cli.ExitFailed
	switch {
	case isKnown:
		code = known.code
	case isAway(err):
		code = cli.ExitUnreachable
	case errors.Is(err, tenancy.ErrUnknownTenant), errors.Is(err, idempotency.ErrNotFound):
		code = exitNotFound
	}
	if !isKnown || known.err != nil {
		a.errf("%s", cli.OneLine(err))
	}
	if code == cli.ExitUsage {
		_, _ = fmt.Fprintf(a.stderr, "Run %s --help for what it takes.\n", cmd.CommandPath())
	}
	return code
}

// isAway reports whether an error says that a database could not be reached, or not any more.
func isAway(err error) bool {
	pgErr, ok := errors.AsType[*pgconn.PgError](err)
	return isConnectError(err) || ok && cli.IsLost(pgErr)
}

func isConnectError(err error) bool {
	_, ok := errors.AsType[*pgconn.ConnectError](err)
	return ok
}

func (a *app) errf(format string, args ...any) {
	_, _ = fmt.Fprintf(a.stderr, program+": "+format+"\n", args...)
}
