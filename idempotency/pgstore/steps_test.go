package pgstore_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgidem/pgidem/idempotency"
	"github.com/pgidem/pgidem/idempotency/pgstore"
	"github.com/pgidem/pgidem/internal/pgtest"
	"github.com/pgidem/pgidem/internal/storetest"
)

// countSteps returns how many steps of a key are in the tenant's schema, but for those
// that no handler named.
func countSteps(t testing.TB, pool *pgxpool.Pool, org uuid.UUID, key string) (n int) {
	t.Helper()
	err := pool.QueryRow(context.Background(), `SELECT count(*) FROM `+storetest.SchemaOf(t, org).Quoted()+
		`.idempotency_steps WHERE key = $1 AND name >= ' '`, key).Scan(&n)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func mustSave(t testing.TB, store idempotency.StepStore, c idempotency.Claim, name, result, want string) {
	t.Helper()
	stored, err := store.SaveStep(context.Background(), c, name, []byte(result))
	if err != nil || string(stored) != want {
		t.Fatalf("SaveStep = %q, %v; want %q", stored, err, want)
	}
}

// mustLoad checks the result of a step; "" stands for none.
func mustLoad(t testing.TB, store idempotency.StepStore, c idempotency.Claim, name, want string) {
	t.Helper()
	result, found, err := store.LoadStep(context.Background(), c, name)
	if err != nil || string(result) != want || found != (want != "") {
		t.Fatalf("LoadStep = %q, %t, %v; want %q", result, found, err, want)
	}
}

// wantFenced checks that an attempt that has lost its key gets no steps and stores none.
func wantFenced(t testing.TB, store idempotency.StepStore, c idempotency.Claim) {
	t.Helper()
	if result, _, err := store.LoadStep(context.Background(), c, "charge"); !errors.Is(err, idempotency.ErrLeaseLost) {
		t.Errorf("LoadStep = %q, %v; want ErrLeaseLost", result, err)
	}
	if stored, err := store.SaveStep(context.Background(), c, "charge", []byte(`"stale"`)); !errors.Is(err, idempotency.ErrLeaseLost) {
		t.Errorf("SaveStep = %q, %v; want ErrLeaseLost", stored, err)
	}
}

// TestStepOfAPausedProcess: one that goes on after its lease, when another process has
// taken over, can store nothing.
func TestStepOfAPausedProcess(t *testing.T) {
	t.Parallel()
	pool := pgtest.NewPool(t)
	org := storetest.NewTenant(t, pool)
	paused, other := storetest.NewStore(t, pool), storetest.NewStore(t, pool)
	first, second := claimRequest(org, "k"), claimRequest(org, "k")
	mustClaim(t, paused, first, idempotency.OutcomeClaimed)
	mustSave(t, paused, first.Claim, "reserve", `1`, `1`)
	storetest.Advance(t, pool, org, 2*time.Minute)
	mustClaim(t, other, second, idempotency.OutcomeClaimed)

	wantFenced(t, paused, first.Claim)
	mustLoad(t, other, second.Claim, "charge", "")
	mustLoad(t, other, second.Claim, "reserve", `1`)
	mustSave(t, other, second.Claim, "charge", `2`, `2`)
	wantFenced(t, paused, first.Claim)
	mustComplete(t, other, second.Claim)
	wantFenced(t, other, second.Claim)
}

// TestStepWaitsForATakeOver: one that is under way decides, and not what the table looked
// like before.
func TestStepWaitsForATakeOver(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		commit bool
		want   error
	}{"that is committed": {true, idempotency.ErrLeaseLost}, "that is rolled back": {false, nil}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pool := pgtest.NewPool(t)
			org := storetest.NewTenant(t, pool)
			store := storetest.NewStore(t, pool)
			req := claimRequest(org, "k")
			mustClaim(t, store, req, idempotency.OutcomeClaimed)
			tx, err := pool.Begin(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			defer tx.Rollback(context.Background())
			if _, err := tx.Exec(t.Context(), `UPDATE `+storetest.SchemaOf(t, org).Quoted()+`.idempotency_records SET token = gen_random_uuid()`); err != nil {
				t.Fatal(err)
			}
			saved := make(chan error, 1)
			go func() {
				_, err := store.SaveStep(context.Background(), req.Claim, "charge", []byte(`1`))
				saved <- err
			}()
			waitForLock(t, pool)
			end := tx.Rollback
			if c.commit {
				end = tx.Commit
			}
			if err := end(t.Context()); err != nil {
				t.Fatal(err)
			}
			if err := <-saved; !errors.Is(err, c.want) {
				t.Errorf("%v; want %v", err, c.want)
			}
		})
	}
}

