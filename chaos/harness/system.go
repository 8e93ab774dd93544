package harness

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http/httptest"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/pgidem/pgidem/chaos/history"
	"github.com/pgidem/pgidem/chaos/service"
	"github.com/pgidem/pgidem/internal/pgtest"
	"github.com/pgidem/pgidem/migrations"
	"github.com/pgidem/pgidem/tenancy"
)

// System is what a scenario runs: the database, the bank, and the service's processes.
type System struct {
	Dir         string         // of the history
	DatabaseURL string         // without what stands between it and the service
	Postgres    *pgtest.Server // for faults; nil unless the scenario is Durable

	scenario   Scenario
	serviceURL string // of the database, for the service
	bankURL    string
	directory  tenancy.Directory
	tenants    []uuid.UUID
	slots      []*slot
	faults     *history.Log
	deaths     atomic.Int64 // of processes
	answered   atomic.Int64 // tries that were answered for good

	mu     sync.Mutex
	random *rand.Rand
	killAt dealer[service.Point]
	stopAt dealer[service.Point]
}

// Run runs a scenario and returns its history, which is in the folder dir as well.
func Run(t testing.TB, dir string, scenario Scenario) *history.History {
	t.Helper()
	scenario = scenario.withDefaults()
	ctx, cancel := context.WithTimeoutCause(t.Context(), scenario.Limit, fmt.Errorf("the run took longer than %s: payments are not answered", scenario.Limit))
	defer cancel()
	s := newSystem(ctx, t, dir, scenario)
	if err := s.run(ctx); err != nil {
		t.Errorf("%s: %v", scenario.Name, err)
	}
	h, err := history.Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func newSystem(ctx context.Context, t testing.TB, dir string, scenario Scenario) *System {
	t.Helper()
	s := &System{Dir: dir, scenario: scenario, random: rand.New(rand.NewPCG(scenario.Seed, 1))}
	s.killAt = dealer[service.Point]{random: s.random, cards: scenario.KillAt}
	s.stopAt = dealer[service.Point]{random: s.random, cards: scenario.StopAt}
	meta, err := history.Open(dir, history.MetaFile)
	if err != nil {
		t.Fatal(err)
	}
	meta.Write(history.Meta{
		Name: scenario.Name, Seed: scenario.Seed, Mode: scenario.Mode, Lease: int64(scenario.Lease), Bug: string(scenario.Bug),
	})
	if err := meta.Close(); err != nil {
		t.Fatal(err)
	}
	s.faults, err = history.Open(dir, history.FaultsFile)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.faults.Close() })

	s.newDatabase(ctx, t)
	bankLog, err := history.Open(dir, history.BankFile)
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(&bank{log: bankLog, slow: scenario.Lease * 5 / 4, charges: make(map[string]string)})
	t.Cleanup(func() { server.Close(); _ = bankLog.Close() })
	s.bankURL = server.URL
	for n := range scenario.Processes {
		slot, err := newSlot(ctx, s, n)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = slot.listener.Close() })
		s.slots = append(s.slots, slot)
	}
	return s
}

// shared is the server of all scenarios whose faults leave it alone. They run side by
// side, each with some processes that may use all connections of their pools. The tests'
// main function stops it.
var shared = sync.OnceValues(func() (*pgtest.Server, error) {
	return pgtest.Start(context.Background(), pgtest.WithParameter("max_connections", "1000"))
})

