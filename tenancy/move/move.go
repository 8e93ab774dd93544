package move

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/pgidem/pgidem/internal/moved"
	"github.com/pgidem/pgidem/tenancy"
	"github.com/pgidem/pgidem/tenancy/registry"
)

// Defaults of the options.
const (
	DefaultDrainTimeout = time.Minute
	DefaultLockTimeout  = 2 * time.Second
)

const (
	// settle is how long processes may take to hear that the tenant is suspended, with some
	// time for what they were just doing.
	settle = 1500 * time.Millisecond
	// drainPause is how often what is in progress is counted.
	drainPause = 100 * time.Millisecond
	// lockPatience is how long another process's lock is waited for.
	lockPatience = 3 * time.Second
	// orphanPatience is how long server processes may take to end that were told to.
	orphanPatience = 10 * time.Second
)

// Mover moves tenants. Make one with [New]; it is safe for concurrent use, though not for
// the same tenant.
type Mover struct {
	tenants      *registry.Registry
	clusters     map[string]cluster
	drainTimeout time.Duration
	lockTimeout  time.Duration
	settle       time.Duration
	programs     string
	step         func(Step)

	orphanPatience time.Duration
	looked         func() // for tests: before the locks
}

// Step is how far a move has come.
type Step string

// The steps of a move, in their order. See the package comment.
const (
	Suspending Step = "suspend"
	Draining   Step = "drain"
	Fencing    Step = "fence"
	Copying    Step = "copy"
	Verifying  Step = "verify"
	Switching  Step = "switch"
	Dropping   Step = "drop"
)

// Option changes how a [Mover] works.
type Option func(*Mover) error

// WithDrainTimeout sets how long Move waits for attempts in progress, for transactions that
// use the tenant's tables, and for those that use what moves have left, before it lets the
// tenant be. Defaults to a minute.
func WithDrainTimeout(d time.Duration) Option {
	return func(m *Mover) error {
		m.drainTimeout = d
		return positive("WithDrainTimeout", d)
	}
}

// WithLockTimeout sets how long one try to lock the tenant's tables may wait, and so how
// long it may hold up others, before the next. Defaults to 2 seconds.
func WithLockTimeout(d time.Duration) Option {
	return func(m *Mover) error {
		m.lockTimeout = d
		return positive("WithLockTimeout", d)
	}
}

func positive(option string, d time.Duration) error {
	if d <= 0 {
		return fmt.Errorf("%s: %v; give a positive duration", option, d)
	}
	return nil
}

// WithPrograms gives the folder of pg_dump and pg_restore. By default they are looked for in
// PATH.
func WithPrograms(folder string) Option {
	return func(m *Mover) error {
		m.programs = folder
		return nil
	}
}

// WithProgress has f called when each step begins.
func WithProgress(f func(Step)) Option {
	return func(m *Mover) error {
		if f == nil {
			return errors.New("WithProgress: the function is nil")
		}
		m.step = f
		return nil
	}
}

// New returns a Mover of the registry's tenants. The clusters are the URLs of their
// databases by the names that the registry has for them: postgres://..., of direct
// connections, and of roles that own the tenants' schemas and may create some. It opens no
// connection.
func New(tenants *registry.Registry, clusters map[string]string, opts ...Option) (*Mover, error) {
	if tenants == nil {
		return nil, errors.New("move: the registry is nil")
	}
	m := &Mover{
		tenants: tenants, clusters: make(map[string]cluster),
		drainTimeout: DefaultDrainTimeout, lockTimeout: DefaultLockTimeout, settle: settle, orphanPatience: orphanPatience,
		step: func(Step) {}, looked: func() {},
	}
	for name, databaseURL := range clusters {
		c, err := newCluster(name, databaseURL)
		if err != nil {
			return nil, err
		}
		m.clusters[name] = c
	}
	for _, opt := range opts {
		if err := opt(m); err != nil {
			return nil, fmt.Errorf("move: %w", err)
		}
	}
	return m, nil
}

// cluster is where tenants are.
type cluster struct {
	name     string
	config   *pgx.ConnConfig
	url      *url.URL // for pg_dump and pg_restore, without the password
	password string
}

