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

// txStore lets the suite move the times of the tenants of one test.
type txStore struct {
	idempotency.LeaseStore
	orgs []uuid.UUID
}

func TestMiddlewareConformanceInTransactions(t *testing.T) {
	t.Parallel()
	pool := pgtest.NewPool(t)
	idempotencytest.TestMiddleware(t,
		func(t testing.TB) idempotency.Store {
			return &txStore{LeaseStore: storetest.NewStore(t, pool).Transactional().(idempotency.LeaseStore)}
		},
		idempotencytest.WithTransactions(),
		idempotencytest.WithTenant(func(t testing.TB, s idempotency.Store) uuid.UUID {
			org := storetest.NewTenant(t, pool)
			s.(*txStore).orgs = append(s.(*txStore).orgs, org)
			return org
		}),
		idempotencytest.WithAdvance(func(t testing.TB, s idempotency.Store, d time.Duration) {
			for _, org := range s.(*txStore).orgs {
				storetest.Advance(t, pool, org, d)
			}
		}),
	)
}

func claimRequest(org uuid.UUID, key string) idempotency.ClaimRequest {
	return idempotency.ClaimRequest{
		Claim:       idempotency.Claim{OrgID: org, Key: key, Token: idempotency.NewToken()},
		RequestHash: "hash", Lease: time.Minute, TTL: time.Hour,
	}
}
