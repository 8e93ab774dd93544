package idempotency_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/pgidem/pgidem/idempotency"
)

// overtakenStore is a MemoryStore whose transactions are all rolled back, each because another
// attempt of the same request has completed first.
type overtakenStore struct{ *idempotency.MemoryStore }

func (s overtakenStore) Claim(ctx context.Context, req idempotency.ClaimRequest) (idempotency.ClaimResult, error) {
	result, err := s.MemoryStore.Claim(ctx, req)
	if result.Outcome == idempotency.OutcomeClaimed {
		result.Transaction = s
	}
	return result, err
}

func (s overtakenStore) Complete(ctx context.Context, c idempotency.Claim, rec *idempotency.Record) error {
	if err := s.MemoryStore.Complete(ctx, c, rec); err != nil { // as the other attempt does
		return err
	}
	return fmt.Errorf("%w: %w", idempotency.ErrRolledBack, idempotency.ErrRerun)
}

// TestBodyThatIsHeldIsNotReused: the buffer of a request is used for others, but not where
// somebody has seen it and may hold it still.
func TestBodyThatIsHeldIsNotReused(t *testing.T) {
	t.Parallel()
	for name, protect := range map[string]func(hold func(body func() string)) http.Handler{
		"by a handler that was rolled back": func(hold func(func() string)) http.Handler {
			return idempotency.Require(overtakenStore{idempotency.NewMemoryStore()}, quiet)(
				http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
					hold(func() string {
						if body, err := io.ReadAll(r.Body); !errors.Is(err, http.ErrBodyReadAfterClose) {
							return string(body)
						}
						return "the first tenant's" // no longer to be read
					})
				}))
		},
		"by a fingerprint": func(hold func(func() string)) http.Handler {
			return idempotency.Require(idempotency.NewMemoryStore(), quiet,
				idempotency.WithFingerprint(func(_ *http.Request, body []byte) (string, error) {
					hold(func() string { return string(body) })
					return "the same", nil
				}))(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
		},
		"by a store that keeps requests": func(hold func(func() string)) http.Handler {
			return idempotency.Require(holder{newKeeper(), hold}, quiet, idempotency.WithRecoverable())(
				http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var held func() string
			holding := false
			h := protect(func(body func() string) {
				if holding {
					held = body
				}
			})
			send := func(key, body string) { h.ServeHTTP(httptest.NewRecorder(), request(t, key, body)) }
			for i := range 50 { // a sync.Pool need not hand out what it was given
				holding = true
				send(fmt.Sprint("k", i), "the first tenant's")
				send(fmt.Sprint("k", i), "the first tenant's")
				holding = false
				send(fmt.Sprint("other", i), "another's secret..")
				if got := held(); got != "the first tenant's" {
					t.Fatalf("what is held now reads %q", got)
				}
			}
		})
	}
}

// holder is a keeper that tells of the bodies which it was given to keep.
type holder struct {
	*keeper
	hold func(body func() string)
}

func (h holder) Claim(ctx context.Context, req idempotency.ClaimRequest) (idempotency.ClaimResult, error) {
	if kept := req.Request; kept != nil {
		h.hold(func() string { return string(kept.Body) })
	}
	return h.keeper.Claim(ctx, req)
}
