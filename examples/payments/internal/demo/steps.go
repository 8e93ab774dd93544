package demo

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"sync"
	"time"

	"github.com/pgidem/pgidem/idempotency"
)

func (s *script) firstRequest(ctx context.Context) (err error) {
	if s.first, err = s.pay(ctx, s.north, "order-1", orderOf("inv-1", 1250)); err != nil {
		return err
	}
	payments, err := s.payments(ctx, s.north.tenant, "")
	if err != nil {
		return err
	}
	return s.out.prove("the handler ran once, and north's schema has 1 payment",
		equal("status", s.first.code, http.StatusCreated),
		that("it should not be marked as a replay", !s.first.replayed()),
		equal("runs of the handler", s.ran(), 1),
		equal("payments in north's schema", payments, 1),
	)
}

func (s *script) replay(ctx context.Context) error {
	again, err := s.pay(ctx, s.north, "order-1", orderOf("inv-1", 1250))
	if err != nil {
		return err
	}
	payments, err := s.payments(ctx, s.north.tenant, "")
	if err != nil {
		return err
	}
	if err := s.out.prove("the first response again: same status, same body byte for byte",
		equal("status", again.code, s.first.code),
		that("it should be marked as a replay", again.replayed()),
		that("it should have the body of the first response", bytes.Equal(again.body, s.first.body)),
	); err != nil {
		return err
	}
	return s.out.prove("the handler did not run, and north's schema still has 1 payment",
		equal("runs of the handler", s.ran(), 0),
		equal("payments in north's schema", payments, 1),
	)
}

func (s *script) otherTenant(ctx context.Context) error {
	a, err := s.pay(ctx, s.south, "order-1", orderOf("inv-1", 1250))
	if err != nil {
		return err
	}
	ofNorth, err := s.payments(ctx, s.north.tenant, "")
	if err != nil {
		return err
	}
	ofSouth, err := s.payments(ctx, s.south.tenant, "")
	if err != nil {
		return err
	}
	list, err := s.south.do(ctx, http.MethodGet, payPath, "", "")
	if err != nil {
		return err
	}
	if err := s.out.prove("no replay of north's response, but a payment of south's own",
		equal("status", a.code, http.StatusCreated),
		that("it should not be marked as a replay", !a.replayed()),
		that("it should have an id of its own", a.paymentID() != s.first.paymentID()),
		equal("runs of the handler", s.ran(), 1),
	); err != nil {
		return err
	}
	return s.out.prove("each schema has 1 payment, and south's list has south's only",
		equal("payments in north's schema", ofNorth, 1),
		equal("payments in south's schema", ofSouth, 1),
		that("GET should show south its payment", bytes.Contains(list.body, []byte(a.paymentID()))),
		that("GET should not show south north's payment", !bytes.Contains(list.body, []byte(s.first.paymentID()))),
	)
}

func (s *script) inFlight(ctx context.Context) error {
	s.out.aside("The demo locks north's table of payments, so that the handler has to wait in the middle of its work.")
	release, err := s.lockPayments(ctx, s.north.tenant)
	if err != nil {
		return err
	}
	var first answer
	var firstErr error
	var sending sync.WaitGroup
	defer sending.Wait()
	defer release()
	s.showRequest(s.north, "order-2", orderOf("inv-2", 990))
	sending.Go(func() { first, firstErr = s.north.pay(ctx, "order-2", orderOf("inv-2", 990)) })
	if err := s.awaitBlocked(ctx); err != nil {
		return err
	}
	s.out.line("       …  waiting")
	records, err := s.records(ctx, s.north.tenant)
	if err != nil {
		return err
	}
	held := find(records, "order-2")
	if err := s.out.prove(fmt.Sprintf("the table says: order-2 is %s, leased for %s", held.state, held.leased.Round(time.Second)),
		equal("state", held.state, "in progress"),
		that("the lease should end later", held.leased > 0),
		equal("runs of the handler", s.ran(), 1),
	); err != nil {
		return err
	}

	duplicate, err := s.pay(ctx, s.north, "order-2", orderOf("inv-2", 990))
	if err != nil {
		return err
	}
	if err := s.out.prove("the duplicate was refused, and told when to come back",
		equal("status", duplicate.code, http.StatusConflict),
		equal("code", duplicate.problem().Code, "in_flight"),
		that("it should have the header "+retryHeader, duplicate.header.Get(retryHeader) != ""),
		equal("runs of the handler", s.ran(), 0),
	); err != nil {
		return err
	}

	s.out.aside("The demo lets go of the table, and the first request gets its response:")
	release()
	sending.Wait()
	if firstErr != nil {
		return firstErr
	}
	s.out.received(first)
	s.out.aside("The duplicate comes back as it was told to:")
	if err := duplicate.wait(ctx); err != nil {
		return err
	}
	again, err := s.pay(ctx, s.north, "order-2", orderOf("inv-2", 990))
	if err != nil {
		return err
	}
	payments, err := s.payments(ctx, s.north.tenant, "inv-2")
	if err != nil {
		return err
	}
	return s.out.prove("both have the same response, and there is 1 payment of inv-2",
		equal("status of the first", first.code, http.StatusCreated),
		that("the first should not be marked as a replay", !first.replayed()),
		that("the duplicate should be marked as a replay", again.replayed()),
		that("the bodies should be the same", bytes.Equal(again.body, first.body)),
		equal("runs of the handler since", s.ran(), 0),
		equal("payments of inv-2", payments, 1),
	)
}

