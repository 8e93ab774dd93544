package move

import "errors"

var (
	// ErrBusy is returned when attempts of the tenant were still in progress, or its tables or
	// what moves have left of it locked, at the end of the time that [WithDrainTimeout] gives.
	// The tenant is served again where it is, unless it is its fence there that cannot be taken
	// away: run Move again then, or [Mover.Cancel]. Where it is what the tenant has left in its
	// old place that is locked, the move is done, and to run it again drops that.
	ErrBusy = errors.New("move: tenant is busy")

	// ErrDiffers is returned when the copy is not what was copied. The tenant stays
	// suspended, the source is whole, and the copy is dropped when Move is run again.
	ErrDiffers = errors.New("move: the copy differs")

	// ErrMissing is returned when the schema of a tenant is not in the cluster where the registry
	// says that it is, as after a registry was restored from a backup. Nothing is dropped then:
	// correct the placement in the registry, or restore the schema, and move again.
	ErrMissing = errors.New("move: the schema is missing")

	// ErrOccupied is returned when the other cluster has a schema of the tenant's name that
	// is no copy of it, or somebody has put something into the empty one that a move has left.
	ErrOccupied = errors.New("move: the schema exists in the other cluster")
)
