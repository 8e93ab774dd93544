package check

import (
	"encoding/json"
	"net/http"

	"github.com/pgidem/pgidem/chaos/history"
)

// EndState checks the tables at the end against the answers.
func EndState(h *history.History) (found []Violation) {
	records := make(map[id]history.Record)
	for _, r := range h.Tables.Records {
		records[id{r.Org, r.Key}] = r
	}
	payments := make(map[id][]history.Payment)
	for _, p := range h.Tables.Payments {
		k := id{p.Org, p.Key}
		payments[k] = append(payments[k], p)
	}

	answered := make(map[id]history.Request) // one answer of each key
	for _, r := range h.Requests {
		got, ok := classify(r)
		if !ok || got.body == "" {
			continue
		}
		k := id{r.Org, r.Key}
		answered[k] = r
		record, ok := records[k]
		switch {
		case !ok || !record.Completed:
			found = append(found, k.violation(NoRecord, "request %s was told %s", r.ID, r.Body))
		case record.Status != http.StatusCreated || record.Body != r.Body:
			found = append(found, k.violation(RecordDiffers, "request %s was told %q, and stored is %d %q", r.ID, r.Body, record.Status, record.Body))
		}
	}
	for _, k := range sortedKeys(answered) {
		found = append(found, row(k, answered[k], payments[k])...)
	}
	for _, k := range sortedKeys(payments) {
		if len(payments[k]) > 1 {
			found = append(found, k.violation(TwoBusinessRows, "%d payments: %+v", len(payments[k]), payments[k]))
		}
		if !records[k].Completed {
			found = append(found, k.violation(OrphanRow, "%+v", payments[k]))
		}
	}
	for _, k := range sortedKeys(records) {
		if records[k].Completed && len(payments[k]) == 0 {
			found = append(found, k.violation(NoBusinessRow, "the record: %s", records[k].Body))
		}
	}
	return append(found, ledger(h, answered)...)
}

// row checks the payment of a key that was answered.
func row(k id, r history.Request, payments []history.Payment) []Violation {
	if len(payments) != 1 {
		if len(payments) == 0 {
			return []Violation{k.violation(NoBusinessRow, "request %s was told %s", r.ID, r.Body)}
		}
		return nil // told elsewhere
	}
	var a history.Answer
	if err := json.Unmarshal([]byte(r.Body), &a); err != nil {
		return []Violation{k.violation(UnexpectedAnswer, "request %s: %q: %v", r.ID, r.Body, err)}
	}
	p := payments[0]
	if p.ID != a.Payment || p.Amount != a.Amount || p.Amount != r.Amount || p.Reservation != a.Reservation || p.Charge != a.Charge {
		return []Violation{k.violation(RowDiffers, "request %s for %d was told %s, and the row is %+v", r.ID, r.Amount, r.Body, p)}
	}
	return nil
}

// ledger checks the postings: two for each payment, which cancel out, and per tenant as
// much to the merchant as the answered payments come to.
func ledger(h *history.History, answered map[id]history.Request) (found []Violation) {
	type sums struct{ postings, customer, merchant int }
	byPayment := make(map[id]sums)
	byOrg := make(map[string]int)
	for _, p := range h.Tables.Postings {
		s := byPayment[id{p.Org, p.Payment}]
		s.postings++
		switch p.Account {
		case "customer":
			s.customer += p.Amount
		case "merchant":
			s.merchant += p.Amount
			byOrg[p.Org] += p.Amount
		}
		byPayment[id{p.Org, p.Payment}] = s
	}
	for _, p := range h.Tables.Payments {
		k := id{p.Org, p.ID}
		if s, want := byPayment[k], (sums{2, -p.Amount, p.Amount}); s != want {
			found = append(found, id{p.Org, p.Key}.violation(LedgerWrong, "payment %s of %d has %+v", p.ID, p.Amount, s))
		}
		delete(byPayment, k)
	}
	for _, k := range sortedKeys(byPayment) {
		found = append(found, id{k.org, ""}.violation(LedgerWrong, "postings of payment %s, which is not there", k.key))
	}
	for k, r := range answered {
		byOrg[k.org] -= r.Amount
	}
	for org, difference := range byOrg {
		if difference != 0 {
			found = append(found, id{org, ""}.violation(LedgerWrong, "the merchant has %+d more than the answers come to", difference))
		}
	}
	return found
}
