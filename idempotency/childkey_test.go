package idempotency_test

import (
	"context"
	"encoding/base64"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/pgidem/pgidem/idempotency"
)

// childKey returns the child key of a name, of an attempt that comes to nothing.
func childKey(t *testing.T, store idempotency.Store, org uuid.UUID, key, body, name string, opts ...idempotency.Option) (child string) {
	t.Helper()
	h := idempotency.Require(store, opts...)(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var err error
		if child, err = idempotency.ChildKey(r.Context(), name); err != nil {
			t.Errorf("ChildKey: %v", err)
		}
		w.WriteHeader(http.StatusBadGateway)
	}))
	r := request(t, key, body)
	h.ServeHTTP(httptest.NewRecorder(), r.WithContext(idempotency.WithOrgID(r.Context(), org)))
	if decoded, err := base64.RawURLEncoding.DecodeString(child); err != nil || len(decoded) != 32 || len(child) > 64 {
		t.Errorf("child key %q; want 32 bytes in printable form", child)
	}
	return child
}

func TestChildKey(t *testing.T) {
	t.Parallel()
	store, other := newStepStore(), newStepStore()
	org, orgB := uuid.New(), uuid.New()
	scope := func(s string) idempotency.Option {
		return idempotency.WithScope(func(*http.Request) string { return s })
	}
	first := childKey(t, store, org, "k", "", "charge")
	for range 3 {
		if again := childKey(t, store, org, "k", "", "charge"); again != first {
			t.Errorf("a retry gets %q, the first attempt got %q", again, first)
		}
	}
	seen := map[string]string{first: "the first"}
	differs := func(what, child string) {
		t.Helper()
		if was, ok := seen[child]; ok {
			t.Errorf("%s: the same as %s", what, was)
		}
		seen[child] = what
	}
	differs("another name", childKey(t, store, org, "k", "", "mail"))
	differs("another key", childKey(t, store, org, "k2", "", "charge"))
	differs("another tenant", childKey(t, store, orgB, "k", "", "charge"))
	differs("a scope", childKey(t, store, org, "k", "", "charge", scope("a")))
	differs("another scope", childKey(t, store, org, "k", "", "charge", scope("b")))
	differs("the same request to another store", childKey(t, other, org, "k", "", "charge"))
	store.Advance(25 * time.Hour)
	differs("another life of the key", childKey(t, store, org, "k", "", "charge"))
	store.Advance(25 * time.Hour)
	differs("another request with the key, after that", childKey(t, store, org, "k", "other", "charge"))
}

// TestChildKeyIsStoredFirst: no key is handed out that a retry might not get.
func TestChildKeyIsStoredFirst(t *testing.T) {
	t.Parallel()
	store := newStepStore()
	saves := 0
	store.save = func(_ context.Context, real func() ([]byte, error)) ([]byte, error) {
		saves++
		return real()
	}
	during(t, store, "k", func(ctx context.Context) int {
		a, errA := idempotency.ChildKey(ctx, "a")
		b, errB := idempotency.ChildKey(ctx, "b")
		if errA != nil || errB != nil || a == b || saves != 1 {
			t.Errorf("%q, %v and %q, %v after %d saves; want two keys after one", a, errA, b, errB, saves)
		}
		// A name is one of steps and one of child keys.
		wantStep(ctx, t, "a", value("result"), "result")
		if again, err := idempotency.ChildKey(ctx, "a"); again != a || err != nil {
			t.Errorf("%q, %v; want %q", again, err, a)
		}
		return made
	})
}
