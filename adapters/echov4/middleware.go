package echov4idem

import (
	"context"
	"errors"
	"net/http"

	"github.com/labstack/echo/v4"
)

// Middleware turns net/http middleware into Echo middleware. It calls mw once, so
// that whatever mw sets up for its handler is shared by all requests.
//
// When mw answers by itself, the rest of the chain does not run. When it calls the
// next handler, the chain runs on the writer and the request that mw passes on;
// afterwards, by a panic too, c has its own again. A panic goes on through mw.
func Middleware(mw func(http.Handler) http.Handler) echo.MiddlewareFunc {
	key := new(exchangeKey)
	handler := mw(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		x, ok := r.Context().Value(key).(*exchange)
		if !ok {
			panic("echov4idem: the middleware passed on a request without the context of the one it got")
		}
		x.serve(w, r)
	}))
	return func(next echo.HandlerFunc) echo.HandlerFunc {
		return func(c echo.Context) error {
			x := &exchange{c: c, next: next}
			handler.ServeHTTP(c.Response(), c.Request().WithContext(context.WithValue(c.Request().Context(), key, x)))
			return x.err
		}
	}
}

// exchangeKey is not of size zero: each [Middleware] has a key of its own.
type exchangeKey byte

// exchange is one request on its way through the middleware.
type exchange struct {
	c    echo.Context
	next echo.HandlerFunc
	err  error // of the chain, unless it has been answered
}

// serve runs the rest of the chain on what the middleware passed on.
func (x *exchange) serve(w http.ResponseWriter, r *http.Request) {
	c := x.c
	response, request := c.Response(), c.Request()
	defer func() {
		c.SetResponse(response)
		c.SetRequest(request)
	}()
	c.SetRequest(r)
	if w == response { // nothing is between the handler and Echo's own writer
		x.err = x.next(c)
		return
	}
	inner := echo.NewResponse(w, c.Echo())
	inner.Status = response.Status
	c.SetResponse(inner)
	x.err = x.next(c)
	if x.err != nil && !gaveUp(r.Context(), x.err) {
		// Now, while the middleware is there to see it. Echo would do it when the
		// middleware has returned.
		c.Echo().HTTPErrorHandler(x.err, c)
		if c.Response().Committed {
			x.err = nil // as with echo.Context.Error: nobody outside is to answer it again
			return
		}
		inner.WriteHeader(http.StatusInternalServerError) // so that it is not stored as a success
	}
}

// gaveUp reports whether err says no more than that the request was cancelled. That
// is no outcome, whatever status the error handler has for it.
func gaveUp(ctx context.Context, err error) bool {
	return ctx.Err() != nil &&
		(errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Cause(ctx)))
}
