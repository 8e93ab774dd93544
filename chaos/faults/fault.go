package faults

import (
	"regexp"
	"strings"
	"sync"
	"time"
)

// Moment is when a fault strikes, within the round trip of the statement that it waits for.
type Moment int

const (
	// Before means that the statement has left the client and not reached the server. What
	// stands before it in the same round trip has.
	Before Moment = iota + 1
	// Sent means that the server was sent the whole round trip. How far it gets with it is
	// left to chance.
	Sent
	// Answered means that the server has done the whole round trip, and the client has
	// heard nothing of it.
	Answered
)

// String returns the moment's name.
func (m Moment) String() string { return [...]string{"", "before", "sent", "answered"}[m] }

// Kind is what a fault does to a connection.
type Kind int

const (
	// Watch does nothing but call the fault's Do.
	Watch Kind = iota + 1
	// Cut closes both sides.
	Cut
	// Reset closes both sides, the client's with a TCP reset.
	Reset
	// HalfClose tells the client that the server has closed, which it has not, and does not
	// notice.
	HalfClose
	// Delay holds up the statement or, after it has been sent, its answer.
	Delay
	// BlackHole holds whatever goes either way.
	BlackHole
	// BlackHoleRequests holds what the client sends.
	BlackHoleRequests
	// BlackHoleAnswers holds what the server sends.
	BlackHoleAnswers
)

// String returns the kind's name.
func (k Kind) String() string {
	return [...]string{"", "watch", "cut", "reset", "half-close", "delay", "black-hole", "black-hole-requests", "black-hole-answers"}[k]
}

// Fault says what happens to which statement's connection, and when.
type Fault struct {
	// Statement tells the statements that are meant from others; see [Named] and [Text].
	Statement func(sql string) bool
	Moment    Moment
	Kind      Kind
	// For is how long a delay, a black hole or a half-closed connection lasts. Zero means
	// until [Proxy.Heal]. When it is over, a half-closed connection is closed.
	For time.Duration
	// Times is how often it strikes. Zero means once.
	Times int
	// Do is called when it strikes, before anything else goes on over the connection.
	Do func()
}

// Named matches the execution of a statement that sqlc has generated, by the name in its
// first line.
func Named(name string) func(sql string) bool {
	return regexp.MustCompile(`^-- name: ` + regexp.QuoteMeta(name) + ` `).MatchString
}

// Text matches the execution of a statement that begins with the text, whatever its case.
func Text(text string) func(sql string) bool {
	return func(sql string) bool {
		return len(sql) >= len(text) && strings.EqualFold(sql[:len(text)], text)
	}
}

// Strike tells what became of a [Fault].
type Strike struct {
	fault Fault
	first chan struct{}

	mu    sync.Mutex
	left  int
	count int
	tags  []string
}

// First is closed when the fault strikes for the first time.
func (s *Strike) First() <-chan struct{} { return s.first }

// Count returns how often the fault has struck.
func (s *Strike) Count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.count
}

// Tags returns, for each strike at [Answered], how the server's answer ended: with a
// command tag, or the SQLSTATE of an error.
func (s *Strike) Tags() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]string(nil), s.tags...)
}

// take reports whether the fault means a statement and has a strike left, and uses it up.
func (s *Strike) take(sql string) bool {
	if !s.fault.Statement(sql) {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.left == 0 {
		return false
	}
	s.left--
	return true
}

// giveBack leaves a strike that was taken, and whose connection came to its end before, to
// another statement.
func (s *Strike) giveBack() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.left++
}

// struck counts a strike.
func (s *Strike) struck(tag string) {
	s.mu.Lock()
	s.count++
	if s.count == 1 {
		close(s.first)
	}
	if s.fault.Moment == Answered {
		s.tags = append(s.tags, tag)
	}
	s.mu.Unlock()
	if s.fault.Do != nil {
		s.fault.Do()
	}
}

func (s *Strike) disarm() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.left = 0
}
