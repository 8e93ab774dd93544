package idempotency_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/pgidem/pgidem/idempotency"
)

type receipt struct {
	ID     int
	Amount string
}

func TestDoRunsOnce(t *testing.T) {
	t.Parallel()
	store := idempotency.NewMemoryStore()
	runs := 0
	charge := func(ctx context.Context) (receipt, error) {
		runs++
		key, _ := idempotency.Key(ctx)
		attempt, _ := idempotency.Attempt(ctx)
		if key != "message-1" || attempt != 1 {
			t.Errorf("key %q, attempt %d", key, attempt)
		}
		return receipt{runs, "10 EUR"}, nil
	}
	for i, want := range []idempotency.Outcome{idempotency.DecisionExecuted, idempotency.DecisionReplayed} {
		got, outcome, err := idempotency.Do(t.Context(), store, orgA, "message-1", "hash", charge)
		if got != (receipt{1, "10 EUR"}) || outcome != want || err != nil {
			t.Errorf("call %d: %+v, %q, %v", i, got, outcome, err)
		}
	}
	if _, outcome, err := idempotency.Do(t.Context(), store, orgA, "message-1", "another", charge); !errors.Is(err, idempotency.ErrKeyReused) || outcome != idempotency.DecisionMismatch {
		t.Errorf("another fingerprint: %q, %v", outcome, err)
	}
	if _, outcome, err := idempotency.Do(t.Context(), store, uuid.Nil, "message-1", "hash", charge); !errors.Is(err, idempotency.ErrOrgMissing) || outcome != idempotency.DecisionMissingOrg {
		t.Errorf("no tenant: %q, %v", outcome, err)
	}
	if _, outcome, err := idempotency.Do(t.Context(), store, orgA, "", "hash", charge); !errors.Is(err, idempotency.ErrKeyInvalid) || outcome != idempotency.DecisionInvalidKey {
		t.Errorf("no key: %q, %v", outcome, err)
	}
	if runs != 1 {
		t.Errorf("%d runs, want 1", runs)
	}
}

// TestDoOfAFailure: an error, a panic and a result that cannot be stored leave nothing
// behind.
func TestDoOfAFailure(t *testing.T) {
	t.Parallel()
	store := idempotency.NewMemoryStore()
	sorry := errors.New("sorry")
	if _, outcome, err := idempotency.Do(t.Context(), store, orgA, "k", "", func(context.Context) (int, error) { return 1, sorry }); !errors.Is(err, sorry) || outcome != idempotency.DecisionReleased {
		t.Errorf("%q, %v", outcome, err)
	}
	func() {
		defer func() {
			if p := recover(); p != "on purpose" {
				t.Errorf("panic %v", p)
			}
		}()
		_, _, _ = idempotency.Do(t.Context(), store, orgA, "k", "", func(context.Context) (int, error) { panic("on purpose") })
	}()
	if _, _, err := idempotency.Do(t.Context(), store, orgA, "k", "", func(context.Context) (chan int, error) { return nil, nil }); err == nil || !strings.Contains(err.Error(), "cannot be stored") {
		t.Errorf("a channel as result: %v", err)
	}
	if got, outcome, err := idempotency.Do(t.Context(), store, orgA, "k", "", func(context.Context) (int, error) { return 2, nil }); got != 2 || outcome != idempotency.DecisionExecuted || err != nil {
		t.Errorf("%d, %q, %v", got, outcome, err)
	}
	if _, _, err := idempotency.Do(t.Context(), store, orgA, "k", "", func(context.Context) (string, error) { return "", nil }); err == nil || !strings.Contains(err.Error(), "not of this type") {
		t.Errorf("another type: %v", err)
	}
}

// TestDoBesideItself: of many calls at once one runs, and the others are told, or wait.
func TestDoBesideItself(t *testing.T) {
	t.Parallel()
	for name, opts := range map[string][]idempotency.Option{"told": nil, "waiting": {idempotency.WithWait(time.Minute)}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			store := idempotency.NewMemoryStore()
			var runs, refused atomic.Int64
			var wg sync.WaitGroup
			for range 30 {
				wg.Go(func() {
					got, _, err := idempotency.Do(t.Context(), store, orgA, "k", "", func(context.Context) (int64, error) {
						defer time.Sleep(time.Millisecond)
						return runs.Add(1), nil
					}, opts...)
					switch {
					case errors.Is(err, idempotency.ErrInFlight):
						refused.Add(1)
					case err != nil || got != 1:
						t.Errorf("%d, %v", got, err)
					}
				})
			}
			wg.Wait()
			if runs.Load() != 1 || name == "waiting" && refused.Load() > 0 {
				t.Errorf("%d runs, %d refused", runs.Load(), refused.Load())
			}
		})
	}
}

