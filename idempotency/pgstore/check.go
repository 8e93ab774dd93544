package pgstore

import (
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/pgidem/pgidem/idempotency"
)

// What the table can hold; the middleware allows less. The database does not check it: a
// CHECK costs each statement that writes a row more than the row.
const (
	maxKeyBytes  = 512
	maxHashBytes = 511 // stored behind a byte that tells its form
)

// checkKey refuses a key or a fingerprint that cannot be stored.
func checkKey(key, hash string) error {
	switch {
	case key == "" || len(key) > maxKeyBytes:
		return fmt.Errorf("%w: a key of %d bytes; give 1 to %d", idempotency.ErrStoreRefused, len(key), maxKeyBytes)
	case !utf8.ValidString(key) || strings.Contains(key, "\x00"):
		return fmt.Errorf("%w: a key that is no text; give UTF-8 without the byte 0", idempotency.ErrStoreRefused)
	case len(hash) > maxHashBytes:
		return fmt.Errorf("%w: a fingerprint of %d bytes; give at most %d", idempotency.ErrStoreRefused, len(hash), maxHashBytes)
	}
	return nil
}

// checkStatus refuses what is no HTTP status (RFC 9110, section 15), nor 0 for one that is
// not known.
func checkStatus(status int) error {
	if status != 0 && (status < 100 || status > 999) {
		return fmt.Errorf("%w: a response with status %d; give 100 to 999, or 0 where it is not known", idempotency.ErrStoreRefused, status)
	}
	return nil
}
