package pgtest

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
)

// Server is a PostgreSQL server for tests: one that the environment names, a
// throw-away cluster, or a container. It is safe for concurrent use.
type Server struct {
	sup  *supervisor
	info serverInfo
	run  string // prefix of the names of the databases made here

	made    atomic.Int64 // databases made so far
	stop    sync.Once
	stopErr error
}

// serverInfo is what the supervisor tells of a server that is up.
type serverInfo struct {
	URL    string
	Source string
	Create string // what follows the name in CREATE DATABASE
}

// running holds the servers of this process that were not stopped yet, for
// [Main].
var running sync.Map

// Start finds or starts a server, by the first of the ways in the package
// documentation that works. It returns an error that lists what was tried when
// none does, and when the server that the environment names cannot be used.
//
// The caller stops the server with [Server.Stop]. Should the process end in any
// other way, its supervisor does so. When ctx ends early, the error wraps the
// context's cause, and the supervisor undoes what was begun.
func Start(ctx context.Context, opts ...Option) (*Server, error) {
	cfg := newConfig(opts)
	run := databasePrefix + randomHex(6) + "_"
	sup, err := startSupervisor(cfg.log)
	if err != nil {
		return nil, fmt.Errorf("pgtest: %w", err)
	}
	info, err := sup.call(ctx, request{Op: opStart, Spec: cfg.spec, Run: run})
	if err != nil {
		_ = sup.stop()
		return nil, fmt.Errorf("pgtest: %w", err)
	}
	s := &Server{sup: sup, info: info, run: run}
	running.Store(s, nil)
	return s, nil
}

// URL returns the postgres:// URL of a maintenance database, as a role that may
// create databases. It stays the same over [Server.Restart].
func (s *Server) URL() string { return s.info.URL }

// Source says in one line for people where the server came from, and its
// version.
func (s *Server) Source() string { return s.info.Source }

// Stop ends the server and removes all that it left: processes, folder,
// container; or, on a server that the environment names, the databases of this
// process. It waits until that is done. Stopping again returns the first
// result.
func (s *Server) Stop() error {
	s.stop.Do(func() {
		running.Delete(s)
		if err := s.sup.stop(); err != nil {
			s.stopErr = fmt.Errorf("pgtest: stop %s: %w", s.info.Source, err)
		}
	})
	return s.stopErr
}

// Kill ends the postmaster and all its children with SIGKILL, as a crash of the
// machine would end them, and waits until they are gone. [Server.Restart]
// brings the server back. It returns an error for a server that is not a
// throw-away cluster of this process.
func (s *Server) Kill() error {
	// Killing is bounded by the supervisor.
	if _, err := s.sup.call(context.Background(), request{Op: opKill}); err != nil {
		return fmt.Errorf("pgtest: kill %s: %w", s.info.Source, err)
	}
	return nil
}

// Restart starts the server again on the same data, after [Server.Kill] or
// while it runs (then it is shut down first, in PostgreSQL's fast mode), and
// waits until it takes connections. URLs stay valid. It returns an error for a
// server that is not a throw-away cluster of this process. When ctx ends before
// the server is back, the server is stopped for good.
func (s *Server) Restart(ctx context.Context) error {
	if _, err := s.sup.call(ctx, request{Op: opRestart}); err != nil {
		return fmt.Errorf("pgtest: restart %s: %w", s.info.Source, err)
	}
	return nil
}
