package main

import (
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/google/uuid"
	"github.com/spf13/cobra"

	"github.com/pgidem/pgidem/idempotency/pgstore"
	"github.com/pgidem/pgidem/tenancy/registry"
)

func (a *app) inspectVerb() *cobra.Command {
	var schema, scope string
	var reveal bool
	cmd := &cobra.Command{
		Use:   "inspect ORG [KEY]",
		Short: "say how a tenant is, or what happened to one of its keys.",
		Long: `idem-tenants inspect says how a tenant is: its state, how many records it has in which
state, and the room they take. With a key, as the client sent it, it says what happened
to that: its state, attempts and their times, the lease, the expiry, the status, sizes,
steps, and whether the request is kept to be run again. It changes nothing, and shows
nothing that clients and handlers sent unless --reveal is given. A key that begins with a
dash stands behind -- .

States of a key:
  in_progress     an attempt holds it by a lease
  in_transaction  an attempt holds it by the lock of its transaction
  interrupted     the lease has lapsed: a retry takes over, unless the service refuses
  completed       a retry gets the stored response
  not_kept        completed, and the response not stored: a retry gets 409
  expired         counts as absent, and waits for the janitor
  absent          no record; steps or a kept request are left

With --json it prints one object; of a key that stands in several scopes, one for each,
a line each.`,
		Example: `  idem-tenants inspect 6f1c2f6e-0d5a-4c8e-9f5e-2f0a3c1d7b42
  idem-tenants inspect 6f1c2f6e-0d5a-4c8e-9f5e-2f0a3c1d7b42 order-1234
  idem-tenants inspect 6f1c2f6e-0d5a-4c8e-9f5e-2f0a3c1d7b42 order-1234 --json | jq .state`,
		Args:              arguments(1, 2, "ORG and at most one KEY"),
		ValidArgsFunction: noFiles,
		RunE: func(cmd *cobra.Command, args []string) error {
			p, err := a.locate(cmd.Context(), args[0], schema)
			if err != nil {
				return err
			}
			if len(args) == 1 {
				return a.inspectTenant(cmd, p)
			}
			found, err := p.inspectKeys(cmd.Context(), args[1], scope)
			if err != nil {
				return err
			}
			for i, info := range found {
				var secrets *pgstore.KeySecrets
				if reveal {
					s, err := pgstore.Reveal(cmd.Context(), p.pool, info.Schema, info.OrgID, info.Key)
					if err != nil {
						return err
					}
					secrets = &s
				}
				switch {
				case a.json:
					err = a.printJSON(newKeyJSON(info, secrets))
				default:
					if i > 0 {
						_, _ = fmt.Fprintln(a.stdout)
					}
					err = a.printKey(info, secrets)
				}
				if err != nil {
					return err
				}
			}
			return nil
		},
	}
	flags := cmd.Flags()
	schemaFlag(flags, &schema)
	scopeFlag(flags, &scope)
	flags.BoolVar(&reveal, "reveal", false, "show what clients and handlers sent as well: headers, bodies, and results of steps. It is the tenant's data, and not for logs")
	return cmd
}

// tenantReport is what inspect prints of a tenant.
type tenantReport struct {
	OrgID            uuid.UUID        `json:"org_id"`
	Schema           string           `json:"schema"`
	Cluster          *string          `json:"cluster,omitempty"` // this and the next four as in the registry
	State            registry.State   `json:"state,omitempty"`
	Version          *int64           `json:"version,omitempty"`
	CreatedAt        *time.Time       `json:"created_at,omitempty"`
	UpdatedAt        *time.Time       `json:"updated_at,omitempty"`
	Records          recordCounts     `json:"records"`
	OldestInProgress *time.Time       `json:"oldest_in_progress_at,omitempty"`
	Steps            int64            `json:"steps"`
	KeptRequests     int64            `json:"kept_requests"`
	GaveUpRequests   int64            `json:"kept_requests_given_up"`
	Bytes            map[string]int64 `json:"table_bytes"`
}

