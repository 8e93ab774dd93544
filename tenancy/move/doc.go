// Package move moves tenants between clusters: PostgreSQL servers, or groups of them, each
// with a name in the registry of tenants.
//
//	mover, err := move.New(tenants, map[string]string{"eu-1": url1, "eu-2": url2})
//	report, err := mover.Move(ctx, orgID, "eu-2")
//
// Only the tenant that is moved stops being served, for as long as its data take; a service
// over a [github.com/pgidem/pgidem/tenancy/registry.Registry] answers its requests with 403
// (suspended_tenant) meanwhile. The steps are these, and each is safe to repeat: after a
// crash at any point, or an error, Move with the same arguments goes on, and up to step 5
// [Mover.Cancel] goes back.
//
//  1. The registry suspends the tenant and notes where it goes. Within a second no process
//     claims a key of it any more.
//  2. What is in progress comes to its end where it began.
//  3. The fence: the schema is renamed, and all of its tables are locked once. Whatever had
//     begun to write has ended then, and who comes later, a process that was cut off from
//     the registry say, finds no table of that name. In place of the schema there is an empty
//     one, the tombstone, that says where the tenant went.
//  4. pg_dump copies the schema with all that is in it, also the service's own tables, and
//     pg_restore makes it of that in the other cluster, in one transaction.
//  5. Each table there is compared with what was copied, by its number of rows and a
//     checksum of all of their values, and each sequence by its value.
//  6. The copy gets the schema's name, and a mark in its comment that it is complete, which
//     keeps everybody from dropping it. The registry has the tenant there from now on, and
//     active if it was.
//  7. The fenced schema is dropped, a table at a time, and the mark goes. The tombstone
//     stays.
//
// Move needs pg_dump and pg_restore of a version that is not older than the servers'. The
// roles that own the schema's objects or have rights on them have to exist in both clusters,
// as must the extensions whose types its tables use. Sequences, views and triggers move with
// the schema. What depends on it from outside, a view or a partition in another schema say,
// would not: such a tenant is not moved.
//
// Roles are the server's, and do not move. Where package provision has made a role for each
// tenant (provision.WithTenantRoles), make it in the other cluster before the move, with the
// comment by which that package knows it there, of the org_id and of the name of the database;
// without it Drop refuses the tenant with provision.ErrRole, and says what the comment is to
// be:
//
//	CREATE ROLE "tenant_..." NOLOGIN;
//	COMMENT ON ROLE "tenant_..." IS 'pgidem: role of tenant 0b8f0f4e-... in database app';
//	GRANT "tenant_..." TO app_service; -- the service's role
//
// The role in the cluster that the tenant has left stays, and nothing of this library drops it
// from there: drop it by hand when the tenant does not come back.
//
// The tombstone keeps everybody from making the tenant's schema anew in the cluster that it
// has left, where a process that is cut off from the registry would take it for the
// tenant's: migrations of it end with migrations.ErrMoved, or with migrations.ErrMoving as long as
// the move lasts, which name the cluster that it went to, and so does provisioning; the goose command fails on the view that is in its way.
// It goes when the tenant comes back, when the move is cancelled, or when package provision
// drops the tenant. Leave it empty: Move finds what somebody has put into it before it suspends
// the tenant, and does not drop that. Who reads it, as pg_dump of the whole database does, is
// waited for as long as for what is in progress ([WithDrainTimeout]), before the tenant is
// suspended; where somebody begins to on the way, Move goes back. What visits all schemas of a database passes over those that are fenced:
// their names begin with moving_.
package move
