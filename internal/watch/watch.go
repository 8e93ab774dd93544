// Package watch tells those who wait for something that it may have happened.
package watch

import (
	"sync"
	"sync/atomic"
)

// Hub brings together those who wait for something at a key and those who make it
// happen. The zero Hub is ready; it must not be copied.
type Hub[K comparable] struct {
	watching atomic.Int64 // so that a signal nobody waits for costs one load

	mu       sync.Mutex
	watchers map[K]map[chan struct{}]struct{}
}

// Watch returns a channel that gets a value after each [Hub.Signal] of the key, or
// one for several, until stop is called. Register first and look at the state
// afterwards: a change in between is then never missed.
func (h *Hub[K]) Watch(key K) (changed <-chan struct{}, stop func()) {
	ch := make(chan struct{}, 1)
	return ch, h.WatchOn(key, ch)
}

// WatchOn is [Hub.Watch] on a channel of the caller's, which has room for one value.
func (h *Hub[K]) WatchOn(key K, ch chan struct{}) (stop func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.watchers == nil {
		h.watchers = make(map[K]map[chan struct{}]struct{})
	}
	if h.watchers[key] == nil {
		h.watchers[key] = make(map[chan struct{}]struct{})
	}
	h.watchers[key][ch] = struct{}{}
	h.watching.Add(1)
	return func() { h.remove(key, ch) }
}

func (h *Hub[K]) remove(key K, ch chan struct{}) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if _, ok := h.watchers[key][ch]; !ok {
		return // stopped before
	}
	delete(h.watchers[key], ch)
	if len(h.watchers[key]) == 0 {
		delete(h.watchers, key)
	}
	h.watching.Add(-1)
}

// Signal wakes those who watch the key.
func (h *Hub[K]) Signal(key K) {
	if h.watching.Load() == 0 {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	wake(h.watchers[key])
}

// SignalAll wakes everybody.
func (h *Hub[K]) SignalAll() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, watchers := range h.watchers {
		wake(watchers)
	}
}

func wake(watchers map[chan struct{}]struct{}) {
	for ch := range watchers {
		select {
		case ch <- struct{}{}:
		default: // it has not seen the last one yet, and will look after both
		}
	}
}

// Len returns how many watch at the moment.
func (h *Hub[K]) Len() int { return int(h.watching.Load()) }
