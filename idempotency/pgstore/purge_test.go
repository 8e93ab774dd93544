package pgstore_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgidem/pgidem/idempotency"
	"github.com/pgidem/pgidem/idempotency/pgstore"
	"github.com/pgidem/pgidem/internal/moved"
	"github.com/pgidem/pgidem/internal/pgtest"
	"github.com/pgidem/pgidem/internal/storetest"
	"github.com/pgidem/pgidem/tenancy"
)

// fill puts n completed records into a tenant's schema, of which each k-th is
// still live and the others have expired.
func fill(t testing.TB, pool *pgxpool.Pool, org uuid.UUID, n, k int) {
	t.Helper()
	_, err := pool.Exec(context.Background(), `INSERT INTO `+storetest.SchemaOf(t, org).Quoted()+`.idempotency_records
		(created_at, expires_at, lease_until, completed_at, token, org_id, attempt, response_status, response_kept, key, request_hash, response_body)
		SELECT now(), now() + CASE WHEN i % $3 = 0 THEN interval '1 hour' ELSE interval '-1 hour' END, now(), now(),
			gen_random_uuid(), $1, 1, 200, true, 'fill-' || i, '\x00', convert_to(repeat('x', 100), 'UTF8')
		FROM generate_series(1, $2::integer) AS i`, org, n, k)
	if err != nil {
		t.Fatal(err)
	}
}

