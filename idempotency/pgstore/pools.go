package pgstore

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"slices"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgconn/ctxwatch"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgidem/pgidem/tenancy"
)

// Pools are small pools of connections to one server, to which the schemas of tenants are
// hashed: each schema has a home among them. A server process that meets a schema for the
// first time reads about its tables and plans its statements, which takes several times as
// long as the statements do, and keeps what it has found, 60 to 230 KiB a schema, for as long
// as it lives. In one pool all of its connections come to meet all tenants; in n pools each
// meets about the n-th part of them, in a n-th of the memory.
//
// Make them with [NewPools], or of a pool that is there with [SinglePool]. They are safe for
// concurrent use.
type Pools struct {
	pools []*pgxpool.Pool
	busy  []atomic.Int64 // until when nobody waits for a pool, in nanoseconds since 1970
	owned bool
}

// DefaultStatementCache is how many statements a connection of [NewPools] keeps prepared.
const DefaultStatementCache = 4096

const (
	// homePatience is for how long a statement waits for its home before it goes to another
	// pool: longer than statements take that are well.
	homePatience = 20 * time.Millisecond
	// maxWait is how long, at most, one waits for its home between looks at the others.
	maxWait = 500 * time.Millisecond
	// roomPatience is for how long one waits where there is room: for a connection to be made,
	// or found alive, or for whoever was faster to be done with it.
	roomPatience = 250 * time.Millisecond
	// busyFor is for how long after that nobody else waits there, while others have room.
	busyFor = 100 * time.Millisecond
	// cancelPatience is for how long a connection has the end of a statement awaited that was
	// cancelled. A commit cannot be, and takes that long at times, when the disk is behind.
	cancelPatience = 2 * time.Second
)

// NewPools opens n pools that have config.MaxConns connections together; n is at most that.
// Close closes them. As [pgxpool.NewWithConfig] it needs a config that [pgxpool.ParseConfig]
// has made, does not change it, and waits for no connection.
//
// Fewer pools make for larger transactions, in which the requests of many tenants go
// together; more pools use more of the server's processors, and meet fewer tenants each.
// About twice as many as the server has processors is a good number to begin with, and 2
// connections or more in each, of which a store uses one while it is enough.
//
// What they take from config they change in this:
//
//   - MaxConns, MinConns and MinIdleConns are shared among them.
//   - StatementCacheCapacity is [DefaultStatementCache] if it was smaller, so that the
//     statements of some 700 tenants stay prepared on a connection. A tenant has six that come
//     with every request: a claim, a completion and a look, of about 20 KiB of the server's
//     memory each, and the same for many keys at once, of about 50 KiB each, once four or more
//     of its requests have gone together. Their number is what bounds a server process's
//     memory, with some 15 KiB for each schema that it has met; give a larger one where there
//     are more tenants to a pool and memory to spend.
//   - MaxConnLifetime gets a jitter of a quarter if there was none: a connection that ends
//     gives back what it has kept of tenants that are gone or were guests, and they should
//     not all begin anew at once.
//   - BuildContextWatcherHandler is one that has the server cancel a statement whose context
//     has ended, and closes the connection only when that has not helped after 2 seconds: a
//     new one has everything to learn again. By default pgx closes it at once.
//
// A statement whose home has no connection free for 20 ms goes to another pool that has one.
// [Store.Transactional] goes there at once, so that n pools hold as many transactions as one
// does.
//
// Connections are to lead to the server itself. A pooler in transaction mode deals them out
// anew for each transaction, and all of its server connections meet all tenants.
func NewPools(ctx context.Context, config *pgxpool.Config, n int) (*Pools, error) {
	switch {
	case config == nil:
		return nil, errors.New("pgstore: NewPools: the configuration is nil; make one with pgxpool.ParseConfig")
	case n < 1 || n > int(config.MaxConns):
		return nil, fmt.Errorf("pgstore: NewPools: %d pools for %d connections; give 1 pool or more, and a connection or more for each", n, config.MaxConns)
	}
	p := &Pools{busy: make([]atomic.Int64, n), owned: true}
	for i := range n {
		pool, err := pgxpool.NewWithConfig(ctx, share(config, i, n))
		if err != nil {
			p.Close()
			return nil, fmt.Errorf("pgstore: NewPools: %w", err)
		}
		p.pools = append(p.pools, pool)
	}
	return p, nil
}

