package echoidem_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"

	"github.com/labstack/echo/v5"
	"github.com/labstack/echo/v5/middleware"

	echoidem "github.com/pgidem/pgidem/adapters/echo"
)

func ExampleMiddleware() {
	// In place of idempotency.Require(store):
	idempotent := func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("Idempotency-Key") == "" {
				http.Error(w, "a key is required", http.StatusBadRequest)
				return
			}
			next.ServeHTTP(w, r)
		})
	}
	authenticate := func(next echo.HandlerFunc) echo.HandlerFunc { return next }

	e := echo.New()
	e.Use(middleware.Recover(), authenticate, echoidem.Middleware(idempotent))
	e.POST("/v1/payments/:id", func(c *echo.Context) error {
		return c.JSON(http.StatusCreated, map[string]string{"payment": c.Param("id")})
	})

	for _, key := range []string{"8e03978e", ""} {
		request := httptest.NewRequest(http.MethodPost, "/v1/payments/7", nil)
		request.Header.Set("Idempotency-Key", key)
		w := httptest.NewRecorder()
		e.ServeHTTP(w, request)
		fmt.Print(w.Code, " ", w.Body)
	}
	// Output:
	// 201 {"payment":"7"}
	// 400 a key is required
}
