package registry

import (
	"context"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/pgidem/pgidem/tenancy"
)

const (
	// lookupTimeout is how long a query may take, whoever waits for it.
	lookupTimeout = time.Second
	// failingPause is how long the database is left alone when a query has failed.
	failingPause = 100 * time.Millisecond
	// failingFor is how long after that nobody who need not waits for the next query.
	failingFor = 2 * lookupTimeout
)

// lookup is under way, or about to be, for all who want to know one org_id.
type lookup struct {
	orgID uuid.UUID
	done  chan struct{} // closed when entry or err is there
	entry *entry
	err   error

	anew     bool // what was known is wrong
	sent     bool // in a query
	detached bool // the tenant may have changed since: good for those who wait already
}

// ask returns the lookup of an org_id, which it begins if there is none.
//
// One query is under way at a time, and the next is for all org_ids that are wanted
// meanwhile. So the database is never asked by more than one connection, whoever sends how
// many org_ids. Who asks anew does not get what a query reads that was sent before, unless that
// was for somebody who asked anew as well. The caller holds the lock.
func (r *Registry) ask(orgID uuid.UUID, anew bool) *lookup {
	l := r.lookups[orgID]
	if l != nil && anew && !l.anew && r.detach(l) {
		l = nil
	}
	if l == nil {
		l = &lookup{orgID: orgID, done: make(chan struct{})}
		r.lookups[orgID] = l
		r.queue = append(r.queue, l)
	}
	l.anew = l.anew || anew
	if r.looking == nil {
		r.looking = make(chan struct{})
		go r.look(r.looking)
	}
	r.startListening()
	return l
}

// look answers what is in the queue until there is nothing.
func (r *Registry) look(done chan struct{}) {
	defer close(done)
	for batch := r.next(); len(batch) > 0; batch = r.next() {
		if !r.answer(batch) {
			time.Sleep(failingPause)
		}
	}
}

// next returns the lookups that the next query is for. Where there are none, looking ends.
func (r *Registry) next() []*lookup {
	r.mu.Lock()
	defer r.mu.Unlock()
	batch := r.queue
	r.queue = nil
	if len(batch) == 0 {
		r.looking = nil
	}
	for _, l := range batch {
		l.sent = true
	}
	return batch
}

// answer runs a query and hands its results out. It reports whether the database answered.
func (r *Registry) answer(batch []*lookup) bool {
	began := r.now()
	tenants, err := r.read(batch)
	var failedAt int64
	if err != nil {
		failedAt = r.now()
	}
	r.failedAt.Store(failedAt)
	r.mu.Lock()
	for _, l := range batch {
		if l.err = err; err == nil {
			l.entry = newEntry(l.orgID, tenants[l.orgID], began)
			l.entry.anew = l.anew
		}
		if l.detached {
			continue
		}
		delete(r.lookups, l.orgID)
		if err == nil {
			r.keep(l.entry)
		}
	}
	r.mu.Unlock()
	for _, l := range batch {
		close(l.done)
	}
	return err == nil
}

func (r *Registry) keep(e *entry) {
	in, other := r.known, r.unknown
	if e.placement.Schema.IsZero() {
		in, other = other, in
	}
	other.drop(e.orgID)
	in.put(e)
}

// read returns the tenants of a batch that there are.
func (r *Registry) read(batch []*lookup) (map[uuid.UUID]Tenant, error) {
	ctx, cancel := context.WithTimeout(context.Background(), r.timeout) // nobody's who waits
	defer cancel()
	orgs := make([]string, len(batch))
	for i, l := range batch {
		orgs[i] = l.orgID.String()
	}
	rows, err := r.pool.Query(ctx, r.lookupSQL, orgs)
	if err != nil {
		return nil, r.translate("look up", "tenants", err)
	}
	found, err := pgx.CollectRows(rows, scanTenant)
	if err != nil {
		return nil, r.translate("look up", "tenants", err)
	}
	tenants := make(map[uuid.UUID]Tenant, len(found))
	for _, t := range found {
		tenants[t.OrgID] = t
	}
	return tenants, nil
}

// newEntry returns the entry of an org_id of which the zero Tenant was found if there is none.
func newEntry(orgID uuid.UUID, t Tenant, read int64) *entry {
	e := &entry{orgID: orgID, placement: t.Placement(), read: read}
	switch {
	case t.Schema.IsZero():
		e.err = fmt.Errorf("%w: org %s is not registered", tenancy.ErrUnknownTenant, orgID)
	case t.State != Active:
		e.err = fmt.Errorf("%w: org %s is %s", tenancy.ErrSuspendedTenant, orgID, t.State)
	}
	return e
}

// detach takes a lookup that may have read what is not so any more from whoever comes now, and
// reports whether it has. One that was not sent yet will read what is.
func (r *Registry) detach(l *lookup) bool {
	if l.sent {
		l.detached = true
		delete(r.lookups, l.orgID)
	}
	return l.sent
}

func (r *Registry) detachAll() {
	for _, l := range r.lookups {
		r.detach(l)
	}
}
