package idempotency_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pgidem/pgidem/idempotency"
	"github.com/pgidem/pgidem/idempotency/idempotencytest"
)

// stepStore is a MemoryStore that lets a test come between Step and the store. A nil
// function leaves the call as it is.
type stepStore struct {
	*idempotencytest.MemoryStore
	load func(real func() ([]byte, bool, error)) ([]byte, bool, error)
	save func(ctx context.Context, real func() ([]byte, error)) ([]byte, error)
}

func newStepStore() *stepStore { return &stepStore{MemoryStore: idempotencytest.NewMemoryStore()} }

func (s *stepStore) LoadStep(ctx context.Context, c idempotency.Claim, name string) ([]byte, bool, error) {
	real := func() ([]byte, bool, error) { return s.MemoryStore.LoadStep(ctx, c, name) }
	if s.load == nil {
		return real()
	}
	return s.load(real)
}

func (s *stepStore) SaveStep(ctx context.Context, c idempotency.Claim, name string, result []byte) ([]byte, error) {
	real := func() ([]byte, error) { return s.MemoryStore.SaveStep(ctx, c, name, result) }
	if s.save == nil {
		return real()
	}
	return s.save(ctx, real)
}

// during runs f in a handler under the store, and answers with the status that it
// returns.
func during(t *testing.T, store idempotency.Store, key string, f func(ctx context.Context) int, opts ...idempotency.Option) {
	t.Helper()
	ran := false
	h := idempotency.Require(store, opts...)(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ran = true
		w.WriteHeader(f(r.Context()))
	}))
	w := httptest.NewRecorder()
	h.ServeHTTP(w, request(t, key, ""))
	if !ran {
		t.Fatalf("the handler did not run: %d %s", w.Code, w.Body)
	}
}

const (
	made   = http.StatusCreated
	failed = http.StatusBadGateway // not storable: released
)

// effect counts how often it is had.
type effect struct {
	mu   sync.Mutex
	runs int
}

func (e *effect) have(context.Context) (int, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.runs++
	return e.runs, nil
}

func wantStep[T comparable](ctx context.Context, t *testing.T, name string, fn func(context.Context) (T, error), want T) {
	t.Helper()
	got, err := idempotency.Step(ctx, name, fn)
	if err != nil || got != want {
		t.Errorf("Step(%q) = %v, %v; want %v", name, got, err, want)
	}
}

func TestStepRunsOncePerRecordAndName(t *testing.T) {
	t.Parallel()
	store := newStepStore()
	var charge, mail, other effect
	for attempt := range 3 {
		during(t, store, "k", func(ctx context.Context) int {
			if n, _ := idempotency.Attempt(ctx); n != attempt+1 {
				t.Errorf("attempt %d, want %d", n, attempt+1)
			}
			wantStep(ctx, t, "charge", charge.have, 1)
			wantStep(ctx, t, "charge", charge.have, 1)
			wantStep(ctx, t, "mail", mail.have, 1)
			return []int{failed, failed, made}[attempt]
		})
	}
	during(t, store, "another", func(ctx context.Context) int {
		wantStep(ctx, t, "charge", other.have, 1)
		return made
	})
	store.Advance(25 * time.Hour)
	during(t, store, "k", func(ctx context.Context) int { // another life
		wantStep(ctx, t, "charge", charge.have, 2)
		return made
	})
}

func TestStepErrorIsReturnedAsItIs(t *testing.T) {
	t.Parallel()
	broken := errors.New("broken on purpose")
	var then effect
	during(t, newStepStore(), "k", func(ctx context.Context) int {
		value, err := idempotency.Step(ctx, "charge", func(context.Context) (int, error) { return 7, broken })
		if value != 7 || err != broken { //nolint:errorlint // it must be this very error
			t.Errorf("%v, %v; want what the function returned", value, err)
		}
		wantStep(ctx, t, "charge", then.have, 1)
		return made
	})
}

// notRun is a step's function that must not run.
func notRun[T any](t *testing.T) func(context.Context) (T, error) {
	return func(context.Context) (value T, err error) {
		t.Errorf("the function of a step with a %T ran", value)
		return value, nil
	}
}

