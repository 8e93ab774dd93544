package routers_test

import (
	"encoding/json"
	"io"
	"net/http"
)

func serveMux(s *work, idempotent wrapper) http.Handler {
	h := handlers{s, func(r *http.Request) string { return r.PathValue("id") }}
	createPayment := h.createPayment
	// README net/http begins here.
	mux := http.NewServeMux()
	mux.HandleFunc("POST /v1/payments/{id}", createPayment)
	handler := authenticate(idempotent(mux))
	// README net/http ends here.
	for pattern, handle := range h.others() {
		mux.Handle("POST "+pattern, handle)
	}
	return recovering(handler)
}

func serveMuxOneRoute(s *work, idempotent wrapper) http.Handler {
	h := handlers{s, func(r *http.Request) string { return r.PathValue("id") }}
	createPayment := h.createPayment
	mux := http.NewServeMux()
	// README one route begins here.
	mux.Handle("POST /v1/payments/{id}", authenticate(idempotent(http.HandlerFunc(createPayment))))
	// README one route ends here.
	for pattern, handle := range h.others() {
		mux.Handle("POST "+pattern, authenticate(idempotent(handle)))
	}
	return recovering(mux)
}

func authenticate(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx, ok := orgOf(r)
		if !ok {
			http.Error(w, "who are you?", http.StatusUnauthorized)
			return
		}
		next.ServeHTTP(w, r.WithContext(ctx))
	})
}

func recovering(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer func() {
			if recover() != nil {
				http.Error(w, "it panicked", http.StatusInternalServerError)
			}
		}()
		next.ServeHTTP(w, r)
	})
}

// handlers are the handlers of the service for routers of net/http's.
type handlers struct {
	*work
	id func(*http.Request) string // the parameter of that name
}

func (h handlers) createPayment(w http.ResponseWriter, r *http.Request) {
	p := h.pay(r.Context(), h.id(r))
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Location", "/v1/payments/"+p.ID)
	w.WriteHeader(http.StatusCreated)
	json.NewEncoder(w).Encode(p)
}

func (h handlers) others() map[string]http.HandlerFunc {
	return map[string]http.HandlerFunc{
		"/v1/settings": func(w http.ResponseWriter, r *http.Request) {
			h.run(r.Context())
			w.WriteHeader(http.StatusNoContent)
		},
		"/v1/refused": func(w http.ResponseWriter, r *http.Request) {
			h.run(r.Context())
			http.Error(w, errNoMoney.Error(), http.StatusPaymentRequired)
		},
		"/v1/broken": func(w http.ResponseWriter, r *http.Request) {
			h.run(r.Context())
			http.Error(w, errBroken.Error(), http.StatusInternalServerError)
		},
		"/v1/panics": func(w http.ResponseWriter, r *http.Request) {
			h.panicAtFirst(r.Context())
			w.WriteHeader(http.StatusCreated)
		},
		"/v1/gives-up": func(w http.ResponseWriter, r *http.Request) {
			if h.giveUpAtFirst(r.Context()) == nil {
				w.WriteHeader(http.StatusCreated)
			}
		},
		"/v1/stream": func(w http.ResponseWriter, r *http.Request) {
			h.run(r.Context())
			for range 3 {
				io.WriteString(w, "piece ")
				w.(http.Flusher).Flush()
			}
		},
		"/v1/slow": func(w http.ResponseWriter, r *http.Request) {
			h.slow(r.Context())
			io.WriteString(w, "at last")
		},
		"/v1/auth/login": func(w http.ResponseWriter, r *http.Request) {
			io.WriteString(w, h.token(r.Context()))
		},
	}
}
