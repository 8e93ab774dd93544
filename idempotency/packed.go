package idempotency

import (
	"encoding/binary"
	"net/http"
	"slices"
)

// packedHeaders are headers in one piece of immutable memory: those of a handler at the
// moment that it decided its response, and those that a [MemoryStore] keeps. Whoever holds
// the map or the slices that they came from can change nothing here.
//
// A header is its name and its number of values, doubled, plus 1 where they are to be added
// to values that outer middleware sets; then each value. Texts stand behind their length.
type packedHeaders string

// packedHeader is one of them.
type packedHeader struct {
	name     string
	appended bool
	count    int
	values   packedHeaders // the values, and whatever follows
}

// packHeaders packs a map of headers, the appended ones of which are named.
func packHeaders(h http.Header, appended []string) packedHeaders {
	var room [512]byte
	packed := room[:0]
	for name, values := range h {
		packed = appendHeader(packed, name, slices.Contains(appended, name), values)
	}
	return packedHeaders(packed)
}

func appendHeader(packed []byte, name string, appended bool, values []string) []byte {
	count := uint64(len(values)) << 1
	if appended {
		count++
	}
	packed = appendSized(packed, name)
	packed = binary.AppendUvarint(packed, count)
	for _, value := range values {
		packed = appendSized(packed, value)
	}
	return packed
}

func appendSized(packed []byte, s string) []byte {
	return append(binary.AppendUvarint(packed, uint64(len(s))), s...)
}

// with returns p and another header.
func (p packedHeaders) with(name string, values ...string) packedHeaders {
	return packedHeaders(appendHeader([]byte(p), name, false, values))
}

// next takes the first header off p, which must not be empty.
func (p packedHeaders) next() (h packedHeader, rest packedHeaders) {
	h.name, p = p.text()
	count, p := p.number()
	h.appended, h.count, h.values = count&1 != 0, count>>1, p
	for range h.count {
		_, p = p.text()
	}
	return h, p
}

// appendTo appends the header's values to dst.
func (h packedHeader) appendTo(dst []string) []string {
	p := h.values
	for range h.count {
		var value string
		value, p = p.text()
		dst = append(dst, value)
	}
	return dst
}

// find returns the header of the name.
func (p packedHeaders) find(name string) (h packedHeader, ok bool) {
	for len(p) > 0 {
		if h, p = p.next(); h.name == name {
			return h, true
		}
	}
	return packedHeader{}, false
}

// all reports whether the function holds of every name.
func (p packedHeaders) all(holds func(name string) bool) bool {
	for len(p) > 0 {
		var h packedHeader
		if h, p = p.next(); !holds(h.name) {
			return false
		}
	}
	return true
}

// isSet reports whether the header of the name has a value, and the first is not empty.
func (p packedHeaders) isSet(name string) bool {
	h, _ := p.find(name)
	if h.count == 0 {
		return false
	}
	first, _ := h.values.text()
	return first != ""
}

// lines returns the values of the name.
func (p packedHeaders) lines(name string) []string {
	h, _ := p.find(name)
	return h.appendTo(nil)
}

// count returns how many values there are in all.
func (p packedHeaders) count() (n int) {
	for len(p) > 0 {
		var h packedHeader
		h, p = p.next()
		n += h.count
	}
	return n
}

// unpack returns the headers as a map, and the names of those that are appended, sorted.
func (p packedHeaders) unpack() (h http.Header, appended []string) {
	h = make(http.Header)
	room := make([]string, 0, p.count())
	for len(p) > 0 {
		var one packedHeader
		one, p = p.next()
		h[one.name], room = one.in(room)
		if one.appended {
			appended = append(appended, one.name)
		}
	}
	slices.Sort(appended)
	return h, appended
}

// in puts the header's values into room, and returns them and the rest of the room; nil for
// none, which is how a handler tells net/http not to make one up.
func (h packedHeader) in(room []string) (values, rest []string) {
	if h.count == 0 {
		return nil, room
	}
	n := len(room)
	room = h.appendTo(room)
	return room[n:len(room):len(room)], room
}

// text takes a text off p.
func (p packedHeaders) text() (s string, rest packedHeaders) {
	n, p := p.number()
	return string(p[:n]), p[n:]
}

// number takes a number off p.
func (p packedHeaders) number() (n int, rest packedHeaders) {
	for i := 0; ; i++ {
		n |= int(p[i]&0x7f) << (7 * i)
		if p[i] < 0x80 {
			return n, p[i+1:]
		}
	}
}