func newCluster(name, databaseURL string) (cluster, error) {
	config, err := pgx.ParseConfig(databaseURL)
	if err != nil {
		return cluster{}, fmt.Errorf("move: database URL of cluster %q: %w", name, err) // pgx leaves the password out of it
	}
	u, err := url.Parse(databaseURL)
	if err != nil || u.Scheme != "postgres" && u.Scheme != "postgresql" {
		return cluster{}, fmt.Errorf("move: database of cluster %q: give a URL, postgres://user:password@host:5432/name", name)
	}
	if u.User != nil {
		u.User = url.User(u.User.Username())
	}
	query := u.Query()
	query.Del("password")
	query.Del("sslpassword") // of which the programs have to learn by other means
	u.RawQuery = query.Encode()
	return cluster{name: name, config: config, url: u, password: config.Password}, nil
}

// urlFor returns the database's URL for a program that calls itself application.
func (c cluster) urlFor(application string) string {
	u := *c.url
	query := u.Query()
	query.Set("application_name", application)
	// PostgreSQL takes a plus for a plus: RFC 3986, not forms.
	u.RawQuery = strings.ReplaceAll(query.Encode(), "+", "%20")
	return u.String()
}

// connect returns a connection on which values are printed alike in all clusters.
func (c cluster) connect(ctx context.Context) (*pgx.Conn, error) {
	config := c.config.Copy()
	for param, value := range map[string]string{
		"application_name": "pgidem move", "search_path": "pg_catalog", "timezone": "UTC", "datestyle": "ISO, YMD", "intervalstyle": "iso_8601",
		"extra_float_digits": "3", "bytea_output": "hex", "xmloption": "content", "lc_monetary": "C",
		"idle_in_transaction_session_timeout": "0", "idle_session_timeout": "0", "statement_timeout": "0",
	} {
		config.RuntimeParams[param] = value
	}
	conn, err := pgx.ConnectConfig(ctx, config)
	if err != nil {
		return nil, fmt.Errorf("move: cluster %q: %w", c.name, err)
	}
	// What is dropped after a commit cannot be had back, so that has to be on the disk.
	_, err = conn.Exec(ctx, `SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') IN ('off', 'local');
		SELECT set_config('transaction_timeout', '0', false) WHERE EXISTS (SELECT FROM pg_settings WHERE name = 'transaction_timeout')`)
	if err != nil {
		closeConn(conn)
		return nil, fmt.Errorf("move: cluster %q: %w", c.name, err)
	}
	return conn, nil
}

// Report tells what a move did.
type Report struct {
	Tenant   registry.Tenant // as it is afterwards
	From, To string          // clusters
	Tables   []Table         // of the copy
	Away     time.Duration   // for which the tenant was not served, as far as this run knows
}

// Table is what was compared of a table, in both clusters.
type Table struct {
	Name     string
	Rows     int64
	Checksum string // of all values of all rows, in whatever order they are

	sequence bool
}

// Move moves the tenant orgID to the cluster to. A move that was broken off goes on; where
// the tenant is there already, what such moves have left elsewhere is dropped: also in a
// third cluster, where a run had ended before it dropped the fenced schema, and the tenant has
// moved on since.
//
// The error wraps [ErrBusy] if the tenant could not be stopped in time, or its place in the
// other cluster not be had; it is served again where it is then, as the report's tenant says. It
// wraps ErrBusy as well where the tenant has been moved, as the report's tenant says too, and others
// keep what it has left from being dropped: run Move again, which does that.
// After any other error the tenant stays suspended, if it came to that: run Move again, or
// [Mover.Cancel]. Only where the report's tenant is in the cluster to and no longer moving, it is
// served there, or as it was before, and it is what it has left that could not be dropped, so run
// Move again; or it is missing there ([ErrMissing]).
func (m *Mover) Move(ctx context.Context, orgID uuid.UUID, to string) (Report, error) {
	target, err := m.cluster(to)
	if err != nil {
		return Report{}, err
	}
	tenant, err := m.tenants.Tenant(ctx, orgID)
	if err != nil {
		return Report{}, err
	}
	m.looked()
	if tenant.Cluster == to && !tenant.Moving {
		return Report{Tenant: tenant, From: to, To: to}, m.dropLeftovers(ctx, tenant)
	}
	t, err := m.begin(ctx, tenant, target)
	if err != nil {
		return Report{}, err
	}
	defer t.end()
	return t.run(ctx)
}

