// Package harness runs the service of package service in several processes over one
// database, lets clients pay with it while faults happen, and keeps the history of all
// that. Package check says whether it was right.
package harness

import (
	"math/rand/v2"
	"time"

	"github.com/pgidem/pgidem/chaos/history"
	"github.com/pgidem/pgidem/chaos/service"
)

// Scenario says what to run. The zero value of a field but the first two means its default.
type Scenario struct {
	Name string
	Mode string // history.Lease or history.Transaction
	Seed uint64

	Processes int // of the service, side by side; 3
	Tenants   int // 3
	Clients   int // at a time; 10

	// Kills is how many processes are to die before the clients make no new payments: at
	// the points in turn, and at random moments. Zero: none.
	Kills int
	// Payments is how many are made at least. Zero: as many as it takes.
	Payments int
	// Duplicates is how many clients send a payment's request at the same time, at most; 3.
	Duplicates int
	// Stops is how often each process stops itself for longer than the lease, on average.
	Stops float64
	// StopAt are the points for that; all.
	StopAt []service.Point
	// KillAt are the points for kills; all. An empty point among them is a random moment.
	KillAt []service.Point

	Lease        time.Duration // 1 s
	StoreTimeout time.Duration // 15 s
	Wait         time.Duration // of duplicates at the first process; the others refuse them
	Bug          service.Bug

	// Completer is the interval of the completer that runs beside the service in each
	// process. Zero: there is none.
	Completer time.Duration
	// Leaves is the share of the payments whose clients go away when their first try has no
	// answer, and come back at the end of the run.
	Leaves float64

	// Faults run beside all this. When one returns its context has ended, or it has
	// nothing more to do; the clients go on until each has.
	Faults []Fault
	// Durable gives the run a server of its own that may be killed (System.Postgres),
	// with fsync on.
	Durable bool
	// Through changes the database's URL for the service's processes: to one of a proxy,
	// say, which must live longer than the run. By default it is left.
	Through func(databaseURL string) (string, error)
	// Executable is what the processes are of: another build of the tests, say, with
	// another clock. By default this executable.
	Executable func(process int) string
	// Environ adds to the environment of a process.
	Environ func(process int) []string

	// Limit bounds the whole run; 5 minutes.
	Limit time.Duration
}

func (s Scenario) withDefaults() Scenario {
	setDefault(&s.Processes, 3)
	setDefault(&s.Tenants, 3)
	setDefault(&s.Clients, 10)
	setDefault(&s.Duplicates, 3)
	setDefault(&s.Lease, time.Second)
	setDefault(&s.StoreTimeout, 15*time.Second)
	setDefault(&s.Limit, 5*time.Minute)
	if s.Mode == "" {
		s.Mode = history.Lease
	}
	if s.StopAt == nil {
		s.StopAt = service.Points
	}
	if s.KillAt == nil {
		s.KillAt = append([]service.Point{atRandom, atRandom}, service.Points...)
	}
	return s
}

func setDefault[T comparable](value *T, to T) {
	var zero T
	if *value == zero {
		*value = to
	}
}

// atRandom stands for a random moment, among points.
const atRandom service.Point = ""

// dealer deals from a shuffled deck, over and over, so that each card comes equally often.
type dealer[T any] struct {
	random *rand.Rand
	cards  []T
	left   []int
}

func (d *dealer[T]) deal() T {
	if len(d.left) == 0 {
		d.left = d.random.Perm(len(d.cards))
	}
	card := d.cards[d.left[0]]
	d.left = d.left[1:]
	return card
}
