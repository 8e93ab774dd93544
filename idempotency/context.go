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

type claimedKey struct{}

// claimed is what a handler may know of the claim that it runs under.
type claimed struct {
	orgID   uuid.UUID
	domain  string
	key     string
	attempt int
	tx      any
	steps   *steps
}

// claimOf returns the claim that a handler runs under, or nil.
func claimOf(ctx context.Context) *claimed {
	c, _ := ctx.Value(claimedKey{}).(*claimed)
	return c
}

// Key returns the idempotency key of the request as its client meant it: unquoted,
// and without the scope of [WithScope]. It is unique within the tenant (and the
// scope) for as long as its record lives, so a handler may keep it in a unique
// column beside its effect, and find the effect again after a crash. It reports
// false outside a handler that [Require] runs under a claim.
func Key(ctx context.Context) (key string, ok bool) {
	if c := claimOf(ctx); c != nil {
		return c.key, true
	}
	return "", false
}

// Transaction returns the [ClaimResult.Transaction] of the claim that a handler runs
// under, and nil without one. It is for stores, which hand it on in a form of their own,
// as pgstore.Tx does.
func Transaction(ctx context.Context) any {
	if c := claimOf(ctx); c != nil {
		return c.tx
	}
	return nil
}

// Attempt returns which attempt at the request's idempotency key is running,
// counted from 1. A number above 1 means that an earlier attempt held the key
// and let its lease lapse: its process died or was cut off, and what it did
// before that is unknown; or that it ended without an outcome after it had stored
// steps, which [Step] finds again. It reports false outside a handler that [Require]
// runs under a claim.
func Attempt(ctx context.Context) (n int, ok bool) {
	if c := claimOf(ctx); c != nil {
		return c.attempt, true
	}
	return 0, false
}