// TestReleaseKeepsTheRecordOfSteps: exactly when there are some.
func TestReleaseKeepsTheRecordOfSteps(t *testing.T) {
	t.Parallel()
	pool := pgtest.NewPool(t)
	org := storetest.NewTenant(t, pool)
	store := storetest.NewStore(t, pool)
	release := func(key string, save bool, want int64) {
		t.Helper()
		req := claimRequest(org, key)
		mustClaim(t, store, req, idempotency.OutcomeClaimed)
		if save {
			mustSave(t, store, req.Claim, "charge", `1`, `1`)
		}
		if err := store.Release(t.Context(), req.Claim); err != nil {
			t.Fatal(err)
		}
		if n := count(t, pool, org); n != want {
			t.Errorf("%d records after the release of %s, want %d", n, key, want)
		}
	}
	release("without", false, 0)
	release("with", true, 1)
	release("without", false, 1)
	storetest.Advance(t, pool, org, 2*time.Hour) // another life, which the old step is nothing to
	release("with", false, 0)
	release("with", true, 1)
}

// TestStepConstraints: what no step can be, the database refuses as well.
func TestStepConstraints(t *testing.T) {
	t.Parallel()
	pool := pgtest.NewPool(t)
	org := storetest.NewTenant(t, pool)
	unpinned := storetest.NewSchema(t, pool, "unpinned")
	insert := func(schema string, org uuid.UUID, key, hash, name string) string {
		_, err := pool.Exec(t.Context(), `INSERT INTO `+schema+`.idempotency_steps (created_at, expires_at, token, org_id, key, request_hash, name, result)
			VALUES (now(), now(), gen_random_uuid(), $1, $2, $3::text::bytea, $4, 'x')`, org, key, hash, name)
		var pgErr *pgconn.PgError
		if errors.As(err, &pgErr) {
			return pgErr.ConstraintName
		}
		return fmt.Sprint(err)
	}
	mine := storetest.SchemaOf(t, org).Quoted()
	for _, c := range []struct {
		schema          string
		org             uuid.UUID
		key, hash, name string
		want            string
	}{
		{mine, org, "k", "h", strings.Repeat("x", idempotency.MaxStepName), "<nil>"},
		{mine, org, "k", "h", strings.Repeat("x", idempotency.MaxStepName), "idempotency_steps_pkey"},
		{mine, org, "k", "h", strings.Repeat("x", idempotency.MaxStepName+1), "idempotency_steps_name_check"},
		{mine, org, "k", "h", "", "idempotency_steps_name_check"},
		{mine, org, "", "h", "n", "idempotency_steps_key_check"},
		{mine, org, "k", "", "n", "idempotency_steps_request_hash_check"},
		{mine, uuid.New(), "k", "h", "n", "idempotency_steps_tenant_check"},
		{unpinned.Quoted(), uuid.New(), "k", "h", "n", "<nil>"},
		{unpinned.Quoted(), uuid.Nil, "k", "h", "n", "idempotency_steps_org_id_check"},
		// A key, fingerprint and name of their full lengths fit into the index.
		{unpinned.Quoted(), uuid.New(), noise(512), noise(512), noise(idempotency.MaxStepName), "<nil>"},
	} {
		if got := insert(c.schema, c.org, c.key, c.hash, c.name); got != c.want {
			t.Errorf("key %.20q, hash %.20q, name of %d bytes: %s, want %s", c.key, c.hash, len(c.name), got, c.want)
		}
	}
}

// noise returns n bytes of text that does not compress.
func noise(n int) string {
	var b strings.Builder
	for b.Len() < n {
		b.WriteString(strings.ReplaceAll(uuid.NewString(), "-", ""))
	}
	return b.String()[:n]
}

