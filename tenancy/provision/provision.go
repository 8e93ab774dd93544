package provision

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgidem/pgidem/migrations"
	"github.com/pgidem/pgidem/tenancy"
	"github.com/pgidem/pgidem/tenancy/registry"
)

// Provisioner makes tenants and takes them away. It is safe for concurrent use, also by
// several processes for the same tenant.
type Provisioner struct {
	tenants     *registry.Registry
	clusters    map[string]*pgxpool.Pool
	naming      tenancy.Directory
	cluster     string
	serviceRole string
	tenantRoles bool
	migrate     []migrations.Option
	lockTimeout time.Duration
	tries       int
	pause       time.Duration
	step        func(string) error // for tests: called after each step
}

// Option changes how a [Provisioner] works.
type Option func(*Provisioner) error

// New returns a Provisioner that keeps its tenants in the registry and makes their schemas
// over the caller's pool. It opens no connection.
func New(tenants *registry.Registry, pool *pgxpool.Pool, opts ...Option) (*Provisioner, error) {
	if tenants == nil || pool == nil {
		return nil, errors.New("provision: a registry and a pool are needed")
	}
	naming, err := tenancy.PerOrg("")
	if err != nil {
		return nil, err
	}
	p := &Provisioner{
		tenants: tenants, clusters: map[string]*pgxpool.Pool{"": pool}, naming: naming,
		lockTimeout: 1500 * time.Millisecond, tries: 10, pause: 250 * time.Millisecond, step: func(string) error { return nil },
	}
	for _, opt := range opts {
		if err := opt(p); err != nil {
			return nil, fmt.Errorf("provision: %w", err)
		}
	}
	if _, err := p.pool(p.cluster); err != nil {
		return nil, err
	}
	if migrations.IsDryRun(p.migrate...) {
		return nil, errors.New("provision: WithMigrationOptions: a dry run makes no schema for the tenant that is registered; leave WithDryRun out")
	}
	if p.tenantRoles && p.serviceRole == "" {
		return nil, errors.New("provision: WithTenantRoles needs WithServiceRole: somebody must be able to become the tenants' roles")
	}
	return p, nil
}

// WithClusters gives the pools of the other servers that tenants may be on, by the names that
// the registry has for them. The pool that [New] got is that of the nameless one.
func WithClusters(pools map[string]*pgxpool.Pool) Option {
	return func(p *Provisioner) error {
		for name, pool := range pools {
			if pool == nil {
				return fmt.Errorf("WithClusters: the pool of cluster %q is nil", name)
			}
			p.clusters[name] = pool
		}
		return nil
	}
}

// WithNewOn has new tenants made on the cluster of that name. Defaults to the nameless one.
func WithNewOn(cluster string) Option {
	return func(p *Provisioner) error {
		p.cluster = cluster
		return nil
	}
}

// WithNaming has dir name the schemas of new tenants. It must name a schema of its own for
// each. Defaults to that of tenancy.PerOrg with its default prefix.
func WithNaming(dir tenancy.Directory) Option {
	return func(p *Provisioner) error {
		if dir == nil {
			return errors.New("WithNaming: the directory is nil")
		}
		p.naming = dir
		return nil
	}
}

// WithServiceRole grants the role, as which the service connects, the use of each schema: USAGE
// on it, SELECT, INSERT, UPDATE and DELETE on the tables of this library, and the same on
// tables that the migrating role makes in it later. The role must exist.
func WithServiceRole(role string) Option {
	return func(p *Provisioner) error {
		if role == "" {
			return errors.New("WithServiceRole: the role has no name")
		}
		p.serviceRole = role
		return nil
	}
}

// WithTenantRoles makes a role for each tenant, of the schema's name, that cannot log in and
// may use that schema alone; the service's role is made a member of it, so that a
// transaction can become it by SET LOCAL ROLE; see the package documentation for what that
// keeps from whom, and what it costs. Roles are the server's, not the database's: a role of the
// schema's name that was not made for this tenant in this database, as its comment says, is
// neither used nor dropped ([ErrRole]). That is so after a move as well, until the comment is
// changed; see the package documentation. So two databases of one server must not have tenants of
// the same schema name.
func WithTenantRoles() Option {
	return func(p *Provisioner) error {
		p.tenantRoles = true
		return nil
	}
}

