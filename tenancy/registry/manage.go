package registry

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/pgidem/pgidem/tenancy"
)

// one runs a statement about the tenant orgID that returns at most one row of tenants, and
// pgx.ErrNoRows for none.
func (r *Registry) one(ctx context.Context, sql string, args ...any) (Tenant, error) {
	rows, err := r.pool.Query(ctx, r.statement(sql), args...)
	if err != nil {
		return Tenant{}, err
	}
	return pgx.CollectExactlyOneRow(rows, scanTenant)
}

// Tenant returns the tenant orgID as it is now. The error wraps [tenancy.ErrUnknownTenant]
// if it is not registered.
func (r *Registry) Tenant(ctx context.Context, orgID uuid.UUID) (Tenant, error) {
	return r.tenant(ctx, "look up org", orgID)
}

func (r *Registry) tenant(ctx context.Context, step string, orgID uuid.UUID) (Tenant, error) {
	return r.tenantOf(ctx, step, orgID, nil)
}

// tenantOf is tenant, but with ErrReplaced for one that was created at another time than the
// one given, if one is.
func (r *Registry) tenantOf(ctx context.Context, step string, orgID uuid.UUID, created *time.Time) (Tenant, error) {
	t, err := r.one(ctx, `SELECT `+columns+` FROM /*control.*/tenants t WHERE t.org_id = $1`, orgID)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return Tenant{}, fmt.Errorf("registry: %s %s: %w", step, orgID, tenancy.ErrUnknownTenant)
	case err == nil && created != nil && !t.CreatedAt.Equal(*created):
		return Tenant{}, fmt.Errorf("%w: %s %s", ErrReplaced, step, generationName(orgID, *created))
	}
	return t, r.translate(step, orgID, err)
}

// Filter chooses tenants. The zero Filter chooses all.
type Filter struct {
	// States are those to choose; none chooses all.
	States []State
	// Cluster chooses the tenants of one cluster, which may be the nameless one.
	Cluster *string
	// OlderThan, if it is not 0, chooses the tenants whose version is smaller.
	OlderThan int64
}

// page is how many tenants [Registry.Tenants] reads at once.
const page = 1000

// Tenants returns the tenants that the filter chooses, in the order of their org_ids. It
// reads them in pages, and holds no connection in between: a tenant that changes meanwhile
// is seen as it was before or after, and each at most once. An error ends it.
func (r *Registry) Tenants(ctx context.Context, filter Filter) iter.Seq2[Tenant, error] {
	return func(yield func(Tenant, error) bool) {
		for after := uuid.Nil; ; { // nobody's org_id
			tenants, err := r.page(ctx, filter, after)
			if err != nil {
				yield(Tenant{}, r.translate("list", "tenants", err))
				return
			}
			for _, t := range tenants {
				if !yield(t, nil) {
					return
				}
			}
			if len(tenants) < page {
				return
			}
			after = tenants[len(tenants)-1].OrgID
		}
	}
}

func (r *Registry) page(ctx context.Context, filter Filter, after uuid.UUID) ([]Tenant, error) {
	rows, err := r.pool.Query(ctx, r.statement(`
		SELECT `+columns+` FROM /*control.*/tenants t
		WHERE t.org_id > $1
			AND (cardinality($2::text[]) = 0 OR t.state = ANY ($2::text[]))
			AND ($3::text IS NULL OR t.cluster = $3::text)
			AND ($4::bigint = 0 OR t.version < $4::bigint)
		ORDER BY t.org_id LIMIT $5::bigint`),
		after, names(filter.States), filter.Cluster, filter.OlderThan, page)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, scanTenant)
}

// names returns the states as PostgreSQL gets them; never nil, which would be NULL.
func names(states []State) []string {
	s := make([]string, len(states))
	for i, state := range states {
		s[i] = string(state)
	}
	return s
}

