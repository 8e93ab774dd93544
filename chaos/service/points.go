package service

import (
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/pgidem/pgidem/chaos/history"
)

// Point is a moment in the life of a payment at which a process may die.
type Point string

// The points, in the order in which a payment passes them.
const (
	BeforeClaim        Point = "before claim"
	AfterClaim         Point = "after claim"
	AfterReserveEffect Point = "after effect of reserve" // which is not stored yet
	AfterReserve       Point = "after step reserve"
	AfterChildKey      Point = "after child key of charge"
	AfterChargeEffect  Point = "after effect of charge"
	AfterCharge        Point = "after step charge"
	InBusinessWrite    Point = "in the transaction of the business write"
	AfterBusinessWrite Point = "after business write" // with leases it is committed
	BeforeCommit       Point = "before commit"        // of the outcome
	AfterCommit        Point = "after commit"         // and before the response
	AfterResponse      Point = "after response"
)

// Points are all of them.
var Points = []Point{
	BeforeClaim, AfterClaim, AfterReserveEffect, AfterReserve, AfterChildKey, AfterChargeEffect, AfterCharge,
	InBusinessWrite, AfterBusinessWrite, BeforeCommit, AfterCommit, AfterResponse,
}

// Deed is what a process does to itself at a point.
type Deed string

// The deeds.
const (
	Kill Deed = "kill" // by SIGKILL
	Stop Deed = "stop" // by SIGSTOP, until somebody sends SIGCONT
)

// Plan is what a process does to itself: one thing after the other, each when it has
// passed the point so many times since the last.
type Plan []Act

// Act is one thing of a [Plan].
type Act struct {
	Point Point
	Times int // from 1
	Do    Deed
}

// points carries the plan out.
type points struct {
	process string
	log     *history.Log
	notices *os.File

	mu     sync.Mutex
	plan   Plan
	passed int // times at the point of the first act
}

// pass is called at each point.
func (p *points) pass(at Point) {
	p.mu.Lock()
	if len(p.plan) == 0 || p.plan[0].Point != at {
		p.mu.Unlock()
		return
	}
	if p.passed++; p.passed < p.plan[0].Times {
		p.mu.Unlock()
		return
	}
	deed := p.plan[0].Do
	p.plan, p.passed = p.plan[1:], 0
	if deed == Kill {
		p.log.Write(history.Event{T: history.Now(), Process: p.process, Kind: history.Killed, Point: string(at)})
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {} // with the lock held: nobody passes any point any more
	}
	p.mu.Unlock()
	p.log.Write(history.Event{T: history.Now(), Process: p.process, Kind: history.Stopped, Point: string(at)})
	_, _ = p.notices.Write([]byte{Stopping})
	_ = syscall.Kill(os.Getpid(), syscall.SIGSTOP)
	time.Sleep(10 * time.Millisecond) // the signal stops all threads, but which of them first is not said
}
