package provision

import (
	"errors"
	"fmt"
	"strings"

	"github.com/pgidem/pgidem/tenancy"
)

var (
	// ErrState is returned for a tenant that is not in a state for the step: to be made
	// though it is suspended, say, or to be dropped though it is served.
	ErrState = errors.New("provision: wrong state")

	// ErrNotPinned is returned by [Provisioner.Provision] if the schema is there already and
	// its tables are not pinned to the tenant, so that they may hold records of others; and by
	// [Provisioner.Drop] if tables in the schema are pinned to another tenant.
	ErrNotPinned = errors.New("provision: schema is not the tenant's alone")

	// ErrNotConfirmed is returned by [Provisioner.Drop] if what should name the tenant does
	// not.
	ErrNotConfirmed = errors.New("provision: not confirmed")

	// ErrRole is returned under [WithTenantRoles] if there is a role of the name of the tenant's
	// schema that was not made for the tenant, or that can do more than a tenant's should. It is
	// neither used nor dropped.
	ErrRole = errors.New("provision: role is not the tenant's")

	// ErrBusy is returned if others hold a table, or the schema, for too long. Try again later.
	ErrBusy = errors.New("provision: busy")
)

// ForeignError is returned by [Provisioner.Drop] if there is something in the schema that is
// not this library's. Nothing of it has been dropped.
type ForeignError struct {
	Schema  tenancy.Schema
	Objects []string // kind and name of each, as DROP takes them
	Cluster string   // where the schema is

	// Left is true for the schema that a move of the tenant has left empty in Cluster. The
	// tenant is in another, and [WithForeign] does not drop what is in this one.
	Left bool
}

// Error implements error. It names the first few.
func (e *ForeignError) Error() string {
	if e.Left {
		return fmt.Sprintf("provision: schema %s of cluster %q, which a move has left empty to say where the tenant went, holds %s; take that away yourself, whether or not WithForeign is given, and drop again", e.Schema, e.Cluster, few(e.Objects))
	}
	return fmt.Sprintf("provision: schema %s holds what is not this library's: %s; take it away yourself, or drop it as well by WithForeign", e.Schema, few(e.Objects))
}

// DependentError is returned by [Provisioner.Drop] if something outside of the schema depends
// on what is in it, as a view or a partition in another schema does, or if there is something
// in the schema that Drop cannot take away, an extension say. Nothing has been dropped.
type DependentError struct {
	Schema  tenancy.Schema
	Objects []string // each with what it depends on
	Cluster string   // where the schema is

	// Left is true for the schema that a move of the tenant has left empty in Cluster. The
	// tenant is in another.
	Left bool
}

// Error implements error. It names the first few.
func (e *DependentError) Error() string {
	if e.Left {
		return fmt.Sprintf("provision: schema %s of cluster %q, which a move has left empty to say where the tenant went, cannot be dropped alone: %s; take that away yourself first", e.Schema, e.Cluster, few(e.Objects))
	}
	return fmt.Sprintf("provision: schema %s cannot be dropped alone: %s; take that away yourself first", e.Schema, few(e.Objects))
}

func few(list []string) string {
	if more := len(list) - 10; more > 0 {
		return fmt.Sprintf("%s and %d more", strings.Join(list[:10], ", "), more)
	}
	return strings.Join(list, ", ")
}
