package idempotencytest

import (
	"net/http"

	"github.com/pgidem/pgidem/idempotency"
)

// Client returns a copy of base for tests whose calls are each an operation of their
// own: by [idempotency.Transport] every unsafe request has a fresh key, unless it has
// one already. A nil base means [http.DefaultClient].
//
// A call that the test repeats gets another key and runs again; set the header
// yourself where the repetition is what you test.
func Client(base *http.Client) *http.Client {
	if base == nil {
		base = http.DefaultClient
	}
	c := *base
	c.Transport = &idempotency.Transport{Base: base.Transport}
	return &c
}
