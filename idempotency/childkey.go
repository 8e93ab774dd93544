package idempotency

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
)

// ChildKey returns an idempotency key for a request that the handler makes of another
// service: the same for the name in every attempt at the client's request, and another
// for every other name, key, scope, fingerprint and tenant. With it that service has the
// effect once, however often the handler asks, for as long as it remembers the key.
//
// The key is 43 characters of the URL-safe base64 alphabet: HMAC-SHA256 over the org_id,
// the stored key and the name, under 256 random bits that the first call stores with the
// request's steps before any key is handed out. So nobody can guess it who cannot read
// the store, the client that chose its own key included, and a client's key that is used
// anew after its record has expired ([WithTTL]), which is a new request, has new child
// keys. What holds for the lifetime of a [Step] holds for it; like a step, it keeps the
// record of an attempt that is released.
//
// The names are apart from those of steps, and bound as they are. The errors are those
// that Step returns before its function runs, and those of a store that cannot keep the
// random bits; there is then no key, and the other service should not be called.
func ChildKey(ctx context.Context, name string) (string, error) {
	c, s, err := stepsOf(ctx, name)
	if err != nil {
		return "", fmt.Errorf("idempotency: child key %.200q: %w", name, err)
	}
	secret, err := s.once(ctx, childKeySecret, errNoSecret, func(context.Context) ([]byte, error) {
		var random [32]byte
		rand.Read(random[:])                                                            // never fails: crypto/rand ends the program instead
		return []byte(`"` + base64.RawURLEncoding.EncodeToString(random[:]) + `"`), nil // results are JSON
	})
	if err != nil {
		return "", fmt.Errorf("idempotency: child key %q: %w", name, err)
	}
	mac := hmac.New(sha256.New, secret)
	for _, part := range []string{"pgidem child key", string(c.orgID[:]), s.claim.Key, name} {
		mac.Write(binary.BigEndian.AppendUint64(nil, uint64(len(part)))) // so that no two lists of parts read alike
		mac.Write([]byte(part))
	}
	return base64.RawURLEncoding.EncodeToString(mac.Sum(nil)), nil
}

// childKeySecret is the step that holds what child keys are derived from. No handler can
// give a step this name.
const childKeySecret = "\x1fchild keys"

var errNoSecret = errors.New("idempotency: what child keys are derived from could not be stored")