// newDatabase makes the database with its tenants.
func (s *System) newDatabase(ctx context.Context, t testing.TB) {
	t.Helper()
	if s.scenario.Durable {
		s.Postgres = pgtest.NewServer(t, pgtest.WithDurable())
		url, _, err := s.Postgres.CreateDatabase(ctx) // it goes with the server
		if err != nil {
			t.Fatal(err)
		}
		s.DatabaseURL = url
	} else {
		server, err := shared()
		if err != nil {
			t.Fatal(err)
		}
		url, drop, err := server.CreateDatabase(ctx)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := drop(context.WithoutCancel(ctx)); err != nil {
				t.Error(err)
			}
		})
		s.DatabaseURL = url
	}
	s.serviceURL = s.DatabaseURL
	if s.scenario.Through != nil {
		url, err := s.scenario.Through(s.DatabaseURL)
		if err != nil {
			t.Fatal(err)
		}
		s.serviceURL = url
	}
	var err error
	if s.directory, err = tenancy.PerOrg(""); err != nil {
		t.Fatal(err)
	}
	if err := s.withDatabase(ctx, func(conn *pgx.Conn) error {
		for range s.scenario.Tenants {
			org := uuid.New()
			schema, err := s.directory.Schema(ctx, org)
			if err == nil {
				err = migrations.Up(ctx, s.DatabaseURL, schema)
			}
			if err == nil {
				err = service.Migrate(ctx, conn, schema, s.scenario.Mode)
			}
			if err != nil {
				return err
			}
			s.tenants = append(s.tenants, org)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}

func (s *System) withDatabase(ctx context.Context, do func(*pgx.Conn) error) error {
	conn, err := pgx.Connect(ctx, s.DatabaseURL)
	if err != nil {
		return err
	}
	return errors.Join(do(conn), conn.Close(ctx))
}

// run runs clients and faults to their end, then lets the processes shut down, and writes
// down what is in the tables.
func (s *System) run(ctx context.Context) error {
	requests, err := history.Open(s.Dir, history.RequestsFile)
	if err != nil {
		return err
	}
	defer func() { _ = requests.Close() }()

	ctx, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	ending := make(chan struct{})
	var keepers, faults, customers sync.WaitGroup
	for _, slot := range s.slots {
		keepers.Go(func() {
			if err := slot.keep(ctx, ending); err != nil {
				fail(err)
			}
		})
	}
	var faulting atomic.Int64
	for _, fault := range s.scenario.Faults {
		faulting.Add(1)
		faults.Go(func() {
			defer faulting.Add(-1)
			if err := fault(ctx, s); err != nil {
				fail(err)
			}
		})
	}
	var made atomic.Int64
	more := func() bool {
		return made.Add(1) <= int64(s.scenario.Payments) || s.deaths.Load() < int64(s.scenario.Kills) || faulting.Load() > 0
	}
	c := newClients(s, requests)
	for client := range s.scenario.Clients {
		random := rand.New(rand.NewPCG(s.scenario.Seed, uint64(100+client)))
		customers.Go(func() { c.pay(ctx, client, random, more) })
	}
	customers.Wait()
	faults.Wait()
	notRecovered := c.comeBack(ctx)
	close(ending)
	keepers.Wait()
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return errors.Join(notRecovered, s.writeTables(ctx))
}

func (s *System) writeTables(ctx context.Context) error {
	log, err := history.Open(s.Dir, history.TablesFile)
	if err != nil {
		return err
	}
	defer func() { _ = log.Close() }()
	return s.withDatabase(ctx, func(conn *pgx.Conn) error {
		for _, org := range s.tenants {
			schema, err := s.directory.Schema(ctx, org)
			if err != nil {
				return err
			}
			tables, err := readTables(ctx, conn, org, schema)
			if err != nil {
				return err
			}
			log.Write(tables)
		}
		return nil
	})
}

// deal returns what the next process does to itself, and when it is killed at random; zero
// means never.
func (s *System) deal() (plan service.Plan, killAfter time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for stops := s.scenario.Stops; s.random.Float64() < stops; stops-- {
		plan = append(plan, service.Act{Point: s.stopAt.deal(), Times: 1 + s.random.IntN(8), Do: service.Stop})
	}
	if s.deaths.Load() >= int64(s.scenario.Kills) {
		return plan, 0
	}
	at, times := s.killAt.deal(), 1+s.random.IntN(8)
	if at == atRandom {
		return plan, time.Duration(1 + s.random.Int64N(int64(400*time.Millisecond)))
	}
	return append(plan, service.Act{Point: at, Times: times, Do: service.Kill}), 0
}

// stopFor is for how long a process that has stopped itself is left so: longer than its
// lease, and than it takes another to take over.
func (s *System) stopFor() time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.scenario.Lease + 200*time.Millisecond + time.Duration(s.random.Int64N(int64(s.scenario.Lease)))
}

func (s *System) executable(process int) string {
	if s.scenario.Executable != nil {
		return s.scenario.Executable(process)
	}
	path, err := os.Executable()
	if err != nil {
		panic(err) // Linux and macOS always know it
	}
	return path
}

func (s *System) config(name string, process int, plan service.Plan) service.Config {
	config := service.Config{
		Process: name, Dir: s.Dir, DatabaseURL: s.serviceURL, BankURL: s.bankURL,
		Mode: s.scenario.Mode, Lease: s.scenario.Lease, StoreTimeout: s.scenario.StoreTimeout,
		Bug: s.scenario.Bug, Plan: plan, CompleterInterval: s.scenario.Completer,
	}
	if process == 0 {
		config.Wait = s.scenario.Wait
	}
	return config
}
