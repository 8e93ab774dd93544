package pgstore_test

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/pgidem/pgidem/idempotency"
	"github.com/pgidem/pgidem/idempotency/pgstore"
	"github.com/pgidem/pgidem/internal/pgtest"
	"github.com/pgidem/pgidem/internal/storetest"
	"github.com/pgidem/pgidem/tenancy"
)

func inspect(t testing.TB, q pgstore.Querier, org uuid.UUID, key string) pgstore.KeyInfo {
	t.Helper()
	info, err := pgstore.Inspect(t.Context(), q, storetest.SchemaOf(t, org), org, key)
	if err != nil {
		t.Fatal(err)
	}
	return info
}

func TestInspectStates(t *testing.T) {
	t.Parallel()
	pool := pgtest.NewPool(t)
	org, neighbour := storetest.NewTenant(t, pool), storetest.NewTenant(t, pool)
	store := storetest.NewStore(t, pool)
	claim := func(key string, lease, ttl time.Duration) idempotency.Claim {
		req := claimRequest(org, key)
		req.Lease, req.TTL = lease, ttl
		mustClaim(t, store, req, idempotency.OutcomeClaimed)
		return req.Claim
	}
	complete := func(c idempotency.Claim, rec idempotency.Record) {
		rec.OrgID, rec.Key = c.OrgID, c.Key
		if err := store.Complete(t.Context(), c, &rec); err != nil {
			t.Fatal(err)
		}
	}
	complete(claim("expired", time.Minute, time.Minute), idempotency.Record{ResponseStatus: 200})
	claim("abandoned", time.Minute, time.Minute)
	claim("outlives its expiry", time.Hour, time.Minute)
	claim("interrupted", time.Minute, time.Hour)
	storetest.Advance(t, pool, org, 2*time.Minute)
	complete(claim("completed", time.Hour, time.Hour), idempotency.Record{
		ResponseStatus: 201, ResponseBody: []byte("body"), ResponseHeaders: map[string][]string{"Location": {"/1"}},
	})
	complete(claim("tombstone", time.Hour, time.Hour), idempotency.Record{ResponseStatus: 200, Tombstone: true})
	running := claim("in progress", time.Hour, time.Hour)

	for key, want := range map[string]pgstore.KeyState{
		"expired": pgstore.KeyExpired, "abandoned": pgstore.KeyExpired, "outlives its expiry": pgstore.KeyInProgress,
		"interrupted": pgstore.KeyInterrupted, "completed": pgstore.KeyCompleted, "tombstone": pgstore.KeyNotKept,
		"in progress": pgstore.KeyInProgress,
	} {
		if info := inspect(t, pool, org, key); info.State != want || info.Record == nil || info.Record.Attempt != 1 {
			t.Errorf("%s: %s, %+v; want %s", key, info.State, info.Record, want)
		}
		_, err := pgstore.Inspect(t.Context(), pool, storetest.SchemaOf(t, neighbour), neighbour, key)
		if !errors.Is(err, idempotency.ErrNotFound) {
			t.Errorf("%s of the neighbour: %v", key, err)
		}
	}
	info := inspect(t, pool, org, "completed")
	if r := info.Record; r.Status != 201 || r.BodyBytes != 4 || r.HeaderBytes == 0 || r.RowBytes == 0 || !r.Kept || r.CompletedAt.IsZero() || r.Fingerprint != "hash" {
		t.Errorf("%+v", r)
	}
	if r := inspect(t, pool, org, "in progress").Record; r.Token != running.Token || !r.CompletedAt.IsZero() || !r.LeaseUntil.After(info.Now) {
		t.Errorf("%+v", r)
	}

	sum, err := pgstore.Summarize(t.Context(), pool, storetest.SchemaOf(t, org), org)
	if err != nil {
		t.Fatal(err)
	}
	if sum.InProgress != 2 || sum.Interrupted != 1 || sum.Completed != 1 || sum.NotKept != 1 || sum.Expired != 2 {
		t.Errorf("%+v", sum)
	}
	if age := sum.Now.Sub(sum.OldestInProgress); age < 2*time.Minute || age > 10*time.Minute || len(sum.Bytes) != 3 || sum.Bytes["idempotency_records"] == 0 {
		t.Errorf("%s, %+v", age, sum)
	}
	empty, err := pgstore.Summarize(t.Context(), pool, storetest.SchemaOf(t, neighbour), neighbour)
	if err != nil || empty.InProgress+empty.Expired+empty.Completed != 0 || !empty.OldestInProgress.IsZero() {
		t.Errorf("%+v, %v", empty, err)
	}
}

