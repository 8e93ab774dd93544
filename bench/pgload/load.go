package main

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
)

const requestBody = `{"amount":1200,"currency":"EUR","to":"account-42"}`

// prefilled is how many keys a work of replays has.
const prefilled = 10_000

// client is one keep-alive connection. It writes and reads just what the service needs,
// so that the load takes little of the machine that it shares.
type client struct {
	conn   net.Conn
	reader *bufio.Reader
	buffer []byte
}

func (c *client) dial(ctx context.Context, address string) error {
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", address)
	if err != nil {
		return err
	}
	c.conn, c.reader = conn, bufio.NewReaderSize(conn, 128<<10)
	return nil
}

func (c *client) close() { _ = c.conn.Close() }

// response is what a client makes of one.
type response struct {
	status   int
	replayed bool
	inFlight bool // refused, because another try of the key is under way
}

// do sends one request and reads its response to the end.
func (c *client) do(path string, org uuid.UUID, key string) (response, error) {
	b := append(append(c.buffer[:0], "POST "...), path...)
	b = append(b, " HTTP/1.1\r\nHost: pgload\r\nContent-Type: application/json\r\n"...)
	if org != uuid.Nil {
		b = append(b, orgHeader+": "...)
		b = append(b, org.String()...)
		b = append(b, "\r\n"...)
	}
	if key != "" {
		b = append(b, "Idempotency-Key: "...)
		b = append(b, key...)
		b = append(b, "\r\n"...)
	}
	b = append(b, "Content-Length: "...)
	b = strconv.AppendInt(b, int64(len(requestBody)), 10)
	b = append(b, "\r\n\r\n"+requestBody...)
	c.buffer = b
	if _, err := c.conn.Write(b); err != nil {
		return response{}, err
	}
	return c.read()
}

func (c *client) read() (r response, err error) {
	line, err := c.reader.ReadSlice('\n')
	if err != nil {
		return r, err
	}
	if len(line) < len("HTTP/1.1 200") {
		return r, fmt.Errorf("status line %q", line)
	}
	if r.status, err = strconv.Atoi(string(line[9:12])); err != nil {
		return r, fmt.Errorf("status line %q", line)
	}
	length := -1
	for {
		line, err := c.reader.ReadSlice('\n')
		if err != nil {
			return r, err
		}
		line = bytes.TrimRight(line, "\r\n")
		if len(line) == 0 {
			break
		}
		name, value, _ := bytes.Cut(line, []byte(": "))
		switch string(name) {
		case "Content-Length":
			if length, err = strconv.Atoi(string(value)); err != nil {
				return r, err
			}
		case "Idempotency-Replayed":
			r.replayed = true
		}
	}
	switch {
	case length < 0:
		return r, c.skipChunks()
	case r.status == http.StatusConflict:
		body := make([]byte, length)
		_, err = io.ReadFull(c.reader, body)
		r.inFlight = bytes.Contains(body, []byte(`"code":"in_flight"`))
	default:
		_, err = c.reader.Discard(length)
	}
	return r, err
}

// skipChunks reads the body of a response without a Content-Length.
func (c *client) skipChunks() error {
	for {
		line, err := c.reader.ReadSlice('\n')
		if err != nil {
			return err
		}
		n, err := strconv.ParseInt(string(bytes.TrimRight(line, "\r\n")), 16, 64)
		if err != nil {
			return err
		}
		if _, err := io.CopyN(io.Discard, c.reader, n+2); err != nil {
			return err
		}
		if n == 0 {
			return nil
		}
	}
}

