package faults_test

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgidem/pgidem/chaos/faults"
	"github.com/pgidem/pgidem/idempotency"
	"github.com/pgidem/pgidem/internal/pgtest"
	"github.com/pgidem/pgidem/internal/storetest"
)

// target is a statement that a fault is meant for, and what makes a request come to it.
type target struct {
	mode      string
	name      string
	statement func(sql string) bool
	step      bool
	fails     bool
	claims    bool          // it comes before the key is held
	long      bool          // the handler runs until the fault has struck
	lapsed    bool          // there is a record whose lease has lapsed
	first     *faults.Fault // that makes the store send the statement
}

// happened and didNot make the store find out what became of a commit.
var (
	happened = &faults.Fault{Statement: faults.Text("COMMIT"), Moment: faults.Answered, Kind: faults.Cut}
	didNot   = &faults.Fault{Statement: faults.Text("COMMIT"), Moment: faults.Before, Kind: faults.Cut}
)

var targets = []target{
	{mode: leases, name: "ClaimInsert", claims: true},
	{mode: leases, name: "ClaimSelect", claims: true, lapsed: true}, // a key without a record is not looked up
	{mode: leases, name: "ClaimTakeOver", claims: true, lapsed: true},
	{mode: leases, name: "Extend", long: true},
	{mode: leases, name: "LoadStep", step: true},
	{mode: leases, name: "SaveStep", step: true},
	{mode: leases, name: "Complete"},
	{mode: leases, name: "Release", fails: true},
	{mode: leases, name: "ReleaseKept", fails: true, step: true},

	{mode: transactions, name: "begin", claims: true, statement: faults.Text("begin")},
	{mode: transactions, name: "EnterTenant", claims: true},
	{mode: transactions, name: "the handler's INSERT", statement: faults.Text("INSERT INTO payments")},
	{mode: transactions, name: "LoadLockedStep", step: true},
	{mode: transactions, name: "SaveLockedStep", step: true},
	{mode: transactions, name: "DeleteSeen", lapsed: true},
	{mode: transactions, name: "InsertCompleted"},
	{mode: transactions, name: "COMMIT", statement: faults.Text("COMMIT")},
	{mode: transactions, name: "ROLLBACK", statement: faults.Text("ROLLBACK"), fails: true},
	{mode: transactions, name: "JoinCommits", first: happened},
	{mode: transactions, name: "AwaitLock", first: happened},
	{mode: transactions, name: "CompletedBy", first: happened},
	{mode: transactions, name: "JoinCommits", first: didNot},
	{mode: transactions, name: "AwaitLock", first: didNot},
	{mode: transactions, name: "CompletedBy", first: didNot},
}

// blow is what happens to the target's connection.
type blow struct {
	kind   faults.Kind
	moment faults.Moment
	length time.Duration
}

const (
	short   = 30 * time.Millisecond
	long    = 1500 * time.Millisecond
	forEver = 0 // until it is healed
)

var blows = []blow{
	{faults.Cut, faults.Before, 0},
	{faults.Cut, faults.Sent, 0},
	{faults.Cut, faults.Answered, 0},
	{faults.Reset, faults.Before, 0},
	{faults.Reset, faults.Answered, 0},
	{faults.HalfClose, faults.Before, long},
	{faults.HalfClose, faults.Answered, long},
	{faults.Delay, faults.Before, short},
	{faults.Delay, faults.Answered, short},
	{faults.Delay, faults.Before, long},
	{faults.Delay, faults.Answered, long},
	{faults.BlackHole, faults.Before, forEver},
	{faults.BlackHole, faults.Sent, forEver},
	{faults.BlackHole, faults.Answered, forEver},
	{faults.BlackHoleRequests, faults.Sent, forEver},
	{faults.BlackHoleAnswers, faults.Before, forEver},
}

// waits reports whether the client learns of the fault by its own patience alone.
func (b blow) waits() bool { return b.kind >= faults.Delay && b.length != short }

func (b blow) String() string {
	name := fmt.Sprintf("%s %s", b.kind, b.moment)
	if b.kind == faults.Delay {
		name += " " + b.length.String()
	}
	return name
}

func (c target) String() string {
	name := c.mode + "/" + c.name
	switch c.first {
	case happened:
		name += " after a commit"
	case didNot:
		name += " after no commit"
	}
	return name
}

// TestFaultAtEachStatement strikes each statement of each mode with each fault. Whatever
// the first request was told, no retry is told otherwise, and what was promised of effects
// holds.
func TestFaultAtEachStatement(t *testing.T) {
	t.Parallel()
	pool := pgtest.NewPool(t)
	const together = 20 // of mostly waiting cases
	places := make(chan struct{}, together)
	var wg sync.WaitGroup
	for _, c := range targets {
		for _, b := range blows {
			wg.Go(func() {
				places <- struct{}{}
				defer func() { <-places }()
				t.Run(fmt.Sprintf("%s/%s", c, b), func(t *testing.T) {
					// On a machine that is busy, the store's patience may end before it has come
					// to the statement.
					for scale := time.Duration(1); !strike(t, pool, c, b, scale); scale *= 2 {
						if scale > 4 {
							t.Fatal("the request never comes to the statement")
						}
					}
				})
			})
		}
	}
	wg.Wait()
}

