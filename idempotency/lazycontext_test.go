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

	"github.com/pgidem/pgidem/idempotency"
)

type valueKey struct{}

// inHandler runs the function in a handler under a claim, with the context that the request
// came with.
func inHandler(ctx context.Context, t *testing.T, store idempotency.Store, fn func(ctx context.Context)) *httptest.ResponseRecorder {
	t.Helper()
	w := httptest.NewRecorder()
	ran := false
	h := idempotency.Require(store)(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ran = true
		fn(r.Context())
		w.WriteHeader(http.StatusCreated)
	}))
	h.ServeHTTP(w, request(t, "k", "").WithContext(idempotency.WithOrgID(ctx, orgA)))
	if !ran {
		t.Fatalf("the handler did not run: %d %s", w.Code, w.Body)
	}
	return w
}

func isOver(ctx context.Context) bool {
	select {
	case <-ctx.Done():
		return true
	default:
		return false
	}
}

// TestHandlerContextEndsWithRequest: the context of a handler ends like that of the request,
// whether somebody asks for its Done before that, after it, or never.
func TestHandlerContextEndsWithRequest(t *testing.T) {
	t.Parallel()
	gone := errors.New("gone")
	for name, before := range map[string]func(context.Context){
		"asked before": func(ctx context.Context) {
			if isOver(ctx) {
				t.Error("over before its time")
			}
		},
		"asked after": func(context.Context) {},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			parent, cancel := context.WithCancelCause(context.WithValue(t.Context(), valueKey{}, "kept"))
			inHandler(parent, t, idempotency.NewMemoryStore(), func(ctx context.Context) {
				if ctx.Err() != nil || context.Cause(ctx) != nil {
					t.Error(ctx.Err(), context.Cause(ctx))
				}
				before(ctx)
				cancel(gone)
				if !errors.Is(context.Cause(ctx), gone) || !errors.Is(ctx.Err(), context.Canceled) || !isOver(ctx) {
					t.Errorf("cause %v, error %v, over %t", context.Cause(ctx), ctx.Err(), isOver(ctx))
				}
				if key, _ := idempotency.Key(context.WithoutCancel(ctx)); key != "k" || ctx.Value(valueKey{}) != "kept" {
					t.Errorf("key %q, value %v", key, ctx.Value(valueKey{}))
				}
			})
		})
	}
}

// TestHandlerContextHasDeadline: that of the request.
func TestHandlerContextHasDeadline(t *testing.T) {
	t.Parallel()
	want := time.Now().Add(20 * time.Millisecond)
	parent, cancel := context.WithDeadline(t.Context(), want)
	defer cancel()
	inHandler(parent, t, idempotency.NewMemoryStore(), func(ctx context.Context) {
		if deadline, ok := ctx.Deadline(); !ok || !deadline.Equal(want) {
			t.Errorf("deadline %v, want %v", deadline, want)
		}
		<-ctx.Done()
		if !errors.Is(ctx.Err(), context.DeadlineExceeded) || !errors.Is(context.Cause(ctx), context.DeadlineExceeded) {
			t.Error(ctx.Err(), context.Cause(ctx))
		}
	})
}

// TestHandlerContextEndsItsChildren, those of goroutines that outlive the handler, too, and
// those that are made only then.
func TestHandlerContextEndsItsChildren(t *testing.T) {
	t.Parallel()
	for name, store := range stores() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var kept, child context.Context
			var cancel, cancelTimeout context.CancelFunc
			ended := make(chan struct{})
			inHandler(t.Context(), t, store, func(ctx context.Context) {
				kept = ctx
				child, cancel = context.WithCancel(ctx)
				child, cancelTimeout = context.WithTimeout(child, time.Hour)
				context.AfterFunc(ctx, func() { close(ended) })
				if isOver(child) {
					t.Error("over before its time")
				}
			})
			defer cancel()
			defer cancelTimeout()
			<-ended
			late, cancelLate := context.WithCancel(kept)
			defer cancelLate()
			for _, ctx := range []context.Context{kept, child, late} {
				if !isOver(ctx) || !errors.Is(ctx.Err(), context.Canceled) || !errors.Is(context.Cause(ctx), context.Canceled) {
					t.Errorf("over %t, error %v, cause %v", isOver(ctx), ctx.Err(), context.Cause(ctx))
				}
			}
		})
	}
}

