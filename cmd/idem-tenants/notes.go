package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/pgidem/pgidem/internal/cli"
	"github.com/pgidem/pgidem/tenancy"
	"github.com/pgidem/pgidem/tenancy/registry"
)

// notes writes the versions that tenants have come to into the registry, beside the workers
// that migrate them.
type notes struct {
	tenants *registry.Registry // nil where there is nothing to be written
	queue   chan migrated
	writers sync.WaitGroup

	mu     sync.Mutex
	failed int
	first  error
	away   int // tenants that went to another cluster before the note was taken
}

// noteTimeout bounds a note: one that is under way when the run is stopped is still taken.
const noteTimeout = 10 * time.Second

func (a *app) takeNotes(ctx context.Context, terms migrateTerms) *notes {
	n := &notes{queue: make(chan migrated, 1000)}
	if terms.dryRun || terms.choice.all || len(terms.choice.schemas) > 0 {
		return n
	}
	var err error
	if n.tenants, err = a.registry(ctx); err != nil {
		n.first, n.failed, n.tenants = err, 1, nil
		return n
	}
	for range minConnections {
		n.writers.Go(func() {
			for m := range n.queue {
				n.write(context.WithoutCancel(ctx), m)
			}
		})
	}
	return n
}

func (n *notes) take(m migrated) {
	if n.tenants != nil && !m.moving && m.To > 0 && m.To != m.target.tenant.Version {
		n.queue <- m
	}
}

func (n *notes) write(ctx context.Context, m migrated) {
	ctx, cancel := context.WithTimeout(ctx, noteTimeout)
	defer cancel()
	at := m.target.tenant.Placement()
	at.Version = m.To
	err := n.tenants.SetVersion(ctx, m.target.OrgID, at)
	if err == nil || errors.Is(err, tenancy.ErrUnknownTenant) { // who was dropped meanwhile needs no note
		return
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if errors.Is(err, registry.ErrConflict) { // its schema went as it had been migrated
		n.away++
		return
	}
	if n.failed++; n.first == nil {
		n.first = err
	}
}

// end waits for the last note. Late is what the next run will note, where a tenant is then.
func (n *notes) end() (late, err error) {
	close(n.queue)
	n.writers.Wait()
	if n.away > 0 {
		late = fmt.Errorf("the registry does not know the version of %s that went to another cluster as it was migrated; run migrate again, which notes it", cli.Plural(int64(n.away), "tenant"))
	}
	if n.first == nil {
		return late, nil
	}
	return late, fmt.Errorf("the registry does not know the version of %s; run migrate again: %w", cli.Plural(int64(n.failed), "tenant"), n.first)
}
