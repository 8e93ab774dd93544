package check

import (
	"cmp"
	"encoding/json"
	"slices"

	"github.com/pgidem/pgidem/chaos/history"
)

// step is one step of a key.
type step struct {
	id
	name string
}

// Steps checks that the result of a step, once it was stored, is what every attempt saw
// and every client was told, and that its effect was begun by nobody any more who could
// have known.
func Steps(h *history.History) (found []Violation) {
	byKey := calls(h)
	effects := make(map[step][]history.BankCall)
	for _, c := range h.Bank {
		s := step{id{c.Org, c.Key}, c.Step}
		effects[s] = append(effects[s], c)
	}
	stored := make(map[step]string)
	for _, k := range sortedKeys(byKey) {
		for _, name := range stepNames(byKey[k]) {
			s := step{k, name}
			result, violations := oneStep(s, byKey[k], effects[s])
			found = append(found, violations...)
			if result != nil {
				stored[s] = *result
			}
		}
	}
	return slices.Concat(found, charges(effects), answers(h, stored, effects))
}

func stepNames(calls []call) (names []string) {
	for _, c := range calls {
		if c.step != "" && !slices.Contains(names, c.step) {
			names = append(names, c.step)
		}
	}
	return names
}

// oneStep checks a step, and returns its result, if one was stored.
func oneStep(s step, calls []call, effects []history.BankCall) (result *string, found []Violation) {
	var storedAt int64 // when it is first known to have been
	for _, c := range calls {
		known := c.step == s.name && c.succeeded() && (c.kind == history.SaveCall || c.kind == history.LoadCall && c.found)
		if !known {
			continue
		}
		if result == nil {
			result = &c.result
		}
		if *result != c.result {
			found = append(found, s.violation(StepChanged, "step %q: %s and %s", s.name, *result, c.result))
		}
		if storedAt == 0 || c.end < storedAt {
			storedAt = c.end
		}
	}
	if result == nil {
		return nil, found
	}
	for _, c := range calls {
		if c.step == s.name && c.kind == history.LoadCall && c.succeeded() && !c.found && c.begin > storedAt {
			found = append(found, s.violation(StepLost, "step %q was stored at %d, and %s did not find it at %d", s.name, storedAt, c.token, c.end))
		}
	}
	// A paused attempt that had looked before may begin the effect after: it cannot know.
	// What it stores then, and whether it may go on, is a matter of fencing. One that was
	// granted the key after has no such excuse, whether it looked or not.
	for _, e := range effects {
		looked := int64(0)
		for _, c := range calls {
			looks := c.kind == history.LoadCall && c.step == s.name || c.kind == history.ClaimCall && c.succeeded()
			if looks && c.request == e.Request && c.end != 0 && c.end < e.Begin {
				looked = max(looked, c.begin)
			}
		}
		if e.Begin > storedAt && looked > storedAt {
			found = append(found, s.violation(StepRunAgain, "step %q was stored at %d; request %s began or looked at %d and asked the bank at %d",
				s.name, storedAt, e.Request, looked, e.Begin))
		}
	}
	return result, found
}

// charges: the bank made one charge for each key, by one child key, however often it was
// asked.
func charges(effects map[step][]history.BankCall) (found []Violation) {
	for s, calls := range effects {
		for _, c := range calls[1:] {
			if c.ChildKey != calls[0].ChildKey || c.ChildKey != "" && c.Result != calls[0].Result {
				found = append(found, s.violation(ChargedTwice, "%s under child key %q and %s under %q",
					calls[0].Result, calls[0].ChildKey, c.Result, c.ChildKey))
			}
		}
	}
	slices.SortFunc(found, func(a, b Violation) int { return cmp.Compare(a.Key, b.Key) })
	return found
}

// answers: clients were told the stored results of the steps.
func answers(h *history.History, stored map[step]string, effects map[step][]history.BankCall) (found []Violation) {
	type told struct {
		id
		body string
	}
	seen := make(map[told]bool)
	for _, r := range h.Requests {
		k := id{r.Org, r.Key}
		got, ok := classify(r)
		if !ok || got.body == "" || seen[told{k, got.body}] {
			continue
		}
		seen[told{k, got.body}] = true
		var a history.Answer
		if err := json.Unmarshal([]byte(got.body), &a); err != nil {
			found = append(found, k.violation(UnexpectedAnswer, "request %s: %q: %v", r.ID, r.Body, err))
			continue
		}
		for name, result := range map[string]string{"reserve": a.Reservation, "charge": a.Charge} {
			s := step{k, name}
			if want, _ := json.Marshal(result); stored[s] != string(want) {
				found = append(found, k.violation(StepNotAnswered, "request %s was told %s, and step %q has %s", r.ID, want, name, stored[s]))
			}
			if !slices.ContainsFunc(effects[s], func(c history.BankCall) bool { return c.Result == result }) {
				found = append(found, k.violation(UnknownEffect, "request %s was told %s", r.ID, result))
			}
		}
	}
	return found
}
