package registry

import (
	"context"
	"time"

	"github.com/google/uuid"

	"github.com/pgidem/pgidem/tenancy"
)

// WithPulse sets after how long a silent connection is asked for a sign of life.
func WithPulse(d time.Duration) Option {
	return func(r *Registry) error { r.pulse = d; return nil }
}

// WithLookupTimeout sets how long a lookup may take.
func WithLookupTimeout(d time.Duration) Option {
	return func(r *Registry) error { r.timeout = d; return nil }
}

// WithClock has clock tell the time since the registry was made.
func WithClock(clock func() time.Duration) Option {
	return func(r *Registry) error { r.clock = clock; return nil }
}

// PlaceLate is Place for who has found nothing cached, some time ago.
func (r *Registry) PlaceLate(ctx context.Context, orgID uuid.UUID) (tenancy.Placement, error) {
	return r.find(ctx, orgID, false)
}

// Cached returns how many tenants are cached, and how many org_ids as unknown.
func (r *Registry) Cached() (known, unknown int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.known.len, r.unknown.len
}

// What bounds the time until a change is seen, and how many org_ids are remembered as unknown.
const (
	DeafLife     = deafLife
	UnknownLife  = unknownLife
	FailingPause = failingPause
	DefaultPulse = defaultPulse
	PulseTimeout = pulseTimeout
	UnknownSize  = unknownSize
)
