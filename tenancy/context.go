package tenancy

import (
	"context"

	"github.com/google/uuid"
)

type orgIDKey struct{}

// WithOrgID returns a context that carries orgID as the tenant of the request.
//
// [uuid.Nil] counts as no tenant: a context made with it has none, even where
// ctx had one before.
func WithOrgID(ctx context.Context, orgID uuid.UUID) context.Context {
	return context.WithValue(ctx, orgIDKey{}, orgID)
}

// OrgID returns the tenant that [WithOrgID] put into ctx. It reports false when
// there is none, or when it is [uuid.Nil].
func OrgID(ctx context.Context) (uuid.UUID, bool) {
	orgID, _ := ctx.Value(orgIDKey{}).(uuid.UUID)
	return orgID, orgID != uuid.Nil
}
