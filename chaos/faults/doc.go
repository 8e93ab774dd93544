// Package faults breaks the way between a service and its PostgreSQL, at the very moment
// that a test means, and proves that it did.
//
// A [Proxy] stands between them on loopback and reads the protocol, so that it knows which
// statement is on its way, prepared ones included. A [Fault] names a statement, a moment in
// its round trip, and what happens to the connection then:
//
//	proxy := faults.NewProxy(upstream)
//	pool, err := pgxpool.NewWithConfig(ctx, proxy.Through(config))
//	strike := proxy.Inject(faults.Fault{Statement: faults.Text("COMMIT"), Moment: faults.Answered, Kind: faults.Cut})
//	...
//	strike.Count() // how often it struck
//	strike.Tags()  // what the server had answered by then: COMMIT
//
// The tests of this package (in short mode without those that build programs anew, and with
// fewer kills) are of the middleware and the store under such faults, of
// processes whose clocks are wrong, and of a server that is killed in the middle of a
// commit.
//
// # Why not toxiproxy
//
// Toxiproxy knows bytes and not statements, so what matters here, a cut between the
// server's COMMIT and the client's hearing of it, it can only hit by chance. What it does
// to all connections alike ([Proxy.CutAll], [Proxy.DelayAll], [Proxy.HoldAll]) is a few
// lines on top of what is needed anyway, and a second proxy in the way would be one more to
// distrust.
//
// # What a black hole is
//
// What goes into a black hole is held, and not lost: TCP sends it again until it arrives,
// so a statement that a client gave up long ago can reach the server when the network is
// well again. The end of a connection is held as well, so neither side learns that the
// other has gone. Requests to cancel a statement go through, as they come on a connection
// of their own; [Proxy.DropCancels] stops them.
package faults
