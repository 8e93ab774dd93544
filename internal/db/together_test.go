package db_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgidem/pgidem/internal/db"
	"github.com/pgidem/pgidem/internal/pgtest"
	"github.com/pgidem/pgidem/migrations"
	"github.com/pgidem/pgidem/tenancy"
)

// newSchema migrates a schema, and returns the statements bound to it and its tenant.
func newSchema(t *testing.T, pool *pgxpool.Pool) (db.Tenant, uuid.UUID) {
	t.Helper()
	dir, err := tenancy.PerOrg("")
	if err != nil {
		t.Fatal(err)
	}
	org := uuid.New()
	schema, err := dir.Schema(t.Context(), org)
	if err == nil {
		err = migrations.Up(t.Context(), pool.Config().ConnString(), schema)
	}
	if err != nil {
		t.Fatal(err)
	}
	return new(db.Texts).Bind(pool, schema.Quoted()), org
}

func runTogether(t *testing.T, pool *pgxpool.Pool, ops []db.KeyOp) error {
	t.Helper()
	statements, err := db.Together(ops, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	return db.Run(t.Context(), pool, statements...)
}

// attempt is one at a key.
type attempt struct {
	tenant db.Tenant
	org    uuid.UUID
	key    string
	token  uuid.UUID
}

func (a attempt) claim(ttl time.Duration, look bool) *db.Claim {
	return a.tenant.Claim(db.ClaimInsertParams{
		Ttl: ttl, Lease: time.Minute, Token: db.UUID(a.token), OrgID: db.UUID(a.org), Key: a.key, RequestHash: []byte{0},
	}, look)
}

func (a attempt) complete(status int, body string) *db.Completion {
	return a.tenant.Completion(db.CompleteParams{
		ResponseStatus: int32(status), ResponseKept: true, ResponseBody: []byte(body),
		OrgID: db.UUID(a.org), Key: a.key, Token: db.UUID(a.token),
	}, false)
}

func (a attempt) look() *db.Look {
	return a.tenant.Look(db.ClaimSelectParams{OrgID: db.UUID(a.org), Key: a.key})
}

// TestTogether: what is done to many keys in one transaction comes to what is done to each
// by itself, for few and for many, in one schema and in several.
func TestTogether(t *testing.T) {
	t.Parallel()
	pool := pgtest.NewPool(t)
	one, oneOrg := newSchema(t, pool)
	two, twoOrg := newSchema(t, pool)
	for _, n := range []int{1, 3, 4, 15, 16, 50} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			var first, second []attempt
			for i := range n {
				key := fmt.Sprint(n, "-", i)
				first = append(first, attempt{one, oneOrg, key, uuid.New()}, attempt{two, twoOrg, key, uuid.New()})
				second = append(second, attempt{one, oneOrg, key, uuid.New()}, attempt{two, twoOrg, key, uuid.New()})
			}
			var ops []db.KeyOp
			var claims, again []*db.Claim // two of each key in one transaction
			for i := range first {
				claims, again = append(claims, first[i].claim(time.Hour, false)), append(again, second[i].claim(time.Hour, true))
				ops = append(ops, claims[i], again[i])
			}
			if err := runTogether(t, pool, ops); err != nil {
				t.Fatal(err)
			}
			for i := range claims {
				if !claims[i].Claimed || again[i].Claimed || !again[i].Found || again[i].Row.Token != db.UUID(first[i].token) {
					t.Errorf("claims of one key: %+v and %+v", claims[i], again[i])
				}
			}

			ops = nil
			var done, stale []*db.Completion
			var looks, twice []*db.Look
			for i := range first {
				looks, twice = append(looks, first[i].look()), append(twice, first[i].look())
				done, stale = append(done, first[i].complete(200+i, fmt.Sprint(i))), append(stale, second[i].complete(500, ""))
				ops = append(ops, looks[i], twice[i], stale[i], done[i])
			}
			nowhere := attempt{one, oneOrg, "nowhere", uuid.New()}.look()
			if err := runTogether(t, pool, append(ops, nowhere)); err != nil {
				t.Fatal(err)
			}
			for i := range first {
				if !done[i].Settled() || !stale[i].Settled() && stale[i].Held {
					t.Errorf("completions: settled %t, by another token %t", done[i].Settled(), stale[i].Settled())
				}
				settle(t, pool, stale[i])
				if !done[i].Held || stale[i].Held {
					t.Errorf("completions: held %t, by another token %t", done[i].Held, stale[i].Held)
				}
				for _, l := range []*db.Look{looks[i], twice[i]} { // they come last, and see the completions
					if !l.Found || !l.Row.Completed || *l.Row.ResponseStatus != int32(200+i) || string(l.Row.ResponseBody) != fmt.Sprint(i) {
						t.Errorf("look %d: found %t, %+v", i, l.Found, l.Row)
					}
				}
			}
			if nowhere.Found {
				t.Error("found what is not there")
			}
		})
	}
}