// TestDoIsApartFromRequests: a client that chooses the key of a job gets nothing of it,
// and does not keep it from running; nor does an option that speaks of requests.
func TestDoIsApartFromRequests(t *testing.T) {
	t.Parallel()
	store := idempotency.NewMemoryStore()
	h := idempotency.Require(store)(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		got, outcome, err := idempotency.Do(r.Context(), store, orgA, "k", "", func(context.Context) (string, error) { return "job", nil })
		fmt.Fprint(w, got, " ", outcome, " ", err)
	}))
	w := httptest.NewRecorder()
	h.ServeHTTP(w, request(t, "k", ""))
	if w.Body.String() != "job executed <nil>" {
		t.Errorf("%s", w.Body)
	}
	runs := 0
	for range 2 {
		_, _, err := idempotency.Do(t.Context(), store, orgA, "excluded", "", func(context.Context) (int, error) { runs++; return runs, nil },
			idempotency.WithExclude("/"), idempotency.WithMethods("PATCH"), idempotency.WithRequireKey(), idempotency.WithScope(func(*http.Request) string { return "scope" }))
		if err != nil {
			t.Error(err)
		}
	}
	if runs != 1 {
		t.Errorf("%d runs, want 1", runs)
	}
}

// TestDoObserves: an observer of the user's is told as well.
func TestDoObserves(t *testing.T) {
	t.Parallel()
	observe, got := decisions()
	if _, _, err := idempotency.Do(t.Context(), idempotency.NewMemoryStore(), orgA, "k", "", func(context.Context) (int, error) { return 1, nil }, observe); err != nil {
		t.Fatal(err)
	}
	if fmt.Sprint(*got) != "[executed]" {
		t.Errorf("decisions %v", *got)
	}
}

// A queue delivers a message again when its consumer did not acknowledge it in time.
func ExampleDo() {
	store := idempotency.NewMemoryStore()
	orgID := uuid.MustParse("6f1c2f6e-0d5a-4c8e-9f5e-2f0a3c1d7b42")
	ctx := context.Background()
	invoices := 0
	consume := func(messageID string) {
		number, outcome, err := idempotency.Do(ctx, store, orgID, messageID, "", func(context.Context) (string, error) {
			invoices++
			return fmt.Sprint("invoice ", invoices), nil
		})
		fmt.Println(number, outcome, err)
	}
	consume("message-1")
	consume("message-1") // delivered again
	consume("message-2")
	// Output:
	// invoice 1 executed <nil>
	// invoice 1 replayed <nil>
	// invoice 2 executed <nil>
}

// rerunStore rolls its first attempt back, as a transaction that met others, and by then
// another call has completed the key.
type rerunStore struct {
	*idempotency.MemoryStore
	reruns int
}

func (s *rerunStore) Claim(ctx context.Context, req idempotency.ClaimRequest) (idempotency.ClaimResult, error) {
	result, err := s.MemoryStore.Claim(ctx, req)
	result.Transaction = s
	return result, err
}

func (s *rerunStore) Complete(ctx context.Context, c idempotency.Claim, rec *idempotency.Record) error {
	if s.reruns++; s.reruns > 1 {
		return s.MemoryStore.Complete(ctx, c, rec)
	}
	theirs := rec.Clone()
	theirs.ResponseBody = []byte(`"theirs"`)
	if err := s.MemoryStore.Complete(ctx, c, theirs); err != nil {
		return err
	}
	return idempotency.ErrRerun
}

// TestDoReturnsWhatWasCommitted: what an attempt returned that was rolled back is nobody's
// result.
func TestDoReturnsWhatWasCommitted(t *testing.T) {
	t.Parallel()
	store := &rerunStore{MemoryStore: idempotency.NewMemoryStore()}
	got, outcome, err := idempotency.Do(t.Context(), store, orgA, "k", "", func(context.Context) (string, error) { return "mine", nil })
	if got != "theirs" || outcome != idempotency.DecisionReplayed || err != nil {
		t.Errorf("%q, %q, %v; want the result that was committed", got, outcome, err)
	}
}
