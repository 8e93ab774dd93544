// Package history is what a run of the fault tests leaves behind: each request with its
// answer, what the service's processes did, each call of the bank, each fault, and the
// tables at the end. All of it has its times by one clock, [Now].
//
// It is written as lines of JSON while the run goes on ([Log]), to one folder, and read
// back whole by [Load].
package history

import (
	"golang.org/x/sys/unix"
)

// Now returns the time in nanoseconds by the machine's monotonic clock, which all of its
// processes share, and which goes on whatever is done to the time of day.
func Now() int64 {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		panic("history: no monotonic clock: " + err.Error())
	}
	return now.Nano()
}

// History is all that is known of one run.
type History struct {
	Meta     Meta
	Requests []Request
	Events   []Event
	Bank     []BankCall
	Faults   []Fault
	Tables   Tables
}

// Modes of the service.
const (
	Lease       = "lease"
	Transaction = "transaction"
)

// Meta says how the run was set up.
type Meta struct {
	Name  string
	Seed  uint64
	Mode  string
	Lease int64 // nanoseconds
	Bug   string
}

// RecoveredRequest begins the names of requests that have no client any more: a completer
// runs them again.
const RecoveredRequest = "recovered/"

// Request is one try of a client, and its answer. Without an answer Status is zero, Err
// says why, and whether the request took effect is not known.
type Request struct {
	ID       string
	Client   int
	Org, Key string
	Endpoint int
	Amount   int
	Call     int64
	Return   int64
	Status   int    `json:",omitempty"`
	Replayed bool   `json:",omitempty"`
	Code     string `json:",omitempty"` // of a problem
	Body     string `json:",omitempty"`
	Err      string `json:",omitempty"`
	Left     bool   `json:",omitempty"` // the client goes away without an answer
	Kept     bool   `json:",omitempty"` // after that, the request was seen to be kept
	Returned bool   `json:",omitempty"` // the client had gone away, and comes back
}

// Kinds of events. Those of a call to the store come in twos: before it, and after it
// with what came of it. A process that is killed leaves the first alone.
const (
	ClaimCall    = "claim"
	CompleteCall = "complete"
	ReleaseCall  = "release"
	ExtendCall   = "extend"
	LoadCall     = "load"
	SaveCall     = "save"

	Killed   = "killed"  // the process is about to kill itself, at Point
	Stopped  = "stopped" // the process is about to stop itself, at Point
	Decided  = "decided" // what the middleware decided of a request
	Prepared = "ready"   // the process serves
)

// Event is what a process of the service noted of itself.
type Event struct {
	T       int64
	Process string
	Kind    string
	Done    bool   `json:",omitempty"` // after the call, not before it
	Point   string `json:",omitempty"`
	Request string `json:",omitempty"`
	Org     string `json:",omitempty"`
	Key     string `json:",omitempty"`
	Token   string `json:",omitempty"`
	Outcome string `json:",omitempty"` // of a claim, or a decision
	Attempt int    `json:",omitempty"`
	Step    string `json:",omitempty"`
	Found   bool   `json:",omitempty"`
	Result  string `json:",omitempty"` // of a step, as stored; of a completion, the body
	Err     string `json:",omitempty"`
	Clock   int64  `json:",omitempty"` // of a process that serves: the time of day by it, in seconds
}

// BankCall is one call of the bank.
type BankCall struct {
	Begin, End int64
	Request    string
	Org, Key   string
	Step       string
	ChildKey   string `json:",omitempty"`
	Result     string
}

// Fault is what the harness did to the system, or saw happen to it.
type Fault struct {
	T      int64
	Kind   string
	Target string
	Detail string `json:",omitempty"`
	Strike Strike `json:",omitzero"`
}

// Kinds of faults that the harness notes itself.
const (
	KilledAtRandom  = "kill at random"
	StoppedAtRandom = "stop at random"
	Died            = "killed"             // a process ended by SIGKILL, its own or another's
	DiedOtherwise   = "ended in a bad way" // it ended by anything else
	PostgresKilled  = "postgres killed"
	PostgresBack    = "postgres back"
	Struck          = "network struck" // a connection to the database; what and when are in Strike
)

// Strike is a fault of the network between the service and the database.
type Strike struct {
	Kind      string // what happened to the connection
	Statement string // at which: what it was for, not its text
	Moment    string // in its round trip
}

// Tables are what the database holds at the end.
type Tables struct {
	Records  []Record
	Payments []Payment
	Postings []Posting
}

// Record is the record of a key.
type Record struct {
	Org, Key  string
	Completed bool
	Status    int
	Body      string
}

// Payment is a row of the business's own.
type Payment struct {
	Org, Key    string
	ID          string
	Amount      int
	Reservation string
	Charge      string
	Execution   string // which run of the handler wrote it
}

// Posting is one half of a payment in the ledger.
type Posting struct {
	Org     string
	Payment string
	Account string
	Amount  int
}

// Answer is the body of a payment's response.
type Answer struct {
	Payment     string `json:"payment"`
	Amount      int    `json:"amount"`
	Reservation string `json:"reservation"`
	Charge      string `json:"charge"`
	Execution   string `json:"execution"` // which run of the handler answered
}
