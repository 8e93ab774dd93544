package faults_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgidem/pgidem/chaos/faults/skew"
	"github.com/pgidem/pgidem/idempotency"
	"github.com/pgidem/pgidem/internal/pgtest"
	"github.com/pgidem/pgidem/internal/storetest"
)

// By how many seconds clocks are wrong here.
const (
	ahead  = "25200"
	behind = "-25200"
)

// clocks is a tenant that is served by processes whose clocks are wrong.
type clocks struct {
	pool       *pgxpool.Pool
	org        uuid.UUID
	schema     string
	program    string
	fast, slow *process
	client     *http.Client
}

// process is one of them.
type process struct {
	url  string
	kill func()
}

func newClocks(t *testing.T) *clocks {
	t.Helper()
	c := &clocks{pool: pgtest.NewPool(t), program: filepath.Join(t.TempDir(), "clockservice"), client: &http.Client{Timeout: 2 * patience}}
	t.Cleanup(c.client.CloseIdleConnections)
	c.org = storetest.NewTenant(t, c.pool)
	c.schema = storetest.SchemaOf(t, c.org).Quoted()
	c.exec(t, `CREATE TABLE `+c.schema+`.payments (id bigserial, key text NOT NULL)`)
	began := time.Now()
	if err := skew.Build(t.Context(), ".", "./clockservice", t.TempDir(), c.program); err != nil {
		t.Fatal(err)
	}
	t.Logf("built with another package time in %s", time.Since(began).Round(100*time.Millisecond))
	c.fast, c.slow = c.start(t, ahead), c.start(t, behind)
	return c
}

func (c *clocks) exec(t *testing.T, sql string, args ...any) {
	t.Helper()
	if _, err := c.pool.Exec(t.Context(), sql, args...); err != nil {
		t.Fatal(err)
	}
}

// start starts a process whose clock is wrong by that many seconds.
func (c *clocks) start(t *testing.T, wrong string) *process {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), c.program)
	cmd.Env = append(os.Environ(), skew.Variable+"="+wrong, "ORG_ID="+c.org.String(), "DATABASE_URL="+c.pool.Config().ConnString())
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe() // whose end ends the process
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p := &process{kill: sync.OnceFunc(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		_ = in.Close()
	})}
	t.Cleanup(p.kill)
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatalf("the service did not start: %v", err)
	}
	p.url = strings.TrimSpace(line)
	c.wantClock(t, p, wrong)
	return p
}