// Cancel ends a move that was begun and not finished, and leaves the tenant where it is: what
// was copied is dropped, the fence goes, and the tenant is served again if it was before. A
// copy that is complete may have been in use, as far as this run can know, and is not dropped:
// the error wraps [registry.ErrConflict] then, as it does where nothing is under way, and Move
// finishes in a moment. It wraps [ErrBusy] where others use what was copied, or the tombstone,
// and do not end; the tenant that is returned says whether it is served again.
func (m *Mover) Cancel(ctx context.Context, orgID uuid.UUID) (registry.Tenant, error) {
	tenant, err := m.tenants.Tenant(ctx, orgID)
	if err != nil {
		return registry.Tenant{}, err
	}
	if !tenant.Moving {
		return tenant, fmt.Errorf("%w: cancel moving org %s: it is not being moved", registry.ErrConflict, orgID)
	}
	target, err := m.cluster(tenant.MovingTo)
	if err != nil {
		return tenant, err
	}
	t, err := m.begin(ctx, tenant, target)
	if err != nil {
		return tenant, err
	}
	defer t.end()
	// Another run may have ended the move before this one had the locks.
	if tenant, err = t.now(ctx); err != nil {
		return tenant, err
	}
	if !tenant.Moving {
		return tenant, fmt.Errorf("%w: cancel moving org %s: it is not being moved any more", registry.ErrConflict, orgID)
	}
	if tenant, err = t.start(ctx); err != nil {
		return tenant, err
	}
	open, fenced, err := t.state(ctx)
	if err != nil {
		return tenant, err
	}
	copied, _, err := t.arrived(ctx)
	switch {
	case err != nil:
		return tenant, err
	case copied || !open && !fenced:
		return tenant, fmt.Errorf("%w: cancel moving org %s: its copy in cluster %q is complete; move it there again, which only finishes", registry.ErrConflict, orgID, target.name)
	}
	return t.back(ctx, tenant)
}

// back ends a move whose copy is not complete, and leaves the tenant where it is. It is served
// again also where somebody keeps the copy from being dropped, which the error says then.
func (t *transfer) back(ctx context.Context, tenant registry.Tenant) (registry.Tenant, error) {
	dropErr := t.dropCopy(ctx)
	if dropErr != nil {
		dropErr = fmt.Errorf("%w; to have it dropped later, move the tenant to cluster %q, where it is", dropErr, t.from.name)
	}
	if err := t.unfence(ctx, tenant); err != nil {
		return tenant, errors.Join(fmt.Errorf("org %s stays suspended; move it again, or cancel: %w", tenant.OrgID, err), dropErr)
	}
	now, err := t.tenants.CancelMove(ctx, tenant.OrgID, tenant.MoveID)
	if err != nil {
		return tenant, errors.Join(err, dropErr)
	}
	return now, dropErr
}

func (m *Mover) cluster(name string) (cluster, error) {
	c, ok := m.clusters[name]
	if !ok {
		return cluster{}, fmt.Errorf("move: no database URL is given for cluster %q", name)
	}
	return c, nil
}

// transfer is a move, or its end, by one process.
type transfer struct {
	*Mover
	tenant         registry.Tenant
	fenced         tenancy.Schema // what the schema is called while it must not be used
	from, to       cluster
	source, target *pgx.Conn
}