// Add registers a tenant and returns it as it is registered. The state defaults to
// [Provisioning]; the times are the database's.
//
// A tenant that is registered with the same schema and cluster is left as it is, so Add may
// be repeated. The error wraps [ErrConflict] if it is registered with others, or if another
// tenant has the schema, and [ErrInvalid] if there can be no such tenant.
func (r *Registry) Add(ctx context.Context, t Tenant) (Tenant, error) {
	if t.Schema.IsZero() {
		return Tenant{}, fmt.Errorf("%w: org %s has the zero Schema; make one with tenancy.ParseSchema or a Directory", ErrInvalid, t.OrgID)
	}
	if t.State == "" {
		t.State = Provisioning
	}
	for range 3 { // who is in the way may go between the two statements
		added, err := r.one(ctx, `
			INSERT INTO /*control.*/tenants AS t (org_id, schema_name, cluster, state, version) VALUES ($1, $2, $3, $4, $5)
			ON CONFLICT DO NOTHING RETURNING `+columns,
			t.OrgID, t.Schema.String(), t.Cluster, string(t.State), t.Version)
		if !errors.Is(err, pgx.ErrNoRows) {
			return added, r.translate("add org", t.OrgID, err)
		}
		// The tenant itself comes first, if there is one.
		other, err := r.one(ctx, `
			SELECT `+columns+` FROM /*control.*/tenants t WHERE t.org_id = $1 OR (t.schema_name, t.cluster) = ($2, $3)
			ORDER BY t.org_id <> $1 LIMIT 1`,
			t.OrgID, t.Schema.String(), t.Cluster)
		switch {
		case errors.Is(err, pgx.ErrNoRows):
			continue
		case err != nil:
			return Tenant{}, r.translate("add org", t.OrgID, err)
		case other.OrgID != t.OrgID:
			return Tenant{}, fmt.Errorf("%w: add org %s: org %s has schema %s of cluster %q", ErrConflict, t.OrgID, other.OrgID, t.Schema, t.Cluster)
		case other.Schema != t.Schema || other.Cluster != t.Cluster:
			return other, fmt.Errorf("%w: add org %s: it has schema %s of cluster %q and not %s of %q", ErrConflict, t.OrgID, other.Schema, other.Cluster, t.Schema, t.Cluster)
		}
		return other, nil
	}
	return Tenant{}, fmt.Errorf("registry: add org %s: others add and remove it meanwhile; try again", t.OrgID)
}

// SetState puts the tenant orgID into a state, if it is in one of those given, or in any
// where none is, and returns it as it is then. The error wraps [ErrState] if it is in
// another; the tenant is returned beside that. It wraps [tenancy.ErrUnknownTenant] if it is
// not registered. A tenant that is being moved can only be suspended: it is not made active
// again when it has been moved then.
func (r *Registry) SetState(ctx context.Context, orgID uuid.UUID, to State, from ...State) (Tenant, error) {
	return r.setState(ctx, orgID, nil, to, from)
}

// setState changes nothing if the tenant was created at another time than the one given.
func (r *Registry) setState(ctx context.Context, orgID uuid.UUID, created *time.Time, to State, from []State) (Tenant, error) {
	const step = "set state of org"
	t, err := r.one(ctx, `
		UPDATE /*control.*/tenants t SET state = $2, resume = t.resume AND $2 <> 'suspended'
		WHERE t.org_id = $1 AND (cardinality($3::text[]) = 0 OR t.state = ANY ($3::text[]))
			AND ($4::timestamptz IS NULL OR t.created_at = $4::timestamptz) RETURNING `+columns,
		orgID, string(to), names(from), created)
	if !errors.Is(err, pgx.ErrNoRows) {
		return t, r.translate(step, orgID, err)
	}
	return r.unless(ctx, step, orgID, created, from)
}

// unless returns the error of a change that found the tenant in none of the states, with
// the tenant as it is.
func (r *Registry) unless(ctx context.Context, step string, orgID uuid.UUID, created *time.Time, from []State) (Tenant, error) {
	t, err := r.tenantOf(ctx, step, orgID, created)
	switch {
	case err != nil:
		return Tenant{}, err
	case slices.Contains(from, t.State):
		return t, fmt.Errorf("%w: %s %s: others change it at the same time; try again", ErrState, step, orgID)
	}
	return t, fmt.Errorf("%w: %s %s: it is %s and not %v", ErrState, step, orgID, t.State, from)
}

// SetVersion notes that the tenant's schema has had the migrations up to the version of at, if
// it is still in the schema and cluster of at: what was migrated where a tenant was says
// nothing of where it is. A version that is no newer than the one noted changes nothing:
// migrations are not taken back, and who notes an older one comes late.
//
// Whoever migrates schemas of the registry's tenants has to call it, as idem-tenants migrate
// does: package pgstore refuses a tenant whose noted version is too old, whatever its schema
// is at.
//
// The error wraps [ErrConflict] if the tenant is elsewhere by now, and
// [tenancy.ErrUnknownTenant] if orgID is not registered.
func (r *Registry) SetVersion(ctx context.Context, orgID uuid.UUID, at tenancy.Placement) error {
	return r.setVersion(ctx, orgID, nil, at)
}