// settle runs by itself what is not settled.
func settle(t *testing.T, pool *pgxpool.Pool, op db.KeyOp) {
	t.Helper()
	if op.Settled() {
		return
	}
	statements, err := op.Statements()
	if err == nil {
		err = db.Run(t.Context(), pool, statements...)
	}
	if err != nil || !op.Settled() {
		t.Fatalf("by itself: settled %t, %v", op.Settled(), err)
	}
}

// TestCompletionsMeetOthers: a transaction of many completions, one of whose records another
// changes after the transaction has seen it, and before it has it, completes all that it
// holds, and that alone.
func TestCompletionsMeetOthers(t *testing.T) {
	t.Parallel()
	pool := pgtest.NewPool(t)
	tenant, org := newSchema(t, pool)
	for what, does := range map[string]struct {
		sql           string
		held, awaited bool
	}{
		"extended":   {"UPDATE %s.idempotency_records SET lease_until = lease_until + interval '1 minute' WHERE key = $1", true, false},
		"awaited":    {"UPDATE %s.idempotency_records SET awaited = true WHERE key = $1", true, true},
		"taken over": {"UPDATE %s.idempotency_records SET token = gen_random_uuid(), attempt = 2 WHERE key = $1", false, false},
		"cleared":    {"DELETE FROM %s.idempotency_records WHERE key = $1", false, false},
		"cleared and claimed": {`WITH gone AS (DELETE FROM %[1]s.idempotency_records WHERE key = $1 RETURNING *)
			INSERT INTO %[1]s.idempotency_records SELECT created_at, expires_at, lease_until, NULL, gen_random_uuid(), org_id, 1, NULL, true, key || '-', request_hash FROM gone`, false, false},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			var claims, ops []db.KeyOp
			var completions []*db.Completion
			for i := range 10 {
				a := attempt{tenant, org, fmt.Sprint(what, i), uuid.New()}
				completions = append(completions, a.complete(200+i, "body"))
				claims, ops = append(claims, a.claim(time.Hour, false)), append(ops, completions[i])
			}
			if err := runTogether(t, pool, claims); err != nil {
				t.Fatal(err)
			}
			hold, err := pool.Begin(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = hold.Rollback(context.Background()) }()
			if _, err := hold.Exec(t.Context(), fmt.Sprintf(does.sql, tenant.Schema()), fmt.Sprint(what, 5)); err != nil {
				t.Fatal(err)
			}
			var pid uint32
			if err := hold.QueryRow(t.Context(), "SELECT pg_backend_pid()").Scan(&pid); err != nil {
				t.Fatal(err)
			}
			var wg sync.WaitGroup
			wg.Go(func() {
				if err := runTogether(t, pool, ops); err != nil {
					t.Error(err)
				}
			})
			waitForBlocked(t, pool, pid)
			if err := hold.Commit(t.Context()); err != nil {
				t.Fatal(err)
			}
			wg.Wait()
			for i, c := range completions {
				if i != 5 && !c.Settled() {
					t.Errorf("completion %d, which met nobody, is not settled", i)
				}
				if !c.Settled() && c.Held {
					t.Errorf("completion %d holds its token without being settled", i)
				}
				settle(t, pool, c)
				wantHeld := i != 5 || does.held
				if c.Held != wantHeld || c.Awaited != (i == 5 && does.awaited) {
					t.Errorf("completion %d: held %t, awaited %t", i, c.Held, c.Awaited)
				}
				l := attempt{tenant, org, fmt.Sprint(what, i), uuid.Nil}.look()
				if err := runTogether(t, pool, []db.KeyOp{l}); err != nil {
					t.Fatal(err)
				}
				if completed := l.Found && l.Row.Completed && *l.Row.ResponseStatus == int32(200+i); completed != wantHeld {
					t.Errorf("record %d: %+v", i, l.Row)
				}
			}
		})
	}
}

// waitForBlocked waits until another session waits for the one of the process.
func waitForBlocked(t *testing.T, pool *pgxpool.Pool, pid uint32) {
	t.Helper()
	for deadline, n := time.Now().Add(20*time.Second), 0; n == 0; {
		if err := pool.QueryRow(t.Context(), `SELECT count(*) FROM pg_stat_activity WHERE $1::integer = ANY (pg_blocking_pids(pid))`, pid).Scan(&n); err != nil {
			t.Fatal(err)
		}
		if time.Now().After(deadline) {
			t.Fatal("nobody waits")
		}
	}
}