// begin connects to both clusters, and has the tenant to itself from then on.
func (m *Mover) begin(ctx context.Context, tenant registry.Tenant, to cluster) (_ *transfer, err error) {
	t := &transfer{Mover: m, tenant: tenant, to: to}
	if t.fenced, err = tenancy.ParseSchema(moved.Fence(tenant.OrgID)); err != nil { // nobody else's
		return nil, err
	}
	if moved.IsFence(tenant.Schema.String()) {
		return nil, fmt.Errorf("move: schema %s of org %s has a name that is kept for what is being moved; give it another", tenant.Schema, tenant.OrgID)
	}
	if t.from, err = m.cluster(tenant.Cluster); err != nil {
		return nil, err
	}
	if t.source, err = t.from.connect(ctx); err != nil {
		return nil, err
	}
	if t.target, err = to.connect(ctx); err != nil {
		closeConn(t.source)
		return nil, err
	}
	if err = t.sameDatabase(ctx); err == nil {
		err = errors.Join(t.lock(ctx, t.from, t.source), t.lock(ctx, t.to, t.target))
	}
	if err == nil {
		err = errors.Join(t.endOrphans(ctx, t.from, t.source), t.endOrphans(ctx, t.to, t.target))
	}
	if err != nil {
		t.end()
		return nil, err
	}
	return t, nil
}

// sameDatabase refuses two names for one database, where the copy would be the original.
func (t *transfer) sameDatabase(ctx context.Context) error {
	var ids [2]string
	for i, conn := range []*pgx.Conn{t.source, t.target} {
		err := conn.QueryRow(ctx, `SELECT (SELECT system_identifier::text FROM pg_control_system()) || ' ' || oid::text FROM pg_database WHERE datname = current_database()`).Scan(&ids[i])
		if err != nil {
			return fmt.Errorf("move: tell the databases of clusters %q and %q apart, for which the roles need EXECUTE on pg_control_system(): %w", t.from.name, t.to.name, err)
		}
	}
	if ids[0] == ids[1] {
		return fmt.Errorf("move: clusters %q and %q are the same database; correct the URLs", t.from.name, t.to.name)
	}
	return nil
}

// lock keeps other processes from the tenant in a cluster until this connection is closed.
// The server may take a moment to notice that of a process that was killed.
func (t *transfer) lock(ctx context.Context, c cluster, conn *pgx.Conn) error {
	for deadline := time.Now().Add(lockPatience); ; {
		var locked bool
		err := conn.QueryRow(ctx, `SELECT pg_try_advisory_lock(hashtextextended($1, 0))`, t.application()).Scan(&locked)
		switch {
		case err != nil:
			return fmt.Errorf("move: cluster %q: %w", c.name, err)
		case locked:
			return nil
		case time.Now().After(deadline):
			return fmt.Errorf("move: org %s is being moved by another process; wait for its end", t.tenant.OrgID)
		}
		if err := sleep(ctx, drainPause); err != nil {
			return err
		}
	}
}

// application names the connections of pg_dump and pg_restore.
func (t *transfer) application() string { return fmt.Sprintf("pgidem move %x", t.tenant.OrgID[:]) }

// endOrphans ends what the programs that a killed process had started are still doing, so
// that no copy comes to be later on.
func (t *transfer) endOrphans(ctx context.Context, c cluster, conn *pgx.Conn) error {
	for deadline := time.Now().Add(t.orphanPatience); ; {
		rows, err := conn.Query(ctx, `SELECT pid, pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = $1 AND datname = current_database()`, t.application())
		if err != nil {
			return fmt.Errorf("move: cluster %q: end pg_dump or pg_restore of an earlier run: %w", c.name, err)
		}
		left, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (pid int32, err error) { return pid, row.Scan(&pid, nil) })
		switch {
		case err != nil:
			return fmt.Errorf("move: cluster %q: end pg_dump or pg_restore of an earlier run: %w", c.name, err)
		case len(left) == 0:
			return nil
		case time.Now().After(deadline):
			return fmt.Errorf("move: cluster %q: pg_dump or pg_restore of an earlier run of org %s was told to end and has not within %s: see what its server processes %v wait for, end them and move again",
				c.name, t.tenant.OrgID, t.orphanPatience, left)
		}
		if err := sleep(ctx, drainPause); err != nil {
			return err
		}
	}
}

func (t *transfer) end() {
	closeConn(t.source)
	closeConn(t.target)
}

