package pgstore_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgidem/pgidem/idempotency"
	"github.com/pgidem/pgidem/internal/pgtest"
	"github.com/pgidem/pgidem/internal/storetest"
)

// before runs a function once, when a statement with the given name is about to be
// sent: the moment in which a record that a claim has looked at may still change.
type before struct {
	statement string
	do        func()
}

func (b *before) TraceQueryStart(ctx context.Context, _ *pgx.Conn, data pgx.TraceQueryStartData) context.Context {
	if do := b.do; do != nil && strings.Contains(data.SQL, "-- name: "+b.statement+" ") {
		b.do = nil
		do()
	}
	return ctx
}

func (b *before) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}

// TestTakeOverComparesWhatItSaw: between the look at a lapsed record and its
// take-over, the attempt that holds it may still extend or complete it, and another
// may take it over first. The late one must find that out.
func TestTakeOverComparesWhatItSaw(t *testing.T) {
	t.Parallel()
	pool := pgtest.NewPool(t)
	for name, c := range map[string]struct {
		meanwhile func(t *testing.T, store idempotency.LeaseStore, holder idempotency.ClaimRequest)
		want      idempotency.ClaimOutcome
	}{
		"extended": {func(t *testing.T, store idempotency.LeaseStore, holder idempotency.ClaimRequest) {
			if err := store.Extend(t.Context(), holder.Claim, time.Hour); err != nil {
				t.Error(err)
			}
		}, idempotency.OutcomeInFlight},
		"completed": {func(t *testing.T, store idempotency.LeaseStore, holder idempotency.ClaimRequest) {
			if err := store.Complete(t.Context(), holder.Claim, &idempotency.Record{ResponseStatus: 201}); err != nil {
				t.Error(err)
			}
		}, idempotency.OutcomeCompleted},
		"taken over": {func(t *testing.T, store idempotency.LeaseStore, holder idempotency.ClaimRequest) {
			if result, err := store.Claim(t.Context(), claimRequest(holder.OrgID, holder.Key)); err != nil || result.Attempt != 2 {
				t.Errorf("%+v, %v", result, err)
			}
		}, idempotency.OutcomeInFlight},
		"taken over, and lapsed again": {func(t *testing.T, store idempotency.LeaseStore, holder idempotency.ClaimRequest) {
			if result, err := store.Claim(t.Context(), claimRequest(holder.OrgID, holder.Key)); err != nil || result.Attempt != 2 {
				t.Errorf("%+v, %v", result, err)
			}
			storetest.Advance(t, pool, holder.OrgID, 2*time.Minute)
		}, idempotency.OutcomeClaimed},
		"released": {func(t *testing.T, store idempotency.LeaseStore, holder idempotency.ClaimRequest) {
			if err := store.Release(t.Context(), holder.Claim); err != nil {
				t.Error(err)
			}
		}, idempotency.OutcomeClaimed},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			org := storetest.NewTenant(t, pool)
			plain := storetest.NewStore(t, pool)
			holder := claimRequest(org, "key")
			mustClaim(t, plain, holder, idempotency.OutcomeClaimed)
			storetest.Advance(t, pool, org, 2*time.Minute) // its lease of a minute lapses

			cfg := pool.Config()
			cfg.ConnConfig.Tracer = &before{statement: "ClaimTakeOver", do: func() { c.meanwhile(t, plain, holder) }}
			traced, err := pgxpool.NewWithConfig(t.Context(), cfg)
			if err != nil {
				t.Fatal(err)
			}
			defer traced.Close()
			result := mustClaim(t, storetest.NewStore(t, traced), claimRequest(org, "key"), c.want)
			if name == "taken over, and lapsed again" && result.Attempt != 3 {
				t.Errorf("attempt %d, want 3: one was overlooked", result.Attempt)
			}
		})
	}
}