// load runs the clients of a work for the duration.
func load(ctx context.Context, b *bench, w work) (result, error) {
	path := "/" + w.mode + "/small"
	if w.large {
		path = "/" + w.mode + "/large"
	}
	if err := b.prefill(ctx, w, path); err != nil {
		return result{}, err
	}
	before, err := b.look(ctx)
	if err != nil {
		return result{}, err
	}
	var (
		failure atomic.Pointer[error]
		all     tally
		mu      sync.Mutex
		wg      sync.WaitGroup
	)
	run, clients := uuid.NewString()[:8], cmp.Or(w.clients, b.clients)
	tries := newStorm(run+"-", clients)
	started := time.Now()
	for n := range clients {
		wg.Go(func() {
			seen, err := b.loadOne(ctx, w, path, started, fmt.Sprintf("%s-%d-", run, n), tries)
			if err != nil {
				failure.CompareAndSwap(nil, &err)
			}
			mu.Lock()
			defer mu.Unlock()
			all.add(seen)
		})
	}
	wg.Wait()
	took := time.Since(started)
	if err := failure.Load(); err != nil {
		return result{}, fmt.Errorf("%s: %w", w.name, *err)
	}
	after, err := b.look(ctx)
	if err != nil {
		return result{}, err
	}
	// What a refusal costs is part of what the requests do that are served.
	served := len(all.latencies) - all.refused
	res := before.to(after, served)
	res.rate = float64(served) / took.Seconds()
	res.handlers = float64(all.ran) / float64(max(served, 1))
	res.refused = float64(all.refused) / float64(max(served, 1))
	res.p50, res.p99 = quantiles(all.latencies)
	return res, nil
}

// tally is what clients have seen.
type tally struct {
	latencies []time.Duration // of all responses
	ran       int             // responses that were the handler's own
	refused   int             // responses that said that another try of the key is in flight
}

func (t *tally) add(o tally) {
	t.latencies = append(t.latencies, o.latencies...)
	t.ran += o.ran
	t.refused += o.refused
}

// loadOne is one client. Its answers must be what the work is about: a first request
// that is a replay, or a replay that is not, ends the measurement.
func (b *bench) loadOne(ctx context.Context, w work, path string, started time.Time, prefix string, tries *storm) (seen tally, err error) {
	var c client
	if err := c.dial(ctx, b.address); err != nil {
		return seen, err
	}
	defer c.close()
	random := rand.New(rand.NewPCG(rand.Uint64(), rand.Uint64()))
	for i := 0; time.Since(started) < b.duration && ctx.Err() == nil; i++ {
		var org uuid.UUID
		if w.tenants > 0 {
			org = b.orgs[random.IntN(w.tenants)]
		}
		var op *operation
		key := ""
		switch w.keys {
		case noKey:
		case newKey:
			key = prefix + strconv.Itoa(i)
		case manyKeys:
			key = prefilledKey(w, random.IntN(prefilled))
		case oneKey:
			key = prefilledKey(w, 0)
		case threeOf:
			op = tries.next()
			key = op.key
		}
		asked := time.Now()
		resp, err := c.do(path, org, key)
		if err != nil {
			return seen, err
		}
		seen.latencies = append(seen.latencies, time.Since(asked))
		wantReplay := w.keys == manyKeys || w.keys == oneKey
		switch {
		case op != nil && resp.inFlight:
			tries.refused(op)
			seen.refused++
			continue
		case resp.status != http.StatusCreated:
			return seen, fmt.Errorf("key %q: status %d", key, resp.status)
		case op != nil:
			if err := tries.answered(op, resp.replayed); err != nil {
				return seen, err
			}
		case resp.replayed != wantReplay:
			return seen, fmt.Errorf("key %q: replayed %t", key, resp.replayed)
		}
		if !resp.replayed {
			seen.ran++
		}
	}
	return seen, ctx.Err()
}

func prefilledKey(w work, n int) string {
	size := "-small-"
	if w.large {
		size = "-large-"
	}
	return w.mode + size + strconv.Itoa(n) // a key belongs to the path that it was sent to
}

// prefill makes the records that a work replays.
func (b *bench) prefill(ctx context.Context, w work, path string) error {
	if w.keys != manyKeys && w.keys != oneKey || b.filled[path] {
		return nil
	}
	b.filled[path] = true
	var failure atomic.Pointer[error]
	var next atomic.Int64
	var wg sync.WaitGroup
	for range b.clients {
		wg.Go(func() {
			var c client
			err := c.dial(ctx, b.address)
			if err == nil {
				defer c.close()
			}
			for n := int(next.Add(1)) - 1; n < prefilled && err == nil; n = int(next.Add(1)) - 1 {
				_, err = c.do(path, b.orgs[0], prefilledKey(w, n))
			}
			if err != nil {
				failure.CompareAndSwap(nil, &err)
			}
		})
	}
	wg.Wait()
	if err := failure.Load(); err != nil {
		return fmt.Errorf("%s: prefill: %w", w.name, *err)
	}
	return nil
}