// now returns the tenant as it is by now, if it is the one that this run had looked at.
func (t *transfer) now(ctx context.Context) (registry.Tenant, error) {
	now, err := t.tenants.Generation(t.tenant).Tenant(ctx)
	return now, replaced(err)
}

// replaced says of the error of a run that came too late what it means.
func replaced(err error) error {
	if errors.Is(err, registry.ErrReplaced) {
		return fmt.Errorf("%w: others dropped the tenant, and it was registered anew, while this run was held up; nothing of the new one has been changed, so look again: %w", registry.ErrConflict, err)
	}
	return err
}

// start begins the move in the registry, or takes it over from another run. A tenant that has the
// org_id since this run looked is another, and is not suspended.
func (t *transfer) start(ctx context.Context) (registry.Tenant, error) {
	now, err := t.tenants.Generation(t.tenant).BeginMove(ctx, t.from.name, t.to.name)
	err = replaced(err)
	if err == nil && now.Schema != t.tenant.Schema {
		err = fmt.Errorf("%w: org %s has another schema now; look again", registry.ErrConflict, now.OrgID)
	}
	return now, err
}

func (t *transfer) run(ctx context.Context) (report Report, err error) {
	report = Report{From: t.from.name, To: t.to.name}
	began := time.Now()
	// Others may have dropped the tenant, or moved it, before this run had the locks.
	now, err := t.now(ctx)
	if err != nil {
		return report, err
	}
	if now.Cluster != t.from.name {
		return report, fmt.Errorf("%w: move org %s from cluster %q to %q: it is in cluster %q by now", registry.ErrConflict, now.OrgID, t.from.name, t.to.name, now.Cluster)
	}
	if err := t.check(ctx); err != nil {
		return report, err
	}
	t.step(Suspending)
	if report.Tenant, err = t.start(ctx); err != nil {
		return report, err
	}
	moveID := report.Tenant.MoveID
	copied, _, err := t.arrived(ctx)
	if err != nil {
		return report, err
	}
	if !copied {
		if err := t.fence(ctx); err != nil {
			if errors.Is(err, ErrBusy) {
				var cancelErr error
				report.Tenant, cancelErr = t.tenants.CancelMove(context.WithoutCancel(ctx), t.tenant.OrgID, moveID)
				err = errors.Join(err, cancelErr)
			}
			return report, err
		}
		if report.Tables, err = t.copy(ctx); err != nil {
			if errors.Is(err, ErrBusy) {
				var backErr error
				if report.Tenant, backErr = t.back(ctx, report.Tenant); backErr != nil {
					err = fmt.Errorf("%w; going back: %w", err, backErr)
				}
			}
			return report, err
		}
	}
	t.step(Switching)
	switch open, _, err := t.state(ctx); {
	case err != nil:
		return report, err
	case open:
		return report, fmt.Errorf("move: cluster %q has schema %s again, though the copy is complete; drop it or rename it if it is not the tenant's", t.from.name, t.tenant.Schema)
	}
	if err := t.bury(ctx); err != nil {
		return report, err
	}
	if report.Tenant, err = t.tenants.FinishMove(ctx, t.tenant.OrgID, moveID); err != nil {
		return report, err
	}
	report.Away = time.Since(began)
	t.step(Dropping)
	return report, t.finish(ctx)
}

// finish drops what the tenant has left where it was, and then has its schema look as it did.
func (t *transfer) finish(ctx context.Context) error {
	switch copied, _, err := t.arrived(ctx); {
	case err != nil: // nobody could look
		return t.undropped(err)
	case !copied:
		return fmt.Errorf("%w: %s in cluster %q, where the registry has the tenant; its fenced original is kept in cluster %q: restore the schema, or correct the placement, and move again", ErrMissing, t.tenant.Schema, t.to.name, t.from.name)
	}
	if err := t.dropOriginal(ctx); err != nil {
		return err
	}
	return t.unmark(ctx)
}

