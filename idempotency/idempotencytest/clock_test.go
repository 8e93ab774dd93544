package idempotencytest_test

import (
	"sync"
	"testing"
	"time"

	"github.com/pgidem/pgidem/idempotency/idempotencytest"
)

func TestClockMovesOnlyWhenMoved(t *testing.T) {
	t.Parallel()
	before := time.Now()
	clock := idempotencytest.NewClock()
	start := clock.Now()
	if start.Before(before) || start.After(time.Now()) {
		t.Errorf("a new clock shows %v; want the present time", start)
	}
	var wg sync.WaitGroup
	for range 10 {
		wg.Go(func() {
			clock.Advance(time.Minute)
			clock.Now()
		})
	}
	wg.Wait()
	if got := clock.Now().Sub(start); got != 10*time.Minute {
		t.Errorf("the clock moved %v; want ten times a minute", got)
	}
}

func TestClockDoesNotGoBack(t *testing.T) {
	t.Parallel()
	clock := idempotencytest.NewClock()
	start := clock.Now()
	defer func() {
		if recover() == nil {
			t.Error("Advance took a negative duration")
		}
		if !clock.Now().Equal(start) {
			t.Error("the clock went back")
		}
	}()
	clock.Advance(-time.Nanosecond)
}
