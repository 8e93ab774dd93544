// Package integration holds the tests that need a container engine, or a PgBouncer.
// They are a module of their own, so that what drives containers is no dependency of
// the library.
//
// They run the conformance suites over PostgreSQL in a container and through a
// PgBouncer in transaction mode, and package pgtest where a container is its only way
// to a server:
//
//	scripts/integration.sh
//
// puts in place what the machine lacks and runs them. Plain go test does as well
// where Docker is running. The environment variable PGIDEM_TEST_IMAGE names the
// image of PostgreSQL, by default postgres:17-alpine. Without an engine, or without
// PgBouncer, the tests that need it are skipped, but where CI is set to true they fail.
package integration
