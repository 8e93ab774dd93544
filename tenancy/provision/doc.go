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
// database) and owns them and what is in them; with [WithTenantRoles] it makes roles as well
// (CREATEROLE). The service itself should connect as another role, with no more than
// [WithServiceRole] grants it.
//
// A run may also be held up anywhere, by a debugger or a network, and go on when others have
// dropped the tenant and it has signed up anew: it changes nothing of the new tenant, and its
// error wraps [ErrState]. For that, the comment on a schema ends in the generation of the tenant
// that it was made for, "[pgidem: tenant ORG of TIME]", by the time at which that was
// registered. What is said before it is kept. The comment on a tenant's role names the tenant
// and the database.
//
// # A role for each tenant
//
// With [WithTenantRoles] a transaction of the service may shed its rights to all tenants but one:
//
//	tx, err := pool.Begin(ctx)
//	_, err = tx.Exec(ctx, "SET LOCAL ROLE "+tenant.Schema.Quoted())
//
// which pgstore.WithTenantRole does for handlers in transactional mode. From then on PostgreSQL
// refuses it every other tenant's tables, so that a query which names the wrong schema, or that
// somebody injected a table name into, fails. It does not hold against SQL that takes the rights
// back. An injected RESET ROLE or SET ROLE needs a statement of its own, which the extended
// protocol does not let anybody append. pgx uses that for Query, QueryRow and batches, unless
// it is told to use the simple protocol (do not), but for Exec only where there are arguments:
// in a transaction of your own, run SQL without any by Query and close the rows. Handlers under
// pgstore.WithTenantRole have an Exec that does so. But set_config('role', ...) does the same
// from within any SELECT. So where SQL may be injected, take that function away from everyone
// but the service's role itself, once in each database:
//
//	REVOKE EXECUTE ON FUNCTION pg_catalog.set_config(text, text, boolean) FROM PUBLIC;
//	GRANT EXECUTE ON FUNCTION pg_catalog.set_config(text, text, boolean) TO service;
//
// and keep functions that run SQL from text with more rights than their caller's (SECURITY
// DEFINER) away from the tenants' roles. A connection that logs in as the tenant is the only
// one that has nothing to take back.
//
// Package move does not take roles along. For a tenant that moves, make its role on the server
// that it goes to before that, and say there that it is the tenant's, by the name of the database
// that it comes to:
//
//	CREATE ROLE tenant_6f1c... NOLOGIN;
//	GRANT tenant_6f1c... TO service;
//	COMMENT ON ROLE tenant_6f1c... IS 'pgidem: role of tenant 6f1c2f6e-... in database payments';
//
// Where databases of one server are the clusters, the role is there, and has the comment of the
// database that the tenant has left: change that after the move. Without the comment Drop is
// refused with [ErrRole], whose text has the statement to run, and changes nothing. The role on the
// server that was left stays there until somebody drops it.
//
// # What many roles cost
//
// A server process works out all roles that its login role is a member of at its first SET ROLE,
// and again at the next one after any change of roles on the server: a tenant that is made or
// dropped there, by whomever. The time grows with the square of their number up to PostgreSQL
// 16. Measured on 2 cores, for that one statement; each other SET ROLE took 0.03 to 0.3 ms:
//
//	roles     PostgreSQL 14 and 15    17 and 18
//	   100    0.3 ms                  0.4 ms
//	 1,000    3 ms                    2 ms
//	10,000    0.18 to 0.2 s           0.02 s
//
// So 10,000 tenants cost each of 16 connections 0.2 seconds of a processor whenever one signs
// up. Neither NOINHERIT, nor groups of roles between the service's and the tenants', make it
// less, since SET ROLE looks through all of them. Fewer memberships of a login role do: several
// roles for the service, each with pools of its own and a Provisioner of its own for the tenants
// that it serves (a hundred of them take 0.4 ms); or several servers, since roles are a server's.
// Statements that are sent without SET ROLE are not affected.
package provision