type recordCounts struct {
	InProgress  int64 `json:"in_progress"`
	Interrupted int64 `json:"interrupted"`
	Completed   int64 `json:"completed"`
	NotKept     int64 `json:"not_kept"`
	Expired     int64 `json:"expired"`
}

func (a *app) inspectTenant(cmd *cobra.Command, p place) error {
	s, err := pgstore.Summarize(cmd.Context(), p.pool, p.schema, p.org)
	if err != nil && p.tenant != nil && cmd.Context().Err() == nil { // the registry's part is worth having
		if printErr := a.printPlace(p); printErr != nil {
			return printErr
		}
	}
	if err != nil {
		return p.explain(err)
	}
	r := tenantReport{
		OrgID: p.org, Schema: p.schema.String(),
		Records:          recordCounts{s.InProgress, s.Interrupted, s.Completed, s.NotKept, s.Expired},
		OldestInProgress: utc(s.OldestInProgress),
		Steps:            s.Steps, KeptRequests: s.KeptRequests, GaveUpRequests: s.GaveUpRequests, Bytes: s.Bytes,
	}
	if t := p.tenant; t != nil {
		r.Cluster, r.State, r.Version, r.CreatedAt, r.UpdatedAt = &t.Cluster, t.State, &t.Version, utc(t.CreatedAt), utc(t.UpdatedAt)
	}
	if a.json {
		return a.printJSON(r)
	}
	f := newFacts(a.stdout)
	f.place(p, s.Now)
	f.row("records", "%d in progress, %d interrupted, %d completed, %d completed without response, %d expired",
		s.InProgress, s.Interrupted, s.Completed, s.NotKept, s.Expired)
	if !s.OldestInProgress.IsZero() {
		f.row("oldest in progress", "%s", moment(s.OldestInProgress, s.Now))
	}
	f.row("steps", "%d", s.Steps)
	f.row("kept requests", "%d, of which %d were given up", s.KeptRequests, s.GaveUpRequests)
	f.row("on disk", "records %s, steps %s, kept requests %s",
		size(s.Bytes["idempotency_records"]), size(s.Bytes["idempotency_steps"]), size(s.Bytes["idempotency_requests"]))
	return f.end()
}

// printPlace prints what the registry alone knows.
func (a *app) printPlace(p place) error {
	if a.json {
		return a.printJSON(asJSON(*p.tenant))
	}
	f := newFacts(a.stdout)
	f.place(p, time.Now())
	return f.end()
}

func (f facts) place(p place, now time.Time) {
	f.row("tenant", "%s", p.org)
	f.row("schema", "%s", p.schema)
	if t := p.tenant; t != nil {
		f.row("cluster", "%s", dash(t.Cluster))
		f.row("state", "%s", t.State)
		f.row("version", "%d, as the registry has it", t.Version)
		f.row("registered", "%s", moment(t.CreatedAt, now))
		f.row("last changed", "%s", moment(t.UpdatedAt, now))
	}
}

