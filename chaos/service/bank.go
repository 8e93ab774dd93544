package service

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"

	"github.com/pgidem/pgidem/idempotency"
	"github.com/pgidem/pgidem/tenancy"
)

// bank is the client of the bank.
type bank struct {
	client *http.Client
	url    string
}

// call asks the bank for something, and returns the name of what it did.
func (b bank) call(ctx context.Context, step, childKey string) (string, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, b.url+"/"+step, http.NoBody)
	if err != nil {
		return "", err
	}
	org, _ := tenancy.OrgID(ctx)
	key, _ := idempotency.Key(ctx)
	r.Header.Set(OrgHeader, org.String())
	r.Header.Set(RequestHeader, requestID(ctx))
	r.Header.Set(PaymentHeader, key)
	if childKey != "" {
		r.Header.Set(ChildKeyHeader, childKey)
	}
	resp, err := b.client.Do(r)
	if err != nil {
		return "", err
	}
	defer func() { _ = resp.Body.Close() }()
	id, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("the bank answered %d to %s", resp.StatusCode, step)
	}
	return strings.TrimSpace(string(id)), err
}

// Headers of requests to the bank.
const (
	PaymentHeader  = "Chaos-Payment"   // the client's key, for the history alone
	ChildKeyHeader = "Chaos-Child-Key" // what the bank knows a charge by
)