// TestCompletionsTwice: the same completion twice in a transaction, as after an answer that
// was lost, is settled both times.
func TestCompletionsTwice(t *testing.T) {
	t.Parallel()
	pool := pgtest.NewPool(t)
	tenant, org := newSchema(t, pool)
	var claims, ops []db.KeyOp
	var completions []*db.Completion
	for i := range 8 {
		a := attempt{tenant, org, fmt.Sprint(i), uuid.New()}
		claims = append(claims, a.claim(time.Hour, false))
		for range 2 {
			c := a.complete(201, "body")
			completions, ops = append(completions, c), append(ops, c)
		}
	}
	for _, ops := range [][]db.KeyOp{claims, ops} {
		if err := runTogether(t, pool, ops); err != nil {
			t.Fatal(err)
		}
	}
	for i, c := range completions {
		if settle(t, pool, c); !c.Held {
			t.Errorf("completion %d is lost", i)
		}
	}
}

// TestTogetherOnOtherTerms: claims of one schema with different TTLs get each its own.
func TestTogetherOnOtherTerms(t *testing.T) {
	t.Parallel()
	pool := pgtest.NewPool(t)
	tenant, org := newSchema(t, pool)
	var ops []db.KeyOp
	for i := range 8 {
		ops = append(ops, attempt{tenant, org, fmt.Sprint(i), uuid.New()}.claim(time.Duration(i+1)*time.Hour, false))
	}
	if err := runTogether(t, pool, ops); err != nil {
		t.Fatal(err)
	}
	for i := range 8 {
		l := attempt{tenant, org, fmt.Sprint(i), uuid.Nil}.look()
		if err := runTogether(t, pool, []db.KeyOp{l}); err != nil {
			t.Fatal(err)
		}
		if ttl := l.Row.ExpiresAt.Sub(l.Row.CreatedAt); ttl != time.Duration(i+1)*time.Hour {
			t.Errorf("key %d expires after %v", i, ttl)
		}
	}
}

// TestTogetherFailsTogether: one statement that fails leaves nothing of the others.
func TestTogetherFailsTogether(t *testing.T) {
	t.Parallel()
	pool := pgtest.NewPool(t)
	tenant, org := newSchema(t, pool)
	var ops []db.KeyOp
	for i := range 8 {
		ops = append(ops, attempt{tenant, org, fmt.Sprint(i), uuid.New()}.claim(time.Hour, false))
	}
	strange := attempt{tenant, uuid.New(), "k", uuid.New()} // the schema is another tenant's
	err := runTogether(t, pool, append(ops, strange.claim(time.Hour, false)))
	var pgErr *pgconn.PgError
	if !errors.As(err, &pgErr) || pgErr.ConstraintName != "idempotency_records_tenant_check" {
		t.Errorf("%v; want the tenant's constraint", err)
	}
	l := attempt{tenant, org, "0", uuid.Nil}.look()
	if err := runTogether(t, pool, []db.KeyOp{l}); err != nil || l.Found {
		t.Errorf("found %t, %v", l.Found, err)
	}
}

// TestOneTokenForManyKeys: what came of each is told by its key as well.
func TestOneTokenForManyKeys(t *testing.T) {
	t.Parallel()
	pool := pgtest.NewPool(t)
	tenant, org := newSchema(t, pool)
	token := uuid.New()
	of := func(i int) attempt { return attempt{tenant, org, fmt.Sprint(i), token} }
	taken := of(0)
	taken.token = uuid.New()
	if err := runTogether(t, pool, []db.KeyOp{taken.claim(time.Hour, false)}); err != nil {
		t.Fatal(err)
	}
	var claims []*db.Claim
	var completions []*db.Completion
	var claiming, completing []db.KeyOp
	for i := range 6 {
		claims, completions = append(claims, of(i).claim(time.Hour, false)), append(completions, of(i).complete(200+i, ""))
		claiming, completing = append(claiming, claims[i]), append(completing, completions[i])
	}
	for _, ops := range [][]db.KeyOp{claiming, completing} {
		if err := runTogether(t, pool, ops); err != nil {
			t.Fatal(err)
		}
	}
	for i := range claims {
		held := completions[i].Settled() && completions[i].Held
		if claims[i].Claimed != (i != 0) || held != (i != 0) {
			t.Errorf("key %d: claimed %t, completed %t", i, claims[i].Claimed, held)
		}
	}
}

