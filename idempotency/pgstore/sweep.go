package pgstore

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/pgidem/pgidem/idempotency"
	"github.com/pgidem/pgidem/internal/db"
	"github.com/pgidem/pgidem/internal/moved"
	"github.com/pgidem/pgidem/tenancy"
)

// sweep is the work of a [Completer] in one process: the passes that look for requests,
// and the handlers that they have started.
type sweep struct {
	*Completer
	slots   chan struct{} // one for each handler that may run
	running sync.WaitGroup

	mu     sync.Mutex
	result CompleterResult
}

func (c *Completer) newSweep() *sweep {
	return &sweep{Completer: c, slots: make(chan struct{}, c.concurrency)}
}

// wait returns when the last handler has returned.
func (s *sweep) wait() { s.running.Wait() }

func (s *sweep) count(change func(*CompleterResult)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change(&s.result)
}

// due is a schema with requests that are due, and the tenants whose they are.
type due struct {
	schema tenancy.Schema
	tenant db.Tenant
	orgs   []string // in text form: without prepared statements pgx cannot send arrays of UUIDs
}

// pass starts the handlers of all requests that are due, tenants by turns, as slots become
// free. It returns before the last of them have returned.
func (s *sweep) pass(ctx context.Context) error {
	var errs []error
	var places []heldIn
	for _, server := range s.store.servers {
		names, err := db.New(server.homes[0].conns).RequestSchemas(ctx)
		if err != nil { // those of other servers are looked for all the same
			errs = append(errs, fmt.Errorf("pgstore: completer: list the schemas with requests%s: %w", server.inCluster(), err))
		}
		for _, name := range names {
			if !moved.IsFence(name) { // where a tenant comes to, its requests are found
				places = append(places, heldIn{server, name})
			}
		}
	}
	rand.Shuffle(len(places), func(i, j int) { places[i], places[j] = places[j], places[i] }) // so that copies do not meet in each
	var pending []due
	for _, in := range places {
		d, err := s.look(ctx, in)
		if err != nil {
			errs = append(errs, err)
		}
		if len(d.orgs) == 0 {
			continue
		}
		if err := s.buryDead(ctx, d); err != nil {
			errs = append(errs, err)
		}
		pending = append(pending, d)
	}
	for len(pending) > 0 && ctx.Err() == nil {
		var rest []due
		for _, d := range pending {
			more, err := s.pick(ctx, d)
			if err != nil {
				errs = append(errs, translateSchema("completer: pick requests", d.schema, asOutdated(err)))
			}
			if more {
				rest = append(rest, d)
			}
		}
		pending = rest
	}
	if ctx.Err() != nil {
		errs = append(errs, ctx.Err())
	}
	return errors.Join(errs...)
}

// heldIn is a schema of a server that holds requests.
type heldIn struct {
	server *server
	schema string
}

// look finds the tenants of a schema that have requests which are due. The error tells of
// those that the directory of this service does not lead to there: their requests are
// another service's, or nobody's.
//
// Requests of tenants that are suspended are left for when they are served again.
func (s *sweep) look(ctx context.Context, in heldIn) (d due, err error) {
	if d.schema, err = tenancy.ParseSchema(in.schema); err != nil {
		return d, fmt.Errorf("pgstore: completer: a table of requests lies where no tenant can be: %w", err)
	}
	d.tenant = s.store.texts.Bind(in.server.on(d.schema).conns, d.schema.Quoted())
	orgs, err := repeated(func() ([]pgtype.UUID, error) { // it forgets what another copy may forget at the same time
		return db.New(d.tenant).DueOrgs(ctx)
	})
	if err != nil {
		return d, translateSchema("completer: look for requests", d.schema, asOutdated(err))
	}
	var errs []error
	for _, id := range orgs {
		org := uuid.UUID(id.Bytes)
		switch p, err := s.store.placement(ctx, org); {
		case errors.Is(err, tenancy.ErrSuspendedTenant):
		case err != nil:
			errs = append(errs, fmt.Errorf("pgstore: completer: of org %s schema %s%s holds interrupted requests: %w", org, d.schema, in.server.inCluster(), err))
		case p.Schema != d.schema || p.Cluster != in.server.cluster:
			errs = append(errs, fmt.Errorf("pgstore: completer: schema %s%s holds interrupted requests of org %s, which the directory leads to %s%s: they are left alone; clear them away, or run the completer of the service whose they are",
				d.schema, in.server.inCluster(), org, p.Schema, inCluster(p.Cluster)))
		default:
			d.orgs = append(d.orgs, org.String())
		}
	}
	return d, errors.Join(errs...)
}

// pick picks as many requests of a schema as there are free slots, one at least, and
// starts their handlers. It reports whether there may be more.
func (s *sweep) pick(ctx context.Context, d due) (more bool, err error) {
	n := s.acquire(ctx)
	if n == 0 {
		return false, nil // ctx has ended
	}
	rows, err := repeated(func() ([]db.PickRequestsRow, error) {
		return db.New(d.tenant).PickRequests(ctx, db.PickRequestsParams{
			Pause: s.pause, MaxAttempts: int32(s.maxAttempts), OrgIds: d.orgs, BatchRows: int32(n),
		})
	})
	s.free(n - len(rows))
	for _, row := range rows {
		s.running.Go(func() {
			defer s.free(1)
			s.run(ctx, d, row)
		})
	}
	return err == nil && len(rows) == n, err
}

// acquire takes the slots that are free, and waits for one if none is.
func (s *sweep) acquire(ctx context.Context) (n int) {
	if ctx.Err() != nil {
		return 0
	}
	select {
	case s.slots <- struct{}{}:
	case <-ctx.Done():
		return 0
	}
	for n = 1; n < s.concurrency; n++ {
		select {
		case s.slots <- struct{}{}:
		default:
			return n
		}
	}
	return n
}