// setVersion changes nothing if the tenant was created at another time than the one given.
func (r *Registry) setVersion(ctx context.Context, orgID uuid.UUID, created *time.Time, at tenancy.Placement) error {
	const step = "set version of org"
	// Where that is no change, nobody is told.
	_, err := r.one(ctx, `
		UPDATE /*control.*/tenants t SET version = $4
		WHERE t.org_id = $1 AND t.schema_name = $2 AND t.cluster = $3 AND t.version < $4
			AND ($5::timestamptz IS NULL OR t.created_at = $5::timestamptz) RETURNING `+columns,
		orgID, at.Schema.String(), at.Cluster, at.Version, created)
	if !errors.Is(err, pgx.ErrNoRows) {
		return r.translate(step, orgID, err)
	}
	t, err := r.tenantOf(ctx, step, orgID, created)
	if err == nil && (t.Schema != at.Schema || t.Cluster != at.Cluster) {
		return fmt.Errorf("%w: %s %s: it is in schema %s of cluster %q and not %s of %q", ErrConflict, step, orgID, t.Schema, t.Cluster, at.Schema, at.Cluster)
	}
	return err
}

// Move notes that the tenant's records are in the schema and cluster of to, if they have
// been in those of from. A version of to that is not 0 is noted with them. A tenant that is
// at to already is left as it is, so Move may be repeated.
//
// The error wraps [ErrConflict] if the tenant is elsewhere, or if another tenant has the
// schema; [ErrInvalid] if it cannot be there; and [tenancy.ErrUnknownTenant] if it is not
// registered. It moves no data, and processes that do not hear of it may go on at from for
// as long as [WithStale] says: see the package comment.
func (r *Registry) Move(ctx context.Context, orgID uuid.UUID, from, to tenancy.Placement) error {
	if to.Schema.IsZero() {
		return fmt.Errorf("%w: move org %s to the zero Schema; make one with tenancy.ParseSchema or a Directory", ErrInvalid, orgID)
	}
	_, err := r.one(ctx, `
		UPDATE /*control.*/tenants t
		SET schema_name = $4, cluster = $5, version = CASE WHEN $6::bigint = 0 THEN t.version ELSE $6::bigint END
		WHERE t.org_id = $1 AND t.schema_name = $2 AND t.cluster = $3 RETURNING `+columns,
		orgID, from.Schema.String(), from.Cluster, to.Schema.String(), to.Cluster, to.Version)
	if !errors.Is(err, pgx.ErrNoRows) {
		return r.translate("move org", orgID, err)
	}
	t, err := r.tenant(ctx, "move org", orgID)
	switch {
	case err != nil:
		return err
	case t.Schema == to.Schema && t.Cluster == to.Cluster:
		return nil
	}
	return fmt.Errorf("%w: move org %s: it is in schema %s of cluster %q and not %s of %q", ErrConflict, orgID, t.Schema, t.Cluster, from.Schema, from.Cluster)
}

// Remove forgets the tenant orgID, if it is in one of the states given, or in any where none
// is. The error wraps [ErrState] if it is in another, and [tenancy.ErrUnknownTenant] if it
// is not registered. The tenant's schema is left as it is.
func (r *Registry) Remove(ctx context.Context, orgID uuid.UUID, from ...State) error {
	return r.remove(ctx, orgID, nil, from)
}

// remove removes nothing if the tenant was created at another time than the one given.
func (r *Registry) remove(ctx context.Context, orgID uuid.UUID, created *time.Time, from []State) error {
	const step = "remove org"
	_, err := r.one(ctx, `
		DELETE FROM /*control.*/tenants t
		WHERE t.org_id = $1 AND (cardinality($2::text[]) = 0 OR t.state = ANY ($2::text[]))
			AND ($3::timestamptz IS NULL OR t.created_at = $3::timestamptz) RETURNING `+columns,
		orgID, names(from), created)
	if !errors.Is(err, pgx.ErrNoRows) {
		return r.translate(step, orgID, err)
	}
	_, err = r.unless(ctx, step, orgID, created, from)
	return err
}
