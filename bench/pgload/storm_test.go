package main

import (
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/pgidem/pgidem/idempotency"
)

// TestStorm: each key goes out three times, and once more for each refusal, out of order, to
// whichever client asks.
func TestStorm(t *testing.T) {
	t.Parallel()
	const clients, each = 8, 3000
	s := newStorm("k-", clients)
	var (
		mu    sync.Mutex
		order []*operation
		again = make(map[*operation]int)
		wg    sync.WaitGroup
	)
	for range clients {
		wg.Go(func() {
			for n := range each {
				op := s.next()
				mu.Lock()
				order = append(order, op)
				if n%5 == 0 {
					again[op]++
					mu.Unlock()
					s.refused(op)
					continue
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	sent := make(map[*operation]int)
	for _, op := range order {
		sent[op]++
	}
	keys := make(map[string]bool)
	short := 0
	for op, n := range sent {
		keys[op.key] = true
		if n > triesOfKey+again[op] {
			t.Errorf("key %s: %d tries, %d of them refused", op.key, n, again[op])
		}
		if n < triesOfKey+again[op] {
			short++
		}
	}
	if len(keys) != len(sent) {
		t.Errorf("%d keys of %d operations", len(keys), len(sent))
	}
	if short > 2*s.window {
		t.Errorf("%d of %d keys were sent less often, more than wait at any time", short, len(sent))
	}
	inOrder := slices.IsSortedFunc(order, func(a, b *operation) int { return strings.Compare(a.key, b.key) })
	neighbours := 0
	for i := range order[1:] {
		if order[i] == order[i+1] {
			neighbours++
		}
	}
	if inOrder || neighbours > len(order)/4 {
		t.Errorf("tries of a key go out one after the other, %d times of %d", neighbours, len(order))
	}
}

// TestStormSeesTwoRuns: a handler that runs twice for a key is not taken for speed.
func TestStormSeesTwoRuns(t *testing.T) {
	t.Parallel()
	s := newStorm("k-", 1)
	op := s.next()
	for i, try := range []struct{ replayed, bad bool }{{true, false}, {false, false}, {true, false}, {false, true}} {
		if err := s.answered(op, try.replayed); (err != nil) != try.bad {
			t.Errorf("try %d: %v", i, err)
		}
	}
}

// TestClient: the client tells a refusal that a storm must repeat from any other response of the
// middleware's.
func TestClient(t *testing.T) {
	t.Parallel()
	entered, released := make(chan struct{}, 1), make(chan struct{})
	release := sync.OnceFunc(func() { close(released) })
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/slow":
			entered <- struct{}{}
			<-released
		case "/chunks":
			w.WriteHeader(http.StatusAccepted)
			for range 3 {
				fmt.Fprint(w, "some")
				http.NewResponseController(w).Flush()
			}
			return
		case "/conflict":
			w.WriteHeader(http.StatusConflict)
			io.WriteString(w, `{"code":"account_closed"}`)
			return
		}
		w.WriteHeader(http.StatusCreated)
		io.WriteString(w, smallBody)
	})
	quiet := idempotency.WithLogger(slog.New(slog.DiscardHandler))
	server := httptest.NewServer(authenticate(idempotency.Require(idempotency.NewMemoryStore(), quiet)(handler)))
	defer server.Close()
	defer release()
	var c, other client
	for _, c := range []*client{&c, &other} {
		if err := c.dial(t.Context(), server.Listener.Addr().String()); err != nil {
			t.Fatal(err)
		}
		defer c.close()
		if err := c.conn.SetDeadline(time.Now().Add(time.Minute)); err != nil {
			t.Fatal(err)
		}
	}
	org := uuid.New()
	check := func(c *client, path, key string, want response) {
		t.Helper()
		if got, err := c.do(path, org, key); got != want || err != nil {
			t.Errorf("%s %s: %+v, %v, want %+v", path, key, got, err, want)
		}
	}
	check(&c, "/", "a", response{status: 201})
	check(&c, "/", "a", response{status: 201, replayed: true})
	check(&c, "/other", "a", response{status: 422})
	check(&c, "/chunks", "b", response{status: 202})
	check(&c, "/conflict", "c", response{status: 409})

	var wg sync.WaitGroup
	wg.Go(func() { check(&other, "/slow", "d", response{status: 201}) })
	select {
	case <-entered:
	case <-time.After(time.Minute):
		t.Fatal("the handler was not called")
	}
	check(&c, "/slow", "d", response{status: 409, inFlight: true})
	release()
	wg.Wait()
	check(&c, "/slow", "d", response{status: 201, replayed: true})
}
