package idempotency

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"hash"
	"net/http"
)

// Fingerprint condenses a request into the string by which a retry is told from
// another request that reuses its key. The body is the whole body, as it reaches
// the middleware: middleware outside that reads it (to parse a form, say) leaves
// nothing to tell two requests apart by. Of a result longer than 128 bytes a hash is
// kept. An error is answered like an unreadable body, with 400.
type Fingerprint func(r *http.Request, body []byte) (string, error)

// fingerprintVersion changes whenever what goes into the hash changes, so that
// hashes of two versions never agree by accident.
const fingerprintVersion = "pgidem-1"

// requestFingerprint is the default [Fingerprint]: SHA-256, in hexadecimal, over
// method, path, raw query and body, each behind its length so that no two
// requests run together. Host and headers are left out on purpose: a retry may
// come through another host name, with a fresh token and a fresh trace.
func requestFingerprint(r *http.Request, body []byte) (string, error) {
	return fingerprint(fingerprintVersion, r, body), nil
}

// bounded returns a fingerprint of at most 128 bytes.
func bounded(hash string) string {
	const maxBytes = 128
	if len(hash) <= maxBytes {
		return hash
	}
	sum := sha256.Sum256([]byte(hash))
	return "sha256:" + hex.EncodeToString(sum[:])
}

func fingerprint(version string, r *http.Request, body []byte) string {
	var room [512]byte // for all of most requests
	text := appendHead(room[:0], version, r, int64(len(body)))
	if len(text)+len(body) <= cap(text) {
		sum := sha256.Sum256(append(text, body...))
		return digits(sum[:])
	}
	h := sha256.New()
	h.Write(text)
	h.Write(body)
	var sum [sha256.Size]byte
	return digits(h.Sum(sum[:0]))
}

// appendHead appends what is hashed before a body of the size.
func appendHead(text []byte, version string, r *http.Request, size int64) []byte {
	for _, part := range [...]string{version, r.Method, r.URL.EscapedPath(), r.URL.RawQuery} {
		text = binary.BigEndian.AppendUint64(text, uint64(len(part)))
		text = append(text, part...)
	}
	return binary.BigEndian.AppendUint64(text, uint64(size))
}

func digits(sum []byte) string {
	var digits [2 * sha256.Size]byte
	return string(hex.AppendEncode(digits[:0], sum))
}

// bodyHash is the default [Fingerprint] of a request whose body is still being read: each
// piece of it is hashed as it comes, so that little is left to do once the last is here.
type bodyHash struct {
	hash.Hash
	left int64 // bytes of the body that are still to come
}

// hashedWhole is the length of a body up to which it is hashed in one go: it comes in one
// piece.
const hashedWhole = 4 << 10

// newBodyHash returns a hash for the body of the request, or nil where its length is not
// announced, which is hashed before it, or there is too little to gain.
func newBodyHash(r *http.Request) *bodyHash {
	if r.ContentLength <= hashedWhole {
		return nil
	}
	var room [512]byte
	b := &bodyHash{sha256.New(), r.ContentLength}
	b.Write(appendHead(room[:0], fingerprintVersion, r, b.left))
	return b
}

// add hashes the next piece of the body. b may be nil.
func (b *bodyHash) add(piece []byte) {
	if b != nil {
		b.left -= int64(len(piece))
		b.Write(piece)
	}
}

// fingerprint returns the fingerprint, unless the body was of another length than announced.
func (b *bodyHash) fingerprint() (string, bool) {
	if b == nil || b.left != 0 {
		return "", false
	}
	var sum [sha256.Size]byte
	return digits(b.Sum(sum[:0])), true
}
