package main

import (
	"flag"
	"fmt"
	"strings"

	"github.com/pgidem/pgidem/internal/cli"
)

const helpHead = `idem-janitor deletes the expired idempotency records of all tenants of a database, or
of several.

Usage:
  idem-janitor [flags]

Examples:
  idem-janitor --database-url postgres://janitor@db/app --dry-run
  idem-janitor --schema tenant_a,tenant_b
  idem-janitor --max-duration 5m --json             # from cron, every hour say
  idem-janitor --server eu-1=postgres://janitor@db1/app --server eu-2=postgres://janitor@db2/app
  idem-janitor --interval 1h --pause 20ms --quiet   # as a service

Flags, with the environment variable that is used where the flag is not given:
`

const helpTail = `
Tenants are visited in random order, first those that the round before did not
finish, so a --max-duration starves none of them. Several janitors may run side by
side. A tenant that is dropped meanwhile is no failure.

Exit codes:
  0    all tenants were purged, or there are none; with --interval: stopped by a signal
  1    at least one tenant failed; the others were visited all the same
  2    a flag or a variable is wrong
  3    a database could not be reached, or its tenants not be listed; those of the others
       were visited all the same
  4    --max-duration ended the round before all tenants were done; none had failed
  130  SIGINT ended the round likewise
  143  SIGTERM ended the round likewise

With --interval a failed round is reported and the next one runs all the same, also
when the database was away. A second signal ends the process at once.
`

func helpText() string {
	var text strings.Builder
	text.WriteString(helpHead)
	new(config).flags().VisitAll(func(f *flag.Flag) {
		value, usage := flag.UnquoteUsage(f)
		_, _ = fmt.Fprintf(&text, "  --%s", f.Name)
		if b, ok := f.Value.(interface{ IsBoolFlag() bool }); !ok || !b.IsBoolFlag() {
			text.WriteString(" " + value)
		}
		if name := variable(f.Name); name != "" {
			text.WriteString("   [" + name + "]")
		}
		text.WriteString("\n" + cli.Indent(usage+"."))
	})
	text.WriteString(helpTail)
	return text.String()
}
