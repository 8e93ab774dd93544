package idempotency

import "sync"

// buffers are buffers to be used again, each by one request at a time. Small ones are apart from
// large ones, so that a request that needs little, for long perhaps, does not hold much.
type buffers struct{ small, large sync.Pool } // of *[]byte

// Buffers of up to smallBuffer bytes are small ones, and none of more than maxReused is kept.
const (
	smallBuffer = 4 << 10
	maxReused   = believed + 1
)

func (b *buffers) pool(size int) *sync.Pool {
	if size <= smallBuffer {
		return &b.small
	}
	return &b.large
}

// get returns an empty buffer for at least so many bytes, or nil.
func (b *buffers) get(size int) *[]byte {
	if size > maxReused {
		return nil
	}
	if kept, _ := b.pool(size).Get().(*[]byte); kept != nil && cap(*kept) >= size {
		return kept
	}
	return nil
}

// put gives a buffer back that nobody else holds, in what get returned, if that was not nil.
func (b *buffers) put(in *[]byte, buffer []byte) {
	if cap(buffer) == 0 || cap(buffer) > maxReused {
		return
	}
	if in == nil {
		in = new([]byte)
	}
	*in = buffer[:0]
	b.pool(cap(buffer)).Put(in)
}
