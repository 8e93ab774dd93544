package idempotency_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/pgidem/pgidem/idempotency"
)

// The tests of this file are of what the middleware does with the answers of a store whose
// attempts run in transactions. What a real one does is tested in pgstore.

// txMemory is a MemoryStore whose claims bring a transaction, and whose answers to their
// ends are given.
type txMemory struct {
	*idempotency.MemoryStore
	complete, release []error // of the first calls
}

func (s *txMemory) Claim(ctx context.Context, req idempotency.ClaimRequest) (idempotency.ClaimResult, error) {
	result, err := s.MemoryStore.Claim(ctx, req)
	if result.Outcome == idempotency.OutcomeClaimed {
		result.Transaction = "the transaction"
	}
	return result, err
}

func next(errs *[]error) error {
	if len(*errs) == 0 {
		return nil
	}
	err := (*errs)[0]
	*errs = (*errs)[1:]
	return err
}

func (s *txMemory) Complete(ctx context.Context, c idempotency.Claim, rec *idempotency.Record) error {
	if err := next(&s.complete); err != nil {
		return errors.Join(err, s.MemoryStore.Release(ctx, c))
	}
	return s.MemoryStore.Complete(ctx, c, rec)
}

func (s *txMemory) Release(ctx context.Context, c idempotency.Claim) error {
	return errors.Join(next(&s.release), s.MemoryStore.Release(ctx, c))
}

func TestEndsOfTransactions(t *testing.T) {
	t.Parallel()
	rolledBack := fmt.Errorf("deferred: %w", idempotency.ErrRolledBack)
	created := func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusCreated)
		io.WriteString(w, "made")
	}
	for name, c := range map[string]struct {
		store    *txMemory
		handle   http.HandlerFunc
		want     string
		decision idempotency.Decision
		runs     int
		reruns   int
	}{
		"committed":               {&txMemory{}, created, "201 made", idempotency.DecisionExecuted, 1, 0},
		"met others at the end":   {&txMemory{complete: []error{idempotency.ErrRerun, idempotency.ErrRerun}}, created, "201 made", idempotency.DecisionExecuted, 3, 2},
		"rolled back":             {&txMemory{complete: []error{rolledBack}}, created, "503 not_committed", idempotency.DecisionRolledBack, 1, 0},
		"taken by another":        {&txMemory{complete: []error{idempotency.ErrLeaseLost}}, created, "409 lease_lost", idempotency.DecisionLeaseLost, 1, 0},
		"not to be found out":     {&txMemory{complete: []error{idempotency.ErrStoreRefused}}, created, "503 not_committed", idempotency.DecisionCompleteFailed, 1, 0},
		"a status not to be kept": {&txMemory{}, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusBadGateway) }, "502 ", idempotency.DecisionRolledBack, 1, 0},
		"met others, and said so": {&txMemory{release: []error{idempotency.ErrRerun}}, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusBadGateway) }, "502 ", idempotency.DecisionRolledBack, 2, 1},
		"flushed": {&txMemory{}, func(w http.ResponseWriter, _ *http.Request) {
			io.WriteString(w, "half")
			w.(http.Flusher).Flush()
		}, "500 no_streaming", idempotency.DecisionRolledBack, 1, 0},
		"switched protocols": {&txMemory{}, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusSwitchingProtocols) }, "500 no_streaming", idempotency.DecisionRolledBack, 1, 0},
		"asked to stream": {&txMemory{}, func(w http.ResponseWriter, _ *http.Request) {
			rc := http.NewResponseController(w)
			_, _, err := rc.Hijack()
			if !errors.Is(err, idempotency.ErrNoStreaming) || !errors.Is(rc.Flush(), idempotency.ErrNoStreaming) {
				t.Errorf("Hijack: %v", err)
			}
			io.WriteString(w, "whole")
		}, "200 whole", idempotency.DecisionExecuted, 1, 0},
		"large": {&txMemory{}, func(w http.ResponseWriter, _ *http.Request) {
			io.WriteString(w, strings.Repeat("x", 600))
			io.WriteString(w, strings.Repeat("x", 600))
		}, "200 " + strings.Repeat("x", 1200), idempotency.DecisionExecuted, 1, 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c.store.MemoryStore = idempotency.NewMemoryStore()
			var event idempotency.Event
			var log bytes.Buffer
			runs := 0
			h := idempotency.Require(c.store, idempotency.WithMaxResponseBytes(1000),
				idempotency.WithLogger(slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))),
				idempotency.WithObserver(func(_ context.Context, e idempotency.Event) { event = e }),
			)(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				runs++
				if tx := idempotency.Transaction(r.Context()); tx != "the transaction" {
					t.Errorf("transaction %v", tx)
				}
				if w.Header().Get("X-Run") != "" {
					t.Error("a header of an earlier run")
				}
				w.Header().Set("X-Run", "yes")
				c.handle(w, r)
			}))
			w := httptest.NewRecorder()
			h.ServeHTTP(w, request(t, "k", "body"))
			status, body, _ := strings.Cut(c.want, " ")
			if fmt.Sprint(w.Code) != status || !strings.Contains(w.Body.String(), body) {
				t.Errorf("%d %s, want %s", w.Code, w.Body, c.want)
			}
			if event.Decision != c.decision || event.Reruns != c.reruns || runs != c.runs {
				t.Errorf("%d runs, event %+v", runs, event)
			}
			if strings.Contains(log.String(), "reruns=") != (c.reruns > 0) {
				t.Errorf("log %s", &log)
			}
		})
	}
	if tx := idempotency.Transaction(t.Context()); tx != nil {
		t.Errorf("transaction %v outside any handler", tx)
	}
}

// TestDoWhoseLeaseWasLost: also where the result was too large to be held back.
func TestDoWhoseLeaseWasLost(t *testing.T) {
	t.Parallel()
	for _, size := range []int{1, 5000} {
		store := newOddStore()
		store.complete = func(error) error { return idempotency.ErrLeaseLost }
		got, outcome, err := idempotency.Do(t.Context(), store, orgA, "k", "", func(context.Context) (string, error) {
			return strings.Repeat("x", size), nil
		}, idempotency.WithMaxResponseBytes(1000))
		if got != "" || outcome != idempotency.DecisionLeaseLost || !errors.Is(err, idempotency.ErrLeaseLost) {
			t.Errorf("%d bytes: %q, %v", len(got), outcome, err)
		}
	}
}