func count(t testing.TB, pool *pgxpool.Pool, org uuid.UUID) (n int64) {
	t.Helper()
	err := pool.QueryRow(context.Background(), `SELECT count(*) FROM `+storetest.SchemaOf(t, org).Quoted()+`.idempotency_records`).Scan(&n)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func TestPurgeDeletesWhatIsAbsentAndNothingElse(t *testing.T) {
	t.Parallel()
	pool := pgtest.NewPool(t)
	org, neighbour := storetest.NewTenant(t, pool), storetest.NewTenant(t, pool)
	schema := storetest.SchemaOf(t, org)
	fill(t, pool, org, 20_000, 4) // more than a window of pages
	fill(t, pool, neighbour, 10, 4)
	store := storetest.NewStore(t, pool)
	kept := claimRequest(org, "in progress, expired, but its lease holds")
	kept.TTL, kept.Lease = time.Minute, time.Hour
	gone := claimRequest(org, "in progress, expired, and lapsed")
	gone.TTL, gone.Lease = time.Minute, time.Minute
	waiting := claimRequest(org, "in progress, lapsed, but not expired")
	waiting.Lease = time.Minute
	for _, req := range []idempotency.ClaimRequest{kept, gone, waiting} {
		mustClaim(t, store, req, idempotency.OutcomeClaimed)
	}
	storetest.Advance(t, pool, org, 2*time.Minute)

	want, err := pgstore.CountExpired(t.Context(), pool, schema)
	if err != nil || want != 15_001 {
		t.Fatalf("CountExpired = %d, %v; want 15001", want, err)
	}
	var progress []int64
	deleted, err := pgstore.Purge(t.Context(), pool, schema, pgstore.PurgeOptions{
		Batch: 500, Pause: time.Microsecond, Progress: func(n int64) { progress = append(progress, n) },
	})
	if err != nil || deleted != want {
		t.Fatalf("Purge = %d, %v; want %d", deleted, err, want)
	}
	if len(progress) < 30 || !slices.IsSorted(progress) || progress[len(progress)-1] != deleted {
		t.Errorf("progress %v", progress)
	}
	if n := count(t, pool, org); n != 5_002 {
		t.Errorf("%d records left, want 5002", n)
	}
	if n := count(t, pool, neighbour); n != 10 {
		t.Errorf("%d records left to the neighbour, want 10", n)
	}
	mustClaim(t, store, claimRequest(org, waiting.Key), idempotency.OutcomeClaimed)
	again, err := pgstore.Purge(t.Context(), pool, schema, pgstore.PurgeOptions{})
	if err != nil || again != 0 {
		t.Errorf("second Purge = %d, %v; want nothing left", again, err)
	}
}

// TestPurgeNeverTakesAClaim races take-overs of expired records against purges: a
// claim that was won is there until it is completed.
func TestPurgeNeverTakesAClaim(t *testing.T) {
	t.Parallel()
	pool := pgtest.NewPool(t)
	org := storetest.NewTenant(t, pool)
	schema := storetest.SchemaOf(t, org)
	store := storetest.NewStore(t, pool)
	const rounds, keys = 5, 400
	for round := range rounds {
		for i := range keys {
			rec := &idempotency.Record{OrgID: org, Key: fmt.Sprint(i), ResponseStatus: 200, CreatedAt: time.Now().Add(-2 * time.Hour), ExpiresAt: time.Now().Add(-time.Hour)}
			if err := store.Put(t.Context(), rec); err != nil {
				t.Fatal(err)
			}
		}
		var purges, claims sync.WaitGroup
		stop := make(chan struct{})
		var deleted int64
		purges.Go(func() {
			for {
				n, err := pgstore.Purge(context.Background(), pool, schema, pgstore.PurgeOptions{Batch: 7})
				if err != nil {
					t.Errorf("Purge: %v", err)
				}
				deleted += n
				select {
				case <-stop:
					return
				default:
				}
			}
		})
		for worker := range 8 {
			claims.Go(func() {
				for i := worker; i < keys; i += 8 {
					req := claimRequest(org, fmt.Sprint(keys-1-i)) // against the purge's direction
					result, err := store.Claim(t.Context(), req)
					if err != nil || result.Outcome != idempotency.OutcomeClaimed {
						t.Errorf("Claim: outcome %d, %v", result.Outcome, err)
						continue
					}
					if err := store.Complete(t.Context(), req.Claim, &idempotency.Record{ResponseStatus: 201}); err != nil {
						t.Errorf("round %d: the claim was lost: %v", round, err)
					}
				}
			})
		}
		claims.Wait()
		close(stop)
		purges.Wait()
		if n := count(t, pool, org); n != keys {
			t.Fatalf("round %d: %d records, want %d; %d purged", round, n, keys, deleted)
		}
	}
}

// TestPurgeDoesNotWaitForClaims: a record that a transaction holds is passed over.
func TestPurgeDoesNotWaitForClaims(t *testing.T) {
	t.Parallel()
	pool := pgtest.NewPool(t)
	org := storetest.NewTenant(t, pool)
	schema := storetest.SchemaOf(t, org)
	fill(t, pool, org, 10, 100)
	tx, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback(context.Background())
	if _, err := tx.Exec(t.Context(), `SELECT FROM `+schema.Quoted()+`.idempotency_records WHERE key = 'fill-3' FOR UPDATE`); err != nil {
		t.Fatal(err)
	}
	deleted, err := pgstore.Purge(t.Context(), pool, schema, pgstore.PurgeOptions{})
	if err != nil || deleted != 9 {
		t.Errorf("Purge = %d, %v; want the 9 records that nobody holds", deleted, err)
	}
}

// TestPurgeWalksSparseTables: records far apart, with emptied pages in between, are
// all found, and the table may even be partitioned, where a ctid names several rows.
func TestPurgeWalksSparseTables(t *testing.T) {
	t.Parallel()
	pool := pgtest.NewPool(t)
	org := storetest.NewTenant(t, pool)
	schema := storetest.SchemaOf(t, org)
	table := schema.Quoted() + ".idempotency_records"
	fill(t, pool, org, 60_000, 4)
	if _, err := pool.Exec(t.Context(), `DELETE FROM `+table+` WHERE key NOT IN ('fill-1', 'fill-30001', 'fill-59999', 'fill-60000')`); err != nil {
		t.Fatal(err)
	}
	steps := 0
	deleted, err := pgstore.Purge(t.Context(), pool, schema, pgstore.PurgeOptions{Progress: func(int64) { steps++ }})
	if err != nil || deleted != 3 || steps > 4 {
		t.Errorf("Purge = %d, %v in %d statements; want 3 in at most 4", deleted, err, steps)
	}

	for _, sql := range []string{
		`ALTER TABLE ` + table + ` RENAME TO plain`,
		`CREATE TABLE ` + table + ` (LIKE ` + schema.Quoted() + `.plain INCLUDING DEFAULTS) PARTITION BY HASH (key)`,
		`CREATE TABLE ` + schema.Quoted() + `.part_0 PARTITION OF ` + table + ` FOR VALUES WITH (MODULUS 2, REMAINDER 0)`,
		`CREATE TABLE ` + schema.Quoted() + `.part_1 PARTITION OF ` + table + ` FOR VALUES WITH (MODULUS 2, REMAINDER 1)`,
	} {
		if _, err := pool.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	fill(t, pool, org, 4000, 2)
	if _, err := pgstore.Purge(t.Context(), pool, schema, pgstore.PurgeOptions{Batch: 100}); err != nil {
		t.Error(err)
	}
	var live int
	if err := pool.QueryRow(t.Context(), `SELECT count(*) FROM `+table+` WHERE expires_at > now()`).Scan(&live); err != nil || live != 2000 {
		t.Errorf("%d live records left, %v; want all 2000", live, err)
	}
}

// TestPurgeUnderStrictIsolation: purges side by side get in each other's way
// without failing.
func TestPurgeUnderStrictIsolation(t *testing.T) {
	t.Parallel()
	pool := pgtest.NewPool(t)
	org := storetest.NewTenant(t, pool)
	cfg := pool.Config()
	cfg.ConnConfig.RuntimeParams["default_transaction_isolation"] = "serializable"
	strict, err := pgxpool.NewWithConfig(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer strict.Close()
	fill(t, pool, org, 5000, 10_000)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			if _, err := pgstore.Purge(t.Context(), strict, storetest.SchemaOf(t, org), pgstore.PurgeOptions{Batch: 100}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n := count(t, pool, org); n != 0 {
		t.Errorf("%d records left, want none", n)
	}
}

func TestPurgeStopsWhenTold(t *testing.T) {
	t.Parallel()
	pool := pgtest.NewPool(t)
	org := storetest.NewTenant(t, pool)
	fill(t, pool, org, 1000, 10_000)
	ctx, cancel := context.WithCancel(t.Context())
	deleted, err := pgstore.Purge(ctx, pool, storetest.SchemaOf(t, org), pgstore.PurgeOptions{
		Batch: 100, Pause: time.Hour, Progress: func(int64) { cancel() },
	})
	if deleted != 100 || !errors.Is(err, context.Canceled) {
		t.Errorf("Purge = %d, %v; want one batch, and the context's error", deleted, err)
	}
	if n := count(t, pool, org); n != 900 {
		t.Errorf("%d records left, want 900", n)
	}
}

// deletes are the tables that statements have deleted from.
type deletes struct {
	*pgxpool.Pool
	from []string
}

func (d *deletes) QueryRow(ctx context.Context, sql string, args ...any) pgx.Row {
	if _, table, ok := strings.Cut(sql, "DELETE FROM "); ok {
		table, _, _ = strings.Cut(table, " ")
		_, table, _ = strings.Cut(table, ".")
		d.from = append(d.from, table)
	}
	return d.Pool.QueryRow(ctx, sql, args...)
}

// TestPurgeLeavesEmptyTablesAlone has a round over thousands of idle tenants in mind.
func TestPurgeLeavesEmptyTablesAlone(t *testing.T) {
	t.Parallel()
	d := deletes{Pool: pgtest.NewPool(t)}
	org := storetest.NewTenant(t, d.Pool)
	purge := func(want int64, tables ...string) {
		t.Helper()
		d.from = nil
		deleted, err := pgstore.Purge(t.Context(), &d, storetest.SchemaOf(t, org), pgstore.PurgeOptions{})
		if err != nil || deleted != want || !slices.Equal(d.from, tables) {
			t.Errorf("Purge = %d, %v, with DELETEs from %q; want %d, from %q", deleted, err, d.from, want, tables)
		}
	}
	purge(0)
	fill(t, d.Pool, org, 10, 4)
	purge(8, "idempotency_records")

	claim, store := claimRequest(org, "with a step"), storetest.NewStore(t, d.Pool)
	mustClaim(t, store, claim, idempotency.OutcomeClaimed)
	if _, err := store.SaveStep(t.Context(), claim.Claim, "charge", []byte("1")); err != nil {
		t.Fatal(err)
	}
	purge(0, "idempotency_records", "idempotency_steps")
}

func TestPurgeRefusesNonsense(t *testing.T) {
	t.Parallel()
	pool := pgtest.NewPool(t)
	org := uuid.New()
	schema := storetest.SchemaOf(t, org)
	for _, batch := range []int{-1, 1_000_001} {
		if _, err := pgstore.Purge(t.Context(), pool, schema, pgstore.PurgeOptions{Batch: batch}); err == nil {
			t.Errorf("a batch of %d was accepted", batch)
		}
	}
	if _, err := pgstore.Purge(t.Context(), pool, schema, pgstore.PurgeOptions{}); !errors.Is(err, tenancy.ErrUnknownTenant) {
		t.Errorf("Purge without a table: %v", err)
	}
	if _, err := pgstore.CountExpired(t.Context(), pool, schema); !errors.Is(err, tenancy.ErrUnknownTenant) {
		t.Errorf("CountExpired without a table: %v", err)
	}
	if _, err := pgstore.Purge(t.Context(), pool, tenancy.Schema{}, pgstore.PurgeOptions{}); err == nil {
		t.Error("the zero Schema was accepted")
	}
}

func TestSchemas(t *testing.T) {
	t.Parallel()
	pool := pgtest.NewPool(t)
	if schemas, err := pgstore.Schemas(t.Context(), pool); len(schemas) != 0 || err != nil {
		t.Fatalf("Schemas of an empty database = %v, %v", schemas, err)
	}
	a, b := storetest.NewSchema(t, pool, "b_tenant"), storetest.NewSchema(t, pool, "a_tenant")
	fenced := storetest.NewSchema(t, pool, moved.Fence(uuid.New()))
	if _, err := pool.Exec(t.Context(), `CREATE SCHEMA empty; CREATE SCHEMA "Odd"; CREATE TABLE "Odd".idempotency_records (lease_until timestamptz);
		CREATE SCHEMA another; CREATE TABLE another.idempotency_records (id bigint); -- another application's
		CREATE SCHEMA view; CREATE VIEW view.idempotency_records AS SELECT now() AS lease_until`); err != nil {
		t.Fatal(err)
	}
	schemas, err := pgstore.Schemas(t.Context(), pool)
	if !slices.Equal(schemas, []tenancy.Schema{b, a}) || !errors.Is(err, tenancy.ErrInvalidSchema) {
		t.Errorf("Schemas = %v, %v; want the two tenants by name, and the odd one in the error", schemas, err)
	}
	if _, err := pgstore.Purge(t.Context(), pool, fenced, pgstore.PurgeOptions{}); err == nil || !strings.Contains(err.Error(), "on its way to another cluster") {
		t.Errorf("Purge of a schema that is being moved: %v", err)
	}
}
