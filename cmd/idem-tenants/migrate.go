package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/pgidem/pgidem/internal/cli"
	"github.com/pgidem/pgidem/migrations"
)

// migrateTerms are what the flags of migrate say.
type migrateTerms struct {
	choice                        choice
	workers, tries                int
	dryRun, quiet                 bool
	lockTimeout, statementTimeout time.Duration
	maxDuration                   time.Duration
}

const (
	maxWorkers = 64
	maxTries   = 1000
)

func (a *app) migrateVerb() *cobra.Command {
	terms := migrateTerms{workers: 4, tries: 10, lockTimeout: 1500 * time.Millisecond, statementTimeout: time.Minute}
	cmd := &cobra.Command{
		Use:   "migrate",
		Short: "migrate the schemas of all tenants to the newest version.",
		Long: `idem-tenants migrate migrates the schemas that are behind: of all tenants of the registry
that are active or suspended, and notes the versions there; or, with --all-schemas or
--schema, without the registry, which then goes on saying the old ones, so that services
refuse its tenants where they need newer ones. A schema that is missing is made by --schema
alone: to make that of a tenant anew would run requests again that had been answered, so the
tenant fails. provision makes tenants.

It may be stopped and run again, and continues; runs at the same time share the work. Each
migration is a transaction. A tenant that fails stops no other. One whose tables are in
use is put back when the lock timeout is over, and tried again later, so that a migration
holds up the requests for a table no longer than that for each lock that it waits for. One
that is on its way to another cluster is tried again later, too, and left for the next run
if it does not come back meanwhile. Tenants that are newer than this program are left alone,
and so are, for the next run, those of a cluster that cannot be reached; the exit code is 3
then.

A bar shows how far it is on a terminal, and a line every 10 seconds elsewhere. With --json
it prints one object at the end: counts, what was changed, failures with their SQLSTATE, and
clusters that were not reached.`,
		Example: `  idem-tenants migrate --dry-run
  idem-tenants migrate --workers 8
  idem-tenants migrate --all-schemas --max-duration 10m --json`,
		Args:              arguments(0, 0, "no arguments"),
		ValidArgsFunction: noFiles,
		RunE:              func(cmd *cobra.Command, _ []string) error { return a.migrate(cmd.Context(), terms) },
	}
	flags := cmd.Flags()
	terms.choice.flags(flags)
	flags.BoolFunc("dry-run", "say what would be done, and do nothing", cli.Boolean(&terms.dryRun))
	flags.Func("workers", "migrate `N` tenants at the same time, over a connection each (default 4)", cli.Number(&terms.workers, maxWorkers))
	flags.Func("tries", "try a tenant that is in use, or being moved, `N` times, with growing pauses (default 10, which takes half a minute)", cli.Number(&terms.tries, maxTries))
	flags.Func("lock-timeout", "put a tenant back that makes a migration wait for a lock for `D`; requests of the tenant wait behind it. More than a second has an autovacuum give way (default 1.5s)", cli.Duration(&terms.lockTimeout))
	flags.Func("statement-timeout", "have the server end a statement that takes `D`; that tenant then failed. 0 sets no limit (default 1m)", cli.Duration(&terms.statementTimeout))
	flags.Func("max-duration", "end after `D`, and leave the rest to the next run; 0 sets no limit (default 0)", cli.Duration(&terms.maxDuration))
	flags.BoolFunc("quiet", "print failures and warnings only; --json prints its object all the same", cli.Boolean(&terms.quiet))
	return cmd
}

// errMaxDuration is the cause of a context that --max-duration ended.
var errMaxDuration = errors.New("--max-duration")

// migrated is what became of a tenant.
type migrated struct {
	migrations.Result
	target  target
	cluster string
	moving  bool // left because it is on its way to another cluster, or has gone there
}

// busy reports whether a tenant was left because others had it in use.
func (m migrated) busy() bool {
	return m.Outcome == migrations.Failed && errors.Is(m.Err, migrations.ErrBusy)
}

// migrateRun is what a run has come to.
type migrateRun struct {
	started  time.Time
	duration time.Duration
	dryRun   bool
	chosen   chosen
	ended    []migrated // those with nothing to do are only counted
	current  int
	stopped  error    // why tenants were left: errMaxDuration, or a signal
	refused  error    // workers that got no connection while others had one
	cutOff   []cutOff // they stop no other server's tenants
	noted    error    // versions that could not be noted in the registry
	late     error    // versions that are for the next run to note
}

// cutOff is a server that could not be reached, or not until all of its tenants were through.
type cutOff struct {
	cluster string
	tenants int // that were not come to
	err     error
}

func (c cutOff) Error() string {
	text := cli.Plural(int64(c.tenants), "tenant")
	if c.cluster != "" {
		text += " of cluster " + c.cluster
	}
	return fmt.Sprintf("%s not reached: %s", text, cli.OneLine(c.err))
}

func (c cutOff) Unwrap() error { return c.err }

// unreachable is how many tenants are on servers that could not be reached.
func (r migrateRun) unreachable() (n int) {
	for _, c := range r.cutOff {
		n += c.tenants
	}
	return n
}

// through is how far the run has come with the servers before the current one.
func (r migrateRun) through() migrations.Progress {
	return migrations.Progress{Done: r.current + len(r.ended), Failed: r.countIf(func(m migrated) bool { return m.Outcome == migrations.Failed })}
}

