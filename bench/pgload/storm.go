package main

import (
	"fmt"
	"math/rand/v2"
	"strconv"
	"sync"
)

// triesOfKey is how often each request of a storm is sent.
const triesOfKey = 3

// storm hands out tries to all clients of a work: each key three times. A client gets any of those
// in waiting, which are the tries of as many keys as there are clients. So the tries of a key come
// from several clients, out of order, and often two of them at once. The second of these is refused
// (409, in flight), and goes back to the others in waiting: sooner than Retry-After asks for, as in
// a storm.
type storm struct {
	prefix string
	window int

	mu      sync.Mutex
	random  *rand.Rand
	made    int
	waiting []*operation
}

// operation is what all tries of a key are about.
type operation struct {
	key string
	ran bool // the handler has, for one of the tries
}

func newStorm(prefix string, clients int) *storm {
	return &storm{prefix: prefix, window: triesOfKey * clients, random: rand.New(rand.NewPCG(rand.Uint64(), rand.Uint64()))}
}

// next returns what a client should try.
func (s *storm) next() *operation {
	s.mu.Lock()
	defer s.mu.Unlock()
	for len(s.waiting) < s.window {
		s.made++
		op := &operation{key: s.prefix + strconv.Itoa(s.made)}
		for range triesOfKey {
			s.waiting = append(s.waiting, op)
		}
	}
	i, last := s.random.IntN(len(s.waiting)), len(s.waiting)-1
	op := s.waiting[i]
	s.waiting[i] = s.waiting[last]
	s.waiting = s.waiting[:last]
	return op
}

// refused puts a try back.
func (s *storm) refused(op *operation) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.waiting = append(s.waiting, op)
}

// answered takes the response to a try. No more than one of a key's may come from the handler.
func (s *storm) answered(op *operation, replayed bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !replayed && op.ran {
		return fmt.Errorf("key %q: the handler ran twice", op.key)
	}
	op.ran = op.ran || !replayed
	return nil
}
