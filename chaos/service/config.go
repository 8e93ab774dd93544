// Package service is the service that the fault tests kill: payments over HTTP, under
// idempotency.Require, in a process of its own. It notes what it does ([history.Event]) and
// kills or stops itself at the points that its [Plan] names.
//
// The process is the executable of the tests, started again with [Env] set:
//
//	func TestMain(m *testing.M) {
//		service.MainIfAsked()
//		goleak.VerifyTestMain(pgtest.Tests{M: m})
//	}
package service

import (
	"encoding/json"
	"fmt"
	"os"
	"time"
)

// Env is the environment variable that makes a process the service. It holds a [Config].
const Env = "PGIDEM_CHAOS_SERVICE"

// The files that a process is started with, beside its standard ones. Its standard input
// is its lifeline: at its end the process shuts down.
const (
	ListenerFile = 3 // where it serves; connections wait in it while no process is there
	NoticesFile  = 4 // where it says that it is [Ready] and [Stopping], a byte each
)

// Notices of a process to whoever started it.
const (
	Ready    = 'r'
	Stopping = 's' // it stops itself now, and is to be continued
)

// Config is what a process is told.
type Config struct {
	Process      string // its name in the history
	Dir          string // of the history
	DatabaseURL  string
	BankURL      string
	Mode         string // history.Lease or history.Transaction
	Lease        time.Duration
	StoreTimeout time.Duration
	Wait         time.Duration // of duplicates; zero refuses them
	Bug          Bug
	// CompleterInterval is that of the process's completer. Zero: it has none, and keeps no
	// requests.
	CompleterInterval time.Duration
	Plan              Plan
}

// Environ returns the setting of [Env] for the configuration.
func (c Config) Environ() string {
	text, err := json.Marshal(c)
	if err != nil {
		panic(err) // strings and numbers alone cannot fail
	}
	return Env + "=" + string(text)
}

// MainIfAsked runs the service and exits, if the process was started to be one.
func MainIfAsked() {
	text, asked := os.LookupEnv(Env)
	if !asked {
		return
	}
	var config Config
	err := json.Unmarshal([]byte(text), &config)
	if err == nil {
		err = run(config)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "chaos service:", err)
		os.Exit(1)
	}
	os.Exit(0)
}