// TestManyKeysAreFoundByTheirIndex: also on connections that have met the table when it was
// so small that reading it whole, or all of its index, was as cheap.
func TestManyKeysAreFoundByTheirIndex(t *testing.T) {
	t.Parallel()
	for i := range 8 {
		rows, setting := i%2, [][2]string{{"plan_cache_mode", "auto"}, {"plan_cache_mode", "force_generic_plan"}, {"enable_nestloop", "off"}, {"enable_tidscan", "off"}}[i/2]
		t.Run(fmt.Sprint("from ", rows, " ", setting), func(t *testing.T) {
			t.Parallel()
			pool := pgtest.NewPool(t)
			tenant, org := newSchema(t, pool)
			config := pool.Config()
			config.MaxConns = 1
			config.ConnConfig.RuntimeParams[setting[0]] = setting[1]
			pool.Close()
			pool, err := pgxpool.NewWithConfig(t.Context(), config)
			if err != nil {
				t.Fatal(err)
			}
			defer pool.Close()
			for deadline, others := time.Now().Add(20*time.Second), 1; others > 0; { // they report what they did as they leave
				err := pool.QueryRow(t.Context(), "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()").Scan(&others)
				if err != nil || time.Now().After(deadline) {
					t.Fatalf("%d other connections, %v", others, err)
				}
			}
			table := tenant.Schema() + ".idempotency_records"
			fill := func(prefix string, n int) {
				_, err := pool.Exec(t.Context(), `INSERT INTO `+table+` (created_at, expires_at, lease_until, token, org_id, attempt, response_kept, key, request_hash)
					SELECT now(), now() + interval '1 hour', now(), gen_random_uuid(), $1, 1, true, $2::text || i, '\x00' FROM generate_series(1, $3::integer) AS i`, org, prefix, n)
				if err != nil {
					t.Fatal(err)
				}
			}
			// What the connection has done is known when it is known of a table that it has read
			// after that: from PostgreSQL 15 on at once if it is asked for, and before in a while.
			var asks bool
			if err := pool.QueryRow(t.Context(), "SELECT to_regproc('pg_catalog.pg_stat_force_next_flush') IS NOT NULL").Scan(&asks); err != nil {
				t.Fatal(err)
			}
			if _, err := pool.Exec(t.Context(), "CREATE TABLE public.afterwards ()"); err != nil {
				t.Fatal(err)
			}
			reads := 0
			read := func() (whole, entries int) {
				if _, err := pool.Exec(t.Context(), "SELECT count(*) FROM public.afterwards"); err != nil {
					t.Fatal(err)
				}
				reads++
				for deadline, known := time.Now().Add(20*time.Second), 0; known < reads; time.Sleep(time.Millisecond) {
					if asks {
						if _, err := pool.Exec(t.Context(), "SELECT pg_stat_force_next_flush()"); err != nil {
							t.Fatal(err)
						}
					}
					err := pool.QueryRow(t.Context(), "SELECT seq_scan FROM pg_stat_user_tables WHERE relid = 'public.afterwards'::regclass").Scan(&known)
					if err != nil && !errors.Is(err, pgx.ErrNoRows) || time.Now().After(deadline) {
						t.Fatalf("%d of %d, %v", known, reads, err)
					}
				}
				if err := pool.QueryRow(t.Context(), `SELECT t.seq_scan, i.idx_tup_read FROM pg_stat_user_tables AS t JOIN pg_stat_user_indexes AS i USING (relid)
					WHERE t.relid = $1::regclass`, table).Scan(&whole, &entries); err != nil {
					t.Fatal(err)
				}
				return whole, entries
			}
			const keys = 20
			round := func(n int) {
				var claims, completions, looks []db.KeyOp
				for i := range keys {
					a := attempt{tenant, org, fmt.Sprint(n, "-", i), uuid.New()}
					claims, completions, looks = append(claims, a.claim(time.Hour, false)), append(completions, a.complete(200, "")), append(looks, a.look())
				}
				for _, ops := range [][]db.KeyOp{claims, completions, looks} {
					if err := runTogether(t, pool, ops); err != nil {
						t.Fatal(err)
					}
				}
			}
			fill("old-", rows)
			if _, err := pool.Exec(t.Context(), "VACUUM ANALYZE "+table); err != nil {
				t.Fatal(err)
			}
			wholeBefore, _ := read()
			for n := range 12 { // past those with a plan of their own, were one kept
				round(n)
			}
			fill("new-", 50_000)
			_, before := read()
			round(100)
			whole, entries := read()
			if whole > wholeBefore || entries-before > 10*keys {
				t.Errorf("the table was read whole %d times; %d entries of its index were read for %d keys", whole-wholeBefore, entries-before, keys)
			}
		})
	}
}