// strike lets one request meet a fault, and others come to the same end. It returns false
// if the fault did not strike.
func strike(t *testing.T, pool *pgxpool.Pool, c target, b blow, scale time.Duration) bool {
	behave := behaviour{step: c.step, fails: c.fails, limit: patience}
	if c.long {
		behave.until = make(chan struct{})
	}
	// Where the client is told at once, no time is to run out, however busy the machine is.
	timeout, lease := patience, patience
	if c.long {
		lease = 9 * time.Second
	}
	if b.waits() {
		timeout = scale * 900 * time.Millisecond
		behave.limit = scale * 600 * time.Millisecond
		lease = scale * 2 * time.Second
		if c.long {
			lease = scale * 900 * time.Millisecond
		}
	}
	w := newWorld(t, pool, c.mode, behave, idempotency.WithStoreTimeout(timeout), idempotency.WithLease(lease))
	if c.lapsed {
		w.leaveLapsed(t)
	}
	var before *faults.Strike
	if c.first != nil {
		before = w.proxy.Inject(*c.first)
	}
	if c.statement == nil {
		c.statement = faults.Named(c.name)
	}
	struck := w.proxy.Inject(faults.Fault{Statement: c.statement, Moment: b.moment, Kind: b.kind, For: b.length})
	if c.long {
		go func() { // the handler goes on a little, until the store was asked once more
			<-struck.First()
			defer close(behave.until)
			again := w.proxy.Inject(faults.Fault{Statement: c.statement, Moment: faults.Before, Kind: faults.Watch})
			select {
			case <-again.First():
			case <-time.After(lease):
			}
		}()
	}

	want, told := expected(c, b)
	firstAnswer := make(chan answer, 1)
	go func() { firstAnswer <- w.send(t) }()
	var first answer
	select {
	case <-struck.First():
		if !c.claims || !told {
			w.send(t) // a client that does not wait for the first, which has its key
		}
		first = <-firstAnswer
	case first = <-firstAnswer:
	}
	if struck.Count() != 1 || before != nil && before.Count() != 1 {
		t.Logf("the fault struck %d times; %s", struck.Count(), w.story())
		w.close()
		return false
	}
	if told && first.String() != want {
		t.Errorf("the first answer was %s, and not %s; %s", first, want, w.story())
	}
	w.send(t) // while it lasts
	w.heal()
	final := w.sendUntilDone(t)
	for range 2 {
		w.wantReplay(t, final)
	}
	w.awaitQuiet(t)
	w.check(t, final)
	// Whatever the first client was told, what the server had committed is what counts.
	if tags := struck.Tags(); c.mode == transactions && c.first == nil && len(tags) == 1 && tags[0] == "COMMIT" && final.body != first.body && !strings.HasPrefix(final.body, "run 1") {
		t.Errorf("the first run was committed, and the retry was told %s; %s", final, w.story())
	}
	if c.first == happened && !strings.HasPrefix(final.body, "run 1") {
		t.Errorf("the first run was committed, and the retry was told %s; %s", final, w.story())
	}
	if b.moment == faults.Answered {
		t.Logf("%s; the server had answered %v", first, struck.Tags())
	}
	return true
}

// leaveLapsed leaves a record as a process does that died.
func (w *world) leaveLapsed(t *testing.T) {
	t.Helper()
	req := idempotency.ClaimRequest{
		Claim:       idempotency.Claim{OrgID: w.org, Key: "key", Token: idempotency.NewToken()},
		RequestHash: "hash", Lease: time.Minute, TTL: time.Hour,
	}
	result, err := storetest.NewStore(t, w.direct).Claim(context.Background(), req)
	if err != nil || result.Outcome != idempotency.OutcomeClaimed {
		t.Fatal(result, err)
	}
	storetest.Advance(t, w.direct, w.org, 2*time.Minute)
}

// expected is what the first request must be told where that is not left to chance.
func expected(c target, b blow) (string, bool) {
	const (
		done         = "201 run 1"
		notCommitted = "503 not_committed"
	)
	if b.kind != faults.Cut && b.kind != faults.Reset && b.kind != faults.Delay || b.waits() || b.moment == faults.Sent {
		return "", false
	}
	delayed := b.kind == faults.Delay
	switch {
	case delayed && c.fails, c.fails && c.mode == leases, c.name == "ROLLBACK":
		return fmt.Sprint(http.StatusInternalServerError, " not today"), true
	case delayed && c.first != didNot:
		if c.step {
			return done + " charge 1", true
		}
		return done, true
	case c.claims: // asked again, over another connection
		return done, true
	case c.mode == leases && c.step: // likewise again, over another connection
		return done + " charge 1", true
	case c.mode == leases:
		return done, true
	case c.name == "LoadLockedStep", c.name == "SaveLockedStep":
		return done + " charge 1", true
	case c.name == "COMMIT", c.name == "InsertCompleted", c.name == "DeleteSeen":
		if b.moment == faults.Answered { // the ambiguous one: found out
			return done, true
		}
		return notCommitted, true
	case c.first == happened:
		return done, true
	case c.first == didNot:
		return notCommitted, true
	}
	return "", false
}
