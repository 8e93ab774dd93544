// Package provision makes tenants and takes them away: schema, privileges and the entry in
// the registry, in steps that may be cut off anywhere and run again.
//
//	control, err := tenancy.ParseSchema(registry.DefaultSchema)
//	err = migrations.UpControl(ctx, databaseURL, control) // once
//	tenants, err := registry.New(pool)
//	p, err := provision.New(tenants, pool, provision.WithServiceRole("payments"))
//
//	tenant, err := p.Provision(ctx, orgID) // at sign-up; again if in doubt
//
//	tenant, err = p.Suspend(ctx, orgID)
//	tenant, err = p.Resume(ctx, orgID)
//
//	tenant, err = p.Suspend(ctx, orgID)
//	err = p.Drop(ctx, orgID, tenant.Schema.String()) // again if it is cut off
//
// It is for tools and for the code of a service that signs tenants up: it compiles goose,
// which the request path does without. The role of the pool makes schemas (CREATE on the
// database) and owns what is in them; with [WithTenantRoles] it makes roles as well
// (CREATEROLE). The service itself should connect as another role, with no more than
// [WithServiceRole] grants it.
package provision
