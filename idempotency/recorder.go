package idempotency

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
)

// errHandlerDone is what a handler gets that writes after it has returned.
var errHandlerDone = errors.New("idempotency: response written to after the handler returned")

// recorder is the ResponseWriter that the handler sees. It keeps the response
// back until its outcome is stored, unless the handler flushes, hijacks or
// outgrows the bound; from then on it passes everything through, and goes on
// recording up to the bound.
//
// The handler works on a header map of its own, a copy of what outer middleware
// had set, so that nothing it does reaches the client before its time, and an
// attempt that comes to nothing leaves no trace.
type recorder struct {
	w        http.ResponseWriter
	outer    http.Header  // what outer middleware had set; not changed, nor the values, which w's own map shares
	header   http.Header  // what the handler sees
	ctx      *lazyContext // the handler's
	maxBytes int

	mu        sync.Mutex
	status    int           // final status, 0 until it is decided
	final     packedHeaders // the handler's headers at that moment
	body      []byte
	lent      *[]byte     // of responses, what body grows in; nil where it is the recorder's own
	trailers  http.Header // set when the handler has returned, nil for none
	length    string      // the Content-Length to be sent in place of the handler's, where there is one
	lines     [4]string   // room for what is sent as header values
	isHead    bool        // a request for the head alone
	held      bool        // nothing may be sent before the outcome is stored, not even by Flush
	chunked   bool        // no Content-Length is to be sent
	sent      bool        // status and headers are on their way to the client
	truncated bool        // the body is not recorded whole: it outgrew the bound, or broke off
	hijacked  bool
	closed    bool
	refused   bool // the handler tried to stream while held, and was not told that it failed
}

// begin makes rec, which must be new, the writer of one run of a handler.
func (rec *recorder) begin(ctx *lazyContext, w http.ResponseWriter, method string, maxBytes int, held bool) {
	rec.w, rec.ctx, rec.isHead, rec.maxBytes, rec.held = w, ctx, method == http.MethodHead, maxBytes, held
	if outer := w.Header(); len(outer) > 0 {
		rec.outer, rec.header = maps.Clone(outer), outer.Clone()
	} else {
		rec.header = make(http.Header)
	}
}

// Header implements [http.ResponseWriter].
func (rec *recorder) Header() http.Header { return rec.header }

// Unwrap lets [http.ResponseController] reach the underlying writer for what the
// recorder has no part in, such as deadlines.
func (rec *recorder) Unwrap() http.ResponseWriter { return rec.w }

// WriteHeader implements [http.ResponseWriter].
func (rec *recorder) WriteHeader(status int) {
	rec.mu.Lock()
	defer rec.mu.Unlock()
	if rec.closed || rec.hijacked || rec.status != 0 {
		return // net/http ignores it as well, and logs
	}
	if status < 100 || status > 999 {
		panic(fmt.Sprintf("invalid WriteHeader code %v", status)) // as net/http does
	}
	if status < 200 && status != http.StatusSwitchingProtocols {
		// Informational: it goes out at once and decides nothing.
		replaceHeaders(rec.w.Header(), rec.header)
		rec.w.WriteHeader(status)
		return
	}
	rec.decide(status)
	if status == http.StatusSwitchingProtocols {
		rec.truncated = true // what follows on the connection is not HTTP
		if rec.held {
			rec.refused = true
			return
		}
		rec.send()
	}
}

// decide fixes the final status and headers.
func (rec *recorder) decide(status int) {
	rec.status = status
	rec.final = packHeaders(rec.header, nil)
}

// Write implements [http.ResponseWriter].
func (rec *recorder) Write(p []byte) (int, error) {
	rec.mu.Lock()
	defer rec.mu.Unlock()
	if err := rec.prepare(); err != nil {
		return 0, err
	}
	if rec.record(len(p)) {
		rec.reserve(len(p))
		rec.body = append(rec.body, p...)
	}
	if !rec.sent {
		return len(p), nil
	}
	n, err := rec.w.Write(p)
	rec.failed(err)
	return n, err
}

// WriteString implements [io.StringWriter].
func (rec *recorder) WriteString(s string) (int, error) {
	rec.mu.Lock()
	defer rec.mu.Unlock()
	if err := rec.prepare(); err != nil {
		return 0, err
	}
	if rec.record(len(s)) {
		rec.reserve(len(s))
		rec.body = append(rec.body, s...)
	}
	if !rec.sent {
		return len(s), nil
	}
	n, err := io.WriteString(rec.w, s)
	rec.failed(err)
	return n, err
}

// failed notes that part of a streamed response did not get through. A handler that
// is told so may break off, and what it wrote is then no response to be repeated.
func (rec *recorder) failed(err error) {
	if err != nil {
		rec.truncated, rec.body = true, nil
	}
}