func wantRefused[T any](ctx context.Context, t *testing.T, name string, want error) {
	t.Helper()
	if _, err := idempotency.Step(ctx, name, notRun[T](t)); !errors.Is(err, want) || errors.Is(err, idempotency.ErrStepNotKept) {
		t.Errorf("Step[%T](%.20q): %v; want %v", *new(T), name, err, want)
	}
}

func TestStepOutsideAClaim(t *testing.T) {
	t.Parallel()
	outside := func(ctx context.Context) {
		t.Helper()
		wantRefused[int](ctx, t, "charge", idempotency.ErrNoClaim)
		if key, err := idempotency.ChildKey(ctx, "charge"); !errors.Is(err, idempotency.ErrNoClaim) || key != "" ||
			!strings.Contains(err.Error(), "WithRequireKey") {
			t.Errorf("ChildKey = %q, %v; want ErrNoClaim, and what to do", key, err)
		}
	}
	outside(t.Context())
	h := idempotency.Require(newStepStore())(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { outside(r.Context()) }))
	h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest(http.MethodPost, "/", nil)) // no key

	var left, panicked context.Context
	during(t, newStepStore(), "k", func(ctx context.Context) int {
		left = ctx
		return made
	})
	outside(left)
	func() {
		defer func() { _ = recover() }()
		during(t, newStepStore(), "k", func(ctx context.Context) int {
			panicked = ctx
			panic("on purpose")
		})
	}()
	outside(panicked)
}

func TestStepOfAStoreWithoutSteps(t *testing.T) {
	t.Parallel()
	for _, store := range []idempotency.Store{
		struct{ idempotency.Store }{idempotency.NewMemoryStore()},
		struct{ idempotency.LeaseStore }{idempotency.NewMemoryStore()},
	} {
		during(t, store, "k", func(ctx context.Context) int {
			wantRefused[int](ctx, t, "charge", idempotency.ErrNoSteps)
			if key, err := idempotency.ChildKey(ctx, "charge"); !errors.Is(err, idempotency.ErrNoSteps) || key != "" {
				t.Errorf("ChildKey = %q, %v; want ErrNoSteps", key, err)
			}
			return made
		})
	}
}

func TestStepNames(t *testing.T) {
	t.Parallel()
	during(t, newStepStore(), "k", func(ctx context.Context) int {
		for _, name := range []string{"", strings.Repeat("x", idempotency.MaxStepName+1), strings.Repeat("x", 1e6), "a\x00b", "\x1fchild keys", "a\nb", "\xff"} {
			wantRefused[int](ctx, t, name, idempotency.ErrStepInvalid)
			if key, err := idempotency.ChildKey(ctx, name); !errors.Is(err, idempotency.ErrStepInvalid) || key != "" || len(err.Error()) > 1000 {
				t.Errorf("ChildKey(%.20q) = %q, %.200v; want ErrStepInvalid", name, key, err)
			}
		}
		for i, name := range []string{"a", " ", strings.Repeat("é", idempotency.MaxStepName/2), "charge/1", "日本"} {
			wantStep(ctx, t, name, func(context.Context) (int, error) { return i, nil }, i)
		}
		return made
	})
}

type (
	node  struct{ Next *node } // refers to itself
	inner struct{ Done chan int }
	outer struct {
		Name  string
		Inner []map[string]*inner
	}
	tagged struct {
		Kept   int
		Unused chan int `json:"-"`
		hidden func()
	}
	marshaled struct{ C chan int }
)

func (marshaled) MarshalJSON() ([]byte, error)  { return []byte(`1`), nil }
func (*marshaled) UnmarshalJSON(_ []byte) error { return nil }

