package faults_test

import (
	"context"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgidem/pgidem/chaos/faults"
	"github.com/pgidem/pgidem/idempotency"
	"github.com/pgidem/pgidem/internal/pgtest"
)

// TestServerKilledInTheMiddle kills the server and all its processes with SIGKILL when the
// COMMITs of several tenants are on their way, or what writes their claims and outcomes,
// and starts it again. Nobody hears what became of them from the connection; it is found
// out.
func TestServerKilledInTheMiddle(t *testing.T) {
	t.Parallel()
	rounds := 24
	if testing.Short() {
		rounds = 4
	}
	server := pgtest.NewServer(t, pgtest.WithDurable())
	pool, err := pgxpool.New(t.Context(), server.URL())
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()

	var committed, undone int
	commits := []func(string) bool{faults.Text("COMMIT"), faults.Text("COMMIT"), faults.Text("COMMIT")}
	claims := []func(string) bool{faults.Named("ClaimInsert"), faults.Named("Complete"), faults.Named("Complete")}
	for round := range rounds {
		mode, statements := transactions, commits
		if round%4 == 3 {
			mode, statements = leases, claims
		}
		var group []*world
		for range statements {
			w := newWorld(t, pool, mode, behaviour{limit: patience},
				idempotency.WithLease(time.Second), idempotency.WithStoreTimeout(patience))
			w.slowCommit(t)
			group = append(group, w)
		}
		firsts := crash(t, server, time.Duration(round%8)*time.Millisecond, group, statements)
		pool.Reset()
		for n, w := range group {
			final := w.sendUntilDone(t)
			w.wantReplay(t, final)
			w.awaitQuiet(t)
			w.check(t, final)
			w.close()
			if mode == leases {
				continue
			}
			switch {
			case firsts[n].status == http.StatusCreated && !firsts[n].replayed:
				committed++
			case firsts[n].code == "not_committed" && w.decided(idempotency.DecisionCompleteFailed) == 0:
				undone++
			default:
				t.Errorf("what became of a commit was not found out; %s", w.story())
			}
		}
	}
	t.Logf("%d rounds: of %d commits in the air %d were found to have happened, %d not to", rounds, committed+undone, committed, undone)
}

// crash lets each service send its statement, kills the server when all have, and starts it
// again. No answer to a statement arrives. It returns what the clients were told.
func crash(t *testing.T, server *pgtest.Server, after time.Duration, group []*world, statements []func(string) bool) []answer {
	t.Helper()
	var sent, struck sync.WaitGroup
	sent.Add(len(group))
	struck.Add(len(group))
	killed := make(chan struct{})
	for n, w := range group {
		w.proxy.Inject(faults.Fault{
			Statement: statements[n], Moment: faults.Sent, Kind: faults.BlackHoleAnswers,
			Do: func() {
				sent.Done()
				<-killed
				w.proxy.Heal() // so that the end of the connection arrives
				struck.Done()
			},
		})
	}
	go func() {
		defer close(killed)
		sent.Wait()
		// A commit takes 5 ms here, so that some kills come before it and some after.
		time.Sleep(after)
		if err := server.Kill(); err != nil {
			t.Error(err)
		}
		if err := server.Restart(context.Background()); err != nil {
			t.Error(err)
		}
	}()
	firsts := make([]answer, len(group))
	var answered sync.WaitGroup
	for n, w := range group {
		answered.Go(func() { firsts[n] = w.send(t) })
	}
	answered.Wait()
	struck.Wait()
	return firsts
}

// slowCommit makes the commit of a payment take 5 milliseconds.
func (w *world) slowCommit(t *testing.T) {
	t.Helper()
	for _, sql := range []string{
		`CREATE FUNCTION ` + w.schema + `.slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(0.005); RETURN NULL; END $$`,
		`CREATE CONSTRAINT TRIGGER slow AFTER INSERT ON ` + w.schema + `.payments DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION ` + w.schema + `.slow()`,
	} {
		if _, err := w.direct.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
}
