package idempotency_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"github.com/pgidem/pgidem/idempotency"
)

// announced is a body of a client that says how long it is.
func announced(t *testing.T, key, body string, length int64) *http.Request {
	t.Helper()
	r := request(t, key, "")
	r.Body, r.ContentLength = io.NopCloser(strings.NewReader(body)), length
	return r
}

// TestFingerprintWhileReading compares requests whose bodies are hashed as they come with
// those that are hashed when they are here: a retry may come the other way.
func TestFingerprintWhileReading(t *testing.T) {
	t.Parallel()
	const unknown = -1
	for _, size := range []int{0, 1, 4095, 4096, 4097, 64 << 10, 64<<10 + 1, 300_000} {
		h := idempotency.Require(idempotency.NewMemoryStore())(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			n, err := io.Copy(io.Discard, r.Body)
			if err != nil {
				t.Error(err)
			}
			fmt.Fprint(w, n)
		}))
		body := strings.Repeat("x", size)
		for i, c := range []struct {
			body   string
			length int64
			status int
		}{
			{body, int64(size), http.StatusOK},
			{body, unknown, http.StatusOK},
			{body, int64(size) + 5000, http.StatusOK}, // not by net/http, but by a body put in its place
			{body, int64(size), http.StatusOK},
			{body + "x", int64(size) + 1, http.StatusUnprocessableEntity},
			{body + "x", unknown, http.StatusUnprocessableEntity},
			{body + "x", int64(size), http.StatusUnprocessableEntity},
		} {
			w := httptest.NewRecorder()
			h.ServeHTTP(w, announced(t, "key", c.body, c.length))
			if w.Code != c.status {
				t.Errorf("%d bytes, request %d: status %d, want %d", size, i, w.Code, c.status)
			}
			if replayed := w.Header().Get("Idempotency-Replayed") != ""; c.status == http.StatusOK && replayed != (i > 0) {
				t.Errorf("%d bytes, request %d: replayed %t", size, i, replayed)
			}
		}
	}
}

// TestBodyEndsWithItsHandler has goroutines that handlers leave behind read on, while the
// buffers of the bodies serve other requests: nobody sees another's bytes.
func TestBodyEndsWithItsHandler(t *testing.T) {
	t.Parallel()
	var left sync.WaitGroup
	returned := make(chan struct{})
	h := idempotency.Require(idempotency.NewMemoryStore())(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		own := r.Header.Get(idempotency.HeaderKey)[:1]
		seen := func(p []byte) {
			if n := strings.Count(string(p), own); n != len(p) {
				t.Errorf("a body of %q has %d bytes of another: %.20q", own, len(p)-n, p)
			}
		}
		first := make([]byte, 10)
		if _, err := io.ReadFull(r.Body, first); err != nil {
			t.Error(err)
		}
		seen(first)
		started := make(chan struct{})
		left.Go(func() {
			if own < "m" { // in the middle of a Write when the handler returns
				io.Copy(writerFunc(func(p []byte) (int, error) {
					seen(p)
					close(started)
					<-returned
					seen(p)
					return len(p), nil
				}), r.Body)
				return
			}
			close(started)
			<-returned
			_, err := r.Body.Read(first)
			if !errors.Is(err, http.ErrBodyReadAfterClose) {
				t.Errorf("read after the handler: %v, want %v", err, http.ErrBodyReadAfterClose)
			}
			if _, err := io.Copy(io.Discard, r.Body); !errors.Is(err, http.ErrBodyReadAfterClose) {
				t.Errorf("copied after the handler: %v, want %v", err, http.ErrBodyReadAfterClose)
			}
		})
		<-started
		w.WriteHeader(http.StatusNoContent)
	}))
	for i := range 500 {
		own := string(rune('a' + i%26))
		body := strings.Repeat(own, 100+i)
		h.ServeHTTP(httptest.NewRecorder(), announced(t, own+fmt.Sprint(i), body, int64(len(body))))
	}
	close(returned)
	left.Wait()
}

