package ginidem

import (
	"bufio"
	"context"
	"errors"
	"maps"
	"net"
	"net/http"

	"github.com/gin-gonic/gin"
)

// front is what the middleware writes to: gin's writer, which keeps a status back until
// there is a body, made to write it at the end, as net/http does.
type front struct {
	gin.ResponseWriter
	used      bool        // the middleware has written
	bare      bool        // a final status, and perhaps no body
	withdrawn http.Header // not nil: the answer will come from outside
}

// Unwrap is for [http.ResponseController].
func (f *front) Unwrap() http.ResponseWriter { return f.ResponseWriter }

// withdraw leaves the answer to middleware outside, which finds the headers that
// the handler set.
func (f *front) withdraw(header http.Header) {
	set := header.Clone() // header may be the very map that is cleared
	outer := f.ResponseWriter.Header()
	clear(outer)
	maps.Copy(outer, set)
	f.withdrawn = make(http.Header)
}

// Header implements [http.ResponseWriter].
func (f *front) Header() http.Header {
	if f.withdrawn != nil {
		return f.withdrawn
	}
	return f.ResponseWriter.Header()
}

// WriteHeader implements [http.ResponseWriter].
func (f *front) WriteHeader(status int) {
	f.used = true
	f.ResponseWriter.WriteHeader(status)
	f.bare = f.bare || f.withdrawn == nil && (status >= 200 || status == http.StatusSwitchingProtocols)
}

// finish writes the header of an answer without a body, which gin would take for none.
// Not before its time: gin middleware outside may want to see the first byte first.
func (f *front) finish() {
	if f.bare && f.withdrawn == nil {
		f.WriteHeaderNow()
	}
}

// Write implements [http.ResponseWriter].
func (f *front) Write(p []byte) (int, error) {
	f.used = true
	if f.withdrawn != nil {
		return len(p), nil
	}
	return f.ResponseWriter.Write(p)
}

// WriteString implements [io.StringWriter].
func (f *front) WriteString(s string) (int, error) {
	f.used = true
	if f.withdrawn != nil {
		return len(s), nil
	}
	return f.ResponseWriter.WriteString(s)
}

// Flush implements [http.Flusher].
func (f *front) Flush() {
	f.used = true
	if f.withdrawn == nil {
		f.ResponseWriter.Flush()
	}
}

// Hijack implements [http.Hijacker].
func (f *front) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	f.used = true
	return f.ResponseWriter.Hijack()
}

var errHijackAfterBody = errors.New("ginidem: hijack: part of the body has been written")

const nothingWritten = -1 // what gin says for the size then

// writer is gin's writer, as gin's handlers expect it, over the one that the
// middleware passed on.
type writer struct {
	http.ResponseWriter
	request *http.Request
	initial int  // the status that it began with
	status  int  // the status that is or will be written
	set     bool // the handler has chosen the status
	size    int

	gone chan bool // of CloseNotify
	stop func() bool
}

var _ gin.ResponseWriter = (*writer)(nil)

func newWriter(w http.ResponseWriter, r *http.Request, status int) *writer {
	return &writer{ResponseWriter: w, request: r, initial: status, status: status, size: nothingWritten}
}

// close ends what CloseNotify began.
func (w *writer) close() {
	if w.stop != nil {
		w.stop()
	}
}

// Unwrap is for [http.ResponseController].
func (w *writer) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// Status returns the status that is or will be written.
func (w *writer) Status() int { return w.status }

// Size returns how many bytes of the body were written, and -1 before the header is.
func (w *writer) Size() int { return w.size }

// Written reports whether the header has been written.
func (w *writer) Written() bool { return w.size != nothingWritten }

// WriteHeader chooses the status. As with gin, it may be chosen anew until it is
// written, and a number that is not positive chooses nothing.
func (w *writer) WriteHeader(status int) {
	if status > 0 && !w.Written() {
		w.status, w.set = status, true
	}
}

// WriteHeaderNow writes the header, if it has not been written.
func (w *writer) WriteHeaderNow() {
	if !w.Written() {
		w.size = 0
		w.ResponseWriter.WriteHeader(w.status)
	}
}

// Write implements [http.ResponseWriter].
func (w *writer) Write(p []byte) (int, error) {
	w.WriteHeaderNow()
	n, err := w.ResponseWriter.Write(p)
	w.size += n
	return n, err
}

// WriteString implements [io.StringWriter].
func (w *writer) WriteString(s string) (int, error) { return w.Write([]byte(s)) }

// Flush implements [http.Flusher].
func (w *writer) Flush() { _ = w.FlushError() }

// FlushError is what [http.ResponseController] calls.
func (w *writer) FlushError() error {
	w.WriteHeaderNow()
	return http.NewResponseController(w.ResponseWriter).Flush()
}

// Hijack implements [http.Hijacker].
func (w *writer) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	if w.size > 0 {
		return nil, nil, errHijackAfterBody
	}
	conn, rw, err := http.NewResponseController(w.ResponseWriter).Hijack()
	if err == nil {
		w.size = max(w.size, 0)
	}
	return conn, rw, err
}

// CloseNotify returns a channel that tells when the request is over for the
// handler: by the context that the middleware passed on, which may outlive the
// client, or end before it leaves.
func (w *writer) CloseNotify() <-chan bool {
	if w.gone == nil {
		w.gone = make(chan bool, 1)
		w.stop = context.AfterFunc(w.request.Context(), func() { w.gone <- true })
	}
	return w.gone
}

// Pusher returns what HTTP/2 pushes go through, and nil where there is no such thing.
func (w *writer) Pusher() http.Pusher {
	for under := w.ResponseWriter; ; {
		switch u := under.(type) {
		case http.Pusher:
			return u
		case gin.ResponseWriter:
			return u.Pusher()
		case interface{ Unwrap() http.ResponseWriter }:
			under = u.Unwrap()
		default:
			return nil
		}
	}
}
