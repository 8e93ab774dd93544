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

// do sends one request and reads its response to the end. It returns the status and
// whether the response was a replay.
func (c *client) do(path string, org uuid.UUID, key string) (status int, replayed bool, err error) {
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
		return 0, false, err
	}
	return c.read()
}

func (c *client) read() (status int, replayed bool, err error) {
	line, err := c.reader.ReadSlice('\n')
	if err != nil {
		return 0, false, err
	}
	if len(line) < len("HTTP/1.1 200") {
		return 0, false, fmt.Errorf("status line %q", line)
	}
	if status, err = strconv.Atoi(string(line[9:12])); err != nil {
		return 0, false, fmt.Errorf("status line %q", line)
	}
	length := -1
	for {
		line, err := c.reader.ReadSlice('\n')
		if err != nil {
			return 0, false, err
		}
		line = bytes.TrimRight(line, "\r\n")
		if len(line) == 0 {
			break
		}
		name, value, _ := bytes.Cut(line, []byte(": "))
		switch string(name) {
		case "Content-Length":
			if length, err = strconv.Atoi(string(value)); err != nil {
				return 0, false, err
			}
		case "Idempotency-Replayed":
			replayed = true
		}
	}
	if length < 0 {
		return c.readChunks(status, replayed)
	}
	_, err = c.reader.Discard(length)
	return status, replayed, err
}

// readChunks reads a response without a Content-Length.
func (c *client) readChunks(status int, replayed bool) (int, bool, error) {
	for {
		line, err := c.reader.ReadSlice('\n')
		if err != nil {
			return 0, false, err
		}
		n, err := strconv.ParseInt(string(bytes.TrimRight(line, "\r\n")), 16, 64)
		if err != nil {
			return 0, false, err
		}
		if _, err := io.CopyN(io.Discard, c.reader, n+2); err != nil {
			return 0, false, err
		}
		if n == 0 {
			return status, replayed, nil
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
		all     [][]time.Duration
		first   atomic.Int64 // responses that were not replays
		mu      sync.Mutex
		wg      sync.WaitGroup
	)
	run := uuid.NewString()[:8]
	started := time.Now()
	for n := range cmp.Or(w.clients, b.clients) {
		wg.Go(func() {
			latencies, err := b.loadOne(ctx, w, path, started, fmt.Sprintf("%s-%d-", run, n), &first)
			if err != nil {
				failure.CompareAndSwap(nil, &err)
			}
			mu.Lock()
			defer mu.Unlock()
			all = append(all, latencies)
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
	var latencies []time.Duration
	for _, l := range all {
		latencies = append(latencies, l...)
	}
	res := before.to(after, len(latencies))
	res.rate = float64(len(latencies)) / took.Seconds()
	res.handlers = float64(first.Load()) / float64(max(len(latencies), 1))
	res.p50, res.p99 = quantiles(latencies)
	return res, nil
}

// loadOne is one client. Its answers must be what the work is about: a first request
// that is a replay, or a replay that is not, ends the measurement.
func (b *bench) loadOne(ctx context.Context, w work, path string, started time.Time, prefix string, first *atomic.Int64) (latencies []time.Duration, err error) {
	var c client
	if err := c.dial(ctx, b.address); err != nil {
		return nil, err
	}
	defer c.close()
	random := rand.New(rand.NewPCG(rand.Uint64(), rand.Uint64()))
	storm := newStorm(random, prefix)
	for i := 0; time.Since(started) < b.duration && ctx.Err() == nil; i++ {
		var org uuid.UUID
		if w.tenants > 0 {
			org = b.orgs[random.IntN(w.tenants)]
		}
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
			key = storm.next()
		}
		asked := time.Now()
		status, replayed, err := c.do(path, org, key)
		latencies = append(latencies, time.Since(asked))
		switch wantReplay := w.keys == manyKeys || w.keys == oneKey; {
		case err != nil:
			return latencies, err
		case status != 201:
			return latencies, fmt.Errorf("status %d", status)
		case w.keys != threeOf && replayed != wantReplay:
			return latencies, fmt.Errorf("key %q: replayed %t", key, replayed)
		}
		if !replayed {
			first.Add(1)
		}
	}
	return latencies, ctx.Err()
}

// storm hands out each key three times, out of order.
type storm struct {
	random  *rand.Rand
	prefix  string
	made    int
	pending []string
}

func newStorm(random *rand.Rand, prefix string) *storm { return &storm{random: random, prefix: prefix} }

func (s *storm) next() string {
	const window = 48 // tries in waiting, of 16 keys
	for len(s.pending) < window {
		s.made++
		key := s.prefix + strconv.Itoa(s.made)
		s.pending = append(s.pending, key, key, key)
	}
	i, last := s.random.IntN(len(s.pending)), len(s.pending)-1
	key := s.pending[i]
	s.pending[i] = s.pending[last]
	s.pending = s.pending[:last]
	return key
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
				_, _, err = c.do(path, b.orgs[0], prefilledKey(w, n))
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