// WithMigrationOptions are the options for making the schema; see migrations.One.
func WithMigrationOptions(opts ...migrations.Option) Option {
	return func(p *Provisioner) error {
		p.migrate = append(p.migrate, opts...)
		return nil
	}
}

// WithTries sets how long [Provisioner.Drop], and [Provisioner.Provision] outside of migrations,
// wait for a lock, how often they try, and how long they pause in between. Defaults to 1.5 seconds, 10 tries and 250 milliseconds. A wait
// shorter than the server's deadlock_timeout, 1 second by default, never makes an autovacuum
// give way.
func WithTries(lockTimeout time.Duration, n int, pause time.Duration) Option {
	return func(p *Provisioner) error {
		if lockTimeout < time.Millisecond || n < 1 || pause < 0 {
			return errors.New("WithTries: give a millisecond, one try and no negative pause at least")
		}
		p.lockTimeout, p.tries, p.pause = lockTimeout, n, pause
		return nil
	}
}

func (p *Provisioner) pool(cluster string) (*pgxpool.Pool, error) {
	pool, ok := p.clusters[cluster]
	if !ok {
		return nil, fmt.Errorf("provision: no pool for cluster %q; give it by WithClusters", cluster)
	}
	return pool, nil
}

// Provision makes the tenant orgID, in the schema that [WithNaming] says: it registers the
// tenant as provisioning, makes the schema with every table pinned to the tenant, grants the
// privileges, notes the version, and makes the tenant active. It may be run again wherever it
// was cut off, and by several at once; a tenant that is active already is returned as it is.
//
// The error wraps [ErrState] if the tenant is suspended or being deleted, or was dropped or
// moved meanwhile, registry.ErrConflict if the schema is another's, [ErrNotPinned] if the schema exists
// and its tables may hold records of others, [ErrRole] if the tenant's role cannot be had, and
// migrations.ErrMoved if the schema is the empty one that a move has left of a tenant that the
// registry does not know any more. What else that move has left is for a person to look at, and
// not waited for.
func (p *Provisioner) Provision(ctx context.Context, orgID uuid.UUID) (registry.Tenant, error) {
	tenant, err := p.tenants.Tenant(ctx, orgID)
	if errors.Is(err, tenancy.ErrUnknownTenant) {
		schema, err := p.naming.Schema(ctx, orgID)
		if err != nil {
			return registry.Tenant{}, fmt.Errorf("provision: name the schema of org %s: %w", orgID, err)
		}
		return p.ProvisionAt(ctx, orgID, tenancy.Placement{Schema: schema, Cluster: p.cluster})
	}
	if err != nil {
		return registry.Tenant{}, fmt.Errorf("provision: %w", err)
	}
	return p.ProvisionAt(ctx, orgID, tenant.Placement())
}

// ProvisionAt is Provision in the schema and cluster of at, whose Version is not read. The
// error wraps registry.ErrConflict if the tenant has another.
func (p *Provisioner) ProvisionAt(ctx context.Context, orgID uuid.UUID, at tenancy.Placement) (registry.Tenant, error) {
	pool, err := p.pool(at.Cluster)
	if err != nil {
		return registry.Tenant{}, err
	}
	tenant, err := p.tenants.Add(ctx, registry.Tenant{OrgID: orgID, Schema: at.Schema, Cluster: at.Cluster})
	if err != nil {
		return registry.Tenant{}, fmt.Errorf("provision: %w", err)
	}
	switch tenant.State {
	case registry.Active:
		return tenant, nil
	case registry.Provisioning:
	default:
		return tenant, fmt.Errorf("%w: org %s is %s; resume it, or drop it to the end first", ErrState, orgID, tenant.State)
	}
	if err := p.step("registered"); err != nil {
		return tenant, err
	}
	g := p.tenants.Generation(tenant)
	version, err := p.build(ctx, pool, tenant, g)
	if err != nil {
		return tenant, fmt.Errorf("provision: org %s: %w", orgID, p.away(ctx, g, tenant, replaced(err)))
	}
	if err := g.SetVersion(ctx, version); err != nil {
		return tenant, fmt.Errorf("provision: %w", p.away(ctx, g, tenant, replaced(err)))
	}
	if err := p.step("version"); err != nil {
		return tenant, err
	}
	// Active as well: another may have been quicker by this step.
	tenant, err = g.SetState(ctx, registry.Active, registry.Provisioning, registry.Active)
	if err != nil {
		return tenant, fmt.Errorf("provision: %w", replaced(err))
	}
	return tenant, p.step("active")
}

