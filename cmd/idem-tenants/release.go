package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"

	"github.com/google/uuid"
	"github.com/spf13/cobra"

	"github.com/pgidem/pgidem/idempotency"
	"github.com/pgidem/pgidem/idempotency/pgstore"
	"github.com/pgidem/pgidem/internal/cli"
)

func (a *app) releaseVerb() *cobra.Command {
	var schema, scope string
	var force, forget bool
	cmd := &cobra.Command{
		Use:   "release ORG KEY",
		Short: "end an attempt in progress, so that a retry may run at once.",
		Long: `idem-tenants release ends the attempt in progress at a key: its lease is over and its
token is void, so that it can store no outcome any more, and the next retry, or a
completer, runs the handler at once. Those that wait for it are told. What has completed
is never touched, nor is an attempt that changed since it was looked at.

It is dangerous. The attempt may have had its effect, a payment say, without having
stored its outcome; the retry then has it again, but for what is in steps or has a child
key. Look at what the attempt did before. While its lease holds, its handler is running,
as far as the database can tell; --force ends it all the same, and its handler is
cancelled when it next extends the lease, but a retry runs beside it until then.

An attempt in a transaction has no lease. It is ended, and all that it did undone, by
SELECT pg_terminate_backend(PID), of the server process that inspect shows.

With --json it prints one object.`,
		Example: `  idem-tenants release 6f1c2f6e-0d5a-4c8e-9f5e-2f0a3c1d7b42 order-1234
  idem-tenants release --forget --yes 6f1c2f6e-0d5a-4c8e-9f5e-2f0a3c1d7b42 order-1234`,
		Args:              arguments(2, 2, "ORG and KEY"),
		ValidArgsFunction: noFiles,
		RunE: func(cmd *cobra.Command, args []string) error {
			p, err := a.locate(cmd.Context(), args[0], schema)
			if err != nil {
				return err
			}
			found, err := p.inspectKeys(cmd.Context(), args[1], scope)
			if err != nil {
				return err
			}
			if len(found) > 1 {
				return usagef("key %q stands in %d scopes: name one by --scope; inspect shows them", args[1], len(found))
			}
			return a.release(cmd.Context(), p, found[0], pgstore.EndOptions{Live: force, Forget: forget})
		},
	}
	flags := cmd.Flags()
	schemaFlag(flags, &schema)
	scopeFlag(flags, &scope)
	flags.BoolVar(&force, "force", false, "end the attempt also while its lease holds, though its handler may be running")
	flags.BoolVar(&forget, "forget", false, "remove the record, and the request that is kept, so that a retry is a first attempt: for services that refuse what was interrupted (WithInterrupted(Refuse)), which else answer 409 until the record expires. The handler cannot tell any more that an attempt came before")
	a.yesFlag(flags)
	return cmd
}

// releaseJSON is what release --json prints.
type releaseJSON struct {
	OrgID     uuid.UUID        `json:"org_id"`
	Schema    string           `json:"schema"`
	Key       string           `json:"key"`
	Scope     string           `json:"scope,omitempty"`
	Was       pgstore.KeyState `json:"was"`
	Attempt   int              `json:"attempt"`
	Forgotten bool             `json:"forgotten"`
}

func (a *app) release(ctx context.Context, p place, info pgstore.KeyInfo, opts pgstore.EndOptions) error {
	scope, key := splitKey(info.Key)
	refuse := func(format string, args ...any) error {
		return exitError{cli.ExitFailed, fmt.Errorf("key %q is %s: "+format, append([]any{key, info.State}, args...)...)}
	}
	switch r := info.Record; {
	case info.State == pgstore.KeyInTransaction:
		return refuse("SELECT pg_terminate_backend(%d) ends the transaction, and undoes all that it did", info.Transaction.PID)
	case r == nil:
		return refuse("no attempt is in progress")
	case !r.CompletedAt.IsZero():
		return refuse("no attempt is in progress, and what has completed is left alone")
	case info.State == pgstore.KeyInProgress && !opts.Live:
		return refuse("its lease holds until %s, so its handler is running, as far as the database can tell; --force ends it all the same", moment(r.LeaseUntil, info.Now))
	}
	if err := a.confirm(ctx, releaseWarning(key, info, opts)); err != nil {
		return err
	}
	err := pgstore.EndAttempt(ctx, p.pool, info, opts)
	if errors.Is(err, idempotency.ErrLeaseLost) {
		return refuse("it has changed since it was looked at, and was left alone; inspect it again")
	}
	if err != nil {
		return err
	}
	if a.json {
		return a.printJSON(releaseJSON{info.OrgID, info.Schema.String(), key, scope, info.State, info.Record.Attempt, opts.Forget})
	}
	what := "a retry is attempt " + strconv.Itoa(info.Record.Attempt+1)
	if opts.Forget {
		what = "a retry is a first attempt"
	}
	_, err = fmt.Fprintf(a.stdout, "key %q: attempt %d is released; %s\n", key, info.Record.Attempt, what)
	return err
}

func releaseWarning(key string, info pgstore.KeyInfo, opts pgstore.EndOptions) string {
	r := info.Record
	text := fmt.Sprintf("Key %q of tenant %s: attempt %d, claimed %s, lease until %s.\n",
		key, info.OrgID, r.Attempt, moment(r.CreatedAt, info.Now), moment(r.LeaseUntil, info.Now))
	if info.State == pgstore.KeyInProgress {
		text += "Its lease holds: its handler may be running, and a retry will run beside it.\n"
	}
	text += "What it did outside of steps, a payment say, may be done again by the retry.\n"
	if opts.Forget {
		text += "The record is removed: the retry cannot tell that an attempt came before.\n"
	}
	if info.Request != nil && !opts.Forget {
		text += "The request is kept: a completer may run it at once, without its client.\n"
	}
	return text
}
