package pgtest

import (
	"io"
	"os"
	"path/filepath"
)

// Option changes how [Start] and [NewServer] set a server up.
type Option func(*config)

type config struct {
	log  io.Writer
	spec spec
}

// spec is the part of the configuration that the supervisor needs.
type spec struct {
	LocalOnly  bool // server binaries on this machine, nothing else
	TCP        bool
	Durable    bool
	Parameters []parameter
	Env        environment
}

// environment is what the environment says about servers. The process reads it,
// not its supervisor, so that go test sees which variables a test depends on
// and does not take a result from its cache when they change.
type environment struct {
	URL, URLName string // a server to use, and the variable that names it
	BinDir       string
	Image        string
}

func readEnvironment() environment {
	env := environment{BinDir: os.Getenv("PG_BINDIR"), Image: os.Getenv("PGIDEM_TEST_IMAGE")}
	if abs, err := filepath.Abs(env.BinDir); err == nil && env.BinDir != "" {
		env.BinDir = abs // the server programs run elsewhere
	}
	for _, name := range []string{"PGIDEM_TEST_DATABASE_URL", "DATABASE_URL"} {
		if env.URL = os.Getenv(name); env.URL != "" {
			env.URLName = name
			break
		}
	}
	return env
}

type parameter struct{ Name, Value string }

func newConfig(opts []Option) config {
	cfg := config{log: os.Stderr, spec: spec{Env: readEnvironment()}}
	for _, opt := range opts {
		opt(&cfg)
	}
	return cfg
}

// WithLog sends the progress lines to w: which way to a server is taken, and
// which ones were tried in vain. Defaults to [os.Stderr]. Nil silences them.
func WithLog(w io.Writer) Option {
	return func(c *config) {
		c.log = w
		if w == nil {
			c.log = io.Discard
		}
	}
}

// WithTCP makes a throw-away cluster listen on a free port of 127.0.0.1 too,
// with a random password (SCRAM). [Server.URL] then goes over TCP. By default a
// cluster listens on a Unix socket in its own folder only. A container listens
// on TCP in any case.
func WithTCP() Option {
	return func(c *config) { c.spec.TCP = true }
}

// WithDurable leaves PostgreSQL's durability as the server ships it. By default
// fsync and full_page_writes are off, which is faster and loses nothing as long
// as only tests lose power; synchronous_commit is on either way. A test that
// kills its server and reads afterwards wants WithDurable: without
// full_page_writes a page that was being written at the kill may be torn.
func WithDurable() Option {
	return func(c *config) { c.spec.Durable = true }
}

// WithParameter sets a parameter of the server's configuration, as a line of
// postgresql.conf would. Of two settings of one parameter the later one holds.
// It has no effect on a server that the environment names.
func WithParameter(name, value string) Option {
	return func(c *config) {
		c.spec.Parameters = append(c.spec.Parameters, parameter{Name: name, Value: value})
	}
}

// parameters returns the settings of a new server in the order in which they
// apply.
func (s spec) parameters() []parameter {
	params := []parameter{
		{"max_connections", "200"},
		{"timezone", "UTC"},
		{"log_timezone", "UTC"},
		{"cluster_name", "pgtest"},
	}
	if !s.Durable {
		params = append(params, parameter{"fsync", "off"}, parameter{"full_page_writes", "off"})
	}
	return append(params, s.Parameters...)
}

// createOptions is what follows the name in CREATE DATABASE on a new server of
// the given version.
func (s spec) createOptions(major int) string {
	if major >= 15 && !s.Durable {
		return "TEMPLATE template0 STRATEGY file_copy" // quick where nothing is flushed
	}
	return "TEMPLATE template0"
}