// TestStepResultTypes: what cannot be stored is found out before the effect.
func TestStepResultTypes(t *testing.T) {
	t.Parallel()
	during(t, newStepStore(), "k", func(ctx context.Context) int {
		wantRefused[chan int](ctx, t, "s", idempotency.ErrStepInvalid)
		wantRefused[func()](ctx, t, "s", idempotency.ErrStepInvalid)
		wantRefused[complex128](ctx, t, "s", idempotency.ErrStepInvalid)
		wantRefused[map[bool]int](ctx, t, "s", idempotency.ErrStepInvalid)
		wantRefused[[2]*inner](ctx, t, "s", idempotency.ErrStepInvalid)
		wantRefused[outer](ctx, t, "s", idempotency.ErrStepInvalid)
		wantRefused[outer](ctx, t, "s", idempotency.ErrStepInvalid) // again
		wantRefused[error](ctx, t, "s", idempotency.ErrStepInvalid)
		wantRefused[*http.Response](ctx, t, "s", idempotency.ErrStepInvalid)

		wantStep(ctx, t, "struct{}", func(context.Context) (struct{}, error) { return struct{}{}, nil }, struct{}{})
		wantStep(ctx, t, "any", func(context.Context) (any, error) { return "x", nil }, any("x"))
		wantStep(ctx, t, "*node", func(context.Context) (*node, error) { return nil, nil }, nil)
		wantStep(ctx, t, "time", func(context.Context) (time.Time, error) { return time.Unix(1, 2).UTC(), nil }, time.Unix(1, 2).UTC())
		for _, step := range []func() error{
			func() error { _, err := idempotency.Step(ctx, "node", value(node{&node{}})); return err },
			func() error { _, err := idempotency.Step(ctx, "map", value(map[int][]byte{1: {2}})); return err },
			func() error { _, err := idempotency.Step(ctx, "tagged", value(tagged{Kept: 1})); return err },
			func() error { _, err := idempotency.Step(ctx, "marshaled", value(marshaled{})); return err },
			func() error { _, err := idempotency.Step(ctx, "raw", value(json.RawMessage(`{"a":1}`))); return err },
		} {
			if err := step(); err != nil {
				t.Error(err)
			}
		}
		return made
	})
}

func value[T any](v T) func(context.Context) (T, error) {
	return func(context.Context) (T, error) { return v, nil }
}

// TestStepResultIsAlwaysWhatWasStored: the first attempt sees no more of it than a later
// one would.
func TestStepResultIsAlwaysWhatWasStored(t *testing.T) {
	t.Parallel()
	store := newStepStore()
	for range 2 {
		during(t, store, "k", func(ctx context.Context) int {
			got, err := idempotency.Step(ctx, "tagged", value(tagged{Kept: 1, Unused: make(chan int), hidden: func() {}}))
			if err != nil || got.Kept != 1 || got.Unused != nil || got.hidden != nil {
				t.Errorf("%+v, %v", got, err)
			}
			return failed
		})
	}
	during(t, store, "k", func(ctx context.Context) int {
		wantRefused[int](ctx, t, "tagged", idempotency.ErrStepInvalid) // another type than before
		return made
	})
}

func TestStepThatAnotherHasStoredFirst(t *testing.T) {
	t.Parallel()
	store := newStepStore()
	store.save = func(_ context.Context, real func() ([]byte, error)) ([]byte, error) {
		if _, err := real(); err != nil {
			return nil, err
		}
		return []byte(`99`), nil
	}
	during(t, store, "k", func(ctx context.Context) int {
		wantStep(ctx, t, "charge", value(1), 99)
		wantStep(ctx, t, "charge", value(1), 99)
		return made
	})
}

var errStoreDown = errors.New("down on purpose")

func TestStepWithTheStoreDown(t *testing.T) {
	t.Parallel()
	brief := idempotency.WithStoreTimeout(60 * time.Millisecond)
	t.Run("before the function", func(t *testing.T) {
		t.Parallel()
		store := newStepStore()
		store.load = func(func() ([]byte, bool, error)) ([]byte, bool, error) { return nil, false, errStoreDown }
		during(t, store, "k", func(ctx context.Context) int {
			wantRefused[int](ctx, t, "charge", errStoreDown)
			return failed
		}, brief)
	})
	t.Run("after it", func(t *testing.T) {
		t.Parallel()
		store := newStepStore()
		down := true
		store.save = func(_ context.Context, real func() ([]byte, error)) ([]byte, error) {
			if down {
				return nil, errStoreDown
			}
			return real()
		}
		var charge effect
		during(t, store, "k", func(ctx context.Context) int {
			_, err := idempotency.Step(ctx, "charge", charge.have)
			if !errors.Is(err, idempotency.ErrStepNotKept) || !errors.Is(err, errStoreDown) {
				t.Errorf("%v; want ErrStepNotKept, and why", err)
			}
			if _, err := idempotency.ChildKey(ctx, "charge"); !errors.Is(err, errStoreDown) || errors.Is(err, idempotency.ErrStepNotKept) {
				t.Errorf("ChildKey: %v; want that the store is down", err)
			}
			down = false
			wantStep(ctx, t, "charge", charge.have, 1) // what is known here is not done again
			return failed
		}, brief)
		during(t, store, "k", func(ctx context.Context) int {
			wantStep(ctx, t, "charge", charge.have, 1)
			return made
		})
	})
	t.Run("for a moment", func(t *testing.T) {
		t.Parallel()
		store := newStepStore()
		faults := 0
		store.save = func(_ context.Context, real func() ([]byte, error)) ([]byte, error) {
			if faults++; faults < 3 {
				return nil, errStoreDown
			}
			return real()
		}
		during(t, store, "k", func(ctx context.Context) int {
			wantStep(ctx, t, "charge", value(1), 1)
			return made
		})
	})
	t.Run("a value that is no JSON", func(t *testing.T) {
		t.Parallel()
		during(t, newStepStore(), "k", func(ctx context.Context) int {
			if _, err := idempotency.Step(ctx, "charge", value(math.NaN())); !errors.Is(err, idempotency.ErrStepNotKept) {
				t.Errorf("%v; want ErrStepNotKept", err)
			}
			return failed
		})
	})
}

