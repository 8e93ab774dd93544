package pgstore

import (
	"context"
	"errors"
	"fmt"

	"github.com/google/uuid"

	"github.com/pgidem/pgidem/idempotency"
	"github.com/pgidem/pgidem/tenancy"
)

// follow runs do where a tenant is and, if its tables are not there, once more where the
// directory finds it when it looks anew: the tenant may have been moved, and this process not
// have heard of it. In between, and while the directory cannot be asked, that is a passing
// fault. A tenant is unknown whose tables are not there after the directory said that they are.
func (s *Store) follow(ctx context.Context, orgID uuid.UUID, at located, do func(located) error) error {
	err := do(at)
	if err == nil || s.refresher == nil || !meetsNothing(err) {
		return err
	}
	place, lookErr := s.refresher.Refresh(ctx, orgID)
	switch {
	case errors.Is(lookErr, tenancy.ErrUnknownTenant):
		return err
	case lookErr == nil && at.is(place):
		return do(at) // a move may have been taken back in between
	}
	var next located
	if at.begun {
		next, lookErr = s.admitBegun(orgID, place, lookErr)
	} else {
		next, lookErr = s.admit(orgID, place, lookErr)
	}
	switch {
	case errors.Is(lookErr, idempotency.ErrStoreRefused): // its schema is too old, or its cluster not one of ours
		return lookErr
	case lookErr != nil:
		return at.onItsWay(lookErr)
	case next.is(at.placement()):
		return at.onItsWay(err)
	}
	if err = do(next); meetsNothing(err) {
		return at.onItsWay(err)
	}
	return err
}

// meetsNothing reports whether a statement met no tenant's tables at all.
func meetsNothing(err error) bool { return isMissing(err) && !isOutdated(err) }

func (at located) placement() tenancy.Placement {
	return tenancy.Placement{Schema: at.schema, Cluster: at.server.cluster}
}

// is reports whether that is the place.
func (at located) is(place tenancy.Placement) bool {
	return at.schema == place.Schema && at.server.cluster == place.Cluster
}

// onItsWay returns the error of what met no table because the tenant is being moved, as far as
// can be known. A claim is refused then, since nobody is to run unprotected beside a record
// that is elsewhere; what has begun is to be tried again. What err wraps says nothing to the
// caller: the tenant is neither unknown nor, if it was found suspended, suspended for long.
func (at located) onItsWay(err error) error {
	if at.begun {
		return fmt.Errorf("%w: %s", errOnItsWay, err.Error())
	}
	return fmt.Errorf("%w: %w: %s", idempotency.ErrStoreRefused, errOnItsWay, err.Error())
}

var errOnItsWay = errors.New("its tables are not where it was, and it may be on its way to another cluster; try again")
