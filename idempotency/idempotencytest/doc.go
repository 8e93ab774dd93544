// Package idempotencytest proves that a store keeps the contract of
// [idempotency.Store] and, where it claims to be one, of
// [idempotency.LeaseStore]; and it helps the tests of services that stand behind
// [idempotency.Require].
//
// # For a store of your own
//
//	func TestMyStore(t *testing.T) {
//		idempotencytest.TestStore(t, func(t testing.TB) idempotency.Store {
//			return mystore.New(...)
//		})
//	}
//
// [TestMiddleware] then shows what clients see over that store. The suites make up
// their own tenants and keys, so a store may be shared between runs; a store in
// which a tenant must be made ready first has [WithTenant]. They let time pass by
// [WithAdvance], or by waiting. They run their tests in parallel; run them with the
// race detector as well.
//
// # For a service behind the middleware
//
// [NewMemoryStore] makes a store whose clock the test moves. [Client] makes a client
// that sends each request with a key of its own, so that tests that know nothing of
// keys need not. [Clear] forgets what a tenant did.
package idempotencytest