// prepare does what net/http does before any byte of the body.
func (rec *recorder) prepare() error {
	switch {
	case rec.closed:
		return errHandlerDone
	case rec.hijacked:
		return http.ErrHijacked
	}
	if rec.status == 0 {
		rec.decide(http.StatusOK)
	}
	if !bodyAllowed(rec.status) {
		return http.ErrBodyNotAllowed
	}
	return nil
}

// record reports whether n more bytes are to be kept. When they go past the bound,
// what was held back is sent, and nothing is kept any more, but by a response that
// must be held back: it is kept whole, to be sent and not stored.
func (rec *recorder) record(n int) bool {
	if rec.truncated {
		return rec.held
	}
	if len(rec.body)+n <= rec.maxBytes {
		return true
	}
	rec.truncated = true
	if rec.held {
		return true
	}
	rec.send()
	rec.body = nil
	return false
}

// responses are buffers in which bodies grow that are written piece by piece. Nobody but a
// recorder sees what is in them.
var responses buffers

// reserve has the body go on in a shared buffer when n more bytes do not fit: one that is
// written at once is the recorder's own from the start.
func (rec *recorder) reserve(n int) {
	size := len(rec.body) + n
	if len(rec.body) == 0 || size <= cap(rec.body) || size > maxReused {
		return
	}
	before, body := rec.lent, rec.body
	if rec.lent = responses.get(size); rec.lent == nil {
		fresh := make([]byte, 0, roomFor(size))
		rec.lent = &fresh
	}
	rec.body = append(*rec.lent, body...)
	if before != nil {
		responses.put(before, body)
	}
}

// roomFor is how large a buffer is for so many bytes: some more, and never just too large to be
// used again.
func roomFor(size int) int {
	if size <= smallBuffer {
		return smallBuffer
	}
	return min(2*size, maxReused)
}

// settle makes the body the recorder's own, and of the size that it has in the end.
func (rec *recorder) settle() {
	if rec.lent == nil {
		return
	}
	if rec.body != nil && cap(rec.body) <= maxReused {
		shared := rec.body
		rec.body = bytes.Clone(shared)
		responses.put(rec.lent, shared)
	}
	rec.lent = nil
}

// send puts the status, the headers and what was held back of the body on the
// way, once.
func (rec *recorder) send() {
	if rec.sent || rec.hijacked {
		return
	}
	rec.sent = true
	h := rec.w.Header()
	clear(h)
	addHeaders(h, rec.final, rec.lines[1:1])
	switch {
	case rec.chunked:
		delete(h, "Content-Length")
	case rec.length != "":
		rec.lines[0] = rec.length
		h["Content-Length"] = rec.lines[:1:1]
	}
	rec.w.WriteHeader(rec.status)
	if len(rec.body) > 0 {
		rec.lent = nil // whoever has seen it may hold it
		_, err := rec.w.Write(rec.body)
		rec.failed(err)
	}
}

// Flush implements [http.Flusher]. It cannot say that it failed, so a handler that
// must not stream is failed for it.
func (rec *recorder) Flush() {
	if errors.Is(rec.FlushError(), ErrNoStreaming) {
		rec.mu.Lock()
		defer rec.mu.Unlock()
		rec.refused = true
	}
}

// FlushError sends what was held back and flushes it; from then on the response
// streams. [http.ResponseController] calls it.
func (rec *recorder) FlushError() error {
	rec.mu.Lock()
	defer rec.mu.Unlock()
	switch {
	case rec.closed:
		return errHandlerDone
	case rec.hijacked:
		return http.ErrHijacked
	case rec.held:
		return ErrNoStreaming
	}
	if rec.status == 0 {
		rec.decide(http.StatusOK)
	}
	rec.sniff()
	if _, hasType := rec.final.find("Content-Type"); !hasType && !rec.sent {
		rec.final = rec.final.with("Content-Type") // without a body there is no guess, now or in a replay
	}
	rec.send()
	err := http.NewResponseController(rec.w).Flush()
	if !errors.Is(err, http.ErrNotSupported) {
		rec.failed(err)
	}
	return err
}

