package pgstore

// WithTenantRole has each transaction go on, once it has the key, as the role that has the
// name of the tenant's schema, so that PostgreSQL itself refuses it the tables of every
// other tenant: package provision makes such roles (WithTenantRoles), and says there what they
// hold against. Against SQL that somebody injected they hold if set_config is taken away from
// them as it describes, and if neither the pool nor a query of the handler asks for the simple
// protocol (pgx.QueryExecModeSimpleProtocol), which takes several statements at a time.
//
// So Exec of the transaction and of its savepoints takes a single statement, also where it has
// no arguments: a script of several fails with a syntax error; send them one by one, or in a
// batch. What Conn and LargeObjects of the transaction give is pgx's own, and an Exec on that
// connection takes several statements as ever; connections that the handler takes from the pool
// itself are the service's and no tenant's.
//
// The role has to exist for every tenant and needs what the handlers do in its schema besides
// SELECT, INSERT, UPDATE and DELETE on the tables of this library; the pool's own role has to
// be a member of it. Else the claim fails, and the handler does not run; a replay may yet be sent,
// which the pool's own role reads. Thousands of such
// memberships cost each connection time whenever a tenant comes or goes, 0.2 seconds for 10,000
// up to PostgreSQL 16: package provision has the figures, and what to do.
func WithTenantRole() TxOption {
	return func(s *txStore) error {
		s.options.TenantRole = true
		return nil
	}
}