// TestLockOrder: transactions that are about the same keys, given in different orders and to
// be claimed in different ways, wait for each other, but not in a circle.
func TestLockOrder(t *testing.T) {
	t.Parallel()
	pool := pgtest.NewPool(t)
	tenant, org := newSchema(t, pool)
	plain := func(key string) db.KeyOp { return attempt{tenant, org, key, uuid.New()}.claim(time.Hour, false) }
	recoverable := func(key string) db.KeyOp {
		return tenant.RecoverableClaim(db.ClaimInsertRecoverableParams{
			Ttl: time.Hour, Lease: time.Minute, Token: db.UUID(uuid.New()), OrgID: db.UUID(org), Key: key, RequestHash: []byte{0},
			Method: "POST", Target: []byte("/"), Host: []byte("h"), Pattern: "p",
		})
	}
	for i, second := range [][]func(string) db.KeyOp{{plain, plain}, {recoverable, plain}, {plain, recoverable}} {
		a, m, z := fmt.Sprint(i, "a"), fmt.Sprint(i, "m"), fmt.Sprint(i, "z")
		hold, err := pool.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = hold.Rollback(context.Background()) }()
		if _, err := hold.Exec(t.Context(), `INSERT INTO `+tenant.Schema()+`.idempotency_records (created_at, expires_at, lease_until, token, org_id, attempt, response_kept, key, request_hash)
			VALUES (now(), now() + interval '1 hour', now() + interval '1 minute', gen_random_uuid(), $1, 1, true, $2, '\x00')`, org, m); err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		wg.Go(func() { // has a, and waits for m
			if err := runTogether(t, pool, []db.KeyOp{plain(z), plain(m), plain(a)}); err != nil {
				t.Errorf("the first: %v", err)
			}
		})
		waitForLocks(t, pool, 1)
		wg.Go(func() { // waits for a, without z
			if err := runTogether(t, pool, []db.KeyOp{second[0](a), second[1](z)}); err != nil {
				t.Errorf("the second: %v", err)
			}
		})
		waitForLocks(t, pool, 2)
		if err := hold.Rollback(t.Context()); err != nil {
			t.Fatal(err)
		}
		wg.Wait()
	}
}

// TestLockOrderOfCompletions: the same for completions.
func TestLockOrderOfCompletions(t *testing.T) {
	t.Parallel()
	pool := pgtest.NewPool(t)
	tenant, org := newSchema(t, pool)
	attempts := make(map[string]attempt)
	var claims []db.KeyOp
	for _, key := range []string{"a", "b", "c", "m", "x", "y", "z"} {
		attempts[key] = attempt{tenant, org, key, uuid.New()}
		claims = append(claims, attempts[key].claim(time.Hour, false))
	}
	if err := runTogether(t, pool, claims); err != nil {
		t.Fatal(err)
	}
	complete := func(what string, keys ...string) {
		var ops []db.KeyOp
		for _, key := range keys {
			ops = append(ops, attempts[key].complete(201, "body"))
		}
		if err := runTogether(t, pool, ops); err != nil {
			t.Errorf("%s: %v", what, err)
		}
		for i, op := range ops {
			if settle(t, pool, op); !op.(*db.Completion).Held {
				t.Errorf("%s: %s is lost", what, keys[i])
			}
		}
	}
	hold, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = hold.Rollback(context.Background()) }()
	if _, err := hold.Exec(t.Context(), "SELECT FROM "+tenant.Schema()+".idempotency_records WHERE key = 'm' FOR UPDATE"); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() { complete("the first", "z", "y", "x", "m", "a") }) // has a, and waits for m
	waitForLocks(t, pool, 1)
	wg.Go(func() { complete("the second", "c", "b", "a", "y", "z") }) // waits for a, without y and z
	waitForLocks(t, pool, 2)
	if err := hold.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	wg.Wait()
}

// waitForLocks waits until as many sessions wait for locks.
func waitForLocks(t *testing.T, pool *pgxpool.Pool, want int) {
	t.Helper()
	for deadline, n := time.Now().Add(20*time.Second), 0; n < want; {
		if err := pool.QueryRow(t.Context(), `SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'`).Scan(&n); err != nil {
			t.Fatal(err)
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d sessions wait for locks, want %d", n, want)
		}
	}
}
