package idempotencytest

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/pgidem/pgidem/idempotency"
)

// identity asks for a response without an encoding of Go's transport's own making.
func identity(key string) call {
	return call{key: key, header: http.Header{"Accept-Encoding": {"gzip"}}}
}

func unzip(t *testing.T, body string) string {
	t.Helper()
	r, err := gzip.NewReader(strings.NewReader(body))
	if err != nil {
		t.Fatalf("%d bytes that are not gzip: %v", len(body), err)
	}
	plain, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return string(plain)
}

// testGzipInside: a handler that compresses is replayed as it compressed.
func testGzipInside(t *testing.T, f *fixture) {
	s := f.serve(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Encoding", "gzip")
		w.Header().Set("Content-Type", "text/plain")
		zip := gzip.NewWriter(w)
		fmt.Fprint(zip, strings.Repeat("compressible ", 300))
		zip.Close()
	})
	first, again := s.do(t, identity("k")), s.do(t, identity("k"))
	if first.body != again.body || again.Header.Get("Content-Encoding") != "gzip" || !again.replayed() {
		t.Errorf("first %d bytes, then %d, %v", len(first.body), len(again.body), again.Header)
	}
	if got := unzip(t, again.body); got != strings.Repeat("compressible ", 300) {
		t.Errorf("%d bytes unzipped", len(got))
	}
}

// gzipWriter is outer middleware that announces its encoding beforehand and takes no
// care of a Content-Length.
type gzipWriter struct {
	http.ResponseWriter
	zip *gzip.Writer
}

func (w gzipWriter) Write(p []byte) (int, error) { return w.zip.Write(p) }

// testGzipOutside: what is stored is what the handler wrote; outer middleware
// compresses each response anew.
func testGzipOutside(t *testing.T, f *fixture) {
	require := idempotency.Require(f.store)
	inner := require(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/plain")
		fmt.Fprint(w, strings.Repeat("compressible ", 300))
	}))
	s := f.serveRaw(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !strings.Contains(r.Header.Get("Accept-Encoding"), "gzip") {
			inner.ServeHTTP(w, r)
			return
		}
		w.Header().Set("Content-Encoding", "gzip")
		w.Header().Set("Vary", "Accept-Encoding")
		zip := gzip.NewWriter(w)
		defer zip.Close()
		inner.ServeHTTP(gzipWriter{w, zip}, r)
	}))
	for i := range 2 {
		a := s.do(t, identity("k"))
		if got := unzip(t, a.body); got != strings.Repeat("compressible ", 300) || a.replayed() != (i == 1) {
			t.Errorf("answer %d: %d bytes unzipped, %v", i, len(got), a.Header)
		}
		if got := fmt.Sprint(a.Header["Content-Encoding"], a.Header["Vary"]); got != "[gzip] [Accept-Encoding]" {
			t.Errorf("answer %d: %s", i, got)
		}
	}
	refused := s.do(t, identity(`"malformed`)) // an answer of the middleware's own has no other length either
	if got := unzip(t, refused.body); refused.StatusCode != http.StatusBadRequest || !strings.Contains(got, `"key_invalid"`) {
		t.Errorf("problem %d %s", refused.StatusCode, got)
	}
	plain := call{key: "k", header: http.Header{"Accept-Encoding": {"identity"}}}
	s.do(t, plain).want(t, http.StatusOK, strings.Repeat("compressible ", 300)) // the record is not compressed
}

// testDeclaredLength: a handler that declares a length and writes no body, as if it
// answered HEAD, or another than it writes, does not break the connection.
func testDeclaredLength(t *testing.T, f *fixture) {
	s := f.serve(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", "1000")
		w.Header().Set("X-Set", "yes")
		io.WriteString(w, strings.TrimPrefix(r.URL.Path, "/"))
	})
	for _, body := range []string{"", "short"} {
		for i := range 2 {
			a := s.do(t, call{key: "k" + body, path: "/" + body})
			a.want(t, http.StatusOK, body)
			if a.ContentLength != int64(len(body)) || a.Header.Get("X-Set") != "yes" || a.replayed() != (i == 1) {
				t.Errorf("answer %d: length %d, %v", i, a.ContentLength, a.Header)
			}
		}
	}
}

// testResponseController: what the recorder has no part in reaches the server's own
// writer, and what it has a part in does not get past it.
func testResponseController(t *testing.T, f *fixture) {
	s := f.serve(t, func(w http.ResponseWriter, r *http.Request) {
		c := http.NewResponseController(w)
		if err := errors.Join(c.SetReadDeadline(time.Now().Add(time.Minute)), c.SetWriteDeadline(time.Now().Add(time.Minute))); err != nil {
			t.Errorf("deadlines: %v", err)
		}
		io.WriteString(w, "one ")
		if err := c.Flush(); err != nil {
			t.Errorf("Flush: %v", err)
		}
		io.WriteString(w, "two")
	})
	s.do(t, call{key: "k"}).want(t, http.StatusOK, "one two")
	eventually(t, "the record", func() bool { return s.do(t, call{key: "k"}).replayed() })
	s.do(t, call{key: "k"}).want(t, http.StatusOK, "one two")
	s.wantRuns(t, 1)
}

// readerFrom is a ResponseWriter with a ReadFrom, as net/http's HTTP/1.1 writer.
type readerFrom struct {
	http.ResponseWriter
	used *bool
}

func (w readerFrom) ReadFrom(r io.Reader) (int64, error) {
	*w.used = true
	return io.Copy(struct{ io.Writer }{w.ResponseWriter}, r)
}

// testReaderFromIsNotReached: no copy gets past the recorder to the writer below.
func testReaderFromIsNotReached(t *testing.T, f *fixture) {
	used := false
	inner := idempotency.Require(f.store)(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(http.StatusCreated)
		if n, err := io.Copy(w, bytes.NewReader([]byte("copied"))); n != 6 || err != nil {
			t.Errorf("Copy = %d, %v", n, err)
		}
		if n, err := io.CopyN(w, strings.NewReader(" and more"), 4); n != 4 || err != nil {
			t.Errorf("CopyN = %d, %v", n, err)
		}
	}))
	s := f.serveRaw(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		inner.ServeHTTP(readerFrom{w, &used}, r)
	}))
	for range 2 {
		s.do(t, call{key: "k"}).want(t, http.StatusCreated, "copied and")
	}
	if used {
		t.Error("the writer below was reached by ReadFrom")
	}
}

// testGoneBeforeTheHandler: see testClientLeavesDuringClaim; here the request is
// cancelled before anything was asked, as by outer middleware's timeout.
func testGoneBeforeTheHandler(t *testing.T, f *fixture) {
	inner := idempotency.Require(f.store)(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		t.Error("the handler ran for nobody")
	}))
	s := f.serveRaw(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithCancel(r.Context())
		cancel()
		inner.ServeHTTP(w, r.WithContext(ctx))
	}))
	s.do(t, call{key: "k"}).wantProblem(t, http.StatusServiceUnavailable, "no_outcome")
	again := f.serve(t, create())
	again.do(t, call{key: "k"}).want(t, http.StatusCreated, `{"id":1}`)
}
