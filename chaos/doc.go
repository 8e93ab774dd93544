// Package chaos holds the fault tests: the service that users would write, in processes
// that are killed at every point of a payment, paused and restarted, over a PostgreSQL that
// is killed as well and a network that fails, with clients that retry until they get an
// answer. The history of each run is checked against the specification. It is a module of
// its own, because no user needs any of this.
//
//	make chaos          # 500 kills in each mode, and hundreds of other faults
//	make chaos-short    # the same in a minute, as part of make ci
//
// The packages: service is what runs and is killed, harness runs it, history is what a run
// leaves behind, check says whether that is right, faults breaks connections at the very
// moment that is meant and builds programs with wrong clocks. The tests of this folder put
// them together; those of package faults try one fault at a time. README.md says how to set
// them up and how to read what they print.
package chaos