func (s *script) keyReused(ctx context.Context) error {
	a, err := s.pay(ctx, s.north, "order-1", orderOf("inv-9", 4800))
	if err != nil {
		return err
	}
	payments, err := s.payments(ctx, s.north.tenant, "inv-9")
	if err != nil {
		return err
	}
	return s.out.prove("the handler did not run, and there is no payment of inv-9",
		equal("status", a.code, http.StatusUnprocessableEntity),
		equal("code", a.problem().Code, "key_reused"),
		equal("runs of the handler", s.ran(), 0),
		equal("payments of inv-9", payments, 0),
	)
}

func (s *script) manyAtOnce(ctx context.Context) error {
	s.showRequest(s.north, "order-3", orderOf("inv-3", 7300))
	answers, err := s.payAtOnce(ctx, duplicates)
	if err != nil {
		return err
	}
	at := sort(answers)
	s.out.tally("201 Created", len(at.made))
	s.out.tally("201 Created, replayed", len(at.replayed))
	s.out.tally("409 Conflict, in flight", len(at.refused))
	if err := s.out.prove("the handler ran once",
		equal("runs of the handler", s.ran(), 1),
		equal("201 and not replayed", len(at.made), 1),
		equal("answers of another kind", len(at.other), 0),
	); err != nil {
		return err
	}

	var late sorted
	if len(at.refused) > 0 {
		s.out.aside("Those that were refused come back as they were told to:")
		if err := at.refused[0].wait(ctx); err != nil {
			return err
		}
		answers, err := s.payAtOnce(ctx, len(at.refused))
		if err != nil {
			return err
		}
		late = sort(answers)
		s.out.tally("201 Created, replayed", len(late.replayed))
	}
	same := true
	for _, a := range append(at.replayed, late.replayed...) {
		same = same && bytes.Equal(a.body, at.made[0].body)
	}
	payments, err := s.payments(ctx, s.north.tenant, "inv-3")
	if err != nil {
		return err
	}
	return s.out.prove(fmt.Sprintf("all %d have the same response, and there is 1 payment of inv-3", duplicates),
		equal("clients with a 201", len(at.made)+len(at.replayed)+len(late.replayed), duplicates),
		that("the bodies should be the same", same),
		equal("runs of the handler since", s.ran(), 0),
		equal("payments of inv-3", payments, 1),
	)
}

func (s *script) showRecords(ctx context.Context) error {
	var claims []claim
	for _, of := range []struct {
		tenant tenant
		want   int
	}{{s.north.tenant, 3}, {s.south.tenant, 1}} {
		records, err := s.showTable(ctx, of.tenant)
		if err != nil {
			return err
		}
		claims = append(claims, equal("records in "+of.tenant.name+"'s schema", len(records), of.want))
		for _, r := range records {
			left := idempotency.DefaultTTL - r.expires
			claims = append(claims,
				equal("state of "+r.key, r.state, "completed"),
				equal("status of "+r.key, r.status, http.StatusCreated),
				that(r.key+" should expire in a day", left >= 0 && left < scriptTimeout),
			)
		}
	}
	return s.out.prove("one record for each key of each tenant, to be kept for a day", claims...)
}

func (s *script) purge(ctx context.Context) error {
	s.out.aside("For this demo only, an UPDATE makes north's records 25 hours older.")
	if _, err := s.age(ctx, s.north.tenant, idempotency.DefaultTTL+time.Hour); err != nil {
		return err
	}
	expired, err := s.showTable(ctx, s.north.tenant)
	if err != nil {
		return err
	}
	s.out.aside("The purge that the service runs every hour, now:")
	deleted, err := s.service.PurgeExpired(ctx)
	if err != nil {
		return err
	}
	ofNorth, err := s.records(ctx, s.north.tenant)
	if err != nil {
		return err
	}
	ofSouth, err := s.records(ctx, s.south.tenant)
	if err != nil {
		return err
	}
	if err := s.out.prove(fmt.Sprintf("it deleted %d records: north has %d left, and south %d", deleted, len(ofNorth), len(ofSouth)),
		equal("records deleted", deleted, int64(len(expired))),
		equal("records left in north's schema", len(ofNorth), 0),
		equal("records left in south's schema", len(ofSouth), 1),
	); err != nil {
		return err
	}

	s.out.aside("A retry as late as that runs the handler again. This one knows the order by its reference, and answers with the payment that it made then.")
	again, err := s.pay(ctx, s.north, "order-1", orderOf("inv-1", 1250))
	if err != nil {
		return err
	}
	payments, err := s.payments(ctx, s.north.tenant, "inv-1")
	if err != nil {
		return err
	}
	return s.out.prove("no replay, but the same payment; there is 1 payment of inv-1",
		equal("status", again.code, http.StatusOK),
		that("it should not be marked as a replay", !again.replayed()),
		equal("runs of the handler", s.ran(), 1),
		equal("payment", again.paymentID(), s.first.paymentID()),
		equal("payments of inv-1", payments, 1),
	)
}