// printKey prints what happened to a key, for people.
func (a *app) printKey(info pgstore.KeyInfo, secrets *pgstore.KeySecrets) error {
	f := newFacts(a.stdout)
	scope, key := splitKey(info.Key)
	f.row("key", "%q", key)
	if scope != "" {
		f.row("scope", "%s", scope)
	}
	f.row("tenant", "%s, in schema %s", info.OrgID, info.Schema)
	f.row("state", "%s", info.State)
	if tx := info.Transaction; tx != nil {
		since := ""
		if !tx.Began.IsZero() {
			since = ", begun " + moment(tx.Began, info.Now)
		}
		f.row("transaction", "of server process %d%s", tx.PID, since)
	}
	if r := info.Record; r != nil {
		f.row("attempt", "%d, claimed %s", r.Attempt, moment(r.CreatedAt, info.Now))
		switch {
		case r.CompletedAt.IsZero():
			f.row("lease until", "%s", moment(r.LeaseUntil, info.Now))
			if r.Awaited {
				f.row("awaited", "by a duplicate")
			}
		default:
			f.row("completed", "%s, %s after the claim", moment(r.CompletedAt, info.Now), span(r.CompletedAt.Sub(r.CreatedAt)))
			f.row("status", "%s", statusText(r))
			f.row("response", "headers %s, body %s", size(r.HeaderBytes), size(r.BodyBytes))
		}
		f.row("expires", "%s", moment(r.ExpiresAt, info.Now))
		f.row("row", "%s", size(r.RowBytes))
		f.row("fingerprint", "%s", fingerprint(r.Fingerprint))
	}
	if q := info.Request; q != nil {
		f.row("kept request", "%s, kept %s: target %s, headers %s, body %s", route(q), moment(q.KeptAt, info.Now), size(q.TargetBytes), size(q.HeaderBytes), size(q.BodyBytes))
		f.row("", "%s", chances(q, info.Now))
	}
	for i, s := range info.Steps {
		name := ""
		if i == 0 {
			name = "steps"
		}
		f.row(name, "%q, %s, of the attempt of %s", s.Name, size(s.ResultBytes), moment(s.StoredBy, info.Now))
	}
	if err := f.end(); err != nil || secrets == nil {
		return err
	}
	return a.printSecrets(*secrets)
}

func (a *app) printSecrets(s pgstore.KeySecrets) error {
	headers := func(about string, headers map[string][]string) {
		for _, name := range sortedKeys(headers) {
			for _, value := range headers[name] {
				_, _ = fmt.Fprintf(a.stdout, "%s header %s: %q\n", about, name, value)
			}
		}
	}
	headers("response", s.Headers)
	if len(s.Body) > 0 {
		_, _ = fmt.Fprintf(a.stdout, "response body: %q\n", s.Body)
	}
	if r := s.Request; r != nil {
		_, _ = fmt.Fprintf(a.stdout, "kept request: %s %q, host %q\n", r.Method, r.Target, r.Host)
		headers("kept request", r.Header)
		if len(r.Body) > 0 {
			_, _ = fmt.Fprintf(a.stdout, "kept request body: %q\n", r.Body)
		}
	}
	for _, name := range sortedKeys(s.Results) {
		if _, err := fmt.Fprintf(a.stdout, "result of step %q: %q\n", name, s.Results[name]); err != nil {
			return err
		}
	}
	return nil
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for key := range m {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	return keys
}

func statusText(r *pgstore.RecordInfo) string {
	text := "unknown"
	if r.Status != 0 {
		text = strconv.Itoa(r.Status)
	}
	if !r.Kept {
		text += ", the response was not kept"
	}
	return text
}

// fingerprint hides what a service may have made of the request itself: only the usual form
// is known to tell nothing of it.
func fingerprint(f string) string {
	if isDigest(f) {
		return f
	}
	return fmt.Sprintf("of %d bytes, of the service's own making", len(f))
}

func isDigest(f string) bool {
	if len(f) != 64 {
		return false
	}
	for _, c := range f {
		if (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}

func route(q *pgstore.RequestInfo) string {
	if q.Pattern == "" {
		return q.Method
	}
	return fmt.Sprintf("%s of route %q", q.Method, q.Pattern)
}

func chances(q *pgstore.RequestInfo, now time.Time) string {
	switch {
	case q.GaveUp:
		return fmt.Sprintf("run again %d times, and given up", q.Attempts)
	case !q.ExpiresAt.After(now):
		return fmt.Sprintf("run again %d times, and expired", q.Attempts)
	}
	return fmt.Sprintf("run again %d times; a completer may from %s on, should the attempt have died", q.Attempts, moment(q.NextAt, now))
}
