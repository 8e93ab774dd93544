package authctx_test

import (
	"context"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/google/uuid"

	"github.com/pgidem/pgidem/authctx"
	"github.com/pgidem/pgidem/idempotency"
	"github.com/pgidem/pgidem/idempotency/idempotencytest"
	"github.com/pgidem/pgidem/tenancy"
)

// keeper is a store that has a request to be run again, whatever is asked.
type keeper struct{ *idempotencytest.MemoryStore }

func (keeper) KeepsRequests() {}

// recovered is a request that was interrupted.
func recovered(org uuid.UUID) idempotency.InterruptedRequest {
	return idempotency.InterruptedRequest{OrgID: org, Key: "key", RequestHash: "hash", Request: idempotency.KeptRequest{
		Method: http.MethodPost, Target: "/v1/payments", Header: map[string][]string{idempotency.HeaderKey: {"key"}},
	}}
}

// TestRecoveredRequests: one that is run again passes without a token, with its tenant and
// without claims; what its handler makes of other requests is judged by their tokens.
func TestRecoveredRequests(t *testing.T) {
	t.Parallel()
	auth := newHS256(t)
	protect := idempotency.Require(keeper{idempotencytest.NewMemoryStore()}, idempotency.WithRecoverable(), idempotency.WithLogger(slog.New(slog.DiscardHandler)))
	ran := false
	h := auth.Middleware(protect(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		ran = true
		if org, _ := tenancy.OrgID(r.Context()); org != acme {
			t.Errorf("tenant %s", org)
		}
		if c, ok := authctx.Claims(r.Context()); ok {
			t.Errorf("claims %v", c)
		}
		for name, tc := range map[string]struct {
			change  func(ctx context.Context, inner *http.Request) context.Context
			reached bool
		}{
			"without a token": {nil, true},
			"with a bad token": {func(ctx context.Context, inner *http.Request) context.Context {
				inner.Header.Set("Authorization", "Bearer x.y.z")
				return ctx
			}, false},
			"of another tenant": {func(ctx context.Context, _ *http.Request) context.Context { return tenancy.WithOrgID(ctx, uuid.New()) }, false},
			"of no tenant":      {func(ctx context.Context, _ *http.Request) context.Context { return tenancy.WithOrgID(ctx, uuid.Nil) }, false},
			"with an empty token": {func(ctx context.Context, inner *http.Request) context.Context {
				inner.Header["Authorization"] = []string{""}
				return ctx
			}, false},
		} {
			inner, ctx := httptest.NewRequest(http.MethodPost, "/v1/items", nil), r.Context()
			if tc.change != nil {
				ctx = tc.change(ctx, inner)
			}
			if res := serve(auth, inner.WithContext(ctx)); (res.reached != nil) != tc.reached {
				t.Errorf("a nested request %s: reached: %t, %d", name, res.reached != nil, res.Code)
			}
		}
	})))
	if outcome, err := idempotency.Recover(t.Context(), h, recovered(acme)); outcome != idempotency.DecisionExecuted || err != nil || !ran {
		t.Errorf("%s, %v, ran: %t", outcome, err, ran)
	}
}

// TestNobodyPassesAsRecovered: nothing that comes over the network makes a request pass
// without a token.
func TestNobodyPassesAsRecovered(t *testing.T) {
	t.Parallel()
	auth := newHS256(t)
	for _, r := range []*http.Request{request(), to("POST /v1/payments?recovered=true")} {
		for _, name := range []string{"Recovered", "X-Recovered", "Idempotency-Recovered", "Idempotency-Recovery", "X-Org-Id", "Org_id"} {
			r.Header[name] = []string{acme.String()}
		}
		r.Header.Set(idempotency.HeaderKey, "key")
		for what, ctx := range map[string]context.Context{"nothing": r.Context(), "a tenant": tenancy.WithOrgID(r.Context(), acme)} {
			if res := serve(auth, r.WithContext(ctx)); res.reached != nil || res.Code != http.StatusUnauthorized {
				t.Errorf("with %s in the context: %d, reached: %t", what, res.Code, res.reached != nil)
			}
		}
	}
}
