package idempotencytest

import (
	"context"
	"io"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/pgidem/pgidem/idempotency"
)

func testClientLeavesMidHandler(t *testing.T, f *fixture) {
	begun, ended := make(chan struct{}, 1), make(chan struct{})
	s := f.serve(t, func(w http.ResponseWriter, r *http.Request) {
		begun <- struct{}{}
		<-r.Context().Done()
		w.WriteHeader(http.StatusCreated)
		io.WriteString(w, "made all the same")
		close(ended)
	})
	ctx, leave := context.WithCancel(context.Background())
	go func() {
		<-begun
		leave()
	}()
	if _, err := s.try(t, call{key: "k", ctx: ctx}); err == nil {
		t.Fatal("the client got an answer after it left")
	}
	within(t, "the handler's end", ended)
	eventually(t, "the record", func() bool { return s.do(t, call{key: "k"}).replayed() })
	s.do(t, call{key: "k"}).want(t, http.StatusCreated, "made all the same")
	s.wantRuns(t, 1)
}

func testSilentReturnAfterCancel(t *testing.T, f *fixture) {
	begun := make(chan struct{}, 1)
	var first sync.Once
	s := f.serve(t, func(w http.ResponseWriter, r *http.Request) {
		silent := false
		first.Do(func() { silent = true })
		if silent {
			begun <- struct{}{}
			<-r.Context().Done()
			w.Header().Set("X-Half", "done")
			return
		}
		io.WriteString(w, "made")
	})
	ctx, leave := context.WithCancel(context.Background())
	go func() {
		<-begun
		leave()
	}()
	if _, err := s.try(t, call{key: "k", ctx: ctx}); err == nil {
		t.Fatal("the client got an answer after it left")
	}
	eventually(t, "the release", func() bool {
		a := s.do(t, call{key: "k"})
		return a.StatusCode == http.StatusOK && a.body == "made"
	})
	s.wantRuns(t, 2)
}

func testDetachedHandler(t *testing.T, f *fixture) {
	begun, leaving := make(chan struct{}, 1), make(chan struct{})
	errs := make(chan error, 1)
	s := f.serve(t, func(w http.ResponseWriter, r *http.Request) {
		begun <- struct{}{}
		<-leaving
		errs <- r.Context().Err()
		io.WriteString(w, "made")
	}, idempotency.WithDetachedHandler())
	ctx, leave := context.WithCancel(context.Background())
	go func() {
		<-begun
		leave()
	}()
	s.try(t, call{key: "k", ctx: ctx})
	close(leaving)
	if err := within(t, "the handler", errs); err != nil {
		t.Errorf("the handler's context ended: %v", err)
	}
	eventually(t, "the record", func() bool { return s.do(t, call{key: "k"}).replayed() })
	s.wantRuns(t, 1)
}

func testClientLeavesDuringClaim(t *testing.T, f *leaseFixture) {
	ctx, leave := context.WithCancel(context.Background())
	var gone sync.Once
	store := &faultyStore{LeaseStore: f.leases}
	noticed := make(chan struct{}) // by the server, that the client is gone
	seen := make(chan error, 1)
	store.claim = func(ctx context.Context, real func() (idempotency.ClaimResult, error)) (idempotency.ClaimResult, error) {
		gone.Do(func() {
			leave()
			select {
			case <-noticed:
			case <-time.After(patience):
			}
			seen <- ctx.Err() // the claim goes on
		})
		return real()
	}
	var first sync.Once
	s := f.serveOver(t, store, create(), idempotency.WithFingerprint(func(r *http.Request, _ []byte) (string, error) {
		first.Do(func() { context.AfterFunc(r.Context(), func() { close(noticed) }) })
		return "", nil
	}), idempotency.WithStoreTimeout(4*patience))
	s.try(t, call{key: "k", ctx: ctx})
	if err := within(t, "the claim", seen); err != nil {
		t.Errorf("the claim's context ended with the client: %v", err)
	}
	eventually(t, "an answer", func() bool {
		a := s.do(t, call{key: "k"})
		if a.replayed() {
			t.Fatal("the handler ran for a client that had left")
		}
		return a.StatusCode == http.StatusCreated && a.body == `{"id":1}`
	})
	s.wantRuns(t, 1)
}
