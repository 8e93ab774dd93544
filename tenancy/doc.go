// Package tenancy says who the tenant of a request is and where that tenant's
// records live.
//
// A tenant is an organisation, named by a UUID, its org_id. Authentication puts
// the org_id into the request's context (package authctx does so with a JWT):
//
//	ctx = tenancy.WithOrgID(ctx, orgID)
//
// and everything below reads it from there:
//
//	orgID, ok := tenancy.OrgID(ctx)
//
// A [Directory] turns an org_id into a [Schema], the PostgreSQL schema that
// holds the tenant's tables. [PerOrg] derives one schema for each tenant from
// its org_id and needs no lookup; [Fixed] puts all tenants of a service into
// one schema; package registry keeps them in a table:
//
//	dir, err := tenancy.PerOrg("tenant_")
//	schema, err := dir.Schema(ctx, orgID) // tenant_ + 32 hex digits
//
// A Schema can only be made by [ParseSchema] or by a Directory. It is never
// taken from a request, so a header, a path or a token can choose among
// schemas only through the org_id that authentication vouched for.
package tenancy
