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
// this package's reasons it could not.
func (x *exchange) readBody() (body []byte, reason, cause error) {
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
			body = slices.Grow(body, len(body))
		}
	}
}

// believed is how much of what a client announces is, before it has sent anything.
const believed = 64 << 10

// bodies are buffers of requests that were replayed: nothing has seen them but the
// fingerprint. Those that a handler has read stay its own.
var bodies sync.Pool // of *[]byte

// maxReused is the size of the largest buffer that is kept for another request.
const maxReused = believed + 1

// buffer returns an empty buffer for at least so many bytes.
func (x *exchange) buffer(size int) []byte {
	kept, _ := bodies.Get().(*[]byte)
	if kept == nil {
		return make([]byte, 0, size)
	}
	if cap(*kept) < size {
		bodies.Put(kept)
		return make([]byte, 0, size)
	}
	x.emptied = kept
	return (*kept)[:0]
}

// reuse gives the buffer of a body to another request, unless somebody has seen it and may
// hold it: a function of the user's, a handler whose run was rolled back, or a store that
// keeps requests.
func (x *exchange) reuse(body []byte, kept *KeptRequest) {
	if cap(body) == 0 || cap(body) > maxReused || x.givenFingerprint || x.handled || kept != nil {
		return
	}
	if x.emptied == nil {
		x.emptied = new([]byte)
	}
	*x.emptied = body[:0]
	bodies.Put(x.emptied)
}

// bodyReader is the body of a request, read before.
type bodyReader struct{ bytes.Reader }

// Close implements [io.Closer].
func (*bodyReader) Close() error { return nil }

// request returns the request as the handler is to see it, with body for its body where it
// has one.
func (x *exchange) request(ctx context.Context, body io.ReadCloser) *http.Request {
	x.handled = true
	r := x.r.WithContext(ctx)
	if r.Body != nil && r.Body != http.NoBody {
		r.Body = body
	}
	return r
}