// TestStepOfAClientThatLeft: the result is stored all the same, and no other step begins.
func TestStepOfAClientThatLeft(t *testing.T) {
	t.Parallel()
	store := newStepStore()
	store.save = func(ctx context.Context, real func() ([]byte, error)) ([]byte, error) {
		if err := ctx.Err(); err != nil {
			t.Errorf("stored under a context that has ended: %v", err)
		}
		return real()
	}
	cause := errors.New("left on purpose")
	during(t, store, "k", func(ctx context.Context) int {
		ctx, leave := context.WithCancelCause(ctx)
		wantStep(ctx, t, "charge", func(context.Context) (int, error) {
			leave(cause)
			return 1, nil
		}, 1)
		wantRefused[int](ctx, t, "mail", cause)
		return failed
	})
	during(t, store, "k", func(ctx context.Context) int {
		wantStep(ctx, t, "charge", notRun[int](t), 1)
		return made
	})
}

// TestStepOfAStaleAttempt: a process that is paused past its lease while its step runs
// cannot store it.
func TestStepOfAStaleAttempt(t *testing.T) {
	t.Parallel()
	store := newStepStore()
	during(t, store, "k", func(ctx context.Context) int {
		_, err := idempotency.Step(ctx, "charge", func(context.Context) (string, error) {
			store.Advance(2 * time.Minute)
			during(t, store, "k", func(ctx context.Context) int {
				wantStep(ctx, t, "charge", value("second"), "second")
				return failed
			})
			return "first", nil
		})
		if !errors.Is(err, idempotency.ErrLeaseLost) || !errors.Is(err, idempotency.ErrStepNotKept) {
			t.Errorf("%v; want ErrLeaseLost and ErrStepNotKept", err)
		}
		wantRefused[string](ctx, t, "mail", idempotency.ErrLeaseLost)
		if key, err := idempotency.ChildKey(ctx, "charge"); !errors.Is(err, idempotency.ErrLeaseLost) {
			t.Errorf("ChildKey = %q, %v; want ErrLeaseLost", key, err)
		}
		return failed
	})
	during(t, store, "k", func(ctx context.Context) int {
		wantStep(ctx, t, "charge", notRun[string](t), "second")
		return made
	})
}

func TestStepsSideBySide(t *testing.T) {
	t.Parallel()
	during(t, newStepStore(), "k", func(ctx context.Context) int {
		var charge effect
		var wg sync.WaitGroup
		for range 20 { // one name: one runs, and the others get its result
			wg.Go(func() { wantStep(ctx, t, "charge", charge.have, 1) })
		}
		wg.Wait()

		first, second := make(chan bool), make(chan bool) // two names: each waits for the other
		wg.Go(func() {
			wantStep(ctx, t, "first", func(context.Context) (bool, error) { close(first); <-second; return true, nil }, true)
		})
		wg.Go(func() {
			wantStep(ctx, t, "second", func(context.Context) (bool, error) { close(second); <-first; return true, nil }, true)
		})
		wg.Wait()

		begun, end := make(chan bool), make(chan bool) // who waits may leave
		wg.Go(func() {
			wantStep(ctx, t, "slow", func(context.Context) (bool, error) { close(begun); <-end; return true, nil }, true)
		})
		<-begun
		leaving, leave := context.WithCancel(ctx)
		left := make(chan bool)
		go func() {
			defer close(left)
			wantRefused[bool](leaving, t, "slow", context.Canceled)
		}()
		leave()
		<-left
		wg.Go(func() { wantStep(ctx, t, "slow", notRun[bool](t), true) })
		close(end)
		wg.Wait()
		return made
	})
}