func TestInspectWithoutTables(t *testing.T) {
	t.Parallel()
	pool := pgtest.NewPool(t)
	org := uuid.New()
	schema := storetest.SchemaOf(t, org)
	if _, err := pgstore.Inspect(t.Context(), pool, schema, org, "key"); !errors.Is(err, tenancy.ErrUnknownTenant) {
		t.Errorf("Inspect: %v", err)
	}
	if _, err := pgstore.Summarize(t.Context(), pool, schema, org); !errors.Is(err, tenancy.ErrUnknownTenant) {
		t.Errorf("Summarize: %v", err)
	}
	if _, err := pgstore.ScopedKeys(t.Context(), pool, schema, org, "key"); !errors.Is(err, tenancy.ErrUnknownTenant) {
		t.Errorf("ScopedKeys: %v", err)
	}
	if _, err := pgstore.Reveal(t.Context(), pool, schema, org, "key"); !errors.Is(err, tenancy.ErrUnknownTenant) {
		t.Errorf("Reveal: %v", err)
	}
}

// TestInspectOfARequest looks at a key from within the handler, and after it.
func TestInspectOfARequest(t *testing.T) {
	t.Parallel()
	pool := pgtest.NewPool(t)
	org := storetest.NewTenant(t, pool)
	schema := storetest.SchemaOf(t, org)
	leases := storetest.NewStore(t, pool)
	for mode, test := range map[string]struct {
		store idempotency.Store
		state pgstore.KeyState
	}{
		"leases":       {leases, pgstore.KeyInProgress},
		"transactions": {leases.Transactional(), pgstore.KeyInTransaction},
	} {
		var info pgstore.KeyInfo
		var secrets pgstore.KeySecrets
		handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			_, err := idempotency.Step(r.Context(), "charge", func(context.Context) (string, error) { return "s3cret", nil })
			if err != nil {
				t.Error(err)
			}
			keys, err := pgstore.ScopedKeys(r.Context(), pool, schema, org, mode)
			if err != nil || len(keys) != 1 || !strings.HasSuffix(keys[0], "\x1f"+mode) {
				t.Errorf("%s: ScopedKeys = %q, %v", mode, keys, err)
				return
			}
			info = inspect(t, pool, org, keys[0])
			if secrets, err = pgstore.Reveal(r.Context(), pool, schema, org, keys[0]); err != nil {
				t.Error(err)
			}
			if mode == "transactions" {
				if err := pgstore.EndAttempt(r.Context(), pool, info, pgstore.EndOptions{Live: true, Forget: true}); !errors.Is(err, pgstore.ErrInTransaction) {
					t.Errorf("EndAttempt: %v", err)
				}
			}
			w.Header().Set("Location", "/1")
			w.WriteHeader(http.StatusCreated)
			_, _ = w.Write([]byte("body"))
		})
		protected := idempotency.Require(test.store, idempotency.WithRecoverable("POST /pay/{id}"),
			idempotency.WithScope(func(*http.Request) string { return "user" }))(handler)
		r := httptest.NewRequest(http.MethodPost, "/pay/7?x=1", strings.NewReader("amount"))
		r.Header.Set(idempotency.HeaderKey, mode)
		w := httptest.NewRecorder()
		routes := http.NewServeMux()
		routes.Handle("POST /pay/{id}", protected)
		routes.ServeHTTP(w, r.WithContext(tenancy.WithOrgID(r.Context(), org)))
		if w.Code != http.StatusCreated {
			t.Fatalf("%s: %d %s", mode, w.Code, w.Body)
		}

		if info.State != test.state || len(info.Steps) != 1 || info.Steps[0].Name != "charge" || info.Steps[0].ResultBytes != int64(len(`"s3cret"`)) {
			t.Errorf("%s: %+v", mode, info)
		}
		if q := info.Request; q == nil || q.Pattern != "POST /pay/{id}" || q.Method != "POST" || q.BodyBytes != 6 || q.TargetBytes != 10 || q.GaveUp {
			t.Errorf("%s: kept %+v", mode, q)
		}
		if tx := info.Transaction; (tx != nil) != (mode == "transactions") || tx != nil && (tx.PID == 0 || tx.Began.IsZero()) {
			t.Errorf("%s: transaction %+v", mode, tx)
		}
		if secrets.Request == nil || secrets.Request.Target != "/pay/7?x=1" || string(secrets.Request.Body) != "amount" || string(secrets.Results["charge"]) != `"s3cret"` {
			t.Errorf("%s: %+v", mode, secrets)
		}
		after := inspect(t, pool, org, info.Key)
		if after.State != pgstore.KeyCompleted || after.Request != nil || after.Transaction != nil || len(after.Steps) != 1 {
			t.Errorf("%s: after it %+v", mode, after)
		}
		secrets, err := pgstore.Reveal(t.Context(), pool, schema, org, info.Key)
		if err != nil || string(secrets.Body) != "body" || !slices.Equal(secrets.Headers["Location"], []string{"/1"}) || secrets.Request != nil {
			t.Errorf("%s: after it %+v, %v", mode, secrets, err)
		}
	}
}

