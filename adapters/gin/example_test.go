package ginidem_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"

	"github.com/gin-gonic/gin"

	ginidem "github.com/pgidem/pgidem/adapters/gin"
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
	authenticate := func(*gin.Context) {}

	r := gin.New()
	r.Use(gin.Recovery(), authenticate, ginidem.Middleware(idempotent))
	r.POST("/v1/payments/:id", func(c *gin.Context) {
		c.JSON(http.StatusCreated, gin.H{"payment": c.Param("id")})
	})

	for _, key := range []string{"8e03978e", ""} {
		request := httptest.NewRequest(http.MethodPost, "/v1/payments/7", nil)
		request.Header.Set("Idempotency-Key", key)
		w := httptest.NewRecorder()
		r.ServeHTTP(w, request)
		fmt.Println(w.Code, strings.TrimSpace(w.Body.String()))
	}
	// Output:
	// 201 {"payment":"7"}
	// 400 a key is required
}
