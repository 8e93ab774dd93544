package service_test

import (
	"bytes"
	"context"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/pgidem/pgidem/examples/payments/internal/service"
)

func TestPaymentNeedsAKey(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	a.do(t, pay(a.login(t, "north"), "", goodOrder)).wantProblem(t, http.StatusBadRequest, "key_missing")
	if n := a.count(t, service.North, "payments"); n != 0 {
		t.Errorf("%d payments, want none", n)
	}
}

// The client follows the router's redirect to the clean path, with the same key.
func TestRedirectDoesNotSpendTheKey(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	c := pay(a.login(t, "north"), "k", goodOrder)
	c.path = "//v1/payments"
	a.do(t, c).wantStatus(t, http.StatusCreated)
	if r := a.do(t, c); !r.replayed() {
		t.Errorf("the retry got %d %s, want a replay", r.status, r.body)
	}
}

func TestPaymentIsChecked(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	token := a.login(t, "north")
	for name, tc := range map[string]struct {
		body   string
		status int
		code   string
		fields string // that are named as wrong
	}{
		"everything missing":   {`{}`, 422, "order_invalid", "reference payee amount currency"},
		"blank reference":      {strings.Replace(goodOrder, "inv-1", "  ", 1), 422, "order_invalid", "reference"},
		"long reference":       {strings.Replace(goodOrder, "inv-1", strings.Repeat("é", 65), 1), 422, "order_invalid", "reference"},
		"NUL in the payee":     {strings.Replace(goodOrder, "printer", `a\u0000b`, 1), 422, "order_invalid", "payee"},
		"nothing to pay":       {strings.Replace(goodOrder, "1250", "0", 1), 422, "order_invalid", "amount"},
		"negative":             {strings.Replace(goodOrder, "1250", "-1", 1), 422, "order_invalid", "amount"},
		"too much":             {strings.Replace(goodOrder, "1250", "100000000001", 1), 422, "order_invalid", "amount"},
		"currency in small":    {strings.Replace(goodOrder, "EUR", "eur", 1), 422, "order_invalid", "currency"},
		"a part of a cent":     {strings.Replace(goodOrder, "1250", "12.5", 1), 400, "body_malformed", "amount"},
		"amount as text":       {strings.Replace(goodOrder, "1250", `"1250"`, 1), 400, "body_malformed", "amount"},
		"unknown field":        {strings.Replace(goodOrder, "{", `{"org_id":"south",`, 1), 400, "body_malformed", ""},
		"not JSON":             {`reference=inv-1`, 400, "body_malformed", ""},
		"more than one object": {goodOrder + goodOrder, 400, "body_malformed", ""},
		"too large":            {strings.Replace(goodOrder, "printer", strings.Repeat("p", 20<<10), 1), 413, "request_too_large", ""},
	} {
		t.Run(name, func(t *testing.T) {
			r := a.do(t, pay(token, name, tc.body))
			r.wantProblem(t, tc.status, tc.code)
			var fields []string
			faults, _ := r.json(t)["errors"].([]any)
			for _, f := range faults {
				fields = append(fields, f.(map[string]any)["field"].(string))
			}
			if got := strings.Join(fields, " "); got != tc.fields {
				t.Errorf("fields %q named as wrong, want %q", got, tc.fields)
			}
		})
	}
	if n := a.count(t, service.North, "payments"); n != 0 {
		t.Errorf("%d payments, want none", n)
	}
	t.Run("the limits themselves are fine", func(t *testing.T) {
		body := strings.NewReplacer("inv-1", strings.Repeat("é", 64), "printer", strings.Repeat("é", 140), "1250", "100000000000").Replace(goodOrder)
		a.do(t, pay(token, "limits", body)).wantStatus(t, http.StatusCreated)
	})
}

func TestPaymentIsListedForItsTenant(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	north, south := a.login(t, "north"), a.login(t, "south")
	made := a.do(t, pay(north, "k", goodOrder))
	made.wantStatus(t, http.StatusCreated)
	if by := made.json(t)["created_by"]; by != "cashier@north.example" {
		t.Errorf("created_by %v, want the user of the token", by)
	}
	list := call{method: "GET", path: "/v1/payments", token: north}
	if r := a.do(t, list); string(r.body) != `{"payments":[`+strings.TrimSpace(string(made.body))+"]}\n" {
		t.Errorf("north's list is %s, want the payment %s", r.body, made.body)
	}
	list.token = south
	if r := a.do(t, list); string(r.body) != `{"payments":[]}`+"\n" {
		t.Errorf("south's list is %s, want none", r.body)
	}
}

