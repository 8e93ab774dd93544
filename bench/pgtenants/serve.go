package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"

	"github.com/pgidem/pgidem/idempotency"
	"github.com/pgidem/pgidem/idempotency/pgstore"
)

const (
	wayEnv   = "PGTENANTS_WAY"
	urlEnv   = "PGTENANTS_URL"
	connsEnv = "PGTENANTS_CONNS"
)

// order tells the process of a way what to do.
type order struct {
	Tenants, Callers int
	Zipf             bool
	Each             bool // one request for each tenant, and no more
	Duration         time.Duration
}

// result is what it saw.
type result struct {
	Rate     float64 // pairs of claim and completion a second
	P50, P99 time.Duration
	Resident int64 // bytes of memory
	Err      string
}

// serve is the process of one way: it reads orders and answers with results.
func serve(text string) error {
	ctx := context.Background()
	conns, _ := strconv.Atoi(os.Getenv(connsEnv))
	w, err := parseWay(text, conns)
	if err != nil {
		return err
	}
	store, closeAll, err := w.open(ctx, os.Getenv(urlEnv), "pgtenants "+text)
	if err != nil {
		return err
	}
	defer closeAll()
	lines := bufio.NewScanner(os.Stdin)
	answers := json.NewEncoder(os.Stdout)
	for lines.Scan() {
		var o order
		if err := json.Unmarshal(lines.Bytes(), &o); err != nil {
			return err
		}
		res := o.do(ctx, store)
		if res.Resident, err = resident(os.Getpid(), "VmRSS"); err != nil {
			return err
		}
		if err := answers.Encode(res); err != nil {
			return err
		}
	}
	return lines.Err()
}

// do makes requests.
func (o order) do(ctx context.Context, store *pgstore.Store) (res result) {
	pick := func(r *rand.Rand) int { return r.IntN(o.Tenants) }
	if o.Zipf {
		pick = zipf(o.Tenants)
	}
	var next atomic.Int64
	var mu sync.Mutex
	var latencies []time.Duration
	var wg sync.WaitGroup
	began := time.Now()
	for range o.Callers {
		wg.Go(func() {
			random := rand.New(rand.NewPCG(rand.Uint64(), rand.Uint64()))
			var own []time.Duration
			var failed error
			for failed == nil && (o.Each || time.Since(began) < o.Duration) {
				n := pick(random)
				if o.Each {
					if n = int(next.Add(1) - 1); n >= o.Tenants {
						break
					}
				}
				from := time.Now()
				org := orgOf(n)
				failed = pair(ctx, store, org)
				own = append(own, time.Since(from))
			}
			mu.Lock()
			defer mu.Unlock()
			latencies = append(latencies, own...)
			if failed != nil {
				res.Err = failed.Error()
			}
		})
	}
	wg.Wait()
	res.Rate = float64(len(latencies)) / time.Since(began).Seconds()
	slices.Sort(latencies)
	if n := len(latencies); n > 0 {
		res.P50, res.P99 = latencies[n/2], latencies[n*99/100]
	}
	return res
}

// pair claims a new key and completes it.
func pair(ctx context.Context, store *pgstore.Store, org uuid.UUID) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	req := idempotency.ClaimRequest{
		Claim:       idempotency.Claim{OrgID: org, Key: uuid.NewString(), Token: idempotency.NewToken()},
		RequestHash: hash, Lease: 30 * time.Second, TTL: 24 * time.Hour,
	}
	got, err := store.Claim(ctx, req)
	if err != nil {
		return err
	}
	if got.Outcome != idempotency.OutcomeClaimed {
		return fmt.Errorf("a new key came to outcome %d", got.Outcome)
	}
	return store.Complete(ctx, req.Claim, &idempotency.Record{
		ResponseStatus: 201, ResponseBody: []byte(`{"id":12345}`),
		ResponseHeaders: map[string][]string{"Content-Type": {"application/json"}},
	})
}

const hash = "v1:000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f"

// orgOf returns the n-th tenant, the same in each run.
func orgOf(n int) uuid.UUID { return uuid.NewSHA1(uuid.NameSpaceOID, []byte(strconv.Itoa(n))) }

// zipf returns a function that picks the n-th of so many with a probability in proportion
// to 1/n.
func zipf(tenants int) func(*rand.Rand) int {
	up := make([]float64, tenants)
	sum := 0.0
	for i := range up {
		sum += 1 / float64(i+1)
		up[i] = sum
	}
	return func(r *rand.Rand) int {
		i, _ := slices.BinarySearch(up, r.Float64()*sum)
		return min(i, tenants-1)
	}
}

// resident reads a figure of a process's memory from /proc.
func resident(pid int, name string) (int64, error) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, fmt.Errorf("memory is read from Linux's /proc: %w", err)
	}
	for line := range strings.Lines(string(status)) {
		if rest, ok := strings.CutPrefix(line, name+":"); ok {
			kb, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 10, 64)
			return kb << 10, err
		}
	}
	return math.MaxInt64, fmt.Errorf("/proc/%d/status has no %s", pid, name)
}
