package idempotency

import (
	"fmt"
	"strings"

	"github.com/dunglas/httpsfv"
)

// HeaderKey is the request header that carries the idempotency key, in the
// canonical form of [http.Header].
const HeaderKey = "Idempotency-Key"

// maxKeyBytes bounds the key that a client may send.
const maxKeyBytes = 255

// parseKey returns the key that the header lines carry. The quoted form of
// draft-ietf-httpapi-idempotency-key-header-07 section 2.1, an Item that is an
// RFC 8941 String, and the bare form that many clients send mean the same key.
// Parameters of the Item are ignored: the draft defines none.
//
// The error wraps [ErrKeyInvalid] and is meant for the client's eyes.
func parseKey(lines []string) (string, error) {
	if len(lines) != 1 {
		return "", fmt.Errorf("%w: the request has %d %s lines; send one", ErrKeyInvalid, len(lines), HeaderKey)
	}
	// Space around a field's value is no part of it (RFC 9110 section 5.5), and net/http
	// leaves it there over HTTP/2.
	key := strings.Trim(lines[0], " \t")
	if len(key) > 0 && key[0] == '"' {
		item, err := httpsfv.UnmarshalItem([]string{key})
		if err != nil {
			return "", fmt.Errorf("%w: it begins with a quote but is not a quoted string (RFC 8941 section 3.3.3)", ErrKeyInvalid)
		}
		key = item.Value.(string) // what begins with a quote parses as a String or not at all
	}
	switch {
	case key == "":
		return "", fmt.Errorf("%w: it is empty", ErrKeyInvalid)
	case len(key) > maxKeyBytes:
		return "", fmt.Errorf("%w: it has %d bytes; at most %d are allowed", ErrKeyInvalid, len(key), maxKeyBytes)
	}
	for i := range len(key) {
		if key[i] < 0x20 || key[i] > 0x7e {
			return "", fmt.Errorf("%w: byte %d is not a printable ASCII character", ErrKeyInvalid, i+1)
		}
	}
	return key, nil
}