func TestEndAttempt(t *testing.T) {
	t.Parallel()
	pool := pgtest.NewPool(t)
	org := storetest.NewTenant(t, pool)
	store := storetest.NewStore(t, pool)
	end := func(key string, opts pgstore.EndOptions) error {
		return pgstore.EndAttempt(t.Context(), pool, inspect(t, pool, org, key), opts)
	}

	t.Run("a lease that holds", func(t *testing.T) {
		req := claimRequest(org, "held")
		mustClaim(t, store, req, idempotency.OutcomeClaimed)
		if err := end("held", pgstore.EndOptions{}); !errors.Is(err, pgstore.ErrLeaseHeld) {
			t.Errorf("%v", err)
		}
		if err := store.Extend(t.Context(), req.Claim, time.Minute); err != nil {
			t.Errorf("the attempt has lost its key: %v", err)
		}
		if err := end("held", pgstore.EndOptions{Live: true}); err != nil {
			t.Fatal(err)
		}
		for name, err := range map[string]error{
			"extend":   store.Extend(t.Context(), req.Claim, time.Minute),
			"complete": store.Complete(t.Context(), req.Claim, &idempotency.Record{OrgID: org, Key: "held", ResponseStatus: 200}),
		} {
			if !errors.Is(err, idempotency.ErrLeaseLost) {
				t.Errorf("%s of the attempt that was ended: %v", name, err)
			}
		}
		if r := mustClaim(t, store, claimRequest(org, "held"), idempotency.OutcomeClaimed); r.Attempt != 2 {
			t.Errorf("attempt %d, want 2", r.Attempt)
		}
	})
	t.Run("interrupted, where that is refused", func(t *testing.T) {
		first := claimRequest(org, "refused")
		mustClaim(t, store, first, idempotency.OutcomeClaimed)
		if _, err := store.SaveStep(t.Context(), first.Claim, "step", []byte("1")); err != nil {
			t.Fatal(err)
		}
		storetest.Advance(t, pool, org, 2*time.Minute)
		retry := claimRequest(org, "refused")
		retry.Interrupted = idempotency.Refuse
		mustClaim(t, store, retry, idempotency.OutcomeInterrupted)
		if err := end("refused", pgstore.EndOptions{}); err != nil {
			t.Fatal(err)
		}
		mustClaim(t, store, retry, idempotency.OutcomeInterrupted)
		if err := end("refused", pgstore.EndOptions{Forget: true}); err != nil {
			t.Fatal(err)
		}
		if r := mustClaim(t, store, retry, idempotency.OutcomeClaimed); r.Attempt != 1 {
			t.Errorf("attempt %d, want 1", r.Attempt)
		}
		if result, found, err := store.LoadStep(t.Context(), retry.Claim, "step"); !found || string(result) != "1" {
			t.Errorf("the step has gone: %q, %v", result, err)
		}
	})
	t.Run("completed", func(t *testing.T) {
		rec := &idempotency.Record{OrgID: org, Key: "completed", ResponseStatus: 200}
		if err := store.Put(t.Context(), rec); err != nil {
			t.Fatal(err)
		}
		for _, opts := range []pgstore.EndOptions{{}, {Live: true}, {Live: true, Forget: true}} {
			if err := end("completed", opts); !errors.Is(err, pgstore.ErrNotInProgress) {
				t.Errorf("%+v: %v", opts, err)
			}
		}
		if _, err := store.Get(t.Context(), org, "completed"); err != nil {
			t.Error(err)
		}
	})
	t.Run("changed since it was seen", func(t *testing.T) {
		for name, change := range map[string]func(idempotency.Claim) error{
			"completed": func(c idempotency.Claim) error {
				return store.Complete(t.Context(), c, &idempotency.Record{OrgID: org, Key: c.Key, ResponseStatus: 200})
			},
			"extended": func(c idempotency.Claim) error { return store.Extend(t.Context(), c, time.Hour) },
			"taken over": func(c idempotency.Claim) error {
				mustClaim(t, store, claimRequest(org, c.Key), idempotency.OutcomeClaimed)
				return nil
			},
			"released": func(c idempotency.Claim) error { return store.Release(t.Context(), c) },
		} {
			req := claimRequest(org, "was "+name)
			mustClaim(t, store, req, idempotency.OutcomeClaimed)
			storetest.Advance(t, pool, org, 2*time.Minute)
			seen := inspect(t, pool, org, req.Key)
			if err := change(req.Claim); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			for _, opts := range []pgstore.EndOptions{{}, {Forget: true}} {
				if err := pgstore.EndAttempt(t.Context(), pool, seen, opts); !errors.Is(err, idempotency.ErrLeaseLost) {
					t.Errorf("%s: %v", name, err)
				}
			}
		}
	})
}

