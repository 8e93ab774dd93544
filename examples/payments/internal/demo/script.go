package demo

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"sync"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgidem/pgidem/examples/payments/internal/service"
)

// duplicates is how many requests the script sends at once with one key.
const duplicates = 50

var errNotBlocked = errors.New("the handler does not wait for the locked table")

// script is the sequence of steps and what they share.
type script struct {
	out          *Transcript
	db           *pgxpool.Pool
	service      *service.Service
	logs         runCounter
	north, south client

	first answer // to north's first request
	seen  int    // runs of the handler that were counted before
	shown []string
}

// play shows the steps one after the other.
func (s *script) play(ctx context.Context) error {
	for _, step := range []struct {
		title string
		show  func(context.Context) error
	}{
		{"A first request runs the handler", s.firstRequest},
		{"The same request again is a replay", s.replay},
		{"The same request of another tenant is another request", s.otherTenant},
		{"A duplicate of a request that is still running is refused", s.inFlight},
		{"A key cannot be reused for another order", s.keyReused},
		{fmt.Sprintf("%d duplicates at the same moment make one payment", duplicates), s.manyAtOnce},
		{"The records, straight from the tables", s.showRecords},
		{"Expired records are purged", s.purge},
	} {
		s.out.step(step.title)
		if err := step.show(ctx); err != nil {
			return err
		}
	}
	return nil
}

// orderOf returns the body of a payment.
func orderOf(reference string, amount int) string {
	return fmt.Sprintf(`{"reference":%q,"payee":"printer","amount":%d,"currency":"EUR"}`, reference, amount)
}

// pay sends an order and shows the request and the response.
func (s *script) pay(ctx context.Context, c client, key, order string) (answer, error) {
	s.showRequest(c, key, order)
	a, err := c.pay(ctx, key, order)
	if err != nil {
		return answer{}, err
	}
	s.out.received(a)
	return a, nil
}

// showRequest shows a request, with its body unless the reader has seen that one.
func (s *script) showRequest(c client, key, order string) {
	s.out.sent(c.name, "POST "+payPath, key)
	if !slices.Contains(s.shown, order) {
		s.shown = append(s.shown, order)
		s.out.detail("%s", order)
	}
}

// payAtOnce sends the order of step 6 n times at the same moment.
func (s *script) payAtOnce(ctx context.Context, n int) ([]answer, error) {
	answers, errs := make([]answer, n), make([]error, n)
	start := make(chan struct{})
	var sending sync.WaitGroup
	for i := range n {
		sending.Go(func() {
			<-start
			answers[i], errs[i] = s.north.pay(ctx, "order-3", orderOf("inv-3", 7300))
		})
	}
	close(start)
	sending.Wait()
	return answers, errors.Join(errs...)
}

// sorted is a crowd of answers by their kind.
type sorted struct{ made, replayed, refused, other []answer }

func sort(answers []answer) (s sorted) {
	for _, a := range answers {
		switch {
		case a.code == http.StatusCreated && a.replayed():
			s.replayed = append(s.replayed, a)
		case a.code == http.StatusCreated:
			s.made = append(s.made, a)
		case a.code == http.StatusConflict && a.problem().Code == "in_flight":
			s.refused = append(s.refused, a)
		default:
			s.other = append(s.other, a)
		}
	}
	return s
}

// ran returns how often the payment handler ran since it was last asked.
func (s *script) ran() int {
	before := s.seen
	s.seen = s.logs.count()
	return s.seen - before
}

// showTable shows the records of a tenant.
func (s *script) showTable(ctx context.Context, t tenant) ([]record, error) {
	records, err := s.records(ctx, t)
	if err != nil {
		return nil, err
	}
	schema, err := schemaOf(t.orgID)
	if err != nil {
		return nil, err
	}
	s.out.table(t.name, schema.String(), records)
	return records, nil
}

func find(records []record, key string) record {
	for _, r := range records {
		if r.key == key {
			return r
		}
	}
	return record{key: key, state: "missing"}
}
