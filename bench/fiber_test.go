package bench_test

import (
	"net/http"
	"testing"
	"time"

	"github.com/gofiber/fiber/v2"
	fiberidem "github.com/gofiber/fiber/v2/middleware/idempotency"
	"github.com/valyala/fasthttp"
)

// newFiber is a service of fiber's, with its idempotency middleware or without. It has a
// request and a response of its own, of fasthttp's.
func newFiber(protected bool) func(*testing.B, int) func(string) int {
	return func(_ *testing.B, size int) func(string) int {
		body := []byte(responses[size])
		app := fiber.New()
		if protected {
			app.Use(fiberidem.New(fiberidem.Config{
				Lifetime:          24 * time.Hour,
				KeyHeader:         "Idempotency-Key",
				KeyHeaderValidate: func(string) error { return nil },
			}))
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
}
