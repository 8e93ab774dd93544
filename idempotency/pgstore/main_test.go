package pgstore_test

import (
	"testing"
	"time"

	"github.com/google/uuid"
	"go.uber.org/goleak"

	"github.com/pgidem/pgidem/idempotency"
	"github.com/pgidem/pgidem/idempotency/idempotencytest"
	"github.com/pgidem/pgidem/internal/pgtest"
	"github.com/pgidem/pgidem/internal/storetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(pgtest.Tests{M: m}) }

func TestStoreConformance(t *testing.T) {
	t.Parallel()
	newStore, opts := storetest.Suite(pgtest.NewPool(t))
	idempotencytest.TestStore(t, newStore, opts...)
}

func TestMiddlewareConformance(t *testing.T) {
	t.Parallel()
	newStore, opts := storetest.Suite(pgtest.NewPool(t))
	idempotencytest.TestMiddleware(t, newStore, opts...)
}

func claimRequest(org uuid.UUID, key string) idempotency.ClaimRequest {
	return idempotency.ClaimRequest{
		Claim:       idempotency.Claim{OrgID: org, Key: key, Token: idempotency.NewToken()},
		RequestHash: "hash", Lease: time.Minute, TTL: time.Hour,
	}
}
