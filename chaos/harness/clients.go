package harness

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/pgidem/pgidem/chaos/history"
	"github.com/pgidem/pgidem/chaos/service"
	"github.com/pgidem/pgidem/idempotency"
)

const (
	// tryTimeout is how long a client waits for an answer; then it asks elsewhere.
	tryTimeout = 2 * time.Second
	// mostPatience bounds what a client makes of Retry-After, and of its own pauses.
	mostPatience = 60 * time.Millisecond
)

// clients pay.
type clients struct {
	http   *http.Client
	log    *history.Log
	system *System

	mu   sync.Mutex
	away []visitor
}

func newClients(system *System, log *history.Log) *clients {
	return &clients{system: system, log: log, http: &http.Client{
		Timeout: tryTimeout,
		Transport: &http.Transport{
			// A connection for each try: else the transport would send a request with a
			// key again by itself, and there would be tries that the history does not have.
			DisableKeepAlives: true,
			DialContext:       (&net.Dialer{Timeout: tryTimeout}).DialContext,
		},
	}}
}

// payment is what a client wants.
type payment struct {
	org    uuid.UUID
	key    string
	amount int

	leaves   bool // the client goes away without an answer
	returned bool // it had gone away, and comes back
}

// pay makes one payment after the other until more is false, each to its end, or until
// ctx ends.
func (c *clients) pay(ctx context.Context, client int, random *rand.Rand, more func() bool) {
	for n := 1; more() && ctx.Err() == nil; n++ {
		p := payment{
			org:    c.system.tenants[random.IntN(len(c.system.tenants))],
			key:    fmt.Sprintf("c%d-%d", client, n),
			amount: 1 + random.IntN(1000),
		}
		if random.Float64() < c.system.scenario.Leaves {
			c.leave(ctx, client*10, random, p)
			continue
		}
		var hands sync.WaitGroup
		for hand := range 1 + random.IntN(c.system.scenario.Duplicates) {
			own := rand.New(rand.NewPCG(random.Uint64(), uint64(hand)))
			hands.Go(func() { c.persist(ctx, client*10+hand, own, p) })
		}
		hands.Wait()
	}
}

// persist tries until there is an answer, and at times once more.
func (c *clients) persist(ctx context.Context, client int, random *rand.Rand, p payment) {
	for n := 1; ctx.Err() == nil; n++ {
		if c.try(ctx, fmt.Sprintf("%s/%d/%d", p.key, client, n), client, random, p) {
			if random.IntN(3) == 0 {
				c.try(ctx, fmt.Sprintf("%s/%d/again", p.key, client), client, random, p)
			}
			return
		}
		wait(ctx.Done(), mostPatience/4+rand.N(mostPatience))
	}
}

// try sends the request once, to any process, and reports whether it was answered for good.
func (c *clients) try(ctx context.Context, id string, client int, random *rand.Rand, p payment) (done bool) {
	endpoint := random.IntN(len(c.system.slots))
	line := history.Request{
		ID: id, Client: client, Org: p.org.String(), Key: p.key, Endpoint: endpoint, Amount: p.amount,
		Call: history.Now(), Returned: p.returned,
	}
	status, header, body, err := c.send(ctx, c.system.slots[endpoint].address, id, p)
	line.Return = history.Now()
	if err != nil {
		line.Err = err.Error()
		if line.Left = p.leaves; p.leaves {
			line.Kept = c.sawKept(ctx, p, err)
		}
		c.log.Write(line)
		return false
	}
	line.Status, line.Body = status, string(body)
	line.Replayed = header.Get(idempotency.DefaultReplayHeader) == "true"
	if header.Get("Content-Type") == "application/problem+json" {
		var problem idempotency.Problem
		if json.Unmarshal(body, &problem) == nil {
			line.Code, line.Body = problem.Code, ""
		}
	}
	switch status {
	case http.StatusConflict, http.StatusInternalServerError, http.StatusServiceUnavailable:
		line.Left = p.leaves
	default:
		done = true
	}
	c.log.Write(line)
	if !done {
		return false
	}
	c.system.answered.Add(1)
	return true
}

func (c *clients) send(ctx context.Context, address, id string, p payment) (status int, header http.Header, body []byte, err error) {
	want, err := json.Marshal(map[string]int{"amount": p.amount})
	if err != nil {
		return 0, nil, nil, err
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+address+"/payments", bytes.NewReader(want))
	if err != nil {
		return 0, nil, nil, err
	}
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set(idempotency.HeaderKey, p.key)
	r.Header.Set(service.OrgHeader, p.org.String())
	r.Header.Set(service.RequestHeader, id)
	resp, err := c.http.Do(r)
	if err != nil {
		return 0, nil, nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	body, err = io.ReadAll(resp.Body)
	return resp.StatusCode, resp.Header, body, err
}