func (s *sweep) free(n int) {
	for range n {
		<-s.slots
	}
}

// run runs a request again, and sees to what comes of it.
func (s *sweep) run(ctx context.Context, d due, row db.PickRequestsRow) {
	it := idempotency.InterruptedRequest{OrgID: uuid.UUID(row.OrgID.Bytes), Key: row.Key, RequestHash: decodeHash(row.RequestHash)}
	request, err := storedRequest{
		method: row.Method, pattern: row.Pattern, target: row.Target, host: row.Host,
		pathValues: row.PathValues, headers: row.Headers, body: row.Body,
	}.decode()
	it.Request = request
	about := attributes(it, int(row.Attempts))
	outcome := idempotency.Outcome("")
	ended := false
	defer func() {
		if !ended { // the handler has ended its goroutine, which nothing stops
			s.failed(ctx, d, it, row.Attempts, append(about, slog.String("error", "the handler ended its goroutine")))
		}
	}()
	if err == nil {
		outcome, err = idempotency.Recover(ctx, s.handler, it)
	}
	ended = true
	if outcome != "" {
		about = append(about, slog.String("decision", string(outcome)))
	}
	if err != nil {
		about = append(about, slog.String("error", err.Error()))
	}
	switch outcome {
	case idempotency.DecisionTakenOver, idempotency.DecisionExecuted:
		s.count(func(r *CompleterResult) { r.Completed++ })
		s.logger.LogAttrs(ctx, slog.LevelInfo, "pgidem completer: a request whose process had died is completed", about...)
	case idempotency.DecisionInFlight, idempotency.DecisionNotInterrupted, idempotency.DecisionMismatch, idempotency.DecisionClientLeft:
		s.giveBack(ctx, d, row, s.pause)
	case idempotency.DecisionStoreError, idempotency.DecisionUnknownTenant, idempotency.DecisionSuspendedTenant, idempotency.DecisionNotRecoverable:
		s.giveBack(ctx, d, row, s.pause)
		s.logger.LogAttrs(ctx, slog.LevelWarn, "pgidem completer: an interrupted request could not be run again; it will be tried again", about...)
	default:
		if ctx.Err() != nil { // we are told to stop, and so was the handler, whatever it made of that
			s.giveBack(ctx, d, row, 0)
			return
		}
		s.failed(ctx, d, it, row.Attempts, about)
	}
}

// giveBack takes the attempt back that a pick has counted: it was none.
func (s *sweep) giveBack(ctx context.Context, d due, row db.PickRequestsRow, pause time.Duration) {
	s.count(func(r *CompleterResult) { r.Skipped++ })
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), rollbackTimeout)
	defer cancel()
	// Where that fails, the attempt counts.
	_ = db.New(d.tenant).GiveBack(ctx, db.GiveBackParams{Pause: pause, OrgID: row.OrgID, Key: row.Key, Attempts: row.Attempts})
}

// failed notes an attempt that came to nothing, and gives the request up when it was the
// last.
func (s *sweep) failed(ctx context.Context, d due, it idempotency.InterruptedRequest, attempts int32, about []slog.Attr) {
	s.count(func(r *CompleterResult) { r.Failed++ })
	if int(attempts) < s.maxAttempts {
		s.logger.LogAttrs(ctx, slog.LevelWarn, "pgidem completer: an interrupted request was run again and came to nothing; it will be tried again", about...)
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), rollbackTimeout)
	defer cancel()
	n, err := db.New(d.tenant).GiveUp(ctx, db.GiveUpParams{OrgID: db.UUID(it.OrgID), Key: it.Key, Attempts: attempts})
	if err != nil {
		return // a later pass finds it
	}
	if n > 0 {
		s.gaveUp(ctx, about)
	}
}

// buryDead gives up the requests whose last attempt has died with its process.
func (s *sweep) buryDead(ctx context.Context, d due) error {
	rows, err := db.New(d.tenant).GiveUpDead(ctx, db.GiveUpDeadParams{MaxAttempts: int32(s.maxAttempts), OrgIds: d.orgs, BatchRows: 1000})
	if err != nil && !isSerializationFailure(err) { // another copy is at it
		return translateSchema("completer: give requests up", d.schema, asOutdated(err))
	}
	for _, row := range rows {
		it := idempotency.InterruptedRequest{OrgID: uuid.UUID(row.OrgID.Bytes), Key: row.Key}
		it.Request, err = storedRequest{method: row.Method, target: row.Target, headers: row.Headers}.decode()
		about := attributes(it, int(row.Attempts))
		if err != nil {
			about = append(about, slog.String("error", err.Error()))
		}
		s.gaveUp(ctx, about)
	}
	return nil
}

func (s *sweep) gaveUp(ctx context.Context, about []slog.Attr) {
	s.count(func(r *CompleterResult) { r.GivenUp++ })
	s.logger.LogAttrs(ctx, slog.LevelError, "pgidem completer: an interrupted request is given up, and what became of it is not known: find out by other means; a retry of the client may still complete it", about...)
}

// attributes tell of a request in the log. The key itself appears nowhere, and neither
// does the query.
func attributes(it idempotency.InterruptedRequest, attempts int) []slog.Attr {
	path, _, _ := strings.Cut(it.Request.Target, "?")
	return []slog.Attr{
		slog.String("method", it.Request.Method),
		slog.String("path", path),
		slog.String("org_id", it.OrgID.String()),
		slog.String("key_hash", it.KeyHash()),
		slog.Int("attempts", attempts),
	}
}
