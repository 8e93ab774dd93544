package pgstore

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"slices"
	"strings"

	"github.com/pgidem/pgidem/idempotency"
)

// A stored fingerprint begins with its form: the usual one, a SHA-256 in
// hexadecimal, takes half the room as the bytes it stands for.
const (
	hashText   = 0
	hashSHA256 = 1
)

func encodeHash(hash string) []byte {
	buf := make([]byte, 1, 1+max(len(hash), sha256.Size))
	if len(hash) == hex.EncodedLen(sha256.Size) && !strings.ContainsAny(hash, "ABCDEF") { // upper-case digits are kept as text
		if decoded, err := hex.AppendDecode(buf, []byte(hash)); err == nil {
			decoded[0] = hashSHA256
			return decoded
		}
	}
	buf[0] = hashText
	return append(buf[:1], hash...)
}

func decodeHash(stored []byte) string {
	switch {
	case len(stored) == 0: // by no version of this package
		return ""
	case stored[0] == hashSHA256:
		return hex.EncodeToString(stored[1:])
	}
	return string(stored[1:])
}

// Stored headers are a version, then for each header a flag byte, its name, and
// its values; strings stand behind their lengths, and lengths and counts are
// varints.
const (
	headersVersion  = 1
	headersAppended = 1 // flag: the values were added to those of outer middleware
)

var errHeaders = errors.New("stored headers are damaged, or written by a newer version of pgidem")

// encodeHeaders returns nil for a record without headers.
func encodeHeaders(rec *idempotency.Record) []byte {
	return encodeMap(rec.ResponseHeaders, rec.AppendedHeaders)
}

// encodeMap encodes a map, the appended names of which are given.
func encodeMap(headers map[string][]string, appended []string) []byte {
	if len(headers) == 0 {
		return nil
	}
	names := make([]string, 0, 16)
	for name := range headers {
		names = append(names, name)
	}
	slices.Sort(names)
	buf := make([]byte, 0, 256)
	buf = append(buf, headersVersion)
	for _, name := range names {
		var flags byte
		if slices.Contains(appended, name) {
			flags = headersAppended
		}
		buf = append(buf, flags)
		buf = appendString(buf, name)
		values := headers[name]
		buf = binary.AppendUvarint(buf, uint64(len(values)))
		for _, value := range values {
			buf = appendString(buf, value)
		}
	}
	return buf
}

func appendString(buf []byte, s string) []byte {
	buf = binary.AppendUvarint(buf, uint64(len(s)))
	return append(buf, s...)
}

// decodeHeaders puts stored headers into rec.
func decodeHeaders(rec *idempotency.Record, stored []byte) error {
	if len(stored) == 0 {
		return nil
	}
	d := headerDecoder{rest: string(stored[1:])} // one copy for all names and values
	if stored[0] != headersVersion {
		return errHeaders
	}
	rec.ResponseHeaders = make(map[string][]string)
	room := make([]string, 0, 4) // for the values of several headers
	for len(d.rest) > 0 && !d.damaged {
		flags := d.byte()
		name := d.string()
		n := d.count()
		var values []string
		if n > 0 {
			room = slices.Grow(room, n)
			for range n {
				room = append(room, d.string())
			}
			first := len(room) - n
			values = room[first:len(room):len(room)]
		}
		rec.ResponseHeaders[name] = values
		if flags&headersAppended != 0 {
			rec.AppendedHeaders = append(rec.AppendedHeaders, name)
		}
	}
	if d.damaged {
		return errHeaders
	}
	return nil
}

// headerDecoder reads from the front of rest. Once what it reads makes no sense it
// is damaged, and everything reads as empty.
type headerDecoder struct {
	rest    string
	damaged bool
}

func (d *headerDecoder) byte() byte {
	if len(d.rest) == 0 {
		d.damaged = true
		return 0
	}
	b := d.rest[0]
	d.rest = d.rest[1:]
	return b
}

// count reads a number of things that take a byte each at least.
func (d *headerDecoder) count() int {
	var n uint64
	for shift := 0; ; shift += 7 {
		b := d.byte()
		if d.damaged || shift > 28 {
			d.damaged = true
			return 0
		}
		n |= uint64(b&0x7f) << shift
		if b < 0x80 {
			break
		}
	}
	if n > uint64(len(d.rest)) {
		d.damaged = true
		return 0
	}
	return int(n)
}

func (d *headerDecoder) string() string {
	n := d.count()
	s := d.rest[:n]
	d.rest = d.rest[n:]
	return s
}