// TestClaimWaitsForItsLostTransaction: an earlier try of the same claim is still
// being committed, its answer lost. Asking again waits for it, and finds it.
func TestClaimWaitsForItsLostTransaction(t *testing.T) {
	t.Parallel()
	pool := pgtest.NewPool(t)
	org := storetest.NewTenant(t, pool)
	store := storetest.NewStore(t, pool)
	for name, end := range map[string]func(pgx.Tx) error{
		"committed":   func(tx pgx.Tx) error { return tx.Commit(context.Background()) },
		"rolled back": func(tx pgx.Tx) error { return tx.Rollback(context.Background()) },
	} {
		req := claimRequest(org, name)
		tx, err := pool.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		_, err = tx.Exec(t.Context(), `INSERT INTO `+storetest.SchemaOf(t, org).Quoted()+`.idempotency_records
			(created_at, expires_at, lease_until, token, org_id, attempt, response_kept, key, request_hash)
			VALUES (now(), now() + interval '1 hour', now() + interval '1 minute', $1, $2, 1, true, $3, $4)`,
			uuid.UUID(req.Token), org, req.Key, append([]byte{0}, req.RequestHash...))
		if err != nil {
			t.Fatal(err)
		}
		answers := make(chan error, 1)
		go func() {
			result, err := store.Claim(t.Context(), req)
			if err == nil && (result.Outcome != idempotency.OutcomeClaimed || result.Attempt != 1) {
				err = errors.New("it is not the claim's own")
			}
			answers <- err
		}()
		waitForLock(t, pool)
		if err := end(tx); err != nil {
			t.Fatal(err)
		}
		if err := <-answers; err != nil {
			t.Errorf("%s: %v", name, err)
		}
		mustClaim(t, store, claimRequest(org, name), idempotency.OutcomeInFlight)
	}
}

// waitForLock waits until somebody in the database waits for a lock.
func waitForLock(t *testing.T, pool *pgxpool.Pool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		var waiting bool
		err := pool.QueryRow(t.Context(), `SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock')`).Scan(&waiting)
		if err != nil {
			t.Fatal(err)
		}
		if waiting {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("nobody waits for a lock")
		}
	}
}

// TestRefusals: what the server understood and would not do is no fault that passes.
func TestRefusals(t *testing.T) {
	t.Parallel()
	pool := pgtest.NewPool(t)
	org := storetest.NewTenant(t, pool)
	store := storetest.NewStore(t, pool)
	for name, change := range map[string]func(*idempotency.ClaimRequest){
		"fingerprint too long": func(r *idempotency.ClaimRequest) { r.RequestHash = strings.Repeat("x", 600) },
		"key too long":         func(r *idempotency.ClaimRequest) { r.Key = strings.Repeat("x", 600) },
		"key of a NUL byte":    func(r *idempotency.ClaimRequest) { r.Key = "\x00" },
		"no key":               func(r *idempotency.ClaimRequest) { r.Key = "" },
	} {
		req := claimRequest(org, "key")
		change(&req)
		if _, err := store.Claim(t.Context(), req); !errors.Is(err, idempotency.ErrStoreRefused) {
			t.Errorf("%s: %v; want an error that wraps ErrStoreRefused", name, err)
		}
	}
}

// TestUnreadableRecordIsNotRunAgain: a completed record that a newer version wrote,
// or that is damaged, still says that the request has run.
func TestUnreadableRecordIsNotRunAgain(t *testing.T) {
	t.Parallel()
	pool := pgtest.NewPool(t)
	org := storetest.NewTenant(t, pool)
	store := storetest.NewStore(t, pool)
	req := claimRequest(org, "key")
	mustClaim(t, store, req, idempotency.OutcomeClaimed)
	mustComplete(t, store, req.Claim)
	if _, err := pool.Exec(t.Context(), `UPDATE `+storetest.SchemaOf(t, org).Quoted()+`.idempotency_records SET response_headers = '\x63'`); err != nil {
		t.Fatal(err)
	}
	rec := mustClaim(t, store, claimRequest(org, "key"), idempotency.OutcomeCompleted).Record
	if !rec.Tombstone || rec.ResponseStatus != 201 {
		t.Errorf("record %+v, want a tombstone with its status", rec)
	}
	if _, err := store.Get(t.Context(), org, "key"); err == nil || errors.Is(err, idempotency.ErrNotFound) {
		t.Errorf("Get: %v; want an error that says that the record cannot be read", err)
	}
}
