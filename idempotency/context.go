package idempotency

import (
	"context"

	"github.com/google/uuid"

	"github.com/pgidem/pgidem/tenancy"
)

// WithOrgID returns a context that carries orgID as the tenant of the request;
// it is [tenancy.WithOrgID]. [uuid.Nil] counts as no tenant.
func WithOrgID(ctx context.Context, orgID uuid.UUID) context.Context {
	return tenancy.WithOrgID(ctx, orgID)
}

// FromContext returns the tenant of the request, and false when there is none or
// it is [uuid.Nil]; it is [tenancy.OrgID].
func FromContext(ctx context.Context) (uuid.UUID, bool) {
	return tenancy.OrgID(ctx)
}

type attemptKey struct{}

func withAttempt(ctx context.Context, n int) context.Context {
	return context.WithValue(ctx, attemptKey{}, n)
}

// Attempt returns which attempt at the request's idempotency key is running,
// counted from 1. A number above 1 means that an earlier attempt held the key
// and let its lease lapse: its process died or was cut off, and what it did
// before that is unknown. It reports false outside a handler that [Require]
// runs under a claim.
func Attempt(ctx context.Context) (n int, ok bool) {
	n, ok = ctx.Value(attemptKey{}).(int)
	return n, ok
}
