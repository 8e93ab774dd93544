package idempotency

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
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
	text := room[:0]
	for _, part := range [...]string{version, r.Method, r.URL.EscapedPath(), r.URL.RawQuery} {
		text = binary.BigEndian.AppendUint64(text, uint64(len(part)))
		text = append(text, part...)
	}
	text = binary.BigEndian.AppendUint64(text, uint64(len(body)))
	var sum [sha256.Size]byte
	if len(text)+len(body) <= cap(text) {
		sum = sha256.Sum256(append(text, body...))
	} else {
		h := sha256.New()
		h.Write(text)
		h.Write(body)
		h.Sum(sum[:0])
	}
	var digits [2 * len(sum)]byte
	hex.Encode(digits[:], sum[:])
	return string(digits[:])
}
