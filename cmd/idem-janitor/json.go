package main

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/pgidem/pgidem/internal/cli"
)

// jsonReport prints one object a round.
type jsonReport struct {
	out, err io.Writer
	dryRun   bool
}

// roundJSON is that object.
type roundJSON struct {
	StartedAt   time.Time     `json:"started_at"`
	Seconds     float64       `json:"duration_seconds"`
	DryRun      bool          `json:"dry_run"`
	Tenants     int           `json:"tenants"`
	Done        int           `json:"tenants_done"`
	Failed      int           `json:"tenants_failed"`
	Dropped     int           `json:"tenants_dropped"`
	Left        int           `json:"tenants_left"`
	Deleted     int64         `json:"records_deleted"`
	WouldDelete *int64        `json:"records_to_delete,omitempty"` // of a dry run
	Purged      []tenantJSON  `json:"purged"`                      // those that had expired records, by cluster and name
	Failures    []failureJSON `json:"failures"`
	Stopped     string        `json:"stopped,omitempty"` // why tenants are left
	Warning     string        `json:"warning,omitempty"`
	Error       string        `json:"error,omitempty"` // no connection to a database, or no list of its tenants
}

type tenantJSON struct {
	Cluster string `json:"cluster,omitempty"` // of --server
	Schema  string `json:"schema"`
	Records int64  `json:"records"`
}

type failureJSON struct {
	tenantJSON
	Error    string `json:"error"`
	SQLState string `json:"sqlstate,omitempty"`
}

func (*jsonReport) begin(int)      {}
func (*jsonReport) progress(int64) {}
func (*jsonReport) tenant(outcome) {}

func (j *jsonReport) end(r round) {
	object := roundJSON{
		StartedAt: r.started.UTC(), Seconds: cli.ToMillisecond(r.duration).Seconds(), DryRun: j.dryRun,
		Tenants: len(r.tenants), Done: r.count(done), Failed: r.count(failed), Dropped: r.count(dropped), Left: r.count(left),
		Purged: []tenantJSON{}, Failures: []failureJSON{},
	}
	if n := r.records(); j.dryRun {
		object.WouldDelete = &n
	} else {
		object.Deleted = n
	}
	byName := func(a, b outcome) int {
		return cmp.Or(strings.Compare(a.cluster, b.cluster), strings.Compare(a.schema.String(), b.schema.String()))
	}
	for _, o := range slices.SortedFunc(slices.Values(r.tenants), byName) {
		tenant := tenantJSON{Cluster: o.cluster, Schema: o.schema.String(), Records: o.records}
		if o.records > 0 {
			object.Purged = append(object.Purged, tenant)
		}
		if o.state == failed {
			failure := failureJSON{tenantJSON: tenant, Error: o.err.Error(), SQLState: cli.SQLState(o.err)}
			object.Failures = append(object.Failures, failure)
		}
	}
	if r.stopped != nil {
		object.Stopped = r.stopped.Error()
	}
	if r.unfit != nil {
		object.Warning = cli.OneLine(r.unfit)
	}
	if r.err != nil {
		object.Error = cli.OneLine(r.err)
	}
	if err := json.NewEncoder(j.out).Encode(object); err != nil {
		_, _ = fmt.Fprintf(j.err, "idem-janitor: write the report: %v\n", err)
	}
}