// TestStepsOfAnOldSchema: one without migration 3 gives an error that says what to do.
func TestStepsOfAnOldSchema(t *testing.T) {
	t.Parallel()
	pool := pgtest.NewPool(t)
	org := storetest.NewTenant(t, pool)
	schema := storetest.SchemaOf(t, org)
	if _, err := pool.Exec(t.Context(), `DROP TABLE `+schema.Quoted()+`.idempotency_steps`); err != nil {
		t.Fatal(err)
	}
	store := storetest.NewStore(t, pool)
	wantOld := func(what string, err error) {
		t.Helper()
		if err == nil || !strings.Contains(err.Error(), "run migrations.Up") {
			t.Errorf("%s: %v; want to be told to migrate", what, err)
		}
	}
	for name, s := range map[string]idempotency.StepStore{"lease": store, "transaction": store.Transactional().(idempotency.StepStore)} {
		req := claimRequest(org, name)
		if result, err := s.Claim(t.Context(), req); err != nil || result.Outcome != idempotency.OutcomeClaimed {
			t.Fatalf("Claim: %+v, %v", result, err)
		}
		_, _, err := s.LoadStep(t.Context(), req.Claim, "charge")
		wantOld(name+" LoadStep", err)
		if !errors.Is(err, idempotency.ErrStoreRefused) {
			t.Errorf("%v; want an answer, which is not asked for again", err)
		}
		_, err = s.SaveStep(t.Context(), req.Claim, "charge", []byte(`1`))
		wantOld(name+" SaveStep", err)
		if err := s.Complete(t.Context(), req.Claim, &idempotency.Record{ResponseStatus: 201}); err != nil {
			t.Errorf("Complete: %v", err)
		}
	}
	left := claimRequest(org, "left")
	mustClaim(t, store, left, idempotency.OutcomeClaimed)
	wantOld("Release", store.Release(t.Context(), left.Claim))
	if _, err := pool.Exec(t.Context(), `UPDATE `+schema.Quoted()+`.idempotency_records SET lease_until = now()`); err != nil {
		t.Fatal(err)
	}
	_, err := store.Claim(t.Context(), claimRequest(org, "left"))
	wantOld("take-over", err)
	_, err = pgstore.Purge(t.Context(), pool, schema, pgstore.PurgeOptions{})
	wantOld("Purge", err)
}

// TestPurgeOfSteps: they go an hour after they have expired, and not while an attempt that
// can see them runs.
func TestPurgeOfSteps(t *testing.T) {
	t.Parallel()
	pool := pgtest.NewPool(t)
	org, neighbour := storetest.NewTenant(t, pool), storetest.NewTenant(t, pool)
	schema := storetest.SchemaOf(t, org)
	store := storetest.NewStore(t, pool)
	begin := func(org uuid.UUID, key string, lease, ttl time.Duration) idempotency.Claim {
		req := claimRequest(org, key)
		req.Lease, req.TTL = lease, ttl
		mustClaim(t, store, req, idempotency.OutcomeClaimed)
		mustSave(t, store, req.Claim, "charge", `1`, `1`)
		return req.Claim
	}
	begin(org, "gone", time.Minute, time.Minute)
	begin(org, "just expired", time.Minute, 90*time.Minute)
	begin(org, "waiting", time.Minute, 48*time.Hour)
	running := begin(org, "running", 24*time.Hour, time.Minute)
	mustComplete(t, store, begin(org, "completed", time.Minute, time.Minute))
	begin(neighbour, "gone", time.Minute, time.Minute)
	tx := store.Transactional().(idempotency.StepStore)
	dead := claimRequest(org, "of a transaction that came to nothing")
	if _, err := tx.Claim(t.Context(), dead); err != nil {
		t.Fatal(err)
	}
	mustSave(t, tx, dead.Claim, "charge", `1`, `1`)
	if err := tx.Release(t.Context(), dead.Claim); err != nil {
		t.Fatal(err)
	}
	// And many more than a batch, or a window of pages.
	if _, err := pool.Exec(t.Context(), `INSERT INTO `+schema.Quoted()+`.idempotency_steps
		(created_at, expires_at, token, org_id, key, request_hash, name, result)
		SELECT now(), now(), gen_random_uuid(), $1, 'old-' || i, '\x00', 'n', convert_to(repeat('x', 300), 'UTF8') FROM generate_series(1, 5000) AS i`, org); err != nil {
		t.Fatal(err)
	}
	storetest.Advance(t, pool, org, 2*time.Hour+time.Minute)
	progress := int64(0)
	deleted, err := pgstore.Purge(t.Context(), pool, schema, pgstore.PurgeOptions{Batch: 700, Progress: func(n int64) { progress = n }})
	if err != nil || deleted != 3 || progress != 3 {
		t.Errorf("Purge = %d, %v, and %d told of; want the 3 records that have expired", deleted, err, progress)
	}
	for key, want := range map[string]int{
		"gone": 0, "just expired": 1, "waiting": 1, "running": 1, "completed": 0, dead.Key: 0,
	} {
		if n := countSteps(t, pool, org, key); n != want {
			t.Errorf("%d steps of the key %q left, want %d", n, key, want)
		}
	}
	mustLoad(t, store, running, "charge", `1`)
	again := claimRequest(org, "waiting")
	mustClaim(t, store, again, idempotency.OutcomeClaimed)
	mustLoad(t, store, again.Claim, "charge", `1`)
	var left int
	if err := pool.QueryRow(t.Context(), `SELECT count(*) FROM `+schema.Quoted()+`.idempotency_steps`).Scan(&left); err != nil || left != 3 {
		t.Errorf("%d steps left, %v; want 3", left, err)
	}
	if n := countSteps(t, pool, neighbour, "gone"); n != 1 {
		t.Errorf("%d steps left to the neighbour, want 1", n)
	}
	if err := store.Clear(t.Context(), org); err != nil {
		t.Fatal(err)
	}
	if n := countSteps(t, pool, org, "waiting"); n != 0 {
		t.Errorf("%d steps left by Clear", n)
	}
	if n := countSteps(t, pool, neighbour, "gone"); n != 1 {
		t.Errorf("%d steps left to the neighbour by Clear, want 1", n)
	}
}

