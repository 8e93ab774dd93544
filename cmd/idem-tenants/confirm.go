package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/pflag"

	"github.com/pgidem/pgidem/internal/cli"
)

func (a *app) yesFlag(flags *pflag.FlagSet) {
	flags.BoolVar(&a.yes, "yes", false, "do not ask. Needed where standard input is no terminal")
}

// confirm asks whether to go on, unless --yes was given. About says what will be, in whole
// lines.
func (a *app) confirm(ctx context.Context, about string) error {
	if a.yes {
		return nil
	}
	answer, err := a.ask(ctx, about+"Go on? [y/N] ")
	if err != nil {
		return err
	}
	switch strings.ToLower(answer) {
	case "y", "yes":
		return nil
	}
	return exitError{cli.ExitFailed, errors.New("not confirmed: nothing was done")}
}

// ask shows a question on the terminal and returns the line that answers it.
func (a *app) ask(ctx context.Context, question string) (string, error) {
	if !cli.IsTerminal(a.stdin) {
		return "", usagef("this is to be confirmed, and standard input is no terminal: give --yes")
	}
	_, _ = io.WriteString(a.stderr, question)
	type line struct {
		text string
		err  error
	}
	read := make(chan line, 1)
	go func() { // which cannot be called off while nobody types
		text, err := bufio.NewReader(a.stdin).ReadString('\n')
		read <- line{text, err}
	}()
	select {
	case l := <-read:
		if l.err != nil {
			_, _ = fmt.Fprintln(a.stderr)
			return "", exitError{cli.ExitFailed, errors.New("not confirmed: nothing was done")}
		}
		return strings.TrimSpace(l.text), nil
	case <-ctx.Done():
		_, _ = fmt.Fprintln(a.stderr)
		return "", context.Cause(ctx)
	}
}
