package pgstore

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgidem/pgidem/idempotency"
	"github.com/pgidem/pgidem/internal/db"
	"github.com/pgidem/pgidem/internal/listen"
	"github.com/pgidem/pgidem/tenancy"
)

// Router leads to the servers that tenants are on: [Pools] for one server, or [Clusters].
type Router interface {
	// byCluster returns the pools of each cluster by its name.
	byCluster() map[string]*Pools
}

func (p *Pools) byCluster() map[string]*Pools {
	if p == nil {
		return nil
	}
	return map[string]*Pools{"": p}
}

// Clusters are the pools of several servers, by the names that a [tenancy.Placer] has for
// them ([tenancy.Placement.Cluster]); the empty name is that of tenants whose directory names
// none.
//
//	store, err := pgstore.NewRouted(pgstore.Clusters{"eu-1": eu1, "eu-2": eu2}, registry)
//
// A tenant of another cluster is not served: its claims are refused
// ([idempotency.ErrStoreRefused]), with an error that names the cluster.
type Clusters map[string]*Pools

func (c Clusters) byCluster() map[string]*Pools { return c }

// NewRouted returns a Store over several pools, of one server ([Pools]) or of several
// ([Clusters]). In everything else it is as [New].
//
// A dir that is a [tenancy.Placer] names the cluster of each tenant, and may tell the version
// of its schema: where that is older than this version of pgidem needs, claims are refused
// with an error that wraps [idempotency.ErrStoreRefused]; where it is newer they are not. What
// dir says counts, not what the schema has had: whoever migrates it notes that in the registry,
// as idem-tenants migrate does, or by Registry.SetVersion, while migrations.Up does not. The
// claims of a tenant that is suspended are refused with [tenancy.ErrSuspendedTenant], while
// attempts that had begun before store their outcomes, if the dir is a Placer.
//
// One that is a [tenancy.Refresher] is asked to look anew for a tenant whose tables are not
// where it said: a tenant that was moved is served where it is, and claims of one that is on
// its way are refused for the time being ([idempotency.ErrStoreRefused], which is a 503),
// while outcomes are stored as soon as it has arrived, if that is within WithStoreTimeout.
func NewRouted(router Router, dir tenancy.Directory, opts ...Option) (*Store, error) {
	switch {
	case router == nil || len(router.byCluster()) == 0:
		return nil, errors.New("pgstore: the router is nil, or has no cluster")
	case dir == nil:
		return nil, errors.New("pgstore: the directory is nil; use tenancy.PerOrg or tenancy.Fixed")
	}
	s := &Store{dir: dir, servers: make(map[string]*server), seen: newSeenKeys(), logger: slog.Default()}
	s.placer, _ = dir.(tenancy.Placer)
	s.refresher, _ = dir.(tenancy.Refresher)
	for cluster, pools := range router.byCluster() {
		if pools == nil || len(pools.pools) == 0 || slices.Contains(pools.pools, nil) {
			return nil, fmt.Errorf("pgstore: cluster %q has no pools; make them with NewPools", cluster)
		}
		server := &server{cluster: cluster, pools: pools}
		server.listener = listener{connect: listen.Connector(pools.pools[0]), idle: listenIdle, ends: &s.ends}
		s.servers[cluster] = server
	}
	for _, opt := range opts {
		if err := opt(s); err != nil {
			return nil, fmt.Errorf("pgstore: %w", err)
		}
	}
	for _, server := range s.servers {
		server.start(s.few, s.relaxed)
	}
	return s, nil
}

// server is a PostgreSQL server as the store sees it.
type server struct {
	cluster  string
	pools    *Pools
	homes    []*home
	listener listener
}

// home is one of a server's pools, and what gathers in front of it.
type home struct {
	conns    conns
	looks    *coalescer
	claims   *coalescer
	outcomes *coalescer // the same, unless claims are relaxed
	met      distinct   // schemas
	warn     warning
}

// start makes the homes. It starts no goroutine.
func (s *server) start(few int, relaxed bool) {
	for i, pool := range s.pools.pools {
		most := int(pool.Config().MaxConns)
		pace := newPace(2, most)
		if len(s.pools.pools) > 1 { // the others run beside it, and each connection more has all tenants to meet
			pace = newPace(1, most)
			pace.room = pace.least
		}
		if few > 0 {
			pace = newPace(few, few)
		}
		h := &home{conns: s.pools.of(i)}
		h.warn.capacity = capacity(pool)
		// Half of the connections, for all that is done by itself in one schema.
		alone := &turns{most: max(2, most/2)}
		h.looks = &coalescer{conns: h.conns, alone: alone, pace: pace}
		h.claims = &coalescer{conns: h.conns, alone: alone, pace: pace, relaxed: relaxed}
		h.outcomes = h.claims
		if relaxed {
			h.outcomes = &coalescer{conns: h.conns, alone: alone, pace: pace}
		}
		s.homes = append(s.homes, h)
	}
}