// wantClock proves that a process's clock is wrong by that many seconds.
func (c *clocks) wantClock(t *testing.T, p *process, wrong string) {
	t.Helper()
	a := c.do(t, p, http.MethodGet, "/clock", "")
	now, err := strconv.ParseInt(a.body, 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	want, err := strconv.ParseInt(wrong, 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	if off := now - time.Now().Unix(); off < want-300 || off > want+300 {
		t.Fatalf("its clock is wrong by %d seconds, and should be by %s", off, wrong)
	}
}

func (c *clocks) do(t *testing.T, p *process, method, path, key string) answer {
	t.Helper()
	r, err := http.NewRequestWithContext(context.Background(), method, p.url+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	if key != "" {
		r.Header.Set(idempotency.HeaderKey, key)
	}
	resp, err := c.client.Do(r)
	if err != nil {
		t.Errorf("%s %s: %v", method, path, err)
		return answer{}
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Error(err)
	}
	return answer{
		status: resp.StatusCode, body: strings.TrimSpace(string(body)),
		replayed: resp.Header.Get(idempotency.DefaultReplayHeader) == "true", retryAfter: resp.Header.Get("Retry-After"),
	}
}

func (c *clocks) post(t *testing.T, p *process, path, key string) answer {
	t.Helper()
	return c.do(t, p, http.MethodPost, path, key)
}

// both calls a test for each process with the other one.
func (c *clocks) both(t *testing.T, test func(t *testing.T, one, other *process)) {
	t.Run("ahead first", func(t *testing.T) { test(t, c.fast, c.slow) })
	t.Run("behind first", func(t *testing.T) { test(t, c.slow, c.fast) })
}

func (c *clocks) scan(t *testing.T, sql, key string, to ...any) {
	t.Helper()
	if err := c.pool.QueryRow(t.Context(), strings.ReplaceAll(sql, "tenant.", c.schema+"."), key).Scan(to...); err != nil {
		t.Fatal(err)
	}
}

func (c *clocks) wantPayments(t *testing.T, key string, want int) {
	t.Helper()
	var got int
	c.scan(t, `SELECT count(*) FROM tenant.payments AS p WHERE p.key = $1`, key, &got)
	if got != want {
		t.Errorf("%d payments for %s, want %d", got, key, want)
	}
}

// begin sends a request that the service holds, and returns when it is in progress.
func (c *clocks) begin(t *testing.T, p *process, key string) <-chan answer {
	t.Helper()
	done := make(chan answer, 1)
	go func() { done <- c.post(t, p, "/hold", key) }()
	eventually(t, "the request to be in progress", func() bool {
		var n int
		c.scan(t, `SELECT count(*) FROM tenant.idempotency_records AS r WHERE r.key = $1`, key, &n)
		return n == 1
	})
	return done
}

// wantRefused checks that a request is told to come again soon.
func wantRefused(t *testing.T, a answer) {
	t.Helper()
	after, err := strconv.Atoi(a.retryAfter)
	if a.status != http.StatusConflict || err != nil || after < 1 || after > 60 {
		t.Fatalf("%s, Retry-After %q; want 409 and a few seconds", a, a.retryAfter)
	}
}

// TestClocksHoursApart: two processes whose clocks are 14 hours apart serve one tenant as
// if they were right.
func TestClocksHoursApart(t *testing.T) {
	// Not in parallel: compiling takes the whole machine.
	c := newClocks(t)
	t.Run("once", func(t *testing.T) { c.once(t) })
	t.Run("lease held", func(t *testing.T) { c.both(t, c.leaseHeld) })
	t.Run("lease held while the clock is set", func(t *testing.T) { c.clockSet(t) })
	t.Run("lease lapses", func(t *testing.T) { c.leaseLapses(t) })
	t.Run("waiting", func(t *testing.T) { c.both(t, c.waiting) })
	t.Run("steps", func(t *testing.T) { c.both(t, c.steps) })
	t.Run("expiry", func(t *testing.T) { c.expiry(t) })
	t.Run("janitor", func(t *testing.T) { c.janitor(t) })
}

// once: each key is paid once, whichever process its duplicates come to.
func (c *clocks) once(t *testing.T) {
	for _, path := range []string{"/pay", "/tx"} {
		for n := range 50 {
			key := fmt.Sprint("once", path, n)
			var wg sync.WaitGroup
			for _, p := range []*process{c.fast, c.slow, c.fast, c.slow} {
				wg.Go(func() {
					if a := c.post(t, p, path, key); a.status != http.StatusCreated && a.status != http.StatusConflict {
						t.Errorf("%s: %s", key, a)
					}
				})
			}
			wg.Wait()
			one, other := c.post(t, c.fast, path, key), c.post(t, c.slow, path, key)
			if !one.replayed || one != other {
				t.Errorf("%s: %s and %s", key, one, other)
			}
			c.wantPayments(t, key, 1)
		}
	}
	// And every record was written by the database's clock.
	var wrong int
	c.scan(t, `SELECT count(*) FROM tenant.idempotency_records AS r
		WHERE starts_with(r.key, $1) AND (r.created_at NOT BETWEEN now() - interval '10 minutes' AND now()
			OR r.completed_at NOT BETWEEN now() - interval '10 minutes' AND now()
			OR r.expires_at - r.created_at <> interval '1 hour')`, "once", &wrong)
	if wrong != 0 {
		t.Errorf("%d records with times of a wrong clock", wrong)
	}
}

// refusedForLeases asks the other process again and again until the database's clock has gone on
// by several leases, and is refused each time.
func (c *clocks) refusedForLeases(t *testing.T, other *process, key string) {
	t.Helper()
	eventually(t, "several leases to have passed", func() bool {
		wantRefused(t, c.post(t, other, "/hold", key))
		var passed bool
		c.scan(t, `SELECT now() > r.created_at + interval '3 seconds' FROM tenant.idempotency_records AS r WHERE r.key = $1`, key, &passed)
		return passed
	})
}

// leaseHeld: the lease of a request that runs lapses for nobody.
func (c *clocks) leaseHeld(t *testing.T, one, other *process) {
	key := t.Name()
	done := c.begin(t, one, key)
	c.refusedForLeases(t, other, key)
	c.do(t, one, http.MethodPut, "/go", "")
	if a := <-done; a.status != http.StatusCreated || a.replayed || !strings.HasSuffix(a.body, "by attempt 1") {
		t.Errorf("the first: %s", a)
	}
	if a := c.post(t, other, "/hold", key); !a.replayed {
		t.Errorf("the retry: %s", a)
	}
	c.wantPayments(t, key, 1)
}

// clockSet: a clock that is set by 14 hours, and back, changes nothing for what runs.
func (c *clocks) clockSet(t *testing.T) {
	key := t.Name()
	p := c.start(t, ahead)
	done := c.begin(t, p, key)
	for _, wrong := range []string{behind, ahead} {
		if a := c.do(t, p, http.MethodPut, "/clock?skew="+wrong, ""); a.status != http.StatusOK {
			t.Fatal(a)
		}
		c.wantClock(t, p, wrong)
		wantRefused(t, c.post(t, c.slow, "/hold", key))
	}
	c.refusedForLeases(t, c.slow, key)
	c.do(t, p, http.MethodPut, "/go", "")
	if a := <-done; a.status != http.StatusCreated || !strings.HasSuffix(a.body, "by attempt 1") {
		t.Errorf("the first: %s", a)
	}
	c.wantPayments(t, key, 1)
}

// leaseLapses: the lease of a process that died lapses by the database's clock, neither
// early nor hours late.
func (c *clocks) leaseLapses(t *testing.T) {
	for name, wrong := range map[string]string{"of one ahead": ahead, "of one behind": behind} {
		t.Run(name, func(t *testing.T) {
			key := t.Name()
			victim := c.start(t, wrong)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			r, err := http.NewRequestWithContext(ctx, http.MethodPost, victim.url+"/hold", nil)
			if err != nil {
				t.Fatal(err)
			}
			r.Header.Set(idempotency.HeaderKey, key)
			gone := make(chan struct{})
			go func() {
				defer close(gone)
				if resp, err := c.client.Do(r); err == nil {
					resp.Body.Close()
				}
			}()
			eventually(t, "the request to be in progress", func() bool {
				var n int
				c.scan(t, `SELECT count(*) FROM tenant.idempotency_records AS r WHERE r.key = $1`, key, &n)
				return n == 1
			})
			victim.kill()
			<-gone
			var lapses time.Time
			c.scan(t, `SELECT r.lease_until FROM tenant.idempotency_records AS r WHERE r.key = $1`, key, &lapses)
			heir := c.slow
			if wrong == behind {
				heir = c.fast
			}
			c.do(t, heir, http.MethodPut, "/go", "")
			refused := 0
			eventually(t, "the lease to lapse", func() bool {
				a := c.post(t, heir, "/hold", key)
				if a.status == http.StatusCreated {
					return true
				}
				wantRefused(t, a)
				refused++
				return false
			})
			var taken time.Time
			var attempt int
			c.scan(t, `SELECT r.created_at, r.attempt FROM tenant.idempotency_records AS r WHERE r.key = $1`, key, &taken, &attempt)
			if taken.Before(lapses) || attempt != 2 {
				t.Errorf("attempt %d took over at %s, and the lease lapsed at %s", attempt, taken, lapses)
			}
			c.wantPayments(t, key, 1)
			t.Logf("taken over %s after the lease lapsed, %d refused before", taken.Sub(lapses), refused)
		})
	}
}

// waiting: a request that waits in one process is woken by the other.
func (c *clocks) waiting(t *testing.T, one, other *process) {
	key := t.Name()
	done := c.begin(t, one, key)
	waited := make(chan answer, 1)
	go func() { waited <- c.post(t, other, "/wait", key) }()
	eventually(t, "the other to wait", func() bool {
		var awaited bool
		c.scan(t, `SELECT r.awaited FROM tenant.idempotency_records AS r WHERE r.key = $1`, key, &awaited)
		return awaited
	})
	c.do(t, one, http.MethodPut, "/go", "")
	first, second := <-done, <-waited
	if first.status != http.StatusCreated || !second.replayed || first.body != second.body {
		t.Errorf("%s and %s", first, second)
	}
	c.wantPayments(t, key, 1)
}

// steps: what one process did elsewhere, the other knows.
func (c *clocks) steps(t *testing.T, one, other *process) {
	key := t.Name()
	first := c.post(t, one, "/step", key)
	second := c.post(t, other, "/step", key)
	if first.status != http.StatusInternalServerError || second.status != http.StatusCreated || !strings.HasSuffix(second.body, first.body) {
		t.Errorf("%s and %s", first, second)
	}
	c.wantPayments(t, key, 1)
}

// expiry: a record lives as long as it should, by the database's clock.
func (c *clocks) expiry(t *testing.T) {
	key := t.Name()
	first := c.post(t, c.fast, "/pay", key)
	storetest.Advance(t, c.pool, c.org, 58*time.Minute)
	for _, p := range []*process{c.fast, c.slow} {
		if a := c.post(t, p, "/pay", key); !a.replayed || a.body != first.body {
			t.Errorf("two minutes before it expires: %s", a)
		}
	}
	storetest.Advance(t, c.pool, c.org, 3*time.Minute)
	if a := c.post(t, c.slow, "/pay", key); a.status != http.StatusCreated || a.replayed || !strings.HasSuffix(a.body, "by attempt 1") {
		t.Errorf("a minute after it expired: %s", a)
	}
	c.wantPayments(t, key, 2)
}

// janitor: one whose clock is wrong deletes what has expired and nothing else.
func (c *clocks) janitor(t *testing.T) {
	program := filepath.Join(t.TempDir(), "idem-janitor")

	if err := skew.Build(t.Context(), "../..", "./cmd/idem-janitor", t.TempDir(), program); err != nil {
		t.Fatal(err)
	}
	c.exec(t, `DELETE FROM `+c.schema+`.idempotency_records`)
	run := t.Name()
	old := c.post(t, c.fast, "/pay", run+" old")
	storetest.Advance(t, c.pool, c.org, 2*time.Hour) // it has expired
	kept := c.post(t, c.slow, "/pay", run+" kept")
	held := c.begin(t, c.fast, run+" held")
	for _, wrong := range []string{ahead, behind} {
		cmd := exec.CommandContext(t.Context(), program)
		cmd.Env = append(os.Environ(), skew.Variable+"="+wrong, "DATABASE_URL="+c.pool.Config().ConnString())
		if output, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, output)
		}
	}
	var keys []string
	c.scan(t, `SELECT array_agg(r.key ORDER BY r.key) FROM tenant.idempotency_records AS r WHERE $1 <> ''`, run, &keys)
	if want := []string{run + " held", run + " kept"}; fmt.Sprint(keys) != fmt.Sprint(want) {
		t.Errorf("there are %q, want %q", keys, want)
	}
	c.do(t, c.fast, http.MethodPut, "/go", "")
	if a := <-held; a.status != http.StatusCreated {
		t.Errorf("what was in progress: %s", a)
	}
	if a := c.post(t, c.fast, "/pay", run+" kept"); !a.replayed || a.body != kept.body {
		t.Errorf("what was kept: %s", a)
	}
	if a := c.post(t, c.slow, "/pay", run+" old"); a.replayed || a.body == old.body {
		t.Errorf("what had expired: %s", a)
	}
}
