package check

import (
	"fmt"
	"math"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/anishathalye/porcupine"

	"github.com/pgidem/pgidem/chaos/history"
)

// searchLimit bounds the search for an order of the requests of one key.
const searchLimit = 20 * time.Second

// answer is what a request got, as far as the specification is concerned.
type answer int

const (
	ran      answer = iota // 201, by the handler
	replayed               // 201, as stored
	nothing                // 409 in flight, or 500: the handler had no outcome; the key was not completed
	late                   // 409 because another attempt has taken over: it left the key as it was
	unsure                 // 503, or no answer: it may have completed the key or not
)

// result is an answer with its body.
type result struct {
	answer answer
	body   string
}

// absent is the state of a key that is not completed; any other state is the body that
// it is completed with.
const absent = ""

// unseen is the body of a completion whose answer no client has got.
const unseen = "(a response that nobody has seen)"

// specification is the life of one key. The bodies are those that its clients got: one of
// them, or one that nobody saw, is what a request completed it with that got no answer.
func specification(bodies []string) porcupine.Model {
	model := porcupine.NondeterministicModel{
		Init: func() []any { return []any{absent} },
		Step: func(state, _, output any) []any {
			is, got := state.(string), output.(result)
			switch {
			case got.answer == ran && is == absent:
				return []any{got.body}
			case got.answer == replayed && is == got.body,
				got.answer == nothing && is == absent,
				got.answer == late:
				return []any{is}
			case got.answer == unsure && is == absent:
				next := []any{absent, unseen}
				for _, body := range bodies {
					next = append(next, body)
				}
				return next
			case got.answer == unsure:
				return []any{is}
			}
			return nil
		},
	}
	return model.ToModel()
}

// classify returns what an answer means, and false for one that nobody can get.
func classify(r history.Request) (result, bool) {
	switch {
	case r.Status == 0, r.Status == http.StatusServiceUnavailable:
		return result{answer: unsure}, true
	case r.Status == http.StatusCreated && r.Body != "" && r.Replayed:
		return result{replayed, r.Body}, true
	case r.Status == http.StatusCreated && r.Body != "":
		return result{ran, r.Body}, true
	case r.Status == http.StatusConflict && r.Code == "in_flight", r.Status == http.StatusInternalServerError:
		return result{answer: nothing}, true
	case r.Status == http.StatusConflict && r.Code == "lease_lost":
		return result{answer: late}, true
	}
	return result{}, false
}

// Linear checks the answers of each key.
func Linear(h *history.History) (found []Violation) {
	byKey := make(map[id][]history.Request)
	for _, r := range h.Requests {
		k := id{r.Org, r.Key}
		byKey[k] = append(byKey[k], r)
	}
	for _, k := range sortedKeys(byKey) {
		found = append(found, linearKey(k, byKey[k])...)
	}
	return found
}

func linearKey(k id, requests []history.Request) (found []Violation) {
	slices.SortFunc(requests, func(a, b history.Request) int { return int(a.Call - b.Call) })
	var operations []porcupine.Operation
	var bodies []string
	answered, lost := false, false
	for _, r := range requests {
		got, ok := classify(r)
		if !ok {
			found = append(found, k.violation(UnexpectedAnswer, "request %s: %d %s %q", r.ID, r.Status, r.Code, r.Body))
			continue
		}
		end := r.Return
		if r.Status == 0 {
			// It may take effect at any later time. Since a key is completed once, at most
			// one such request takes effect, and whatever another could explain, the
			// first can: so it stands for all, and the search stays small.
			if lost {
				continue
			}
			lost, end = true, math.MaxInt64
		}
		if got.body != "" {
			answered = true
			if !slices.Contains(bodies, got.body) {
				bodies = append(bodies, got.body)
			}
		}
		operations = append(operations, porcupine.Operation{Input: r.ID, Output: got, Call: r.Call, Return: end})
	}
	if !answered {
		found = append(found, k.violation(NoAnswer, "after %d requests", len(requests)))
	}
	switch porcupine.CheckOperationsTimeout(specification(bodies), operations, searchLimit) {
	case porcupine.Illegal:
		found = append(found, k.violation(NotLinearizable, "%s", story(requests)))
	case porcupine.Unknown:
		found = append(found, k.violation(NotDecided, "after %s, with %d requests", searchLimit, len(requests)))
	}
	return found
}

// story tells the answers of a key in a few lines.
func story(requests []history.Request) string {
	var b strings.Builder
	began := requests[0].Call
	for _, r := range requests {
		fmt.Fprintf(&b, "\n\t%7.3f to %7.3f s: %s: %d", float64(r.Call-began)/1e9, float64(r.Return-began)/1e9, r.ID, r.Status)
		if r.Replayed {
			b.WriteString(" replayed")
		}
		for _, more := range []string{r.Code, strings.TrimSpace(r.Body), r.Err} {
			if more != "" {
				b.WriteString(" " + more)
			}
		}
	}
	return b.String()
}