// inCluster names the server in errors.
func (s *server) inCluster() string { return inCluster(s.cluster) }

func inCluster(name string) string {
	if name == "" {
		return ""
	}
	return fmt.Sprintf(" of cluster %q", name)
}

// acquireIdle returns a connection of the schema's home, or of another pool if that has none
// that is free. It is for what holds on to it: others of the home are not to wait for that.
func (s *server) acquireIdle(ctx context.Context, schema tenancy.Schema) (*pgxpool.Conn, error) {
	return s.pools.acquire(ctx, s.pools.home(schema), 0)
}

// on returns the home of a schema.
func (s *server) on(schema tenancy.Schema) *home { return s.homes[s.pools.home(schema)] }

// located is where a tenant's records are, and its statements, bound to it.
type located struct {
	schema tenancy.Schema
	server *server
	home   *home
	tenant db.Tenant
	begun  bool // for what has begun before
}

// neededVersion is the number of the newest migration that this package's statements need.
const neededVersion = 5

// locate finds a tenant for what begins.
func (s *Store) locate(ctx context.Context, orgID uuid.UUID) (located, error) {
	placement, err := s.placement(ctx, orgID)
	return s.admit(orgID, placement, err)
}

func (s *Store) admit(orgID uuid.UUID, placement tenancy.Placement, err error) (located, error) {
	if err != nil {
		return located{}, err
	}
	if v := placement.Version; v != 0 && v < neededVersion {
		return located{}, fmt.Errorf("pgstore: org %s: %w: the directory has version %d noted of its schema %s, and this version of pgidem needs %d; "+
			"run idem-tenants migrate over the registry, or migrations with Registry.SetVersion: migrations.Up by itself notes no version",
			orgID, idempotency.ErrStoreRefused, v, placement.Schema, neededVersion)
	}
	return s.at(orgID, placement)
}

// locateBegun finds a tenant for what has begun before, which is brought to its end though
// the tenant was suspended since.
func (s *Store) locateBegun(ctx context.Context, orgID uuid.UUID) (located, error) {
	placement, err := s.placement(ctx, orgID)
	return s.admitBegun(orgID, placement, err)
}

func (s *Store) admitBegun(orgID uuid.UUID, placement tenancy.Placement, err error) (at located, _ error) {
	if err != nil && (!errors.Is(err, tenancy.ErrSuspendedTenant) || placement.Schema.IsZero()) {
		return located{}, err
	}
	at, err = s.at(orgID, placement)
	at.begun = true
	return at, err
}

func (s *Store) placement(ctx context.Context, orgID uuid.UUID) (p tenancy.Placement, err error) {
	switch {
	case orgID == uuid.Nil:
		return p, fmt.Errorf("%w: org_id is the nil UUID", tenancy.ErrUnknownTenant)
	case s.placer != nil:
		p, err = s.placer.Place(ctx, orgID)
	default:
		p.Schema, err = s.dir.Schema(ctx, orgID)
	}
	if err != nil {
		err = fmt.Errorf("pgstore: schema of org %s: %w", orgID, err)
	}
	return p, err
}

func (s *Store) at(orgID uuid.UUID, p tenancy.Placement) (located, error) {
	server, ok := s.servers[p.Cluster]
	if !ok {
		return located{}, fmt.Errorf("pgstore: org %s: %w: %w", orgID, idempotency.ErrStoreRefused, unknownCluster(p.Cluster, s.servers))
	}
	home := server.on(p.Schema)
	home.meet(p.Schema.Quoted(), s.logger)
	return located{schema: p.Schema, server: server, home: home, tenant: s.texts.Bind(home.conns, p.Schema.Quoted())}, nil
}

func unknownCluster(name string, servers map[string]*server) error {
	names := slices.Sorted(maps.Keys(servers))
	for i, name := range names {
		names[i] = fmt.Sprintf("%q", name)
	}
	return fmt.Errorf("there are no pools for cluster %q, only for %s; give them to pgstore.NewRouted in Clusters", name, strings.Join(names, ", "))
}
