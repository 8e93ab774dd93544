package check

import (
	"cmp"
	"slices"

	"github.com/pgidem/pgidem/chaos/history"
)

// call is one call of the store: when it began, and when and how it ended, if it did.
type call struct {
	kind    string
	token   string
	request string
	begin   int64
	end     int64 // zero if it never returned
	outcome string
	attempt int
	step    string
	found   bool
	result  string
	failed  bool
}

// succeeded reports whether the call is known to have done what it was to do.
func (c call) succeeded() bool {
	return c.end != 0 && !c.failed && (c.kind != history.ClaimCall || c.outcome == "claimed")
}

// calls returns the calls of each key in the order of their beginnings.
func calls(h *history.History) map[id][]call {
	type pending struct {
		id
		process, kind, token, step string
	}
	events := slices.Clone(h.Events)
	slices.SortStableFunc(events, func(a, b history.Event) int { return cmp.Compare(a.T, b.T) })
	byKey := make(map[id][]call)
	open := make(map[pending]int) // index of the call that has not ended
	for _, e := range events {
		if e.Token == "" {
			continue
		}
		// A token is one request's, which makes one call of a kind at a time.
		k := id{e.Org, e.Key}
		p := pending{k, e.Process, e.Kind, e.Token, e.Step}
		if !e.Done {
			open[p] = len(byKey[k])
			byKey[k] = append(byKey[k], call{
				kind: e.Kind, token: e.Token, request: e.Request, begin: e.T, step: e.Step, result: e.Result,
			})
			continue
		}
		n, ok := open[p]
		if !ok {
			continue
		}
		delete(open, p)
		c := &byKey[k][n]
		c.end, c.outcome, c.attempt, c.found, c.result, c.failed = e.T, e.Outcome, e.Attempt, e.Found, e.Result, e.Err != ""
	}
	return byKey
}

// attempt is one hold of a key that was granted. An attempt in a transaction that was
// rolled back because of others may be granted the key again under its token; each of that
// is an attempt here.
type attempt struct {
	token   string
	number  int
	claimed call
	grants  []call  // the claim and its extensions
	release []int64 // when it began to give the key up
}

// newer reports whether a is known to have come after b. Numbers count up as long as
// the record is there; it goes with the release of a first attempt alone.
func (a attempt) newer(b attempt) bool {
	return a.number > b.number || a.number == b.number && a.claimed.begin > b.claimed.end
}

// releasedBefore reports whether the attempt had begun to give the key up by then.
func (a attempt) releasedBefore(t int64) bool {
	return len(a.release) > 0 && slices.Min(a.release) < t
}

func attemptsOf(calls []call) []attempt {
	var attempts []attempt
	last := make(map[string]int) // of a token
	for _, c := range calls {
		n, known := last[c.token]
		switch {
		case c.kind == history.ClaimCall && c.succeeded():
			last[c.token] = len(attempts)
			attempts = append(attempts, attempt{token: c.token, number: c.attempt, claimed: c, grants: []call{c}})
		case !known:
		case c.kind == history.ExtendCall && c.succeeded():
			attempts[n].grants = append(attempts[n].grants, c)
		case c.kind == history.ReleaseCall:
			attempts[n].release = append(attempts[n].release, c.begin)
		}
	}
	return attempts
}

// Attempts checks that of the attempts at each key one held it at a time, and that those
// who had lost it changed nothing.
func Attempts(h *history.History) (found []Violation) {
	byKey := calls(h)
	for _, k := range sortedKeys(byKey) {
		found = append(found, exclusion(h.Meta, k, attemptsOf(byKey[k]))...)
		found = append(found, fencing(k, byKey[k])...)
		found = append(found, completion(k, byKey[k])...)
	}
	return found
}

// exclusion: with leases, a key that one attempt holds is granted to no other before the
// lease has lapsed. Half of it is taken for the whole, so that nothing depends on how
// evenly clocks run. (An attempt in a transaction holds its key as long as that is open,
// of which the history has no end when the process is killed: there fencing tells.)
func exclusion(meta history.Meta, k id, attempts []attempt) (found []Violation) {
	if meta.Mode != history.Lease {
		return nil
	}
	for _, a := range attempts {
		for _, b := range attempts {
			switch {
			case a.token == b.token, a.releasedBefore(b.claimed.end):
			case a.number == b.number && a.claimed.begin <= b.claimed.begin && !b.releasedBefore(a.claimed.end):
				found = append(found, k.violation(DoubleClaim, "attempt %d was granted to %s at %d, and to %s at %d",
					a.number, a.token, a.claimed.end, b.token, b.claimed.end))
			case b.number > a.number:
				for _, grant := range a.grants {
					if grant.end < b.claimed.begin && b.claimed.end < grant.begin+meta.Lease/2 {
						found = append(found, k.violation(EarlyTakeOver, "%s had it until %d at least, and %s took it over at %d",
							a.token, grant.begin+meta.Lease, b.token, b.claimed.end))
					}
				}
			}
		}
	}
	return found
}

// fencing: what an attempt begins after another has taken over comes to nothing.
func fencing(k id, calls []call) (found []Violation) {
	attempts := attemptsOf(calls)
	kinds := map[string]Kind{
		history.CompleteCall: StaleComplete, history.SaveCall: StaleStep, history.LoadCall: StaleStep, history.ExtendCall: StaleExtend,
	}
	for _, c := range calls {
		kind, fenced := kinds[c.kind]
		own, granted := holdOf(c, attempts)
		if !fenced || !granted || !c.succeeded() {
			continue
		}
		for _, other := range attempts {
			if other.token != own.token && other.newer(own) && c.begin > other.claimed.end {
				found = append(found, k.violation(kind, "%s of %s (attempt %d) began at %d, when %s (attempt %d) had been granted the key at %d",
					c.kind, own.token, own.number, c.begin, other.token, other.number, other.claimed.end))
				break
			}
		}
	}
	return found
}

// holdOf returns the hold under which a call was made.
func holdOf(c call, attempts []attempt) (hold attempt, ok bool) {
	for _, a := range attempts {
		if a.token == c.token && a.claimed.end <= c.begin {
			hold, ok = a, true
		}
	}
	return hold, ok
}

// completion: a key is completed once, and from then on claimed by nobody.
func completion(k id, calls []call) (found []Violation) {
	var first *call
	for i, c := range calls {
		if c.kind != history.CompleteCall || !c.succeeded() {
			continue
		}
		if first == nil || c.end < first.end {
			first = &calls[i]
		}
	}
	if first == nil {
		return nil
	}
	for _, c := range calls {
		switch {
		case !c.succeeded():
		case c.kind == history.CompleteCall && c.token != first.token:
			found = append(found, k.violation(CompletedTwice, "by %s at %d and by %s at %d", first.token, first.end, c.token, c.end))
		case c.kind == history.ClaimCall && c.begin > first.end:
			found = append(found, k.violation(ClaimOfCompleted, "it was completed by %s at %d, and granted to %s at %d", first.token, first.end, c.token, c.end))
		}
	}
	return found
}
