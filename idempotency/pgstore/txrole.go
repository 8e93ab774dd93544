package pgstore

// WithTenantRole has each transaction go on, once it has the key, as the role that has the
// name of the tenant's schema, so that PostgreSQL itself refuses it the tables of every
// other tenant: package provision makes such roles (WithTenantRoles), and says there what they
// hold against. Against SQL that somebody injected they hold if set_config is taken away from
// them as it describes, and if the pool does not use the simple protocol.
//
// The role has to exist for every tenant and needs what the handlers do in its schema besides
// SELECT, INSERT, UPDATE and DELETE on the tables of this library; the pool's own role has to
// be a member of it. Else the claim fails, and the handler does not run.
func WithTenantRole() TxOption {
	return func(s *txStore) error {
		s.options.TenantRole = true
		return nil
	}
}
