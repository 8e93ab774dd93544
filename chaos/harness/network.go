package harness

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgidem/pgidem/chaos/faults"
	"github.com/pgidem/pgidem/chaos/history"
)

// Network is what stands between the service and its database, and fails. Give its methods
// to a [Scenario].
type Network struct{ proxy *faults.Proxy }

// NewNetwork returns the network to a database that is yet to be made. It is closed at the
// end of the test.
func NewNetwork(t testing.TB) *Network {
	n := new(Network)
	t.Cleanup(func() {
		if n.proxy != nil {
			n.proxy.Close()
		}
	})
	return n
}

// Through leads to the database through the network. It is for [Scenario.Through].
func (n *Network) Through(databaseURL string) (string, error) {
	config, err := pgxpool.ParseConfig(databaseURL)
	if err != nil {
		return "", err
	}
	if n.proxy, err = faults.NewProxy(config); err != nil {
		return "", err
	}
	return n.proxy.URL(databaseURL)
}

// Statements at which the network fails.
const (
	ClaimStatement    = "claim"
	CompleteStatement = "complete"
	SaveStatement     = "save of a step"
	CommitStatement   = "COMMIT" // with leases that of the business write
	AnyStatement      = "any statement"
	AllConnections    = "all connections" // and no statement of theirs
)

// Statements are those that are aimed at.
var Statements = []string{ClaimStatement, CompleteStatement, SaveStatement, CommitStatement}

// Kinds are what is done to connections.
var Kinds = []faults.Kind{faults.Cut, faults.Delay, faults.Reset, faults.BlackHole}

// moments are when, in the round trip of a statement.
var moments = []faults.Moment{faults.Before, faults.Sent, faults.Answered}

// names are the moments in the history's words.
var names = map[faults.Moment]string{faults.Before: "before it", faults.Sent: "after it was sent", faults.Answered: "before its answer"}

// match tells the statements that are meant.
func match(mode, statement string) func(sql string) bool {
	lease := mode == history.Lease
	switch {
	case statement == AnyStatement:
		return func(string) bool { return true }
	case statement == CommitStatement:
		return faults.Text("COMMIT")
	case statement == ClaimStatement && lease:
		return faults.Named("ClaimInsert")
	case statement == ClaimStatement:
		return faults.Named("EnterTenant")
	case statement == CompleteStatement && lease:
		return faults.Named("Complete")
	case statement == CompleteStatement:
		return faults.Named("InsertCompleted")
	case lease:
		return faults.Named("SaveStep")
	}
	return faults.Named("SaveLockedStep")
}

// How long delays and black holes last: long enough for clients to give up and for leases
// to lapse, and too short to use up the time that a process gives the store.
const (
	leastHold = 20 * time.Millisecond
	mostDelay = 700 * time.Millisecond
	mostHole  = 2500 * time.Millisecond
)

// blow is one thing that the network does.
type blow struct {
	statement string
	kind      faults.Kind
	moment    faults.Moment
}

// blows are all that are aimed, and about a quarter as many at random; those that come
// first are of each kind at each statement.
func blows(random *rand.Rand) []blow {
	var all []blow
	for shift := range moments {
		var some []blow
		for i, statement := range Statements {
			for j, kind := range Kinds {
				some = append(some, blow{statement, kind, moments[(i+j+shift)%len(moments)]})
			}
		}
		some = append(some,
			blow{AnyStatement, Kinds[random.IntN(len(Kinds))], moments[shift]},
			blow{AllConnections, faults.Cut, 0}, blow{AllConnections, faults.Delay, 0}, blow{AllConnections, faults.BlackHole, 0})
		random.Shuffle(len(some), func(i, j int) { some[i], some[j] = some[j], some[i] })
		all = append(all, some...)
	}
	return all
}

// Rounds returns how many strikes are so many rounds, in each of which each kind strikes
// at each statement; after three of them at each of its moments.
func Rounds(n int) (strikes int) {
	return n * (len(Statements)*len(Kinds) + 4)
}

// Break returns a fault that makes the network fail so many times, under load.
func (n *Network) Break(times int) Fault {
	const together = 3
	return func(ctx context.Context, s *System) error {
		defer n.proxy.Heal() // or what is held could change the tables after the run
		var left []blow
		random := rand.New(rand.NewPCG(s.scenario.Seed, 2))
		var lasting sync.WaitGroup
		defer lasting.Wait()
		places := make(chan struct{}, together)
		for range times {
			if len(left) == 0 {
				left = blows(random)
			}
			b := left[0]
			left = left[1:]
			if !s.AwaitAnswers(ctx, 2) || !wait(ctx.Done(), s.between(0, 30*time.Millisecond)) {
				return nil
			}
			places <- struct{}{}
			lasting.Go(func() {
				defer func() { <-places }()
				n.strike(ctx, s, b)
			})
		}
		return nil
	}
}

// strike does one thing to the network, and returns when it is over.
func (n *Network) strike(ctx context.Context, s *System, b blow) {
	strike := history.Strike{Kind: b.kind.String(), Statement: b.statement, Moment: names[b.moment]}
	note := func() {
		s.faults.Write(history.Fault{T: history.Now(), Kind: history.Struck, Strike: strike})
	}
	var hold time.Duration
	switch b.kind {
	case faults.Delay:
		hold = s.between(leastHold, mostDelay)
	case faults.BlackHole:
		hold = s.between(leastHold, mostHole)
	}
	if b.statement != AllConnections {
		struck := n.proxy.Inject(faults.Fault{Statement: match(s.scenario.Mode, b.statement), Moment: b.moment, Kind: b.kind, For: hold, Do: note})
		select {
		case <-struck.First():
			wait(ctx.Done(), hold)
		case <-ctx.Done():
		}
		return
	}
	note()
	switch b.kind {
	case faults.Cut:
		n.proxy.CutAll()
	case faults.Delay:
		n.proxy.DelayAll(hold / 20) // of each message
		wait(ctx.Done(), hold)
		n.proxy.DelayAll(0)
	case faults.BlackHole:
		n.proxy.HoldAll(hold)
		wait(ctx.Done(), hold)
	default:
		panic(fmt.Sprintf("harness: %s cannot be done to all connections", b.kind))
	}
}
