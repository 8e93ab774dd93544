package bench_test

import (
	"bytes"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gofiber/fiber/v2"
	fiberidem "github.com/gofiber/fiber/v2/middleware/idempotency"
	"github.com/valyala/fasthttp"
)

// fiberStorage keeps responses as fiber's own storage in memory does, which starts a goroutine
// for each that nothing ends and cannot be reached to be emptied. Nothing expires in it.
type fiberStorage struct {
	mu      sync.RWMutex
	entries map[string][]byte
}

func (s *fiberStorage) Get(key string) ([]byte, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return bytes.Clone(s.entries[key]), nil
}

func (s *fiberStorage) Set(key string, val []byte, _ time.Duration) error {
	key, val = strings.Clone(key), bytes.Clone(val)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.entries[key] = val
	return nil
}

func (s *fiberStorage) Delete(key string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.entries, key)
	return nil
}

func (s *fiberStorage) Reset() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.entries = make(map[string][]byte)
	return nil
}

func (*fiberStorage) Close() error { return nil }

// newFiber is a service of fiber's, with its idempotency middleware or without. The storage is
// emptied again and again.
func newFiber(protected bool) func(*testing.B, int) func(string) int {
	return func(b *testing.B, size int) func(string) int {
		storage, served := &fiberStorage{entries: make(map[string][]byte)}, 0
		serve := serveFiber(size)
		if protected {
			serve = serveFiber(size, fiberMiddleware(storage))
		}
		return func(key string) int {
			if served++; served%rounds == 0 {
				if err := storage.Reset(); err != nil {
					b.Fatal(err)
				}
			}
			return serve(key)
		}
	}
}

// fiberMiddleware is fiber's, with its own storage if that is nil.
func fiberMiddleware(storage fiber.Storage) fiber.Handler {
	return fiberidem.New(fiberidem.Config{
		Lifetime:          24 * time.Hour,
		KeyHeader:         "Idempotency-Key",
		KeyHeaderValidate: func(string) error { return nil },
		Storage:           storage,
	})
}

// serveFiber returns a function that sends a service of fiber's one request. It has a request
// and a response of its own, of fasthttp's.
func serveFiber(size int, middleware ...fiber.Handler) func(key string) int {
	body := []byte(responses[size])
	app := fiber.New()
	for _, m := range middleware {
		app.Use(m)
	}
	app.Post("/v1/payments", func(c *fiber.Ctx) error {
		c.Set("Content-Type", "application/json")
		return c.Status(http.StatusCreated).Send(body)
	})
	serve := app.Handler()
	var ctx fasthttp.RequestCtx
	return func(key string) int {
		ctx.Request.Reset()
		ctx.Response.Reset()
		ctx.Request.Header.SetMethod(http.MethodPost)
		ctx.Request.SetRequestURI("/v1/payments")
		ctx.Request.SetBodyString(requestBody)
		if key != "" {
			ctx.Request.Header.Set("Idempotency-Key", key)
		}
		serve(&ctx)
		return ctx.Response.StatusCode()
	}
}
