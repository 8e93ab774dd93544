package integration_test

import (
	"testing"

	"github.com/pgidem/pgidem/idempotency/idempotencytest"
	"github.com/pgidem/pgidem/internal/storetest"
)

func TestConformance(t *testing.T) {
	t.Parallel()
	needEngine(t)
	server := startPostgres(t)

	t.Run("store", func(t *testing.T) {
		t.Parallel()
		newStore, opts := storetest.Suite(newPool(t, server, "store"))
		idempotencytest.TestStore(t, newStore, opts...)
	})
	t.Run("middleware", func(t *testing.T) {
		t.Parallel()
		newStore, opts := storetest.Suite(newPool(t, server, "middleware"))
		idempotencytest.TestMiddleware(t, newStore, opts...)
	})
}
