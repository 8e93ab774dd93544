// Package check says whether a history is one that the service may have.
//
// It looks at five things. Whether the answers that clients got of each key are those of
// a key that goes from absent to completed once, at one moment ([Linear], by porcupine).
// Whether the attempts in the service's processes excluded each other, and stale ones
// changed nothing ([Attempts]). Whether the results of steps were kept ([Steps]). Whether
// requests whose clients went away were brought to their end ([Recovery]). And whether the
// tables hold at the end what the clients were told, once ([EndState]).
package check

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/pgidem/pgidem/chaos/history"
)

// Kind is what is wrong.
type Kind string

// The kinds of violations.
const (
	NotLinearizable  Kind = "answers that no order of the requests explains"
	NotDecided       Kind = "the search for such an order was given up"
	UnexpectedAnswer Kind = "an answer that no request of the run can get"
	NoAnswer         Kind = "a payment that was never answered"
	BadProcess       Kind = "a process that ended by itself"

	DoubleClaim      Kind = "a key that two attempts held at the same time"
	EarlyTakeOver    Kind = "a key that was taken over before its lease had lapsed"
	ClaimOfCompleted Kind = "a key that was claimed after it had been completed"
	CompletedTwice   Kind = "a key that two attempts completed"
	StaleComplete    Kind = "a completion by an attempt that another had taken over from"
	StaleExtend      Kind = "a lease extended by an attempt that another had taken over from"

	StaleStep       Kind = "a step stored or read by an attempt that another had taken over from"
	StepRunAgain    Kind = "the effect of a step begun by an attempt that should have seen its result"
	StepLost        Kind = "a result of a step that was stored and not found"
	StepChanged     Kind = "a step with two results"
	StepNotAnswered Kind = "an answer without the stored result of a step"
	ChargedTwice    Kind = "two charges for one key"
	UnknownEffect   Kind = "an answer that names an effect which the bank does not know"

	NotRecovered Kind = "a request that was begun, and not brought to its end without its client"

	NoRecord        Kind = "an answer without a record"
	RecordDiffers   Kind = "a record that is not what the client was told"
	NoBusinessRow   Kind = "a record or an answer without its payment"
	TwoBusinessRows Kind = "two payments for one key"
	OrphanRow       Kind = "a payment without a record"
	RowDiffers      Kind = "a payment that is not what the client was told"
	LedgerWrong     Kind = "a ledger that does not add up"
)

// Violation is one thing that is wrong.
type Violation struct {
	Kind   Kind
	Org    string
	Key    string
	Detail string
}

// String says it in a line.
func (v Violation) String() string {
	return fmt.Sprintf("%s: org %s, key %s: %s", v.Kind, v.Org, v.Key, v.Detail)
}

// History returns all that is wrong with a history. None means that it is one that the
// service may have.
func History(h *history.History) []Violation {
	return slices.Concat(Linear(h), Attempts(h), Steps(h), Recovery(h), EndState(h), processes(h))
}

func processes(h *history.History) (found []Violation) {
	for _, f := range h.Faults {
		if f.Kind == history.DiedOtherwise {
			found = append(found, Violation{Kind: BadProcess, Detail: f.Target + ": " + f.Detail})
		}
	}
	return found
}

// id is a key of a tenant.
type id struct{ org, key string }

func (k id) violation(kind Kind, format string, args ...any) Violation {
	return Violation{Kind: kind, Org: k.org, Key: k.key, Detail: fmt.Sprintf(format, args...)}
}

// sortedKeys returns the keys of a map in their order.
func sortedKeys[V any](m map[id]V) []id {
	keys := make([]id, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.SortFunc(keys, func(a, b id) int { return cmp.Or(cmp.Compare(a.org, b.org), cmp.Compare(a.key, b.key)) })
	return keys
}
