package demo

import (
	"context"
	"log/slog"
	"os"
	"sync/atomic"
)

// runCounter is the log of a service under the script. It counts the runs of the
// payment handler, which logs each of them first of all: a witness other than the
// responses and the table. Warnings and errors go on to standard error.
type runCounter struct {
	slog.Handler
	runs *atomic.Int64
}

func newRunCounter() runCounter {
	return runCounter{
		Handler: slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}),
		runs:    new(atomic.Int64),
	}
}

// Enabled implements [slog.Handler].
func (c runCounter) Enabled(_ context.Context, level slog.Level) bool { return level >= slog.LevelInfo }

// Handle implements [slog.Handler].
func (c runCounter) Handle(ctx context.Context, r slog.Record) error {
	if r.Message == "create payment" {
		c.runs.Add(1)
	}
	if !c.Handler.Enabled(ctx, r.Level) {
		return nil
	}
	return c.Handler.Handle(ctx, r)
}

// count returns the runs so far.
func (c runCounter) count() int { return int(c.runs.Load()) }
