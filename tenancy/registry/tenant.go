package registry

import (
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/pgidem/pgidem/tenancy"
)

// State says what may be done with a tenant.
type State string

// The states of a tenant. Only an [Active] one is served.
const (
	// Provisioning is the state of a tenant whose schema is being made.
	Provisioning State = "provisioning"
	// Active is the state of a tenant that is served.
	Active State = "active"
	// Suspended is the state of a tenant that is not served for a while.
	Suspended State = "suspended"
	// Deleting is the state of a tenant whose schema is being dropped.
	Deleting State = "deleting"
)

// Tenant is what the registry knows of a tenant.
type Tenant struct {
	OrgID uuid.UUID
	// Schema holds the tenant's tables. No other tenant of the same cluster has it.
	Schema tenancy.Schema
	// Cluster names the PostgreSQL server with the schema, by up to 63 lower-case letters,
	// digits, and any of "._-". It is empty where there is one server alone.
	Cluster string
	State   State
	// Version is the number of the newest migration that the schema has had, as was noted
	// ([Registry.SetVersion]), or 0 where that is not known.
	Version int64
	// Moving tells that the tenant is being moved to the cluster MovingTo, and suspended for
	// that; Resume, that it is made active again afterwards; and MoveID, by which run it is.
	Moving   bool
	MovingTo string
	MoveID   uuid.UUID
	Resume   bool
	// CreatedAt and UpdatedAt are of the database's clock.
	CreatedAt, UpdatedAt time.Time
}

// Placement returns where the tenant's records are.
func (t Tenant) Placement() tenancy.Placement {
	return tenancy.Placement{Schema: t.Schema, Cluster: t.Cluster, Version: t.Version}
}

// columns are those that scanTenant reads, of the table tenants as t.
const columns = `t.org_id, t.schema_name, t.cluster, t.state, t.version,
	t.moving_to IS NOT NULL, coalesce(t.moving_to, ''), coalesce(t.move_id::text, ''), t.resume, t.created_at, t.updated_at`

func scanTenant(row pgx.CollectableRow) (Tenant, error) {
	var t Tenant
	var schema, moveID string
	err := row.Scan(&t.OrgID, &schema, &t.Cluster, &t.State, &t.Version, &t.Moving, &t.MovingTo, &moveID, &t.Resume, &t.CreatedAt, &t.UpdatedAt)
	if err != nil {
		return Tenant{}, err
	}
	if t.Schema, err = tenancy.ParseSchema(schema); err != nil {
		return Tenant{}, fmt.Errorf("org %s: %w", t.OrgID, err)
	}
	if t.Moving {
		t.MoveID, err = uuid.Parse(moveID)
	}
	return t, err
}
