package watch_test

import (
	"sync"
	"testing"

	"go.uber.org/goleak"

	"github.com/pgidem/pgidem/internal/watch"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func signalled(ch <-chan struct{}) bool {
	select {
	case <-ch:
		return true
	default:
		return false
	}
}

func TestSignalWakesWatchersOfTheKey(t *testing.T) {
	t.Parallel()
	var h watch.Hub[string]
	h.Signal("a") // nobody there
	a1, stop1 := h.Watch("a")
	a2, stop2 := h.Watch("a")
	b, stop3 := h.Watch("b")
	if h.Len() != 3 {
		t.Fatalf("%d watch, want 3", h.Len())
	}
	h.Signal("a")
	h.Signal("a") // two signals may be one
	if !signalled(a1) || !signalled(a2) || signalled(a1) || signalled(b) {
		t.Error("a signal did not reach the watchers of its key, once each, and no other")
	}
	h.SignalAll()
	if !signalled(a1) || !signalled(a2) || !signalled(b) {
		t.Error("SignalAll left somebody asleep")
	}
	stop1()
	stop1() // twice does no harm
	h.Signal("a")
	if signalled(a1) || !signalled(a2) {
		t.Error("stop ended the wrong watch")
	}
	stop2()
	stop3()
	if h.Len() != 0 {
		t.Errorf("%d watch after all stopped", h.Len())
	}
}

// TestNoChangeIsMissed: who registers first and looks afterwards sees every change,
// by looking or by the signal.
func TestNoChangeIsMissed(t *testing.T) {
	t.Parallel()
	for range 2000 {
		var h watch.Hub[int]
		var mu sync.Mutex
		done := false
		var wg sync.WaitGroup
		wg.Go(func() {
			mu.Lock()
			done = true
			mu.Unlock()
			h.Signal(1)
		})
		ch, stop := h.Watch(1)
		mu.Lock()
		seen := done
		mu.Unlock()
		if !seen {
			<-ch // the test's timeout would tell of a lost signal
		}
		stop()
		wg.Wait()
	}
}
