package routers_test

import (
	"net/http"
	"time"

	"github.com/go-chi/chi/v5"
	"github.com/go-chi/chi/v5/middleware"
)

func chiRouter(s *work, idempotent wrapper) http.Handler {
	h := handlers{s, func(r *http.Request) string { return chi.URLParam(r, "id") }}
	createPayment := h.createPayment
	// README chi begins here.
	r := chi.NewRouter()
	r.Use(middleware.Recoverer, authenticate, idempotent)
	r.Post("/v1/payments/{id}", createPayment)
	// README chi ends here.
	for pattern, handle := range h.others() {
		r.Post(pattern, handle)
	}
	return withoutLog(r)
}

// withoutLog keeps the stacks of panics out of the test's output.
func withoutLog(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		next.ServeHTTP(w, middleware.WithLogEntry(r, noLog{}))
	})
}

type noLog struct{}

func (noLog) Write(int, int, http.Header, time.Duration, any) {}
func (noLog) Panic(any, []byte)                               {}
