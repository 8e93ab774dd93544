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
	// its tables are not pinned to the tenant, so that they may hold records of others.
	ErrNotPinned = errors.New("provision: schema is not the tenant's alone")

	// ErrNotConfirmed is returned by [Provisioner.Drop] if what should name the tenant does
	// not.
	ErrNotConfirmed = errors.New("provision: not confirmed")

	// ErrBusy is returned by [Provisioner.Drop] if others hold a table for too long. Drop
	// again later.
	ErrBusy = errors.New("provision: busy")
)

// ForeignError is returned by [Provisioner.Drop] if there is something in the schema that is
// not this library's. Nothing of it has been dropped.
type ForeignError struct {
	Schema  tenancy.Schema
	Objects []string // kind and name of each, as DROP takes them
}

// Error implements error. It names the first few.
func (e *ForeignError) Error() string {
	named := e.Objects
	more := ""
	if len(named) > 10 {
		named, more = named[:10], fmt.Sprintf(" and %d more", len(e.Objects)-10)
	}
	return fmt.Sprintf("provision: schema %s holds what is not this library's: %s%s; take it away yourself, or drop it as well by WithForeign", e.Schema, strings.Join(named, ", "), more)
}
