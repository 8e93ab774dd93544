package bench_test

import (
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"testing"

	"github.com/google/uuid"

	"github.com/pgidem/pgidem/idempotency"
)

// implementation is something that serves payments: add yours to implementations.
type implementation struct {
	// server is what calls the handler. What it takes by itself is measured by its own "bare".
	server string
	name   string
	// new returns a function that sends the service one request, with the key unless that is
	// empty, and returns the status. The response has a body of the size. The function is
	// used by one goroutine at a time, and should not allocate by itself.
	new func(b *testing.B, size int) func(key string) (status int)
}

// String is the implementation's part of a benchmark's name.
func (i implementation) String() string { return "/server=" + i.server + "/impl=" + i.name }

// implementations are what the benchmarks compare. Each is measured by the bare one of its server.
var implementations = []implementation{
	{"nethttp", "bare", newHTTP(func(h http.Handler) http.Handler { return h })},
	{"nethttp", "memory", newMemory},
	{"fasthttp", "bare", newFiber(false)},
	{"fasthttp", "fiber", newFiber(true)},
}

// newHTTP is a service of net/http's behind middleware.
func newHTTP(protect func(http.Handler) http.Handler) func(*testing.B, int) func(string) int {
	return func(_ *testing.B, size int) func(string) int {
		h, c := protect(handlerOf(size)), newCaller(uuid.New())
		return func(key string) int { return c.call(h, key) }
	}
}

// rounds is how many requests a store in memory serves before it is emptied, or another takes its
// place, so that what is measured is the work, and not the page faults of a heap that only
// grows: nothing expires while a benchmark runs, and responses of 64 KiB would be gigabytes
// soon. Shared by so many requests it costs each of them next to nothing, whatever the size of
// its response.
const rounds = 4096

// newMemory is a service of net/http's behind the middleware, whose store is new again and again.
func newMemory(_ *testing.B, size int) func(string) int {
	handler, c := handlerOf(size), newCaller(uuid.New())
	protect := func() http.Handler { return require(idempotency.NewMemoryStore(), handler) }
	h, served := protect(), 0
	return func(key string) int {
		if key != "" {
			if served++; served%rounds == 0 {
				h = protect()
			}
		}
		return c.call(h, key)
	}
}

const requestBody = `{"amount":1200,"currency":"EUR","to":"account-42"}`

// responses are bodies by their size.
var responses = map[int]string{
	small: `{"id":12345}`,
	large: strings.Repeat(`{"id":12345,"amount":1200,"currency":"EUR"},`, large/44+1)[:large],
}

const small, large = 12, 64 << 10

// handlerOf answers a payment with a body of the size.
func handlerOf(size int) http.Handler {
	body := []byte(responses[size])
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusCreated)
		w.Write(body)
	})
}

// writer is a ResponseWriter that keeps nothing, for use again and again.
type writer struct {
	header http.Header
	status int
}

func (w *writer) Header() http.Header         { return w.header }
func (w *writer) WriteHeader(status int)      { w.status = status }
func (w *writer) Write(p []byte) (int, error) { return len(p), nil }

// caller makes requests of a handler one after the other.
type caller struct {
	w    *writer
	r    *http.Request
	body *strings.Reader
	key  [1]string
}

func newCaller(org uuid.UUID) *caller {
	body := strings.NewReader(requestBody)
	r := &http.Request{
		Method: http.MethodPost, URL: &url.URL{Path: "/v1/payments"},
		Header: http.Header{}, Body: io.NopCloser(body), ContentLength: int64(len(requestBody)),
	}
	return &caller{
		w: &writer{header: http.Header{}}, body: body,
		r: r.WithContext(idempotency.WithOrgID(r.Context(), org)),
	}
}

func (c *caller) call(h http.Handler, key string) int {
	c.body.Reset(requestBody)
	clear(c.w.header)
	if c.key[0] = key; key != "" {
		c.r.Header[idempotency.HeaderKey] = c.key[:]
	}
	c.w.status = http.StatusOK
	h.ServeHTTP(c.w, c.r)
	return c.w.status
}

func require(store idempotency.Store, h http.Handler) http.Handler {
	return idempotency.Require(store, idempotency.WithLogger(slog.New(slog.DiscardHandler)))(h)
}

// keys hands out keys that differ, without allocating: they are pieces of one random text,
// of a length that grows when the text is used up.
type keys struct {
	text  string
	next  int
	bytes int
}

func newKeys() *keys { return &keys{text: randomText(), bytes: 24} }

var randomText = sync.OnceValue(func() string {
	random := rand.New(rand.NewPCG(rand.Uint64(), rand.Uint64()))
	text := make([]byte, 8<<20)
	for i := range text {
		const letters = "0123456789abcdefghijklmnopqrstuv"
		text[i] = letters[random.IntN(len(letters))]
	}
	return string(text)
})

func (k *keys) new() string {
	if k.next++; k.next+k.bytes > len(k.text) {
		k.next, k.bytes = 0, k.bytes+1
	}
	return k.text[k.next : k.next+k.bytes]
}