// TestStepThatEndsItsGoroutine: a panic leaves nothing locked and nothing stored.
func TestStepThatEndsItsGoroutine(t *testing.T) {
	t.Parallel()
	during(t, newStepStore(), "k", func(ctx context.Context) int {
		for name, end := range map[string]func(){"panic": func() { panic("on purpose") }, "goexit": runtime.Goexit} {
			done := make(chan any)
			go func() {
				defer func() { done <- recover() }()
				_, _ = idempotency.Step(ctx, name, func(context.Context) (int, error) { end(); return 0, nil })
				t.Error("Step returned")
			}()
			if p := <-done; (p != nil) != (name == "panic") {
				t.Errorf("%s: recovered %v", name, p)
			}
			wantStep(ctx, t, name, value(1), 1)
		}
		return made
	})
}

func TestStepsWithinSteps(t *testing.T) {
	t.Parallel()
	store := newStepStore()
	during(t, store, "k", func(ctx context.Context) int {
		wantStep(ctx, t, "outer", func(ctx context.Context) (int, error) {
			wantStep(ctx, t, "inner", func(ctx context.Context) (int, error) {
				wantRefused[int](ctx, t, "outer", idempotency.ErrStepInvalid) // and does not wait for itself
				wantRefused[int](ctx, t, "inner", idempotency.ErrStepInvalid)
				during(t, store, "another", func(context.Context) int { return made })
				return 1, nil
			}, 1)
			return 2, nil
		}, 2)
		return made
	})
}

func TestReleaseOfStepsKeepsTheRecord(t *testing.T) {
	t.Parallel()
	store := newStepStore()
	during(t, store, "k", func(ctx context.Context) int {
		wantStep(ctx, t, "charge", value(1), 1)
		return failed
	})
	// The record of an attempt that was released with steps is kept, for this request.
	w := httptest.NewRecorder()
	idempotency.Require(store)(http.NotFoundHandler()).ServeHTTP(w, request(t, "k", "another body"))
	if w.Code != http.StatusUnprocessableEntity {
		t.Errorf("another request with the key: %d; want 422", w.Code)
	}
	if n := store.Len(); n != 1 {
		t.Errorf("%d records, want 1", n)
	}
	during(t, store, "without", func(context.Context) int { return failed })
	if n := store.Len(); n != 1 {
		t.Errorf("%d records after a release without steps, want 1", n)
	}
}

func ExampleStep() {
	processor := make(map[string]int) // another service, which honours idempotency keys
	charge := func(key string) (id int) {
		if processor[key] == 0 {
			processor[key] = len(processor) + 1
		}
		return processor[key]
	}
	down := true // our mail server
	pay := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		id, err := idempotency.Step(r.Context(), "charge", func(ctx context.Context) (int, error) {
			key, err := idempotency.ChildKey(ctx, "charge")
			if err != nil {
				return 0, err
			}
			fmt.Println("charging")
			return charge(key), nil
		})
		if err != nil {
			http.Error(w, "try again", http.StatusServiceUnavailable)
			return
		}
		if down {
			down = false
			http.Error(w, "no mail sent", http.StatusBadGateway)
			return
		}
		w.WriteHeader(http.StatusCreated)
		fmt.Fprint(w, "charge ", id)
	})
	h := authenticate(idempotency.Require(idempotency.NewMemoryStore())(pay))

	send(h, "key-1", "10 EUR")
	send(h, "key-1", "10 EUR") // a retry, which runs the handler again, and not the step
	send(h, "key-1", "10 EUR")
	fmt.Println("charges:", len(processor))
	// Output:
	// charging
	// 502 no mail sent replayed: false
	// 201 charge 1 replayed: false
	// 201 charge 1 replayed: true
	// charges: 1
}
