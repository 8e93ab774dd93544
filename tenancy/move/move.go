package move

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

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

// WithDrainTimeout sets how long Move waits for attempts in progress, and for transactions
// that use the tenant's tables, before it lets the tenant be. Defaults to a minute.
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
		drainTimeout: DefaultDrainTimeout, lockTimeout: DefaultLockTimeout, settle: settle,
		step: func(Step) {},
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
		"idle_in_transaction_session_timeout": "0", "statement_timeout": "0",
	} {
		config.RuntimeParams[param] = value
	}
	conn, err := pgx.ConnectConfig(ctx, config)
	if err != nil {
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
// the tenant is there already, what such a move has left elsewhere is dropped.
//
// The error wraps [ErrBusy] if the tenant could not be stopped in time; it is served again
// where it is then. After any other error the tenant stays suspended, if it came to that:
// run Move again, or [Mover.Cancel].
func (m *Mover) Move(ctx context.Context, orgID uuid.UUID, to string) (Report, error) {
	target, err := m.cluster(to)
	if err != nil {
		return Report{}, err
	}
	tenant, err := m.tenants.Tenant(ctx, orgID)
	if err != nil {
		return Report{}, err
	}
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

// Cancel ends a move that was begun and not finished, and leaves the tenant where it is: the
// copy is dropped, the fence goes, and the tenant is served again if it was before.
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
	// Another run may have finished it before this one had the lock.
	if tenant, err = m.tenants.Tenant(ctx, orgID); err != nil || !tenant.Moving || tenant.MovingTo != target.name {
		return tenant, errors.Join(err, fmt.Errorf("%w: cancel moving org %s: it is not being moved any more", registry.ErrConflict, orgID))
	}
	if err := t.dropCopy(ctx); err != nil {
		return tenant, err
	}
	if err := t.unfence(ctx); err != nil {
		return tenant, err
	}
	return m.tenants.CancelMove(ctx, orgID)
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
	if t.fenced, err = tenancy.ParseSchema(fmt.Sprintf("moving_%x", tenant.OrgID[:])); err != nil { // nobody else's
		return nil, err
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
	if err = t.lock(ctx); err == nil {
		err = errors.Join(t.endOrphans(ctx, t.from, t.source), t.endOrphans(ctx, t.to, t.target))
	}
	if err != nil {
		t.end()
		return nil, err
	}
	return t, nil
}

// lock keeps other processes from the tenant until the connection to the source is closed.
// The server may take a moment to notice that of a process that was killed.
func (t *transfer) lock(ctx context.Context) error {
	for deadline := time.Now().Add(lockPatience); ; {
		var locked bool
		err := t.source.QueryRow(ctx, `SELECT pg_try_advisory_lock(hashtextextended($1, 0))`, t.application()).Scan(&locked)
		switch {
		case err != nil:
			return fmt.Errorf("move: cluster %q: %w", t.from.name, err)
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
	for {
		var left int
		err := conn.QueryRow(ctx, `SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name = $1 AND datname = current_database()`, t.application()).Scan(&left)
		if err != nil {
			return fmt.Errorf("move: cluster %q: end pg_dump or pg_restore of an earlier run: %w", c.name, err)
		}
		if left == 0 {
			return nil
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

func (t *transfer) run(ctx context.Context) (report Report, err error) {
	report = Report{From: t.from.name, To: t.to.name}
	began := time.Now()
	t.step(Suspending)
	if report.Tenant, err = t.tenants.BeginMove(ctx, t.tenant.OrgID, t.to.name); err != nil {
		return report, err
	}
	if report.Tenant.Cluster != t.from.name || report.Tenant.Schema != t.tenant.Schema { // meanwhile
		return report, fmt.Errorf("%w: move org %s: it is no longer in cluster %q", registry.ErrConflict, t.tenant.OrgID, t.from.name)
	}
	if err := t.fence(ctx); err != nil {
		if errors.Is(err, ErrBusy) {
			var cancelErr error
			report.Tenant, cancelErr = t.tenants.CancelMove(context.WithoutCancel(ctx), t.tenant.OrgID)
			err = errors.Join(err, cancelErr)
		}
		return report, err
	}
	if report.Tables, err = t.copy(ctx); err != nil {
		return report, err
	}
	t.step(Switching)
	if err := t.holds(ctx); err != nil {
		return report, err
	}
	if report.Tenant, err = t.tenants.FinishMove(ctx, t.tenant.OrgID, t.to.name); err != nil {
		return report, err
	}
	report.Away = time.Since(began)
	t.step(Dropping)
	return report, errors.Join(unmark(ctx, t.target, t.tenant), t.dropFenced(ctx))
}

// holds makes sure that the lock, which goes with the connection, and the fence are still
// there.
func (t *transfer) holds(ctx context.Context) error {
	open, fenced, err := t.state(ctx)
	if err == nil && (open || !fenced) {
		err = fmt.Errorf("move: the fence of org %s was taken away meanwhile; run it again", t.tenant.OrgID)
	}
	return err
}

// dropLeftovers drops what a move that was broken off after the switch has left in the
// cluster where the tenant was.
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
		err = errors.Join(unmark(ctx, t.target, tenant), t.dropFenced(ctx))
		t.end()
		if err != nil {
			return err
		}
	}
	return nil
}

func closeConn(conn *pgx.Conn) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_ = conn.Close(ctx)
}
