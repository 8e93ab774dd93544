// Package idempotencytest proves that a store keeps the contract of
// [idempotency.Store] and, where it claims to be one, of
// [idempotency.LeaseStore].
//
//	func TestMyStore(t *testing.T) {
//		idempotencytest.TestStore(t, func(t testing.TB) idempotency.Store {
//			return mystore.New(...)
//		})
//	}
//
// The suite makes up its own tenants and keys, so a store may be shared between
// runs. It runs its tests in parallel; run it with the race detector as well.
package idempotencytest
