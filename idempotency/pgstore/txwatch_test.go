package pgstore_test

import (
	"context"
	"fmt"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pgidem/pgidem/idempotency"
	"github.com/pgidem/pgidem/idempotency/pgstore"
	"github.com/pgidem/pgidem/internal/pgtest"
	"github.com/pgidem/pgidem/internal/storetest"
)

// TestWatchOfTransactions: who waits is told of an end in this process, however that came
// about, and asks again for one elsewhere.
func TestWatchOfTransactions(t *testing.T) {
	t.Parallel()
	pool := pgtest.NewPool(t)
	org := storetest.NewTenant(t, pool)
	for name, c := range map[string]struct {
		ask time.Duration
		end func(store idempotency.LeaseStore, c idempotency.Claim) error
	}{
		"completed": {time.Hour, func(store idempotency.LeaseStore, c idempotency.Claim) error {
			return store.Complete(t.Context(), c, &idempotency.Record{ResponseStatus: 201})
		}},
		"released": {time.Hour, func(store idempotency.LeaseStore, c idempotency.Claim) error {
			return store.Release(t.Context(), c)
		}},
		"rolled back": {time.Hour, func(store idempotency.LeaseStore, c idempotency.Claim) error {
			if _, err := pool.Exec(t.Context(), `SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory'
				AND database = (SELECT oid FROM pg_database WHERE datname = current_database())`); err != nil {
				return err
			}
			if err := store.Complete(t.Context(), c, &idempotency.Record{ResponseStatus: 201}); err == nil {
				return fmt.Errorf("it was completed")
			}
			return nil
		}},
		"elsewhere": {time.Millisecond, func(idempotency.LeaseStore, idempotency.Claim) error { return nil }},
	} {
		t.Run(name, func(t *testing.T) { // one after the other, for the one that ends all
			store := storetest.NewStore(t, pool).Transactional().(idempotency.WatchStore)
			pgstore.SetFirstAsk(store, c.ask)
			req := claimRequest(org, name)
			if result, err := store.Claim(t.Context(), req); err != nil || result.Outcome != idempotency.OutcomeClaimed {
				t.Fatalf("%+v, %v", result, err)
			}
			defer store.Release(t.Context(), req.Claim)
			ended, stop, err := store.Watch(org, name)
			if err != nil {
				t.Fatal(err)
			}
			defer stop()
			if c.ask == time.Hour {
				select {
				case <-ended:
					t.Error("told before the end")
				default:
				}
			}
			if err := c.end(store, req.Claim); err != nil {
				t.Fatal(err)
			}
			for range 3 { // in the same process once, and else again and again
				select {
				case <-ended:
				case <-time.After(20 * time.Second):
					t.Fatal("not told")
				}
				if c.ask == time.Hour {
					break
				}
			}
		})
	}
}

// TestWaitForATransaction: many wait for one, in its process and in another.
func TestWaitForATransaction(t *testing.T) {
	t.Parallel()
	pool := pgtest.NewPool(t)
	open := make(chan struct{})
	var runs atomic.Int64
	handle := func(w http.ResponseWriter, r *http.Request) {
		<-open
		if pay(t, w, r) != nil {
			w.WriteHeader(http.StatusCreated)
			fmt.Fprint(w, "run ", runs.Add(1))
		}
	}
	wait := idempotency.WithWait(20 * time.Second)
	b := newBank(t, pool, handle, nil, wait)
	var claims atomic.Int64
	urls := []string{b.url}
	b.serve(t, &countedClaims{storetest.NewStore(t, pool).Transactional().(idempotency.WatchStore), &claims}, handle, wait)
	urls = append(urls, b.url)
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			status, body, err := post(t.Context(), http.DefaultClient, urls[i%2], "k")
			if err != nil || status != http.StatusCreated || body != "run 1" {
				t.Errorf("%d %s, %v", status, body, err)
			}
		})
	}
	eventually(t, "some to have asked again", func() bool { return claims.Load() > 20 })
	close(open)
	wg.Wait()
	b.wantPayments(t, "k", 1)
}

type countedClaims struct {
	idempotency.WatchStore
	n *atomic.Int64
}

func (s *countedClaims) Claim(ctx context.Context, req idempotency.ClaimRequest) (idempotency.ClaimResult, error) {
	s.n.Add(1)
	return s.WatchStore.Claim(ctx, req)
}
