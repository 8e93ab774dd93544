package pgstore_test

import (
	"fmt"
	"testing"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgidem/pgidem/idempotency"
	"github.com/pgidem/pgidem/idempotency/pgstore"
	"github.com/pgidem/pgidem/internal/pgtest"
	"github.com/pgidem/pgidem/internal/storetest"
)

// quietPool returns a pool over a server of its own that writes nothing by itself: what is
// written comes of what the test does.
func quietPool(t *testing.T) *pgxpool.Pool {
	t.Helper()
	server := pgtest.NewServer(t, pgtest.WithParameter("autovacuum", "off"), pgtest.WithParameter("checkpoint_timeout", "1h"),
		pgtest.WithParameter("wal_level", "minimal"), pgtest.WithParameter("max_wal_senders", "0")) // no snapshots for standbys in the WAL
	url, _, err := server.CreateDatabase(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	pool, err := pgxpool.New(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	return pool
}

// written is what PostgreSQL itself counts.
type written struct {
	wal  int64 // bytes, since there is one
	xid  int64 // of the next transaction that writes
	size int64 // of a tenant's table of records
}

func lookAtWritten(t *testing.T, pool *pgxpool.Pool, org uuid.UUID) (w written) {
	t.Helper()
	err := pool.QueryRow(t.Context(), `SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')::bigint,
		pg_snapshot_xmax(pg_current_snapshot())::text::bigint, pg_relation_size($1::regclass)`,
		storetest.SchemaOf(t, org).Quoted()+".idempotency_records").Scan(&w.wal, &w.xid, &w.size)
	if err != nil {
		t.Fatal(err)
	}
	return w
}

// TestReplayWritesNothing: no WAL, no transaction that would, and no row version, dead or
// alive; whoever meets the record, and whatever it was to keep had there been none.
func TestReplayWritesNothing(t *testing.T) {
	t.Parallel()
	pool := quietPool(t)
	const keys = 50
	for mode, in := range modes {
		for _, elsewhere := range []bool{false, true} {
			for what, request := range map[string]func(uuid.UUID, string) idempotency.ClaimRequest{"": claimRequest, ", kept": keeping} {
				name := mode + what
				if elsewhere {
					name += ", elsewhere"
				}
				t.Run(name, func(t *testing.T) { // one after the other
					org := storetest.NewTenant(t, pool)
					first := storetest.NewStore(t, pool)
					store := in(first).(idempotency.LeaseStore)
					for i := range keys {
						req, inFlight := request(org, fmt.Sprint("key-", i)), request(org, fmt.Sprint("in flight-", i))
						mustClaim(t, first, inFlight, idempotency.OutcomeClaimed) // by a lease in any case
						if result, err := store.Claim(t.Context(), req); err != nil || result.Outcome != idempotency.OutcomeClaimed {
							t.Fatalf("%+v, %v", result, err)
						}
						if err := store.Complete(t.Context(), req.Claim, &idempotency.Record{ResponseStatus: 201}); err != nil {
							t.Fatal(err)
						}
					}
					if elsewhere {
						store = in(storetest.NewStore(t, pool)).(idempotency.LeaseStore)
					}
					for _, sql := range []string{"VACUUM FREEZE", "CHECKPOINT"} { // hint bits are written once, by whoever looks first
						if _, err := pool.Exec(t.Context(), sql); err != nil {
							t.Fatal(err)
						}
					}
					before := lookAtWritten(t, pool, org)
					for range 2 {
						for i := range keys {
							for key, want := range map[string]idempotency.ClaimOutcome{"key-": idempotency.OutcomeCompleted, "in flight-": idempotency.OutcomeInFlight} {
								req := request(org, fmt.Sprint(key, i))
								if result, err := store.Claim(t.Context(), req); err != nil || result.Outcome != want {
									t.Fatalf("%s: %+v, %v", req.Key, result, err)
								}
							}
						}
					}
					if after := lookAtWritten(t, pool, org); after != before {
						t.Errorf("%d replays and refusals wrote something:\nbefore %+v\nafter  %+v", 4*keys, before, after)
					}
				})
			}
		}
	}
}

// TestFirstRequestWritesLittle: a claim and its completion are two transactions, or one where
// they are in the handler's, and 700 bytes of WAL at most.
func TestFirstRequestWritesLittle(t *testing.T) {
	t.Parallel()
	pool := quietPool(t)
	const (
		warm, counted = 992, 992 // so many that it matters little which of them splits a page of the index
		many          = 16       // callers, of which so many are a part
		maxWAL        = 700
	)
	for name, c := range map[string]struct {
		store   idempotency.Store
		callers int
		most    int64 // transactions, of all
	}{
		"leases, one after the other": {storetest.NewStore(t, pool), 1, 2 * counted},
		"leases, together":            {storetest.NewStore(t, pool, pgstore.WithCoalescing(1)), many, 2*counted - 1}, // by itself each makes two
		"transactions":                {storetest.NewStore(t, pool).Transactional(), 1, counted},
	} {
		t.Run(name, func(t *testing.T) { // one after the other
			org, store := storetest.NewTenant(t, pool), c.store.(idempotency.LeaseStore)
			request := func() {
				req := claimRequest(org, uuid.NewString())
				result, err := store.Claim(t.Context(), req)
				if err != nil || result.Outcome != idempotency.OutcomeClaimed {
					t.Errorf("%+v, %v", result, err)
					return
				}
				if err := store.Complete(t.Context(), req.Claim, &idempotency.Record{ResponseStatus: 201, ResponseBody: []byte(`{"id":12345}`)}); err != nil {
					t.Error(err)
				}
			}
			requests := func(n, callers int) {
				allAtOnce(callers, func(_ int, together func(func())) {
					together(func() {
						for range n / callers {
							request()
						}
					})
				})
			}
			// The first change of a page after a checkpoint writes all of it: not what is measured.
			if _, err := pool.Exec(t.Context(), "CHECKPOINT"); err != nil {
				t.Fatal(err)
			}
			requests(warm, many)
			before := lookAtWritten(t, pool, org)
			requests(counted, c.callers)
			after := lookAtWritten(t, pool, org)
			commits, wal := after.xid-before.xid, (after.wal-before.wal)/counted
			t.Logf("%d transactions for %d requests, and %d bytes of WAL for each", commits, counted, wal)
			if commits > c.most || commits == 0 {
				t.Errorf("%d transactions wrote for %d requests, want at most %d", commits, counted, c.most)
			}
			if wal > maxWAL || wal == 0 {
				t.Errorf("%d bytes of WAL for each request, want at most %d", wal, maxWAL)
			}
		})
	}
}