// share returns the configuration of the i-th of n pools.
func share(config *pgxpool.Config, i, n int) *pgxpool.Config {
	config = config.Copy()
	for _, conns := range []*int32{&config.MaxConns, &config.MinConns, &config.MinIdleConns} {
		rest := int(*conns) % n
		*conns /= int32(n)
		if i < rest {
			*conns++
		}
	}
	if config.MaxConnLifetimeJitter == 0 {
		config.MaxConnLifetimeJitter = config.MaxConnLifetime / 4
	}
	config.ConnConfig.BuildContextWatcherHandler = func(conn *pgconn.PgConn) ctxwatch.Handler {
		return &pgconn.CancelRequestContextWatcherHandler{Conn: conn, DeadlineDelay: cancelPatience}
	}
	config.ConnConfig.StatementCacheCapacity = max(config.ConnConfig.StatementCacheCapacity, DefaultStatementCache)
	return config
}

// SinglePool returns Pools of the caller's pool alone, for [Clusters]. It opens nothing, and
// Close leaves the pool alone.
func SinglePool(pool *pgxpool.Pool) *Pools {
	return &Pools{pools: []*pgxpool.Pool{pool}, busy: make([]atomic.Int64, 1)}
}

// Close closes the pools that [NewPools] has opened, and waits for connections that are in
// use. Close the store before them.
func (p *Pools) Close() {
	if !p.owned {
		return
	}
	for _, pool := range p.pools {
		pool.Close()
	}
}

// Pool returns the pool that is the home of a schema: for [Purge], and for a service's own
// statements on the tables of that tenant.
func (p *Pools) Pool(schema tenancy.Schema) *pgxpool.Pool { return p.pools[p.home(schema)] }

// All returns the pools.
func (p *Pools) All() []*pgxpool.Pool { return slices.Clone(p.pools) }

func (p *Pools) home(schema tenancy.Schema) int {
	if len(p.pools) == 1 {
		return 0
	}
	h := fnv.New32a()
	_, _ = h.Write([]byte(schema.Quoted())) // to memory
	return int(h.Sum32() % uint32(len(p.pools)))
}

// maxConns is how many connections there may be in all of the pools.
func (p *Pools) maxConns() (n int) {
	for _, pool := range p.pools {
		n += int(pool.Config().MaxConns)
	}
	return n
}

// full reports whether all connections are in use.
func (p *Pools) full() bool {
	return !slices.ContainsFunc(p.pools, hasRoom)
}

func hasRoom(pool *pgxpool.Pool) bool {
	stat := pool.Stat()
	return stat.AcquiredConns() < stat.MaxConns()
}

// acquire returns a connection of the pool with the number home, or of another one when it
// has none free for as long as patience.
func (p *Pools) acquire(ctx context.Context, home int, patience time.Duration) (*pgxpool.Conn, error) {
	if len(p.pools) == 1 {
		return p.pools[0].Acquire(ctx)
	}
	for wait := homePatience; ; wait = min(2*wait, maxWait) {
		first := p.pools[home]
		within := patience
		switch {
		case hasRoom(first):
			within = roomPatience
		case time.Now().UnixNano() < p.busy[home].Load():
			within = 0
		}
		if within > 0 {
			conn, err := acquireWithin(ctx, first, within)
			if !errors.Is(err, errNoneFree) {
				return conn, err
			}
			p.busy[home].Store(time.Now().Add(busyFor).UnixNano())
		}
		for i := 1; i < len(p.pools); i++ {
			if other := p.pools[(home+i)%len(p.pools)]; hasRoom(other) {
				conn, err := acquireWithin(ctx, other, roomPatience)
				if !errors.Is(err, errNoneFree) {
					return conn, err
				}
			}
		}
		// All are in use. Who has waited for long does not give up its place so soon again.
		conn, err := acquireWithin(ctx, first, wait)
		if !errors.Is(err, errNoneFree) {
			return conn, err
		}
	}
}

var errNoneFree = errors.New("pgstore: no connection is free")

// acquireWithin returns errNoneFree when there is no connection within the time, and ctx has
// not ended.
func acquireWithin(ctx context.Context, pool *pgxpool.Pool, d time.Duration) (*pgxpool.Conn, error) {
	waiting, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	conn, err := pool.Acquire(waiting)
	if err != nil && waiting.Err() != nil && ctx.Err() == nil {
		return nil, errNoneFree
	}
	return conn, err
}

// conns is what a tenant's statements run on: a pool, or a home among pools.
type conns interface {
	Querier
	SendBatch(ctx context.Context, b *pgx.Batch) pgx.BatchResults
	Acquire(ctx context.Context) (*pgxpool.Conn, error)
}

// of returns the connections of the pool with the number home.
func (p *Pools) of(home int) conns {
	if len(p.pools) == 1 {
		return p.pools[0]
	}
	return homeConns{p, home}
}

// homeConns runs statements on connections of a home, or of another pool when that has
// none.
type homeConns struct {
	pools *Pools
	home  int
}

// Acquire implements conns.
func (h homeConns) Acquire(ctx context.Context) (*pgxpool.Conn, error) {
	return h.pools.acquire(ctx, h.home, homePatience)
}
