package check_test

import (
	"encoding/json"
	"maps"
	"slices"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/pgidem/pgidem/chaos/check"
	"github.com/pgidem/pgidem/chaos/history"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const ms = 1_000_000

func body(a history.Answer) string {
	text, err := json.Marshal(a)
	if err != nil {
		panic(err)
	}
	return string(text)
}

var told = history.Answer{Payment: "p", Amount: 7, Reservation: "r", Charge: "c", Execution: "x"}

// takenOver is the history of one key that is as it should be. The first attempt stores the
// step "reserve", asks for the charge and dies. A duplicate is refused meanwhile. When the
// lease has lapsed a second attempt takes over and completes, and its answer is replayed.
func takenOver() *history.History {
	h := &history.History{
		Meta: history.Meta{Mode: history.Lease, Lease: 1000 * ms},
		Requests: []history.Request{
			{ID: "1", Call: 0, Return: 300, Err: "connection reset"},
			{ID: "2", Call: 100, Return: 110, Status: 409, Code: "in_flight"},
			{ID: "3", Call: 1200, Return: 1400, Status: 201, Body: body(told)},
			{ID: "4", Call: 1500, Return: 1510, Status: 201, Body: body(told), Replayed: true},
		},
		Events: slices.Concat(
			claim("1", 10, 1),
			load("1", "reserve", 30, ""), save("1", "reserve", 50, `"r"`),
			load("1", "charge", 70, ""),
			refused("2", 102, "in flight"),
			claim("3", 1210, 2),
			load("3", "reserve", 1230, `"r"`),
			load("3", "charge", 1240, ""), save("3", "charge", 1260, `"c"`),
			complete("3", 1300),
			refused("4", 1502, "completed"),
		),
		Bank: []history.BankCall{
			{Begin: 40, End: 42, Request: "1", Step: "reserve", Result: "r"},
			{Begin: 80, End: 82, Request: "1", Step: "charge", ChildKey: "k", Result: "c"},
			{Begin: 1250, End: 1252, Request: "3", Step: "charge", ChildKey: "k", Result: "c"},
		},
		Tables: history.Tables{
			Records:  []history.Record{{Org: "org", Key: "key", Completed: true, Status: 201, Body: body(told)}},
			Payments: []history.Payment{{Org: "org", Key: "key", ID: "p", Amount: 7, Reservation: "r", Charge: "c", Execution: "x"}},
			Postings: []history.Posting{{Org: "org", Payment: "p", Account: "customer", Amount: -7}, {Org: "org", Payment: "p", Account: "merchant", Amount: 7}},
		},
	}
	for i := range h.Requests {
		r := &h.Requests[i]
		r.Org, r.Key, r.Amount, r.Call, r.Return = "org", "key", 7, r.Call*ms, r.Return*ms
	}
	for i := range h.Bank {
		c := &h.Bank[i]
		c.Org, c.Key, c.Begin, c.End = "org", "key", c.Begin*ms, c.End*ms
	}
	return h
}

// did is a call of the store by the request of that name, from the time, for 5 ms.
func did(request string, at int64, e history.Event) []history.Event {
	e.Org, e.Key, e.Request, e.Token, e.Process = "org", "key", request, "token "+request, "process"
	begin, end := e, e
	begin.T, end.T, end.Done = at*ms, (at+5)*ms, true
	begin.Outcome, begin.Attempt, begin.Found = "", 0, false
	return []history.Event{begin, end}
}

func claim(request string, at int64, attempt int) []history.Event {
	return did(request, at, history.Event{Kind: history.ClaimCall, Outcome: "claimed", Attempt: attempt})
}

func refused(request string, at int64, outcome string) []history.Event {
	return did(request, at, history.Event{Kind: history.ClaimCall, Outcome: outcome})
}

func load(request, step string, at int64, result string) []history.Event {
	return did(request, at, history.Event{Kind: history.LoadCall, Step: step, Found: result != "", Result: result})
}

func save(request, step string, at int64, result string) []history.Event {
	return did(request, at, history.Event{Kind: history.SaveCall, Step: step, Result: result})
}

func complete(request string, at int64) []history.Event {
	return did(request, at, history.Event{Kind: history.CompleteCall})
}

func extend(request string, at int64) []history.Event {
	return did(request, at, history.Event{Kind: history.ExtendCall})
}

func release(request string, at int64) []history.Event {
	return did(request, at, history.Event{Kind: history.ReleaseCall})
}

func failing(events []history.Event) []history.Event {
	events[1].Err = "it failed"
	return events
}

// add adds events to a history.
func add(h *history.History, events ...[]history.Event) {
	h.Events = append(h.Events, slices.Concat(events...)...)
}

// event returns the end of a call of the request.
func event(h *history.History, request, kind, step string) *history.Event {
	for i, e := range h.Events {
		if e.Request == request && e.Kind == kind && e.Step == step && e.Done {
			return &h.Events[i]
		}
	}
	panic("no such event: " + request + " " + kind + " " + step)
}

// move moves the calls of a kind of the request to another time.
func move(h *history.History, request, kind string, at int64) {
	for i := range h.Events {
		e := &h.Events[i]
		if e.Request != request || e.Kind != kind {
			continue
		}
		e.T = at * ms
		if e.Done {
			e.T += 5 * ms
		}
	}
}

// tell changes what clients were told, and what is stored, alike.
func tell(h *history.History, a history.Answer) {
	h.Requests[2].Body, h.Requests[3].Body, h.Tables.Records[0].Body = body(a), body(a), body(a)
}

func TestGoodHistories(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(*history.History){
		"taken over": func(*history.History) {},
		"nothing":    func(h *history.History) { *h = history.History{} },
		"the lost answer was the completion": func(h *history.History) {
			h.Requests[2].Replayed = true
		},
		"an answer of 503 was the completion": func(h *history.History) {
			h.Requests[0] = history.Request{Org: "org", Key: "key", ID: "1", Amount: 7, Return: 300 * ms, Status: 503, Code: "not_committed"}
			h.Requests[2].Replayed = true
		},
		"in flight until the completion": func(h *history.History) {
			h.Requests[1].Call, h.Requests[1].Return = 1390*ms, 1450*ms // overlaps the 201
		},
		"told of the take-over after the completion": func(h *history.History) {
			h.Requests[1].Call, h.Requests[1].Return, h.Requests[1].Code = 1480*ms, 1490*ms, "lease_lost"
		},
		"a stale attempt that is fenced": func(h *history.History) {
			add(h, failing(save("1", "charge", 1270, `"c"`)), failing(complete("1", 1280)), failing(extend("1", 1290)))
		},
		"a stale attempt that had looked before has the effect": func(h *history.History) {
			h.Bank = append(h.Bank, history.BankCall{Org: "org", Key: "key", Begin: 1290 * ms, End: 1291 * ms, Request: "1", Step: "charge", ChildKey: "k", Result: "c"})
		},
		"a completion that began before the take-over": func(h *history.History) {
			// It waited for the row's lock, say, and was told of the take-over.
			add(h, failing(complete("1", 1205)))
		},
		"released, and claimed at once": func(h *history.History) {
			add(h, release("1", 85))
			move(h, "3", history.ClaimCall, 95)
		},
		"a first attempt that left nothing behind": func(h *history.History) {
			h.Events, h.Bank = nil, h.Bank[:0]
			add(h, claim("1", 10, 1), release("1", 20), claim("3", 40, 1), load("3", "reserve", 50, ""), save("3", "reserve", 60, `"r"`),
				save("3", "charge", 1260, `"c"`), complete("3", 1300))
			h.Bank = append(h.Bank, history.BankCall{Org: "org", Key: "key", Step: "reserve", Result: "r"}, history.BankCall{Org: "org", Key: "key", Step: "charge", ChildKey: "k", Result: "c"})
		},
		"a claim that got through when a later one had been released": func(h *history.History) {
			early := claim("9", 5, 1) // held up until the other has come and gone
			early[1].T = 30 * ms
			h.Events, h.Bank = nil, h.Bank[:0]
			add(h, early, claim("1", 10, 1), release("1", 20), release("9", 32), claim("3", 40, 1), load("3", "reserve", 50, ""), save("3", "reserve", 60, `"r"`),
				save("3", "charge", 1260, `"c"`), complete("3", 1300))
			h.Bank = append(h.Bank, history.BankCall{Org: "org", Key: "key", Step: "reserve", Result: "r"}, history.BankCall{Org: "org", Key: "key", Step: "charge", ChildKey: "k", Result: "c"})
		},
		"a transaction that was rolled back and claims again": func(h *history.History) {
			h.Meta.Mode = history.Transaction
			event(h, "3", history.ClaimCall, "").Attempt = 1
			add(h, claim("5", 1100, 1), failing(complete("5", 1105)), // rolled back: comes again below
				claim("6", 1120, 1), failing(complete("6", 1125)),
				claim("5", 1140, 1), load("5", "reserve", 1150, `"r"`), failing(complete("5", 1160)))
		},
		"a client that left comes back": func(h *history.History) {
			h.Requests[0].Left, h.Requests[3].Returned = true, true
		},
		"a client that left has to do it all, as its attempt had ended": func(h *history.History) {
			add(h, release("1", 90))
			h.Requests[0].Left, h.Requests[2].Returned = true, true
		},
		"two keys": func(h *history.History) {
			other := takenOver()
			for i := range other.Requests {
				other.Requests[i].Org = "other"
			}
			for i := range other.Events {
				other.Events[i].Org = "other"
			}
			for i := range other.Bank {
				other.Bank[i].Org = "other"
			}
			h.Requests, h.Events, h.Bank = append(h.Requests, other.Requests...), append(h.Events, other.Events...), append(h.Bank, other.Bank...)
			r, p := h.Tables.Records[0], h.Tables.Payments[0]
			r.Org, p.Org = "other", "other"
			h.Tables.Records, h.Tables.Payments = append(h.Tables.Records, r), append(h.Tables.Payments, p)
			for _, p := range h.Tables.Postings {
				p.Org = "other"
				h.Tables.Postings = append(h.Tables.Postings, p)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := takenOver()
			change(h)
			for _, v := range check.History(h) {
				t.Error(v)
			}
		})
	}
}

// TestBadHistories changes the good one in a single thing, each time another.
func TestBadHistories(t *testing.T) {
	t.Parallel()
	another := told
	another.Execution = "another"
	for name, c := range map[string]struct {
		change func(*history.History)
		want   []check.Kind
	}{
		"two executions": {func(h *history.History) {
			h.Requests[3].Replayed, h.Requests[3].Body = false, body(another)
		}, []check.Kind{check.NotLinearizable, check.RecordDiffers}},
		"run again with the same answer": {func(h *history.History) {
			h.Requests[3].Replayed = false
		}, []check.Kind{check.NotLinearizable}},
		"another answer replayed": {func(h *history.History) {
			h.Requests[3].Body = body(another)
		}, []check.Kind{check.NotLinearizable, check.RecordDiffers}},
		"replayed before it ran": {func(h *history.History) {
			h.Requests[3].Call, h.Requests[3].Return = 1100*ms, 1110*ms
			h.Requests[0].Call, h.Requests[0].Return = 1600*ms, 1610*ms // which could explain it
		}, []check.Kind{check.NotLinearizable}},
		"in flight after it was answered": {func(h *history.History) {
			h.Requests[1].Call, h.Requests[1].Return = 1420*ms, 1430*ms
		}, []check.Kind{check.NotLinearizable}},
		"failed after it was answered": {func(h *history.History) {
			h.Requests[1].Call, h.Requests[1].Return, h.Requests[1].Status, h.Requests[1].Code = 1420*ms, 1430*ms, 500, ""
		}, []check.Kind{check.NotLinearizable}},
		"another key's answer": {func(h *history.History) {
			h.Requests[1].Status, h.Requests[1].Code = 422, "key_reused"
		}, []check.Kind{check.UnexpectedAnswer}},
		"an answer that is none": {func(h *history.History) {
			h.Requests[2].Body, h.Requests[3].Body, h.Tables.Records[0].Body = "?", "?", "?"
		}, []check.Kind{check.UnexpectedAnswer}},
		"never answered": {func(h *history.History) {
			h.Requests = h.Requests[:2]
		}, []check.Kind{check.NoAnswer, check.LedgerWrong}},
		"a process that panicked": {func(h *history.History) {
			h.Faults = append(h.Faults, history.Fault{Kind: history.DiedOtherwise})
		}, []check.Kind{check.BadProcess}},

		"claimed by two": {func(h *history.History) {
			e := event(h, "2", history.ClaimCall, "")
			e.Outcome, e.Attempt = "claimed", 1
		}, []check.Kind{check.DoubleClaim}},
		"taken over too early": {func(h *history.History) {
			move(h, "3", history.ClaimCall, 120)
		}, []check.Kind{check.EarlyTakeOver}},
		"taken over in spite of an extension": {func(h *history.History) {
			add(h, extend("1", 900))
		}, []check.Kind{check.EarlyTakeOver}},
		"claimed after completion": {func(h *history.History) {
			e := event(h, "4", history.ClaimCall, "")
			e.Outcome, e.Attempt = "claimed", 3
		}, []check.Kind{check.ClaimOfCompleted, check.EarlyTakeOver}},
		"completed by both": {func(h *history.History) {
			add(h, complete("1", 1205))
		}, []check.Kind{check.CompletedTwice}},
		"completed by the stale one": {func(h *history.History) {
			add(h, complete("1", 1290))
		}, []check.Kind{check.CompletedTwice, check.StaleComplete}},
		"extended by the stale one": {func(h *history.History) {
			add(h, extend("1", 1290))
		}, []check.Kind{check.StaleExtend}},
		"a step stored by the stale one": {func(h *history.History) {
			add(h, save("1", "charge", 1290, `"c"`))
		}, []check.Kind{check.StaleStep}},
		"a step read by the stale one": {func(h *history.History) {
			add(h, load("1", "charge", 1290, `"c"`))
		}, []check.Kind{check.StaleStep}},
		"completed by a transaction that another had taken over from": {func(h *history.History) {
			h.Meta.Mode = history.Transaction
			event(h, "3", history.ClaimCall, "").Attempt = 1
			add(h, complete("1", 1290))
		}, []check.Kind{check.CompletedTwice, check.StaleComplete}},

		"an effect in spite of its result": {func(h *history.History) {
			h.Bank = append(h.Bank, history.BankCall{Org: "org", Key: "key", Begin: 1238 * ms, Request: "3", Step: "reserve", Result: "r2"})
		}, []check.Kind{check.StepRunAgain}},
		"an effect without a look for its result": {func(h *history.History) {
			h.Bank = append(h.Bank, history.BankCall{Org: "org", Key: "key", Begin: 1225 * ms, Request: "3", Step: "reserve", Result: "r2"})
		}, []check.Kind{check.StepRunAgain}},
		"a result lost": {func(h *history.History) {
			e := event(h, "3", history.LoadCall, "reserve")
			e.Found, e.Result = false, ""
		}, []check.Kind{check.StepLost}},
		"a result changed": {func(h *history.History) {
			event(h, "3", history.LoadCall, "reserve").Result = `"r2"`
		}, []check.Kind{check.StepChanged}},
		"a result changed as it was stored": {func(h *history.History) {
			add(h, save("3", "reserve", 1265, `"r2"`))
		}, []check.Kind{check.StepChanged}},
		"another result answered": {func(h *history.History) {
			h.Bank = append(h.Bank, history.BankCall{Org: "org", Key: "key", Begin: 41 * ms, Request: "1", Step: "reserve", Result: "r2"})
			a := told
			a.Reservation = "r2"
			tell(h, a)
			h.Tables.Payments[0].Reservation = "r2"
		}, []check.Kind{check.StepNotAnswered}},
		"a result that was never stored": {func(h *history.History) {
			h.Events = slices.DeleteFunc(h.Events, func(e history.Event) bool { return e.Step == "charge" })
		}, []check.Kind{check.StepNotAnswered}},
		"charged twice": {func(h *history.History) {
			h.Bank[2].Result = "c2"
		}, []check.Kind{check.ChargedTwice}},
		"another child key": {func(h *history.History) {
			h.Bank[2].ChildKey = "k2"
		}, []check.Kind{check.ChargedTwice}},
		"an effect that never was": {func(h *history.History) {
			h.Bank = h.Bank[1:]
		}, []check.Kind{check.UnknownEffect}},

		"a client that left has to do it all": {func(h *history.History) {
			h.Requests[0].Left, h.Requests[2].Returned = true, true
		}, []check.Kind{check.NotRecovered}},
		"a client that left before it had a claim, and whose request was kept": {func(h *history.History) {
			h.Requests[1] = history.Request{Org: "org", Key: "key", ID: "2", Amount: 7, Call: 100 * ms, Return: 110 * ms, Err: "EOF", Left: true, Kept: true}
			h.Requests[2].Returned = true
		}, []check.Kind{check.NotRecovered}},
		"no record": {func(h *history.History) {
			h.Tables.Records = nil
		}, []check.Kind{check.NoRecord, check.OrphanRow}},
		"a record in progress": {func(h *history.History) {
			h.Tables.Records[0].Completed = false
		}, []check.Kind{check.NoRecord, check.OrphanRow}},
		"another record": {func(h *history.History) {
			h.Tables.Records[0].Body = body(another)
		}, []check.Kind{check.RecordDiffers}},
		"no payment": {func(h *history.History) {
			h.Tables.Payments, h.Tables.Postings = nil, nil
		}, []check.Kind{check.NoBusinessRow, check.LedgerWrong}},
		"two payments": {func(h *history.History) {
			p := h.Tables.Payments[0]
			p.ID = "p2"
			h.Tables.Payments = append(h.Tables.Payments, p)
			for _, half := range h.Tables.Postings {
				half.Payment = "p2"
				h.Tables.Postings = append(h.Tables.Postings, half)
			}
		}, []check.Kind{check.TwoBusinessRows, check.LedgerWrong}},
		"a payment that nobody asked for": {func(h *history.History) {
			h.Tables.Payments = append(h.Tables.Payments, history.Payment{Org: "org", Key: "other", ID: "p2"})
			h.Tables.Postings = append(h.Tables.Postings, history.Posting{Org: "org", Payment: "p2", Account: "customer"},
				history.Posting{Org: "org", Payment: "p2", Account: "merchant"})
		}, []check.Kind{check.OrphanRow}},
		"another payment": {func(h *history.History) {
			h.Tables.Payments[0].Reservation = "r2"
		}, []check.Kind{check.RowDiffers}},
		"another amount": {func(h *history.History) {
			h.Tables.Payments[0].Amount, h.Tables.Postings[0].Amount, h.Tables.Postings[1].Amount = 8, -8, 8
		}, []check.Kind{check.RowDiffers, check.LedgerWrong}},
		"half a payment": {func(h *history.History) {
			h.Tables.Postings = h.Tables.Postings[1:]
		}, []check.Kind{check.LedgerWrong}},
		"postings of nothing": {func(h *history.History) {
			h.Tables.Postings = append(h.Tables.Postings, history.Posting{Org: "org", Payment: "p2"})
		}, []check.Kind{check.LedgerWrong}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := takenOver()
			c.change(h)
			violations := check.History(h)
			found := make(map[check.Kind]bool)
			for _, v := range violations {
				found[v.Kind] = true
			}
			got := slices.Sorted(maps.Keys(found))
			slices.Sort(c.want)
			if !slices.Equal(got, c.want) {
				t.Errorf("found:\n\t%s\nwant:\n\t%s", join(got), join(c.want))
			}
		})
	}
}

func join(kinds []check.Kind) string {
	var lines []string
	for _, k := range kinds {
		lines = append(lines, string(k))
	}
	return strings.Join(lines, "\n\t")
}
