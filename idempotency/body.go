package idempotency

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"sync"
)

// readBody reads the request's body whole, within the bound, or says for which of
// this package's reasons it could not. It hashes what it reads, where there is a hash.
func (x *exchange) readBody(hash *bodyHash) (body []byte, reason, cause error) {
	if x.r.Body == nil || x.r.Body == http.NoBody {
		return nil, nil, nil
	}
	if x.r.ContentLength > x.maxRequestBytes {
		return nil, ErrRequestTooLarge, fmt.Errorf("%d bytes announced, %d allowed", x.r.ContentLength, x.maxRequestBytes)
	}
	from, size := x.r.Body, min(x.r.ContentLength, believed)+1 // with room to meet the end
	if x.r.ContentLength < 0 {
		from, size = http.MaxBytesReader(x.w, x.r.Body, x.maxRequestBytes), bytes.MinRead
	}
	body = x.buffer(int(size))
	for {
		n, err := from.Read(body[len(body):cap(body)])
		hash.add(body[len(body) : len(body)+n])
		body = body[:len(body)+n]
		switch {
		case int64(len(body)) > x.maxRequestBytes:
			return nil, ErrRequestTooLarge, fmt.Errorf("more than the %d bytes allowed", x.maxRequestBytes)
		case err == io.EOF: // and nothing that wraps it, by the contract of io.Reader
			return body, nil, nil
		case err != nil:
			if tooLarge, ok := errors.AsType[*http.MaxBytesError](err); ok {
				return nil, ErrRequestTooLarge, fmt.Errorf("more than the %d bytes allowed", tooLarge.Limit)
			}
			return nil, ErrRequestUnreadable, err
		case len(body) == cap(body):
			more := len(body)
			if left := x.r.ContentLength + 1 - int64(more); left > 0 {
				more = int(min(left, int64(more)))
			}
			body = slices.Grow(body, more)
		}
	}
}

// believed is how much of what a client announces is, before it has sent anything.
const believed = 64 << 10

// bodies are buffers of requests that have ended.
var bodies buffers

// buffer returns an empty buffer for at least so many bytes.
func (x *exchange) buffer(size int) []byte {
	if x.emptied = bodies.get(size); x.emptied == nil {
		return make([]byte, 0, size)
	}
	return *x.emptied
}

// reuse gives the buffer of a body to another request, unless somebody has seen it and may
// hold it: a function of the user's, a store that keeps requests, or a handler that has left
// a reader behind.
func (x *exchange) reuse(body []byte, kept *KeptRequest) {
	if x.givenFingerprint || x.readers > 0 || kept != nil {
		return
	}
	bodies.put(x.emptied, body)
}

// bodyReader is the body of a request, read before. A handler gets copies of the bytes through
// it alone, so once it has ended, nobody has the bytes themselves. For that it is no
// [io.WriterTo], which would show them to any writer.
type bodyReader struct {
	mu     sync.Mutex
	unread []byte
	ended  bool
}

// Read implements [io.Reader].
func (b *bodyReader) Read(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case b.ended:
		return 0, http.ErrBodyReadAfterClose
	case len(b.unread) == 0:
		return 0, io.EOF
	}
	n := copy(p, b.unread)
	b.unread = b.unread[n:]
	return n, nil
}

// Close implements [io.Closer]. What is left can still be read.
func (*bodyReader) Close() error { return nil }

// end ends the reader, as net/http ends a body when its handler has returned, unless a
// goroutine that the handler left behind is at it. It reports whether it has.
func (b *bodyReader) end() bool {
	if !b.mu.TryLock() {
		return false
	}
	defer b.mu.Unlock()
	b.unread, b.ended = nil, true
	return true
}

// request returns the request as the handler is to see it, with body for its body where it
// has one.
func (x *exchange) request(ctx context.Context, body io.ReadCloser) *http.Request {
	x.readers++
	r := x.r.WithContext(ctx)
	if r.Body != nil && r.Body != http.NoBody {
		r.Body = body
	}
	return r
}