// TestStepsTakeTheirRoundTrips: one to look and one to store.
func TestStepsTakeTheirRoundTrips(t *testing.T) {
	t.Parallel()
	pool := pgtest.NewPool(t)
	counted, counter := countedPool(t, pool, 2) // one may be a transaction's, and the other has prepared the statements
	org := storetest.NewTenant(t, pool)
	store := storetest.NewStore(t, counted)
	trips := func(s idempotency.StepStore, key string) {
		t.Helper()
		req := claimRequest(org, key)
		if _, err := s.Claim(t.Context(), req); err != nil {
			t.Fatal(err)
		}
		mustLoad(t, s, req.Claim, "warm", "") // statements are prepared once
		mustSave(t, s, req.Claim, "warm", `1`, `1`)
		before := counter.turns.Load()
		mustLoad(t, s, req.Claim, "charge", "")
		mustSave(t, s, req.Claim, "charge", `1`, `1`)
		if n := counter.turns.Load() - before; n != 2 {
			t.Errorf("%s: %d round trips, want 2", key, n)
		}
		if err := s.Release(t.Context(), req.Claim); err != nil {
			t.Error(err)
		}
	}
	trips(store.Transactional().(idempotency.StepStore), "transaction")
	hold, err := counted.Acquire(t.Context()) // so that one connection serves the other mode
	if err != nil {
		t.Fatal(err)
	}
	trips(store, "lease")
	hold.Release()
}

// TestStepsUnderStrictIsolation: steps that run side by side get in each other's way
// without failing.
func TestStepsUnderStrictIsolation(t *testing.T) {
	t.Parallel()
	pool := pgtest.NewPool(t)
	config := pool.Config()
	config.ConnConfig.RuntimeParams["default_transaction_isolation"] = "serializable"
	strict, err := pgxpool.NewWithConfig(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(strict.Close)
	handle := func(w http.ResponseWriter, r *http.Request) {
		var wg sync.WaitGroup
		for i := range 6 {
			wg.Go(func() {
				name := fmt.Sprint("step ", i/2)
				got, err := idempotency.Step(r.Context(), name, func(context.Context) (string, error) { return name, nil })
				if err != nil || got != name {
					t.Errorf("%s: %s, %v", name, got, err)
				}
			})
		}
		wg.Wait()
		w.WriteHeader(http.StatusCreated)
	}
	b := newBank(t, pool, handle, nil)
	for name, store := range map[string]idempotency.Store{
		"lease": storetest.NewStore(t, strict), "transaction": storetest.NewStore(t, strict).Transactional(),
	} {
		b.serve(t, store, handle)
		b.want(t, name, http.StatusCreated, "")
		if n := countSteps(t, pool, b.org, name); n != 3 {
			t.Errorf("%s: %d steps, want 3", name, n)
		}
	}
}