// replaced says of the error of a run that came too late what it means.
func replaced(err error) error {
	if errors.Is(err, registry.ErrReplaced) {
		return fmt.Errorf("%w: another run dropped the tenant, and it was registered anew, while this one was held up; nothing of the new tenant has been changed: %w", ErrState, err)
	}
	return err
}

// away replaces the error of a run that came too late, since another has made the tenant and it
// was moved meanwhile: what is missing here is elsewhere, and nothing to restore.
func (p *Provisioner) away(ctx context.Context, g registry.Generation, tenant registry.Tenant, err error) error {
	now, lookErr := g.Tenant(ctx)
	if lookErr != nil || now.Schema == tenant.Schema && now.Cluster == tenant.Cluster {
		return err
	}
	return fmt.Errorf("%w: org %s was moved meanwhile, from schema %s of cluster %q to %s of %q, where it is %s; there is nothing to be made here any more", ErrState, now.OrgID, tenant.Schema, tenant.Cluster, now.Schema, now.Cluster, now.State)
}

// build makes what is in the database of the tenant.
func (p *Provisioner) build(ctx context.Context, pool *pgxpool.Pool, tenant registry.Tenant, g registry.Generation) (version int64, err error) {
	if _, err := checkPins(ctx, pool, tenant); err != nil {
		return 0, err
	}
	if err := checkRemains(ctx, pool, tenant, g); err != nil {
		return 0, err
	}
	if err := p.occupy(ctx, pool, tenant.Schema, g); err != nil {
		return 0, err
	}
	if err := p.step("taken"); err != nil {
		return 0, err
	}
	result, err := p.migrateTo(ctx, pool, tenant)
	if err != nil {
		return 0, err
	}
	if err := p.step("schema"); err != nil {
		return 0, err
	}
	there, err := checkPins(ctx, pool, tenant)
	if err != nil {
		return 0, err
	}
	var missing []string
	for _, table := range migrations.Tables() {
		if !slices.Contains(there, table) {
			missing = append(missing, table)
		}
	}
	if len(missing) > 0 {
		if err := underWay(ctx, g); err != nil {
			return 0, err
		}
		return 0, fmt.Errorf("schema %s lacks the tables %v, though it has had the migrations up to %d: somebody dropped them; restore them, or drop the tenant and begin anew", tenant.Schema, missing, result.To)
	}
	if err := p.grant(ctx, pool, tenant, g); err != nil {
		return 0, fmt.Errorf("grants: %w", err)
	}
	return result.To, p.step("granted")
}

// occupy makes the schema, or takes the one that is there.
func (p *Provisioner) occupy(ctx context.Context, pool *pgxpool.Pool, schema tenancy.Schema, g registry.Generation) error {
	made, err := p.take(ctx, pool, g, schema, true)
	if err != nil || !made {
		return err
	}
	// Who drops the tenant may have been past the schema by then.
	err = underWay(ctx, g)
	if !errors.Is(err, ErrState) && !errors.Is(err, registry.ErrReplaced) && !errors.Is(err, tenancy.ErrUnknownTenant) {
		return err
	}
	undo := p.as(ctx, pool, g, schema, false, func(tx pgx.Tx) error {
		_, err := tx.Exec(ctx, `DROP SCHEMA `+schema.Quoted())
		return err
	})
	if errors.Is(undo, errAnother) { // or it is gone
		undo = nil
	}
	return errors.Join(err, undo)
}

// underWay returns an error if the tenant is not being made any more, nor has been made.
func underWay(ctx context.Context, g registry.Generation) error {
	now, err := g.Tenant(ctx)
	if err == nil && now.State != registry.Provisioning && now.State != registry.Active {
		err = fmt.Errorf("%w: org %s is %s by now", ErrState, now.OrgID, now.State)
	}
	return err
}

