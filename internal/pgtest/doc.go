// Package pgtest gives tests and the demo a real PostgreSQL, from wherever the
// machine has one, and takes it away again however the process ends.
//
// A test package says so once:
//
//	func TestMain(m *testing.M) { pgtest.Main(m) }
//
// and its tests ask for databases of their own:
//
//	pool := pgtest.NewPool(t)    // empty search_path: unqualified SQL fails
//	url := pgtest.NewDatabase(t) // for what opens its own connections
//
// The process has one server, which the first test to ask starts (about a
// second); a database on it takes some ten milliseconds. A test that kills or
// restarts its server has one to itself:
//
//	server := pgtest.NewServer(t, pgtest.WithDurable())
//	err := server.Kill()
//	err = server.Restart(ctx)
//
// Programs use [Start] and [Server.Stop].
//
// # Where the server comes from
//
// The first of these that works. Each is announced in one line, but the first:
//
//  1. The server that PGIDEM_TEST_DATABASE_URL names or, where that is not set,
//     DATABASE_URL: a postgres:// URL whose role may create databases. Only
//     databases called pgidem_test_ and random digits are made there, and they
//     are dropped. If this server cannot be used, that is an error: it was
//     asked for.
//  2. A throw-away cluster of the server binaries on the machine, which are
//     looked for in the folder that PG_BINDIR names, in PATH, and where
//     packages put them (Debian, Ubuntu, Fedora, Alpine, Homebrew, MacPorts,
//     Postgres.app). The cluster is one folder below [os.TempDir] with a Unix
//     socket in it. Since PostgreSQL refuses to run as root, it then runs as
//     postgres or as nobody.
//  3. A container, if Docker or Podman is running, of the image that
//     PGIDEM_TEST_IMAGE names; by default postgres:17-alpine. The image must
//     obey what the official one does: POSTGRES_PASSWORD, and postgres and its
//     options as the command. The engine must be on this machine: the server is
//     reached at 127.0.0.1.
//  4. On Debian and its descendants, as root: a cluster as above, after
//     apt-get has installed the distribution's postgresql. The package stays;
//     no cluster of the system's is made or started.
//
// Else there is an error that says what was tried and what to do. Tests fail
// then; they are never skipped. PostgreSQL 14 is the oldest supported. Throw-away
// clusters need a Unix; elsewhere the other ways remain.
//
// Servers of ways 2 to 4 have UTF-8 databases without a locale, time zone UTC,
// 200 connections and, unless [WithDurable] is given, no fsync.
//
// # How it is taken away
//
// A server belongs to a supervisor: the same executable started a second time,
// in a session of its own, which this package's init function takes over before
// main begins. The supervisor runs the server and reads a pipe from the process.
// When the process ends, by [Main], a panic, Ctrl-C or SIGKILL, the kernel closes
// the pipe, and the supervisor ends the server and removes its folder or
// container, or drops the databases. After [Main] and [Server.Stop] this is done;
// otherwise it is over about a second after the process's end. Should the
// supervisor itself be killed, Linux ends the server, and its folder stays.
//
// No goroutine runs on behalf of a server, so that tests for leaks see their own
// only. A TestMain that ends the process by itself, such as that of goleak, can do
// without [Main].
package pgtest
