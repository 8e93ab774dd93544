package echov4idem_test

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/labstack/echo/v4"

	echov4idem "github.com/pgidem/pgidem/adapters/echov4"
)

// service is an Echo on a real server, its routes behind the keeper.
type service struct {
	*echo.Echo
	*keeper
	url    string
	client *http.Client
}

// serve starts a service with middleware outside of the keeper's.
func serve(t *testing.T, outside ...echo.MiddlewareFunc) *service {
	t.Helper()
	s := &service{Echo: newEcho(), keeper: newKeeper()}
	s.Use(outside...)
	s.Use(echov4idem.Middleware(s.Middleware))
	server := httptest.NewServer(s.Echo)
	t.Cleanup(server.Close)
	s.url, s.client = server.URL, server.Client()
	return s
}

func newEcho() *echo.Echo {
	e := echo.New()
	e.Logger.SetOutput(io.Discard)
	return e
}

// answer is a response, read whole.
type answer struct {
	*http.Response
	body string
}

func (s *service) post(t *testing.T, path string, header ...string) answer {
	t.Helper()
	r, err := http.NewRequestWithContext(context.Background(), http.MethodPost, s.url+path, strings.NewReader("body"))
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	resp, err := s.client.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answer{resp, string(body)}
}

func (a answer) want(t *testing.T, status int, body string) {
	t.Helper()
	if a.StatusCode != status || a.body != body {
		t.Fatalf("answer %d %q, want %d %q", a.StatusCode, a.body, status, body)
	}
}
