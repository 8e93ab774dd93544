package pgstore

import (
	"context"
	"sync"
)

// turns bounds how many calls of one schema go by themselves at once. They may be waiting
// for a lock on its table, and are not to take all connections from other schemas.
type turns struct {
	most int

	mu    sync.Mutex
	taken map[string]*turn
}

type turn struct {
	slots chan struct{}
	users int // who have a slot, or wait for one
}

// take waits for the schema's turn; give it back afterwards.
func (t *turns) take(ctx context.Context, schema string) error {
	t.mu.Lock()
	if t.taken == nil {
		t.taken = make(map[string]*turn)
	}
	of := t.taken[schema]
	if of == nil {
		of = &turn{slots: make(chan struct{}, t.most)}
		t.taken[schema] = of
	}
	of.users++
	t.mu.Unlock()
	select {
	case of.slots <- struct{}{}:
		return nil
	case <-ctx.Done():
		t.leave(schema)
		return ctx.Err()
	}
}

// give ends a turn.
func (t *turns) give(schema string) {
	t.mu.Lock()
	of := t.taken[schema]
	t.mu.Unlock()
	<-of.slots
	t.leave(schema)
}

func (t *turns) leave(schema string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if of := t.taken[schema]; of.users == 1 {
		delete(t.taken, schema)
	} else {
		of.users--
	}
}
