package service

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/google/uuid"

	"github.com/pgidem/pgidem/authctx"
	"github.com/pgidem/pgidem/idempotency"
	"github.com/pgidem/pgidem/tenancy"
)

const (
	maxAmount         = 100_000_000_000
	maxReferenceRunes = 64
	maxPayeeRunes     = 140
)

// order is the body of POST /v1/payments.
type order struct {
	Reference string `json:"reference"` // the caller's own name for the payment
	Payee     string `json:"payee"`
	Amount    int64  `json:"amount"` // in the smallest unit of the currency
	Currency  string `json:"currency"`
}

// payment is an order that was carried out.
type payment struct {
	ID uuid.UUID `json:"id"`
	order
	CreatedBy string    `json:"created_by"`
	CreatedAt time.Time `json:"created_at"`
}

// recoveredSubject is in the place of the caller of a payment that was made after the
// process of its request had died.
const recoveredSubject = "recovered after a crash"

// createPayment makes a payment. It runs under the claim of an Idempotency-Key, so
// nobody else runs it for the same key at the same time, and what it answers is
// stored before it is sent.
//
// That alone does not make it safe. The claim is a lease: if this process dies
// after the ledger's commit and before the answer is stored, the lease lapses and
// a retry, or the completer, runs this function a second time. No middleware can know better, because
// the two commits are two. So the ledger takes the same order twice and keeps it
// once; see [ledger.record].
//
// An answer under 500 is final for its key, a refusal for a wrong field included:
// a client that corrects the order sends it with a new key. An answer of 500 is
// not stored, and a retry with the same key runs again.
func (s *Service) createPayment(w http.ResponseWriter, r *http.Request) {
	ctx := r.Context()
	orgID, _ := tenancy.OrgID(ctx)
	subject, ok := authctx.Subject(ctx)
	if !ok && idempotency.Recovered(ctx) {
		subject = recoveredSubject // tokens are not kept, so who it was is not known any more
	}
	attempt, _ := idempotency.Attempt(ctx)
	s.Logger.InfoContext(ctx, "create payment", "org_id", orgID, "attempt", attempt)

	var o order
	if p := decode(r, &o); p != nil {
		writeProblem(w, *p)
		return
	}
	if faults := o.faults(); len(faults) > 0 {
		writeProblem(w, problem{
			Status: http.StatusUnprocessableEntity, Code: "order_invalid", Errors: faults,
			Detail: "Correct the fields under errors, and send the order with a new Idempotency-Key.",
		})
		return
	}
	p, created, err := s.ledger.record(ctx, orgID, o, subject)
	switch {
	case errors.Is(err, errReferenceTaken):
		writeProblem(w, problem{
			Status: http.StatusConflict, Code: "reference_taken",
			Detail: "There is another payment with this reference. Give each payment a reference of its own.",
		})
	case err != nil && ctx.Err() != nil:
		// The client went away, or the lease was lost. Without an answer there is
		// no outcome to store, and the key is free for a retry.
	case err != nil:
		s.internalError(w, r, err)
	case created:
		writeJSON(w, http.StatusCreated, p)
	default:
		writeJSON(w, http.StatusOK, p)
	}
}

// listPayments lists the tenant's newest payments. It is a GET, so a key on it
// would mean nothing.
func (s *Service) listPayments(w http.ResponseWriter, r *http.Request) {
	orgID, _ := tenancy.OrgID(r.Context())
	payments, err := s.ledger.newest(r.Context(), orgID)
	if err != nil {
		s.internalError(w, r, err)
		return
	}
	writeJSON(w, http.StatusOK, map[string]any{"payments": payments})
}

// faults returns what is wrong with the order.
func (o order) faults() (faults []fault) {
	wrong := func(field, detail string, args ...any) {
		faults = append(faults, fault{Field: field, Detail: fmt.Sprintf(detail, args...)})
	}
	if !isText(o.Reference, maxReferenceRunes) {
		wrong("reference", "Give 1 to %d characters, none of them a control character.", maxReferenceRunes)
	}
	if !isText(o.Payee, maxPayeeRunes) {
		wrong("payee", "Give 1 to %d characters, none of them a control character.", maxPayeeRunes)
	}
	if o.Amount < 1 || o.Amount > maxAmount {
		wrong("amount", "Give a whole number of the currency's smallest unit, from 1 to %d.", maxAmount)
	}
	if len(o.Currency) != 3 || strings.ContainsFunc(o.Currency, func(c rune) bool { return c < 'A' || c > 'Z' }) {
		wrong("currency", "Give the three capital letters of ISO 4217, such as EUR.")
	}
	return faults
}

func isText(s string, maxRunes int) bool {
	return strings.TrimSpace(s) != "" && utf8.RuneCountInString(s) <= maxRunes && !strings.ContainsFunc(s, unicode.IsControl)
}
