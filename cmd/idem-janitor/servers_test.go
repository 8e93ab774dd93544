package main

import (
	"fmt"
	"net"
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgidem/pgidem/internal/cli"
	"github.com/pgidem/pgidem/internal/cli/clitest"
	"github.com/pgidem/pgidem/internal/pgtest"
	"github.com/pgidem/pgidem/tenancy"
)

// cluster is a PostgreSQL server with tenants that have expired records.
type cluster struct {
	*pgtest.Server
	pool    *pgxpool.Pool
	tenants []tenancy.Schema
}

func newCluster(t *testing.T, tenants int) cluster {
	t.Helper()
	c := cluster{Server: pgtest.NewServer(t)}
	c.pool = connect(t, c.URL())
	for range tenants {
		schema := newTenant(t, c.URL())
		fill(t, c.pool, schema, 3, expired, live)
		c.tenants = append(c.tenants, schema)
	}
	return c
}

// left is how many records the tenants have in all.
func (c cluster) left(t *testing.T) (n int) {
	t.Helper()
	for _, schema := range c.tenants {
		n += size(t, c.pool, schema)
	}
	return n
}

// TestPurgesAllClusters, on three servers; one that is away is said, and stops no other.
func TestPurgesAllClusters(t *testing.T) {
	t.Parallel()
	home, eu, us := newCluster(t, 2), newCluster(t, 2), newCluster(t, 1)
	args := func(more ...string) []string {
		return append([]string{"--database-url", home.URL(), "--server", "eu-1=" + eu.URL(), "--server", "us-1=" + us.URL()}, more...)
	}
	counts := func(when string, want ...int) {
		t.Helper()
		for i, c := range []cluster{home, eu, us} {
			if n := c.left(t); n != want[i] {
				t.Errorf("%s: %d records in the database %d, want %d", when, n, i+1, want[i])
			}
		}
	}

	janitorRun(t, args("--dry-run")...).expect(t, cli.ExitOK, "5 tenants, 15 records to delete", eu.tenants[0].String()+" in eu-1: 3 records")
	counts("dry run", 12, 12, 6)

	us.pool.Close()
	if err := us.Kill(); err != nil {
		t.Fatal(err)
	}
	away := janitorRun(t, args("--json")...)
	away.expect(t, cli.ExitUnreachable, `"error":"cluster us-1: connect: `)
	round := away.roundOf(t)
	if round.Tenants != 4 || round.Done != 4 || round.Deleted != 12 || round.Left != 0 || len(round.Purged) != 4 ||
		round.Purged[0].Cluster != "" || round.Purged[3].Cluster != "eu-1" {
		t.Errorf("%s", away.stdout)
	}
	if err := us.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	us.pool = connect(t, us.URL())
	counts("one is away", 6, 6, 6)

	janitorRun(t, args()...).expect(t, cli.ExitOK, "5 tenants, 3 records deleted", us.tenants[0].String()+" in us-1: 3 records")
	counts("all are there", 6, 6, 3)

	// A cluster has no need of a nameless one beside it.
	fill(t, eu.pool, eu.tenants[0], 3, abandoned)
	janitorRun(t, "--server", "eu-1="+eu.URL()).expect(t, cli.ExitOK, "2 tenants, 3 records deleted")
}

// TestClusterGoesAwayMidway leaves its own tenants to the next run, and no others.
func TestClusterGoesAwayMidway(t *testing.T) {
	t.Parallel()
	home, eu := newCluster(t, 3), newCluster(t, 3)
	block(t, eu.pool, eu.tenants[0], "ACCESS EXCLUSIVE")
	b := start(t, "--database-url", home.URL(), "--server", "eu-1="+eu.URL(), "--json", "--workers", "1")
	blocked(t, eu.pool)
	if err := eu.Kill(); err != nil {
		t.Fatal(err)
	}
	r := b.wait(t)
	r.expect(t, cli.ExitUnreachable, "cluster eu-1: the database went away")
	got := r.roundOf(t)
	if got.Tenants != 6 || got.Left == 0 || got.Failed != 0 || got.Done+got.Left != 6 || got.Stopped != "" {
		t.Errorf("%s", r.stdout)
	}
	if n := home.left(t); n != 9 {
		t.Errorf("%d records are left where the database is there, want 9", n)
	}
}

// TestSilentClusterKeepsNobodyElse: neither one that takes a connection and says nothing, nor one
// that says nothing any more midway.
func TestSilentClusterKeepsNobodyElse(t *testing.T) {
	t.Parallel()
	home, eu := newCluster(t, 4), newCluster(t, 4)
	var unblock []func()
	for _, schema := range eu.tenants {
		unblock = append(unblock, block(t, eu.pool, schema, "ACCESS EXCLUSIVE"))
	}
	b := start(t, "--database-url", home.URL(), "--server", "eu-1="+eu.URL(), "--workers", "1")
	clitest.Eventually(t, "the others are purged", func() bool { return home.left(t) == 12 })
	for _, let := range unblock {
		let()
	}
	b.wait(t).expect(t, cli.ExitOK, "8 tenants, 24 records deleted")

	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = silent.Close() }()
	fill(t, home.pool, home.tenants[0], 3, abandoned)
	url := fmt.Sprintf("postgres://janitor@%s/app?sslmode=disable&connect_timeout=1", silent.Addr())
	janitorRun(t, "--database-url", home.URL(), "--server", "us-1="+url).expect(t, cli.ExitUnreachable, "cluster us-1: connect: ", "4 tenants, 3 records deleted")
}
