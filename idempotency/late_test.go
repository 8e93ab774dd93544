package idempotency_test

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"testing"

	"github.com/pgidem/pgidem/idempotency"
)

// TestNothingIsShared: what a handler keeps of its request and of its response, and changes
// after it has returned, and what outer middleware does to the response that was sent, is no
// part of what is stored; nor is anything that is kept used for another request.
func TestNothingIsShared(t *testing.T) {
	t.Parallel()
	const size = 50 << 10
	for name, store := range stores() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var keptBody io.Reader
			var keptHeader http.Header
			var keptWriter http.ResponseWriter
			written := bytes.Repeat([]byte("w"), size)
			h := idempotency.Require(store)(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				keptBody, keptHeader, keptWriter = r.Body, w.Header(), w
				w.Header()["X-Made"] = []string{"by", "handler"}
				w.WriteHeader(http.StatusCreated)
				w.Header()["X-Made"][0] = "changed after WriteHeader"
				w.Write(written)
			}))
			body := string(bytes.Repeat([]byte("r"), size))
			want := []string{"by", "handler"}
			send := func(key, body string) {
				w := httptest.NewRecorder()
				h.ServeHTTP(w, request(t, key, body))
				if !slices.Equal(w.Header()["X-Made"], want) || w.Code != http.StatusCreated ||
					!bytes.Equal(w.Body.Bytes(), bytes.Repeat([]byte("w"), size)) || w.Header().Get("Content-Length") != "51200" {
					t.Errorf("%s: %d %q, %d bytes", key, w.Code, w.Header(), w.Body.Len())
				}
				for _, values := range w.Header() { // as outer middleware may
					values[0] = "changed outside"
				}
			}
			send("k", body)
			clear(written)
			keptHeader["X-Made"][1] = "changed after the end"
			keptHeader["X-Late"] = []string{"late"}
			if _, err := keptWriter.Write([]byte("late")); err == nil {
				t.Error("written after the end")
			}
			unread := keptBody
			send("k", body)
			send("k", body)
			for _, values := range keptHeader {
				clear(values)
			}
			copy(written, bytes.Repeat([]byte("w"), size))
			send("another", "something else")
			if got, err := io.ReadAll(unread); !errors.Is(err, http.ErrBodyReadAfterClose) || len(got) > 0 {
				t.Errorf("the first request's body is now %.20q of %d bytes, %v", got, len(got), err)
			}
			send("k", body)
		})
	}
}
