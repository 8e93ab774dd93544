package demo

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"time"

	"github.com/pgidem/pgidem/idempotency"
)

const (
	payPath = "/v1/payments"

	// Spelled out, so that the demo notices when the library sends another one.
	replayHeader = "Idempotency-Replayed"
	retryHeader  = "Retry-After"
)

// client is a tenant's program that calls the service.
type client struct {
	tenant
	web   *http.Client
	url   string
	token string
}

// answer is a response, read whole.
type answer struct {
	code   int
	header http.Header
	body   []byte
}

// problem is what an error response says (RFC 9457).
type problem struct {
	Title, Detail, Code string
}

func (a answer) status() string { return fmt.Sprintf("%d %s", a.code, http.StatusText(a.code)) }

func (a answer) replayed() bool { return a.header.Get(replayHeader) == "true" }

// paymentID returns the id of the payment in the body, or "".
func (a answer) paymentID() string {
	var payment struct{ ID string }
	if json.Unmarshal(a.body, &payment) != nil {
		return ""
	}
	return payment.ID
}

func (a answer) problem() (p problem) {
	if a.header.Get("Content-Type") != "application/problem+json" || json.Unmarshal(a.body, &p) != nil {
		return problem{}
	}
	return p
}

// wait does what a Retry-After header asks for.
func (a answer) wait(ctx context.Context) error {
	seconds, err := strconv.Atoi(a.header.Get(retryHeader))
	if err != nil || seconds < 0 || seconds > 10 {
		return fmt.Errorf("%s is %q, where a few seconds were expected", retryHeader, a.header.Get(retryHeader))
	}
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(time.Duration(seconds) * time.Second):
		return nil
	}
}

// logIn returns a client of the tenant, with an access token.
func logIn(ctx context.Context, web *http.Client, url string, t tenant) (client, error) {
	c := client{tenant: t, web: web, url: url}
	a, err := c.do(ctx, http.MethodPost, "/v1/auth/login", "", credentials(t.name))
	if err != nil {
		return client{}, err
	}
	var login struct {
		AccessToken string `json:"access_token"`
	}
	if err := json.Unmarshal(a.body, &login); err != nil || login.AccessToken == "" {
		return client{}, fmt.Errorf("log in as %s: %s", credentials(t.name), a.status())
	}
	c.token = login.AccessToken
	return c, nil
}

// credentials returns the body of a login as the user of a tenant.
func credentials(tenant string) string {
	return fmt.Sprintf(`{"email":"cashier@%[1]s.example","password":"fake-password-%[1]s"}`, tenant)
}

// pay asks for a payment under an idempotency key.
func (c client) pay(ctx context.Context, key, order string) (answer, error) {
	return c.do(ctx, http.MethodPost, payPath, key, order)
}

func (c client) do(ctx context.Context, method, path, key, body string) (answer, error) {
	req, err := http.NewRequestWithContext(ctx, method, c.url+path, bytes.NewReader([]byte(body)))
	if err != nil {
		return answer{}, err
	}
	req.Header.Set("Content-Type", "application/json")
	if c.token != "" {
		req.Header.Set("Authorization", "Bearer "+c.token)
	}
	if key != "" {
		req.Header.Set(idempotency.HeaderKey, key)
	}
	resp, err := c.web.Do(req)
	if err != nil {
		return answer{}, err
	}
	content, err := io.ReadAll(resp.Body)
	if err := errors.Join(err, resp.Body.Close()); err != nil {
		return answer{}, fmt.Errorf("%s %s: %w", method, path, err)
	}
	return answer{code: resp.StatusCode, header: resp.Header, body: content}, nil
}
