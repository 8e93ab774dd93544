package registry

import (
	"context"
	"fmt"
	"time"

	"github.com/google/uuid"

	"github.com/pgidem/pgidem/tenancy"
)

const (
	// deafLife is how long an entry counts while nobody tells of changes, so that one is
	// seen within a second.
	deafLife = 900 * time.Millisecond
	// unknownLife is how long an org_id counts as unknown.
	unknownLife = time.Second
	// refreshPause is how long what was read anew is not read anew again.
	refreshPause = time.Second
	// unknownSize is how many org_ids are remembered as unknown.
	unknownSize = 4096
)

var _ tenancy.Refresher = (*Registry)(nil)

// Schema implements [tenancy.Directory]. See [Registry.Place].
func (r *Registry) Schema(ctx context.Context, orgID uuid.UUID) (tenancy.Schema, error) {
	place, err := r.Place(ctx, orgID)
	if err != nil {
		return tenancy.Schema{}, err
	}
	return place.Schema, nil
}

// Place implements [tenancy.Placer], from the cache where it can.
//
// The error wraps [tenancy.ErrUnknownTenant] for an org_id that is not registered, and
// [tenancy.ErrSuspendedTenant], with the placement beside it, for a tenant in another state
// than [Active]. Any other error is a passing fault: the database could not be asked and
// the tenant was not known well enough, or ctx ended first.
func (r *Registry) Place(ctx context.Context, orgID uuid.UUID) (tenancy.Placement, error) {
	now := r.now()
	if e := r.cached(orgID); e != nil {
		life := r.lifeOf(e) // before r.freshFrom, see hears
		if age := now - e.read; age < life && e.read >= r.freshFrom.Load() {
			if !e.used.Load() {
				e.used.Store(true)
			}
			if age > life/2 && e.err == nil && e.asking.CompareAndSwap(false, true) {
				r.renew(orgID) // in time, so that no request of a busy tenant has to wait for it
			}
			return e.placement, e.err
		}
	}
	return r.find(ctx, orgID, false)
}

// Refresh implements [tenancy.Refresher]: it forgets what it knows of the tenant and asks the
// database, once in a second at most for each. While that cannot be asked it returns an
// error, and not what was known, which is wrong.
func (r *Registry) Refresh(ctx context.Context, orgID uuid.UUID) (tenancy.Placement, error) {
	return r.find(ctx, orgID, true)
}

// find asks the database, unless others have had the answer from it meanwhile. While it cannot
// be asked, what was known is the answer.
func (r *Registry) find(ctx context.Context, orgID uuid.UUID, anew bool) (tenancy.Placement, error) {
	if orgID == uuid.Nil {
		return tenancy.Placement{}, fmt.Errorf("%w: org_id is the nil UUID", tenancy.ErrUnknownTenant)
	}
	e, l := r.askUnlessCached(orgID, anew)
	if e != nil {
		return e.placement, e.err
	}
	if r.failing() {
		if e := r.outdated(orgID); e != nil {
			return e.placement, e.err
		}
	}
	select {
	case <-l.done:
	case <-ctx.Done():
		return tenancy.Placement{}, fmt.Errorf("registry: look up org %s: %w", orgID, ctx.Err())
	}
	if l.err == nil {
		return l.entry.placement, l.entry.err
	}
	if e := r.outdated(orgID); e != nil {
		return e.placement, e.err
	}
	return tenancy.Placement{}, l.err
}

// askUnlessCached returns the entry that is the answer, or else the lookup of the org_id. Who
// has found none may come here when others have had it looked up, so it is looked for again
// where nobody's lookup can end in between. Who asks anew does not get what was read for others,
// and has it forgotten.
func (r *Registry) askUnlessCached(orgID uuid.UUID, anew bool) (*entry, *lookup) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if e := r.cached(orgID); e != nil && r.answers(e, anew) {
		e.used.Store(true)
		return e, nil
	}
	if anew {
		r.known.drop(orgID)
		r.unknown.drop(orgID)
	}
	return nil, r.ask(orgID, anew)
}

// renew has an org_id looked up again, for which nobody waits.
func (r *Registry) renew(orgID uuid.UUID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ask(orgID, false)
}

// answers reports whether an entry is the answer to who asks now, or asks anew.
func (r *Registry) answers(e *entry, anew bool) bool {
	life := r.lifeOf(e) // before r.freshFrom, see hears
	if anew {
		life = int64(refreshPause)
	}
	return (e.anew || !anew) && r.now()-e.read < life && e.read >= r.freshFrom.Load()
}

// cached returns what was read of an org_id, or nil.
func (r *Registry) cached(orgID uuid.UUID) *entry {
	if e := r.known.get(orgID); e != nil {
		return e
	}
	return r.unknown.get(orgID)
}

// failing reports whether the database could not be asked lately. Where that was some time
// ago, it may well be there again.
func (r *Registry) failing() bool {
	at := r.failedAt.Load()
	return at != 0 && r.now()-at < int64(failingFor)
}

// outdated returns an entry that will do while the database cannot be asked, or nil.
func (r *Registry) outdated(orgID uuid.UUID) *entry {
	e := r.known.get(orgID)
	if e == nil || r.now()-e.read >= int64(r.stale) {
		return nil
	}
	return e
}

// lifeOf returns for how long after it was read an entry counts, in nanoseconds.
func (r *Registry) lifeOf(e *entry) int64 {
	life := r.life.Load()
	if e.placement.Schema.IsZero() {
		return min(life, int64(unknownLife))
	}
	return life
}

// now returns the time on the registry's own clock, in nanoseconds.
func (r *Registry) now() int64 { return int64(r.clock()) }

// hears begins a time in which each change is told: what was read before does not count
// any more.
func (r *Registry) hears() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.detachAll()
	// In this order: who finds the long life finds what it is for as well.
	r.freshFrom.Store(r.now())
	r.life.Store(int64(r.ttl))
}

// deaf ends such a time.
func (r *Registry) deaf() { r.life.Store(int64(min(deafLife, r.ttl))) }

// changed forgets what was read of a tenant before now.
func (r *Registry) changed(orgID uuid.UUID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.known.drop(orgID)
	r.unknown.drop(orgID)
	if l := r.lookups[orgID]; l != nil {
		r.detach(l)
	}
}

// allChanged forgets all that was read before now.
func (r *Registry) allChanged() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.known.clear()
	r.unknown.clear()
	r.detachAll()
}
