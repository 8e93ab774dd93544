package idempotency

import (
	"context"
	"fmt"
	"sync"
	"time"
)

// lazyContext is the context of a handler. It can be cancelled, like one of
// [context.WithCancelCause], but that is made only once somebody asks for the channel that
// tells of the end: most handlers never do.
//
// Whoever makes a lazyContext ends it.
type lazyContext struct {
	parent  context.Context
	claimed *claimed // what Value tells of the claim

	mu     sync.Mutex
	made   context.Context // the standard library's, nil until it is needed
	cancel context.CancelCauseFunc
	ended  bool
}

// Deadline implements [context.Context].
func (c *lazyContext) Deadline() (deadline time.Time, ok bool) { return c.parent.Deadline() }

// Done implements [context.Context].
func (c *lazyContext) Done() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.make().Done()
}

// Err implements [context.Context].
func (c *lazyContext) Err() error {
	if err := c.current().Err(); err == nil {
		return nil
	}
	return c.current().Err() // while its parent was asked, c may have ended first
}

// String names the context as those of the standard library are. To print what c is made of
// would be to read it while others write.
func (c *lazyContext) String() string {
	parent := fmt.Sprintf("%T", c.parent)
	if named, ok := c.parent.(fmt.Stringer); ok {
		parent = named.String()
	}
	return parent + ".WithClaim"
}

// Value implements [context.Context]. The standard library asks it, too, for what it needs
// to cancel children and to find the cause, which only a context of its own knows.
func (c *lazyContext) Value(key any) any {
	if _, ok := key.(claimedKey); ok {
		return c.claimed
	}
	return c.current().Value(key)
}

// current returns the context that c is as good as at the moment.
func (c *lazyContext) current() context.Context {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.made == nil && !c.ended {
		return c.parent
	}
	return c.make()
}

// make returns the context of the standard library's. The lock is held.
func (c *lazyContext) make() context.Context {
	if c.made != nil {
		return c.made
	}
	parent := c.parent
	if c.ended {
		parent = context.WithoutCancel(parent) // which had not ended when c did
	}
	c.made, c.cancel = context.WithCancelCause(parent)
	if c.ended {
		c.cancel(nil)
	}
	return c.made
}

// end ends the context, for the cause; nil means [context.Canceled].
func (c *lazyContext) end(cause error) {
	c.mu.Lock()
	if c.made == nil && (cause != nil || c.parent.Err() != nil) {
		c.make() // so that what comes later does not look as if it had come before
	}
	c.ended = true
	cancel := c.cancel
	c.mu.Unlock()
	if cancel != nil {
		cancel(cause)
	}
}
