package service

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgidem/pgidem/chaos/history"
	"github.com/pgidem/pgidem/idempotency"
	"github.com/pgidem/pgidem/idempotency/pgstore"
	"github.com/pgidem/pgidem/tenancy"
)

// Headers of requests.
const (
	OrgHeader     = "Chaos-Org"     // stands for a token that names the tenant
	RequestHeader = "Chaos-Request" // names one try of a client
)

// payments is the service.
type payments struct {
	config Config
	pool   *pgxpool.Pool
	dir    tenancy.Directory
	log    *history.Log
	points *points
	bank   bank
}

type requestKey struct{}

// requestID returns the name of the try that the context belongs to.
func requestID(ctx context.Context) string {
	id, _ := ctx.Value(requestKey{}).(string)
	return id
}

// authenticate believes the headers, which a request that is run again has not.
func authenticate(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if idempotency.Recovered(r.Context()) {
			ctx := context.WithValue(r.Context(), requestKey{}, history.RecoveredRequest+uuid.NewString())
			next.ServeHTTP(w, r.WithContext(ctx))
			return
		}
		org, err := uuid.Parse(r.Header.Get(OrgHeader))
		if err != nil {
			http.Error(w, "no tenant", http.StatusUnauthorized)
			return
		}
		ctx := tenancy.WithOrgID(r.Context(), org)
		ctx = context.WithValue(ctx, requestKey{}, r.Header.Get(RequestHeader))
		next.ServeHTTP(w, r.WithContext(ctx))
	})
}

// respond sends each response off and passes the point behind it.
func (s *payments) respond(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		next.ServeHTTP(w, r)
		_ = http.NewResponseController(w).Flush() // fails when the client has left
		s.points.pass(AfterResponse)
	})
}

// pay makes a payment: the sum is reserved and charged at the bank, and booked here.
func (s *payments) pay(w http.ResponseWriter, r *http.Request) {
	answer, err := s.execute(r)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError) // not stored: a retry runs again
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusCreated)
	_ = json.NewEncoder(w).Encode(answer)
}

func (s *payments) execute(r *http.Request) (answer history.Answer, err error) {
	ctx := r.Context()
	if err := json.NewDecoder(r.Body).Decode(&answer); err != nil {
		return answer, err
	}
	answer.Execution = uuid.NewString()
	org, _ := tenancy.OrgID(ctx)
	key, _ := idempotency.Key(ctx)

	answer.Reservation, err = idempotency.Step(ctx, "reserve", func(ctx context.Context) (string, error) {
		id, err := s.bank.call(ctx, "reserve", "")
		s.points.pass(AfterReserveEffect)
		return id, err
	})
	if err != nil {
		return answer, err
	}
	s.points.pass(AfterReserve)

	answer.Charge, err = idempotency.Step(ctx, "charge", func(ctx context.Context) (string, error) {
		childKey, err := idempotency.ChildKey(ctx, "charge")
		if err != nil {
			return "", err
		}
		s.points.pass(AfterChildKey)
		id, err := s.bank.call(ctx, "charge", childKey)
		s.points.pass(AfterChargeEffect)
		return id, err
	})
	if err != nil {
		return answer, err
	}
	s.points.pass(AfterCharge)

	err = s.inTransaction(ctx, org, func(tx pgx.Tx) error {
		err := book(ctx, tx, key, &answer)
		s.points.pass(InBusinessWrite)
		return err
	})
	s.points.pass(AfterBusinessWrite)
	return answer, err
}

// inTransaction runs fn in the transaction of the request, if it has one, and in one of
// its own otherwise.
func (s *payments) inTransaction(ctx context.Context, org uuid.UUID, fn func(pgx.Tx) error) error {
	if tx, ok := pgstore.Tx(ctx); ok {
		return fn(tx)
	}
	if s.config.Mode == history.Transaction {
		return errors.New("the request has no transaction")
	}
	schema, err := s.dir.Schema(ctx, org)
	if err != nil {
		return err
	}
	return pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `SELECT set_config('search_path', $1, true)`, schema.Quoted()); err != nil {
			return err
		}
		return fn(tx)
	})
}

// book writes the payment and its two postings. Where the table says that a key has one
// payment, which is the way of a service with leases, it gives the one that is there.
func book(ctx context.Context, tx pgx.Tx, key string, p *history.Answer) error {
	id := uuid.New()
	err := tx.QueryRow(ctx, `
		INSERT INTO payments (id, key, amount, reservation, charge, execution)
		VALUES ($1, $2, $3, $4, $5, $6)
		ON CONFLICT DO NOTHING
		RETURNING id::text`,
		id, key, p.Amount, p.Reservation, p.Charge, p.Execution).Scan(&p.Payment)
	if errors.Is(err, pgx.ErrNoRows) {
		return tx.QueryRow(ctx, `SELECT id::text FROM payments WHERE key = $1`, key).Scan(&p.Payment)
	}
	if err != nil {
		return err
	}
	_, err = tx.Exec(ctx, `
		INSERT INTO postings (payment, account, amount)
		VALUES ($1, 'customer', -$2::integer), ($1, 'merchant', $2)`, id, p.Amount)
	return err
}

// Migrate makes the service's own tables in a tenant's schema.
//
// With leases the business write happens at least once, so it has to be unique by itself:
// here by the idempotency key. In a transaction that is the store's part, and the table
// would take a second payment for one key, so that the checker can see it.
func Migrate(ctx context.Context, conn *pgx.Conn, schema tenancy.Schema, mode string) error {
	unique := "UNIQUE"
	if mode == history.Transaction {
		unique = ""
	}
	_, err := conn.Exec(ctx, fmt.Sprintf(`
		CREATE TABLE %[1]s.payments (
			id          uuid    PRIMARY KEY,
			key         text    NOT NULL %[2]s,
			amount      integer NOT NULL,
			reservation text    NOT NULL,
			charge      text    NOT NULL,
			execution   text    NOT NULL
		);
		CREATE TABLE %[1]s.postings (
			payment uuid    NOT NULL REFERENCES %[1]s.payments,
			account text    NOT NULL,
			amount  integer NOT NULL
		)`, schema.Quoted(), unique))
	return err
}
