package storetest

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgidem/pgidem/idempotency"
	"github.com/pgidem/pgidem/idempotency/idempotencytest"
	"github.com/pgidem/pgidem/idempotency/pgstore"
	"github.com/pgidem/pgidem/migrations"
	"github.com/pgidem/pgidem/tenancy"
)

// Placements is a [tenancy.Placer] of tenants that are added to it, each in the schema that
// [PerOrg] names.
type Placements struct {
	mu        sync.Mutex
	places    map[uuid.UUID]tenancy.Placement
	suspended map[uuid.UUID]bool
}

// Set places a tenant.
func (p *Placements) Set(org uuid.UUID, placement tenancy.Placement) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.places == nil {
		p.places, p.suspended = make(map[uuid.UUID]tenancy.Placement), make(map[uuid.UUID]bool)
	}
	p.places[org] = placement
}

// Suspend suspends a tenant, or has it served again.
func (p *Placements) Suspend(org uuid.UUID, suspended bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.suspended[org] = suspended
}

// Place implements [tenancy.Placer].
func (p *Placements) Place(_ context.Context, org uuid.UUID) (tenancy.Placement, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	placement, ok := p.places[org]
	switch {
	case !ok:
		return placement, fmt.Errorf("%w: %s", tenancy.ErrUnknownTenant, org)
	case p.suspended[org]:
		return placement, fmt.Errorf("%w: %s", tenancy.ErrSuspendedTenant, org)
	}
	return placement, nil
}

// Schema implements [tenancy.Directory].
func (p *Placements) Schema(ctx context.Context, org uuid.UUID) (tenancy.Schema, error) {
	placement, err := p.Place(ctx, org)
	if err != nil {
		placement.Schema = tenancy.Schema{}
	}
	return placement.Schema, err
}

// NewPools returns n pools of as many connections in all as given, to the database of the
// pool.
func NewPools(t testing.TB, pool *pgxpool.Pool, n, conns int) *pgstore.Pools {
	t.Helper()
	config := pool.Config()
	config.MaxConns = int32(conns)
	pools, err := pgstore.NewPools(t.Context(), config, n)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pools.Close)
	return pools
}

// Spread are servers that new tenants are placed on by turns.
type Spread struct {
	Placements
	Clusters pgstore.Clusters
	direct   map[string]*pgxpool.Pool
	names    []string
	next     int
}

// NewSpread returns a Spread over the databases of the pools, with 4 pools of 8 connections
// in all to each.
func NewSpread(t testing.TB, direct ...*pgxpool.Pool) *Spread {
	t.Helper()
	s := &Spread{Clusters: make(pgstore.Clusters), direct: make(map[string]*pgxpool.Pool)}
	for i, pool := range direct {
		name := fmt.Sprint("cluster-", i)
		s.names, s.direct[name] = append(s.names, name), pool
		s.Clusters[name] = NewPools(t, pool, 4, 8)
	}
	return s
}

// NewTenant makes a tenant, and returns the pool that leads to it.
func (s *Spread) NewTenant(t testing.TB) (uuid.UUID, *pgxpool.Pool) {
	t.Helper()
	s.mu.Lock()
	cluster := s.names[s.next%len(s.names)]
	s.next++
	s.mu.Unlock()
	org, pool := uuid.New(), s.direct[cluster]
	schema := SchemaOf(t, org)
	if err := migrations.Up(t.Context(), pool.Config().ConnString(), schema); err != nil {
		t.Fatal(err)
	}
	s.Set(org, tenancy.Placement{Schema: schema, Cluster: cluster})
	return org, pool
}

// Suite returns what the suites of idempotencytest need to run over the servers.
func (s *Spread) Suite(storeOpts ...pgstore.Option) (newStore func(testing.TB) idempotency.Store, opts []idempotencytest.Option) {
	newStore = func(t testing.TB) idempotency.Store {
		return &spreadStore{Store: s.NewStore(t, storeOpts...)}
	}
	return newStore, s.options()
}

// TransactionSuite is Suite for the transactional mode.
func (s *Spread) TransactionSuite() (newStore func(testing.TB) idempotency.Store, opts []idempotencytest.Option) {
	newStore = func(t testing.TB) idempotency.Store {
		return &spreadTransactions{LeaseStore: s.NewStore(t).Transactional().(idempotency.LeaseStore)}
	}
	return newStore, append(s.options(), idempotencytest.WithTransactions())
}

// NewStore returns a store over the servers.
func (s *Spread) NewStore(t testing.TB, opts ...pgstore.Option) *pgstore.Store {
	t.Helper()
	store, err := pgstore.NewRouted(s.Clusters, s, opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(store.Close)
	return store
}

func (s *Spread) options() []idempotencytest.Option {
	return []idempotencytest.Option{
		idempotencytest.WithTenant(func(t testing.TB, store idempotency.Store) uuid.UUID {
			org, _ := s.NewTenant(t)
			store.(counting).count(org)
			return org
		}),
		idempotencytest.WithAdvance(func(t testing.TB, store idempotency.Store, d time.Duration) {
			for _, org := range store.(counting).counted() {
				s.Advance(t, org, d)
			}
		}),
	}
}

// Advance lets time pass for a tenant, wherever it is placed.
func (s *Spread) Advance(t testing.TB, org uuid.UUID, d time.Duration) {
	t.Helper()
	placement, err := s.Place(t.Context(), org)
	if err != nil {
		t.Fatal(err)
	}
	Advance(t, s.direct[placement.Cluster], org, d)
}

// counting are stores that know the tenants of one test.
type counting interface {
	count(org uuid.UUID)
	counted() []uuid.UUID
}

type tenants struct{ orgs []uuid.UUID }

func (t *tenants) count(org uuid.UUID)  { t.orgs = append(t.orgs, org) }
func (t *tenants) counted() []uuid.UUID { return t.orgs }

type spreadStore struct {
	*pgstore.Store
	tenants
}

type spreadTransactions struct {
	idempotency.LeaseStore
	tenants
}