// migrateTo makes the tables in the schema, which is there, or takes them to the newest version.
func (p *Provisioner) migrateTo(ctx context.Context, pool *pgxpool.Pool, tenant registry.Tenant) (migrations.Result, error) {
	conn, err := pool.Acquire(ctx)
	if err != nil {
		return migrations.Result{}, err
	}
	defer conn.Release()
	opts := append(slices.Clip(p.migrate), migrations.WithExistingSchema())
	result, err := migrations.One(ctx, conn.Conn(), migrations.Target{Schema: tenant.Schema, OrgID: tenant.OrgID}, opts...)
	switch {
	case errors.Is(err, migrations.ErrNotPinned):
		return result, fmt.Errorf("%w: %w", ErrNotPinned, err)
	case errors.Is(err, migrations.ErrAbsent):
		return result, fmt.Errorf("%w: org %s is dropped by another run: %w", ErrState, tenant.OrgID, err)
	case errors.Is(err, migrations.ErrMoving): // since checkRemains has looked
		return result, fmt.Errorf("%w: another run has made org %s, and it is being moved: %w", ErrState, tenant.OrgID, err)
	}
	return result, err
}

// checkPins makes sure that each table with records refuses those of other tenants: a schema
// that was there before may be anybody's. It returns the tables of the library that are there.
func checkPins(ctx context.Context, pool *pgxpool.Pool, tenant registry.Tenant) (there []string, err error) {
	tables, err := pins(ctx, pool, tenant.Schema)
	if err != nil {
		return nil, err
	}
	var loose []string
	for _, table := range tables {
		if there = append(there, table.name); !table.pinnedTo(tenant.OrgID) {
			loose = append(loose, table.name)
		}
	}
	if len(loose) > 0 {
		return nil, fmt.Errorf("%w: schema %s was there before, and its tables %v are not pinned to org %s", ErrNotPinned, tenant.Schema, loose, tenant.OrgID)
	}
	return there, nil
}

// grant gives the service its privileges. What is granted twice is granted once. Two that grant
// on the same object at a time would fail each other.
func (p *Provisioner) grant(ctx context.Context, pool *pgxpool.Pool, tenant registry.Tenant, g registry.Generation) error {
	if p.serviceRole == "" {
		return nil
	}
	schema := tenant.Schema
	return p.as(ctx, pool, g, schema, false, func(tx pgx.Tx) error {
		role := quoted(p.serviceRole)
		statements := grants(schema, role)
		if p.tenantRoles {
			make, err := makeRole(ctx, tx, tenant.OrgID, schema)
			if err != nil {
				return err
			}
			statements = append(statements, make...)
			statements = append(statements, grants(schema, schema.Quoted())...)
			statements = append(statements, fmt.Sprintf(`GRANT %s TO %s`, schema.Quoted(), role))
		}
		for _, sql := range statements {
			if _, err := tx.Exec(ctx, sql); err != nil {
				return err
			}
		}
		return nil
	})
}

func grants(schema tenancy.Schema, role string) []string {
	s := schema.Quoted()
	list := []string{fmt.Sprintf(`GRANT USAGE ON SCHEMA %s TO %s`, s, role)}
	for _, table := range migrations.Tables() {
		rights := `SELECT, INSERT, UPDATE, DELETE`
		if table == migrations.VersionTable {
			rights = `SELECT`
		}
		list = append(list, fmt.Sprintf(`GRANT %s ON %s.%s TO %s`, rights, s, table, role))
	}
	return append(list, fmt.Sprintf(`ALTER DEFAULT PRIVILEGES IN SCHEMA %s GRANT SELECT, INSERT, UPDATE, DELETE ON TABLES TO %s`, s, role))
}

// Many provisions tenants side by side, so many at a time, and calls each with what became of
// one, one call at a time. It returns when all are through or ctx has ended; an error of the
// list ends it after those that were begun.
func (p *Provisioner) Many(ctx context.Context, workers int, orgIDs iter.Seq2[uuid.UUID, error], each func(uuid.UUID, registry.Tenant, error)) error {
	if workers < 1 {
		return fmt.Errorf("provision: %d workers; at least one is needed", workers)
	}
	next := make(chan uuid.UUID)
	var mu sync.Mutex
	var group sync.WaitGroup
	for range workers {
		group.Go(func() {
			for orgID := range next {
				tenant, err := p.Provision(ctx, orgID)
				mu.Lock()
				each(orgID, tenant, err)
				mu.Unlock()
			}
		})
	}
	defer group.Wait()
	defer close(next)
	for orgID, err := range orgIDs {
		if err != nil {
			return fmt.Errorf("provision: the list of tenants: %w", err)
		}
		select {
		case next <- orgID:
		case <-ctx.Done():
			return fmt.Errorf("provision: not all tenants were reached: %w", ctx.Err())
		}
	}
	return nil
}

func quoted(name string) string { return pgx.Identifier{name}.Sanitize() }