func TestReference(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	token := a.login(t, "north")
	first := a.do(t, pay(token, "one", goodOrder))
	first.wantStatus(t, http.StatusCreated)

	again := a.do(t, pay(token, "two", goodOrder))
	again.wantStatus(t, http.StatusOK)
	if again.replayed() || !bytes.Equal(again.body, first.body) {
		t.Errorf("the same order under a new key gave %s, want the payment %s", again.body, first.body)
	}
	a.do(t, pay(token, "three", strings.Replace(goodOrder, "1250", "99", 1))).wantProblem(t, http.StatusConflict, "reference_taken")
	if n := a.count(t, service.North, "payments"); n != 1 {
		t.Errorf("%d payments, want 1", n)
	}
}

// A process that dies after the payment was committed and before its response was
// stored leaves a record in progress, whose lease lapses.
func TestRetryAfterCrash(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	token := a.login(t, "north")
	first := a.do(t, pay(token, "k", goodOrder))
	first.wantStatus(t, http.StatusCreated)
	a.exec(t, "UPDATE ", `.idempotency_records SET completed_at = NULL, response_status = NULL,
		response_headers = NULL, response_body = NULL, lease_until = now() - interval '1 second'`)

	retry := a.do(t, pay(token, "k", goodOrder))
	retry.wantStatus(t, http.StatusOK)
	if retry.replayed() || !bytes.Equal(retry.body, first.body) {
		t.Errorf("the retry got %s, want the payment from before the crash, %s", retry.body, first.body)
	}
	if again := a.do(t, pay(token, "k", goodOrder)); !again.replayed() || !bytes.Equal(again.body, retry.body) {
		t.Errorf("a second retry got %d %s, want a replay of the first", again.status, again.body)
	}
	if n := a.count(t, service.North, "payments"); n != 1 {
		t.Errorf("%d payments, want 1", n)
	}
}

func TestInternalErrorIsNotStored(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	token := a.login(t, "north")
	a.exec(t, "ALTER TABLE ", ".payments RENAME TO elsewhere")
	r := a.do(t, pay(token, "k", goodOrder))
	r.wantProblem(t, http.StatusInternalServerError, "internal")
	if strings.Contains(string(r.body), "payments\"") || strings.Contains(string(r.body), "tenant_") {
		t.Errorf("the client is told of the database: %s", r.body)
	}
	a.do(t, call{method: "GET", path: "/v1/payments", token: token}).wantProblem(t, http.StatusInternalServerError, "internal")

	a.exec(t, "ALTER TABLE ", ".elsewhere RENAME TO payments")
	a.do(t, pay(token, "k", goodOrder)).wantStatus(t, http.StatusCreated)
}

func TestClientThatGoesAwayLeavesItsKeyFree(t *testing.T) {
	t.Parallel()
	var log bytes.Buffer
	a := newService(t, func(c *service.Config) { c.Logger = slog.New(slog.NewTextHandler(&log, nil)) })
	server := httptest.NewServer(a)
	defer server.Close()
	a.url = server.URL
	token := a.login(t, "north")
	release := a.lockPayments(t)
	ctx, leave := context.WithCancel(t.Context())
	left := make(chan error, 1)
	go func() {
		_, err := send(ctx, a.url, pay(token, "k", goodOrder))
		left <- err
	}()
	a.awaitBlocked(t)
	leave()
	if err := <-left; err == nil {
		t.Fatal("the request was answered")
	}
	eventually(t, "a free key", func() bool { return a.count(t, service.North, "idempotency_records") == 0 })
	release()
	a.do(t, pay(token, "k", goodOrder)).wantStatus(t, http.StatusCreated)

	server.Close() // so that nobody writes to the log any more
	if strings.Contains(log.String(), "level=ERROR") {
		t.Errorf("a client that goes away is no error of the service:\n%s", log.String())
	}
}