// check finds out what would stop the move halfway, before anything is changed.
func (t *transfer) check(ctx context.Context) error {
	for _, program := range []string{"pg_dump", "pg_restore"} {
		if _, err := exec.LookPath(filepath.Join(t.programs, program)); err != nil {
			return fmt.Errorf("move: %s has to be installed here: %w", program, err)
		}
	}
	open, fenced, err := t.state(ctx)
	if err != nil {
		return err
	}
	copied, stranger, err := t.arrived(ctx)
	switch {
	case err != nil:
		return err
	case stranger && (open || fenced):
		return fmt.Errorf("%w: cluster %q has a schema %s that is not a copy of this tenant", ErrOccupied, t.to.name, t.tenant.Schema)
	case !copied && !stranger && !open && !fenced:
		return fmt.Errorf("move: cluster %q has no schema %s%s; correct the placement of org %s in the registry", t.from.name, t.tenant.Schema, t.went(ctx), t.tenant.OrgID)
	case open && fenced && !copied:
		return t.twofold()
	case open:
		if err := noDependants(ctx, t.source, t.from, t.tenant.Schema.String()); err != nil {
			return err
		}
		return t.rehearse(ctx)
	}
	return nil
}

// went says where the tenant went by what a move has left in the source, for an error.
func (t *transfer) went(ctx context.Context) string {
	tombstone, ok, err := moved.Find(ctx, t.source, t.tenant.Schema.String())
	if err != nil || !ok || tombstone.OrgID != t.tenant.OrgID {
		return ""
	}
	return fmt.Sprintf(" but an empty one, which says that it went to cluster %q", tombstone.Cluster)
}

// arrived tells whether the target has a complete copy under the tenant's name; and whether
// it has a schema of that name that may be another's, which its own tombstone is not. It may be the tenant's own all the same
// when the source has nothing left: then a switch took place that the registry has lost.
func (t *transfer) arrived(ctx context.Context) (copied, stranger bool, err error) {
	comment, found, err := commentOf(ctx, t.target, t.tenant.Schema.String())
	if err != nil {
		return false, false, fmt.Errorf("move: cluster %q: %w", t.to.name, err)
	}
	switch {
	case !found:
		return false, false, nil
	case strings.HasPrefix(comment, markOf(t.tenant)):
		return true, false, nil
	case t.isTombstone(comment):
		return false, false, nil
	}
	open, fenced, err := t.state(ctx)
	return err == nil && !open && !fenced, true, err
}

// dropLeftovers drops what a move that was broken off after the switch has left in the
// clusters where the tenant was.
func (m *Mover) dropLeftovers(ctx context.Context, tenant registry.Tenant) error {
	here := m.clusters[tenant.Cluster]
	m.step(Dropping)
	for name := range m.clusters {
		if name == tenant.Cluster {
			continue
		}
		was := tenant
		was.Cluster = name
		t, err := m.begin(ctx, was, here)
		if err != nil {
			return err
		}
		err = t.dropLeftover(ctx)
		t.end()
		if err != nil {
			return err
		}
	}
	return nil
}

func (t *transfer) dropLeftover(ctx context.Context) error {
	_, fenced, err := t.state(ctx)
	if err != nil {
		return err
	}
	now, err := t.now(ctx)
	switch {
	case err != nil:
		return err
	case now.Moving || now.Cluster != t.to.name || now.Schema != t.tenant.Schema:
		return fmt.Errorf("%w: org %s is not in cluster %q any more", registry.ErrConflict, now.OrgID, t.to.name)
	}
	comment, found, err := commentOf(ctx, t.target, t.tenant.Schema.String())
	switch {
	case err != nil:
		return fmt.Errorf("move: cluster %q: %w", t.to.name, err)
	case !found, t.isTombstone(comment):
		return fmt.Errorf("%w: %s in cluster %q, where the registry has the tenant; what cluster %q has of it is kept: correct the placement, or restore the schema, and move again", ErrMissing, t.tenant.Schema, t.to.name, t.from.name)
	case fenced:
		if err := t.dropLeft(ctx); err != nil {
			return err
		}
	}
	return t.unmark(ctx)
}

func closeConn(conn *pgx.Conn) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_ = conn.Close(ctx)
}