// Hijack implements [http.Hijacker]. What goes over the connection from then on
// is not recorded.
func (rec *recorder) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	rec.mu.Lock()
	defer rec.mu.Unlock()
	switch {
	case rec.closed:
		return nil, nil, errHandlerDone
	case rec.held:
		return nil, nil, ErrNoStreaming
	}
	conn, rw, err := http.NewResponseController(rec.w).Hijack()
	if err != nil {
		return nil, nil, err
	}
	rec.hijacked = true
	if rec.status != 0 && !rec.sent { // net/http would have sent the head before
		_, err = fmt.Fprintf(rw, "HTTP/1.1 %d %s\r\n", rec.status, http.StatusText(rec.status))
		headers, _ := rec.final.unpack()
		err = errors.Join(err, headers.Write(rw))
		_, bodyErr := fmt.Fprintf(rw, "\r\n%s", rec.body)
		err = errors.Join(err, bodyErr, rw.Flush())
	}
	return conn, rw, err
}

// CloseNotify implements the deprecated interface of that name of net/http, which some
// frameworks still ask for. The channel gets a value when the handler's context ends.
func (rec *recorder) CloseNotify() <-chan bool {
	gone := make(chan bool, 1)
	context.AfterFunc(rec.ctx, func() { gone <- true })
	return gone
}

// close ends the handler's time: whatever it still writes gets an error. It
// decides the status of a handler that wrote nothing. A response that was streamed
// to a client that is gone may have been broken off, and does not count as whole.
func (rec *recorder) close(gone bool) {
	rec.mu.Lock()
	defer rec.mu.Unlock()
	rec.closed = true
	if rec.hijacked {
		return
	}
	if rec.status == 0 {
		rec.decide(http.StatusOK)
	}
	rec.sniff()
	if rec.sent && gone {
		rec.truncated, rec.body = true, nil
	}
	rec.settle()
	// Now, and not when they are sent: a goroutine of the handler's may live on.
	for name, values := range rec.header {
		if strings.HasPrefix(name, http.TrailerPrefix) {
			rec.trailer(name, values)
		}
	}
	for _, name := range listed(rec.final.lines("Trailer")) {
		if values, ok := rec.header[name]; ok {
			rec.trailer(name, values)
		}
	}
}

func (rec *recorder) trailer(name string, values []string) {
	if rec.trailers == nil {
		rec.trailers = make(http.Header)
	}
	rec.trailers[name] = values
}

// abandon is close for a handler that ended without an outcome: what it set and
// did not send is forgotten, so that whoever answers in its place starts clean.
func (rec *recorder) abandon() {
	rec.mu.Lock()
	defer rec.mu.Unlock()
	rec.closed = true
	if !rec.sent && !rec.hijacked {
		replaceHeaders(rec.w.Header(), rec.outer) // an informational response may have shown them
	}
}

// triedToStream reports whether the handler flushed while it was held, without being told
// that it failed.
func (rec *recorder) triedToStream() bool {
	rec.mu.Lock()
	defer rec.mu.Unlock()
	return rec.refused
}

// silent reports whether the handler has written nothing at all.
func (rec *recorder) silent() bool {
	rec.mu.Lock()
	defer rec.mu.Unlock()
	return rec.status == 0 && !rec.hijacked
}

// sniff fixes the Content-Type that net/http would guess from the first bytes
// that it gets. A replay writes the body in one piece, so its guess might differ.
func (rec *recorder) sniff() {
	if rec.sent || rec.hijacked || len(rec.body) == 0 {
		return
	}
	_, hasType := rec.final.find("Content-Type")
	if !hasType && !rec.final.isSet("Content-Encoding") && !rec.final.isSet("Transfer-Encoding") {
		rec.final = rec.final.with("Content-Type", http.DetectContentType(rec.body))
	}
}

// finish sends a response that was held back, and the trailers of any. The
// recorder must be closed, so that the handler no longer has a hand in it.
func (rec *recorder) finish() {
	if rec.hijacked {
		return
	}
	switch announced, _ := rec.final.find("Trailer"); {
	case len(rec.trailers) > 0 || announced.count > 0:
		rec.chunked = true // as a body with trailers is
	case !isEncoded(rec.outer):
		rec.length = contentLength(rec.isHead, rec.status, len(rec.body))
	}
	rec.send()
	// net/http looks for trailers in the header map when the handlers have returned.
	maps.Copy(rec.w.Header(), rec.trailers)
}

// isEncoded reports whether outer middleware has announced that it encodes the body
// on its way, whose length then is not that of what the handler wrote.
func isEncoded(outer http.Header) bool {
	_, encoded := outer["Content-Encoding"]
	return encoded
}

// contentLength states the length of a body that is known in full, or nothing for a
// response that has none to state.
func contentLength(isHead bool, status, n int) string {
	if isHead || !bodyAllowed(status) {
		return ""
	}
	return strconv.Itoa(n)
}

// bodyAllowed reports whether a response of the status may have a body, RFC 9110
// section 6.4.1.
func bodyAllowed(status int) bool {
	return status >= 200 && status != http.StatusNoContent && status != http.StatusNotModified
}