// TestHandlerContextKeepsItsFirstCause: what comes after the end does not look as if it had
// come before, even if nobody asked in between.
func TestHandlerContextKeepsItsFirstCause(t *testing.T) {
	t.Parallel()
	t.Run("returned, then past the deadline", func(t *testing.T) {
		t.Parallel()
		parent, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		var kept context.Context
		inHandler(parent, t, idempotency.NewMemoryStore(), func(ctx context.Context) { kept = ctx })
		<-parent.Done()
		if parent.Err() == nil || !errors.Is(kept.Err(), context.Canceled) {
			t.Error(kept.Err())
		}
	})
	t.Run("past the deadline, then returned", func(t *testing.T) {
		t.Parallel()
		parent, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
		defer cancel()
		var kept context.Context
		inHandler(parent, t, idempotency.NewMemoryStore(), func(ctx context.Context) {
			kept = ctx
			<-parent.Done()
		})
		if !errors.Is(kept.Err(), context.DeadlineExceeded) || !isOver(kept) {
			t.Error(kept.Err())
		}
	})
	t.Run("lost, then the client left", func(t *testing.T) {
		t.Parallel()
		parent, cancel := context.WithCancel(t.Context())
		store := idempotency.NewMemoryStore()
		inHandler(parent, t, store, func(ctx context.Context) {
			if err := store.Clear(t.Context(), orgA); err != nil {
				t.Error(err)
			}
			cancel()
			if !errors.Is(context.Cause(ctx), idempotency.ErrLeaseLost) || !isOver(ctx) {
				t.Errorf("cause %v", context.Cause(ctx))
			}
		})
	})
}

// TestHandlerContextByMany: it may be asked by any number of goroutines while it ends. It is
// for the race detector as well.
func TestHandlerContextByMany(t *testing.T) {
	t.Parallel()
	for range 200 {
		var wg sync.WaitGroup
		inHandler(t.Context(), t, idempotency.NewMemoryStore(), func(ctx context.Context) {
			for _, ask := range []func(){
				func() { <-ctx.Done() },
				func() {
					child, cancel := context.WithCancel(ctx)
					defer cancel()
					<-child.Done()
				},
				func() {
					for ctx.Err() == nil {
						time.Sleep(time.Microsecond)
					}
					if !isOver(ctx) {
						t.Error("an error, and not over")
					}
				},
				func() {
					for context.Cause(ctx) == nil {
						time.Sleep(time.Microsecond)
					}
				},
			} {
				wg.Go(ask)
			}
		})
		wg.Wait()
	}
}

// TestHandlerContextIsPrinted while others use it: without a look at what it is made of.
func TestHandlerContextIsPrinted(t *testing.T) {
	t.Parallel()
	inHandler(t.Context(), t, idempotency.NewMemoryStore(), func(ctx context.Context) {
		var wg sync.WaitGroup
		wg.Go(func() { _ = ctx.Done() })
		wg.Go(func() {
			child, cancel := context.WithCancel(ctx)
			defer cancel()
			for _, ctx := range []context.Context{ctx, child} {
				if text := fmt.Sprintf("%v %+v %s", ctx, ctx, ctx); strings.Count(text, ".WithClaim") != 3 || strings.ContainsAny(text, "{}") {
					t.Error(text)
				}
			}
		})
		wg.Wait()
	})
}

// slowParent is a context that is past its deadline once the handler under it has returned,
// which happens while somebody asks it.
type slowParent struct {
	context.Context
	asked    chan struct{} // closed when somebody has begun to ask
	returned chan struct{} // closed when the handler has
	next     atomic.Bool   // who asks next is that somebody
	over     atomic.Bool
}

func (p *slowParent) Err() error {
	if p.next.CompareAndSwap(true, false) {
		close(p.asked)
		<-p.returned
		p.over.Store(true)
	}
	if p.over.Load() {
		return context.DeadlineExceeded
	}
	return nil
}

// TestHandlerContextSaysTheSameAgain: what Err has once said it says again, though the handler
// returns and the deadline of the request passes while it is asked.
func TestHandlerContextSaysTheSameAgain(t *testing.T) {
	t.Parallel()
	parent := &slowParent{Context: t.Context(), asked: make(chan struct{}), returned: make(chan struct{})}
	var said [2]error
	var wg sync.WaitGroup
	inHandler(parent, t, idempotency.NewMemoryStore(), func(ctx context.Context) {
		parent.next.Store(true)
		wg.Go(func() {
			for i := range said {
				said[i] = ctx.Err()
			}
		})
		<-parent.asked
	})
	close(parent.returned)
	wg.Wait()
	for _, err := range said {
		if !errors.Is(err, context.Canceled) {
			t.Errorf("it said %v, want twice that it is cancelled", said)
		}
	}
}

// stores are a MemoryStore as services have it, and one that is as any other store to Require.
func stores() map[string]idempotency.Store {
	return map[string]idempotency.Store{
		"in process":  idempotency.NewMemoryStore(),
		"with leases": &struct{ *idempotency.MemoryStore }{idempotency.NewMemoryStore()},
	}
}
