package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/pgidem/pgidem/internal/cli"
)

const helpTail = `
Exit codes:
  0    done
  1    at least one tenant failed, or the verb was refused or not confirmed; other
       tenants were done all the same
  2    a flag, an argument or a variable is wrong
  3    the database could not be reached, or its tenants not be listed; or, with migrate and
       status, that of a cluster: the others were gone on with, and the report says what
       became of theirs
  4    something was left for another run: tenants that were busy, being moved or not
       reached, a version to note, or what a move has left; none failed
  5    status: a tenant is behind, newer than this program, broken, or has drifted
  6    there is no such tenant, or nothing is known of the key
  130  stopped by SIGINT
  143  stopped by SIGTERM

A stop ends the verb within seconds; what was done before is kept, and the verb may be
run again. A second signal ends the process at once.
Verbs that cannot be undone ask on a terminal, and take --yes elsewhere. With --json
errors are still lines on standard error.
`

func helpText(cmd *cobra.Command) string {
	var text strings.Builder
	write := func(format string, args ...any) { _, _ = fmt.Fprintf(&text, format, args...) }
	about := cmd.Long
	if about == "" {
		about = cmd.CommandPath() + " " + cmd.Short
		if cmd == cmd.Root() {
			about = program + " " + cmd.Short
		}
	}
	usage := program + " " + cmd.Use + " [flags]"
	if cmd == cmd.Root() {
		usage = cmd.Use + " [flags]"
	}
	write("%s\n\nUsage:\n  %s\n", strings.TrimSpace(about), usage)
	if cmd.Example != "" {
		write("\nExamples:\n%s\n", cmd.Example)
	}
	if cmd == cmd.Root() {
		write("\nVerbs (%s help VERB says more):\n", program)
		for _, verb := range cmd.Commands() {
			if verb.IsAvailableCommand() {
				write("  %-12s %s\n", verb.Name(), verb.Short)
			}
		}
	}
	const head = ", with the environment variable that is used where the flag is not given"
	own := flagTexts(cmd.LocalNonPersistentFlags())
	if cmd == cmd.Root() {
		own = ""
	}
	if own != "" {
		write("\nFlags%s:\n%s", head, own)
	}
	if cmd.Annotations["offline"] == "" {
		common := flagTexts(cmd.Root().PersistentFlags())
		if own != "" {
			write("\nFlags of every verb:\n%s", common)
		} else {
			write("\nFlags%s:\n%s", head, common)
		}
		text.WriteString(helpTail)
	}
	return text.String()
}

func flagTexts(flags *pflag.FlagSet) string {
	var text strings.Builder
	flags.VisitAll(func(f *pflag.Flag) { text.WriteString(flagText(f)) })
	return text.String()
}

func flagText(f *pflag.Flag) string {
	if f.Hidden || f.Name == "help" {
		return ""
	}
	value, usage := pflag.UnquoteUsage(f)
	text := "  --" + f.Name
	if f.NoOptDefVal == "" {
		text += " " + value
	}
	if name := variable(f.Name); name != "" {
		text += "   [" + name + "]"
	}
	return text + "\n" + cli.Indent(usage+".")
}