// overall is how far the run is when it is so far with one server, and had come before to what
// through says. What is left is reckoned for all servers that can be reached, at the rate of
// this one.
func (r migrateRun) overall(before, p migrations.Progress) migrations.Progress {
	p.Total, p.Done, p.Failed, p.Left = r.chosen.tenants, before.Done+p.Done, before.Failed+p.Failed, 0
	if p.Rate > 0 {
		p.Left = time.Duration(float64(p.Total-p.Done-r.unreachable()) / p.Rate * float64(time.Second))
	}
	return p
}

// count leaves out who is not through for others' sake.
func (r migrateRun) count(outcome migrations.Outcome) int {
	return r.countIf(func(m migrated) bool { return m.Outcome == outcome && !m.busy() && !m.moving })
}

func (r migrateRun) busy() int   { return r.countIf(migrated.busy) }
func (r migrateRun) moving() int { return r.countIf(func(m migrated) bool { return m.moving }) }

func (r migrateRun) countIf(is func(migrated) bool) (n int) {
	for _, m := range r.ended {
		if is(m) {
			n++
		}
	}
	return n
}

// left is how many tenants were not come to.
func (r migrateRun) left() int { return r.chosen.tenants - r.current - len(r.ended) }

func (r migrateRun) exitCode() int {
	code, bySignal := cli.ExitOf(r.stopped)
	switch {
	case len(r.cutOff) > 0:
		return cli.ExitUnreachable
	case r.count(migrations.Failed) > 0 || r.noted != nil:
		return cli.ExitFailed
	case bySignal:
		return code
	case r.stopped != nil || r.busy()+r.moving() > 0 || r.late != nil:
		return cli.ExitUnfinished
	}
	return cli.ExitOK
}

func (a *app) migrate(ctx context.Context, terms migrateTerms) error {
	if terms.lockTimeout == 0 {
		return usagef("--lock-timeout: give a millisecond at least: a migration that waits has all requests of its tenant wait behind it")
	}
	caller := ctx
	if terms.maxDuration > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, terms.maxDuration, errMaxDuration)
		defer cancel()
	}
	run := migrateRun{started: time.Now(), dryRun: terms.dryRun}
	var err error
	if run.chosen, err = a.choose(ctx, terms.choice); err != nil {
		if caller.Err() == nil && errors.Is(context.Cause(ctx), errMaxDuration) {
			return exitError{cli.ExitUnfinished, fmt.Errorf("stopped by %w before the tenants were known", errMaxDuration)}
		}
		return err
	}
	report := a.newMigrateReport(terms)
	report.begin(run.chosen)
	notes := a.takeNotes(ctx, terms)
	lose := func(c cutOff) {
		run.cutOff = append(run.cutOff, c)
		report.lost(c)
	}
	for _, s := range run.chosen.servers { // told at once, not after hours
		if s.away != nil {
			lose(cutOff{s.cluster, len(s.targets), s.away})
		}
	}
	for _, s := range run.chosen.servers {
		if s.away != nil || ctx.Err() != nil {
			continue
		}
		before := run.left()
		if err := a.migrateServer(ctx, &run, s, terms, report, notes); err != nil && ctx.Err() == nil {
			lose(cutOff{s.cluster, len(s.targets) - (before - run.left()), err})
		}
	}
	run.late, run.noted = notes.end()
	if ctx.Err() != nil && run.left() > run.unreachable() {
		run.stopped = context.Cause(ctx)
	}
	run.duration = time.Since(run.started)
	report.end(run)
	if code := run.exitCode(); code != cli.ExitOK {
		return exitError{code: code}
	}
	return nil
}

// migrateServer migrates the tenants of one server.
func (a *app) migrateServer(ctx context.Context, r *migrateRun, s server, terms migrateTerms, report migrateReporter, notes *notes) error {
	before := r.through()
	opts := []migrations.Option{
		migrations.WithWorkers(terms.workers),
		migrations.WithTries(terms.tries, 250*time.Millisecond),
		migrations.WithLockTimeout(terms.lockTimeout),
		migrations.WithStatementTimeout(terms.statementTimeout),
		migrations.WithProgress(func(p migrations.Progress) { report.progress(r.overall(before, p)) }),
	}
	if terms.dryRun {
		opts = append(opts, migrations.WithDryRun())
	}
	if len(terms.choice.schemas) == 0 { // else they are known to have been there
		opts = append(opts, migrations.WithExistingOnly())
	}
	targets := s.bySchema()
	opts = append(opts, migrations.WithResult(func(result migrations.Result) {
		m := migrated{Result: result, target: targets[result.Schema], cluster: s.cluster}
		switch {
		case errors.Is(m.Err, migrations.ErrAbsent):
			m.Err = m.target.lost(m.Err)
		case errors.Is(m.Err, migrations.ErrMoving), errors.Is(m.Err, migrations.ErrMoved):
			m.moving, m.Err = a.onTheMove(ctx, m.target, m.Err)
		}
		if m.Outcome == migrations.Current {
			r.current++
		} else {
			r.ended = append(r.ended, m)
		}
		report.tenant(m)
		notes.take(m)
	}))
	got, err := migrations.All(ctx, s.url, s.seq(), opts...)
	if err != nil && !errors.Is(err, migrations.ErrFailed) {
		return err
	}
	if got.Refused > 0 {
		r.refused = errors.Join(r.refused, fmt.Errorf("workers were refused a connection %d times, so that fewer did the work; give a smaller number of --workers, or let the role have more connections: %w", got.Refused, got.RefusedErr))
	}
	return nil
}