// TestEndAttemptTellsWhoWaits ends an attempt that a duplicate waits for: the duplicate runs
// at once, and the handler of the attempt is cancelled.
func TestEndAttemptTellsWhoWaits(t *testing.T) {
	t.Parallel()
	pool := pgtest.NewPool(t)
	org := storetest.NewTenant(t, pool)
	store := storetest.NewStore(t, pool)
	t.Cleanup(store.Close)
	other := storetest.NewStore(t, pool) // of another process
	t.Cleanup(other.Close)
	began, cancelled := make(chan struct{}), make(chan struct{})
	serve := func(s idempotency.Store, handler http.HandlerFunc, opts ...idempotency.Option) int {
		r := httptest.NewRequest(http.MethodPost, "/", nil)
		r.Header.Set(idempotency.HeaderKey, "key")
		w := httptest.NewRecorder()
		idempotency.Require(s, opts...)(handler).ServeHTTP(w, r.WithContext(tenancy.WithOrgID(r.Context(), org)))
		return w.Code
	}
	first := make(chan int, 1)
	go func() {
		first <- serve(store, func(_ http.ResponseWriter, r *http.Request) {
			close(began)
			<-r.Context().Done()
			close(cancelled)
		}, idempotency.WithLease(3*time.Second))
	}()
	<-began
	second := make(chan int, 1)
	go func() {
		second <- serve(other, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusCreated) }, idempotency.WithWait(time.Minute))
	}()
	deadline := time.Now().Add(30 * time.Second)
	for !inspect(t, pool, org, "key").Record.Awaited {
		if time.Now().After(deadline) {
			t.Fatal("nobody waits")
		}
		time.Sleep(2 * time.Millisecond)
	}
	if err := pgstore.EndAttempt(t.Context(), pool, inspect(t, pool, org, "key"), pgstore.EndOptions{Live: true}); err != nil {
		t.Fatal(err)
	}
	if code := <-second; code != http.StatusCreated {
		t.Errorf("the duplicate got %d", code)
	}
	<-cancelled
	<-first
}