type writerFunc func(p []byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

// TestResponsesInPieces has handlers write their responses in pieces, in buffers that they
// share one after the other, some flushed on the way, too long to be kept, or broken off by a
// panic: what is sent and what is replayed is each one's own.
func TestResponsesInPieces(t *testing.T) {
	t.Parallel()
	const callers, requests = 8, 60
	h := idempotency.Require(idempotency.NewMemoryStore(), idempotency.WithMaxResponseBytes(200_000))(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		size := 0
		fmt.Sscan(r.URL.Query().Get("size"), &size)
		query := r.URL.Query()
		piece := bytes.Repeat([]byte(r.Header.Get(idempotency.HeaderKey)[:1]), size/7+1)
		for n := range 7 {
			if _, err := w.Write(piece); err != nil {
				t.Error(err)
			}
			if n == 3 && query.Has("flush") {
				w.(http.Flusher).Flush()
			}
			if n == 5 && query.Has("panic") {
				panic(http.ErrAbortHandler)
			}
		}
		clear(piece) // the handler's own
	}))
	serve := func(own, key, query string) *httptest.ResponseRecorder {
		w := httptest.NewRecorder()
		r := announced(t, own+key, "{}", 2)
		r.URL.RawQuery = query
		defer func() {
			if err, _ := recover().(error); err != nil && !errors.Is(err, http.ErrAbortHandler) {
				t.Error(err)
			}
		}()
		h.ServeHTTP(w, r)
		return w
	}
	send := func(own string, i int) (body string, replayed bool) {
		size := (i * i * 97) % 190_000
		serve(own, fmt.Sprint("panic", i), fmt.Sprintf("size=%d&panic", size))
		if w := serve(own, fmt.Sprint("long", i), "size=300000"); w.Code == http.StatusOK && strings.Trim(w.Body.String(), own) != "" {
			t.Errorf("%s%d: a long response has bytes of another", own, i)
		}
		query := fmt.Sprintf("size=%d", size)
		if i%3 == 0 {
			query += "&flush"
		}
		w := serve(own, fmt.Sprint(i), query)
		return w.Body.String(), w.Header().Get("Idempotency-Replayed") != ""
	}
	var all sync.WaitGroup
	for c := range callers {
		own := string(rune('a' + c))
		all.Go(func() {
			first := make([]string, requests)
			for i := range requests {
				first[i], _ = send(own, i)
				if n := strings.Count(first[i], own); n != len(first[i]) || n == 0 {
					t.Errorf("%s%d: %d bytes, %d of them its own", own, i, len(first[i]), n)
				}
			}
			for i := range requests {
				if body, replayed := send(own, i); !replayed || body != first[i] {
					t.Errorf("%s%d: replayed %t, %d bytes for %d", own, i, replayed, len(body), len(first[i]))
				}
			}
		})
	}
	all.Wait()
}

// keepingWriter is a ResponseWriter that keeps what it is given, against the contract of
// [io.Writer].
type keepingWriter struct {
	header http.Header
	kept   *[][]byte
}

func (w keepingWriter) Header() http.Header         { return w.header }
func (w keepingWriter) WriteHeader(int)             {}
func (w keepingWriter) Write(p []byte) (int, error) { *w.kept = append(*w.kept, p); return len(p), nil }
func (w keepingWriter) Flush()                      {}

// TestWritersThatKeepWhatTheyAreGiven see no other's bytes for that, neither one that a handler
// copies its request to, nor one around the middleware that gets a response before its end.
func TestWritersThatKeepWhatTheyAreGiven(t *testing.T) {
	t.Parallel()
	kept := make(map[string]*[][]byte)
	h := idempotency.Require(idempotency.NewMemoryStore())(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		own := r.Header.Get(idempotency.HeaderKey)
		if _, err := io.Copy(keepingWriter{kept: kept[own]}, r.Body); err != nil {
			t.Error(err)
		}
		for range 6 {
			io.WriteString(w, strings.Repeat(own[:1], 500))
		}
		w.(http.Flusher).Flush()
		io.WriteString(w, strings.Repeat(own[:1], 5000))
	}))
	for i := range 300 {
		own := string(rune('a'+i%26)) + fmt.Sprint(i)
		kept[own] = new([][]byte)
		body := strings.Repeat(own[:1], 1000+i)
		h.ServeHTTP(keepingWriter{http.Header{}, kept[own]}, announced(t, own, body, int64(len(body))))
	}
	for own, pieces := range kept {
		all := bytes.Join(*pieces, nil)
		if n := bytes.Count(all, []byte(own[:1])); n != len(all) || n < 9000 {
			t.Errorf("%s: %d bytes, %d of them its own", own, len(all), n)
		}
	}
}
