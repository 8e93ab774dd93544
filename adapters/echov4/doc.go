// Package echov4idem turns net/http middleware into middleware of Echo v4, so that
// what idempotency.Require returns can stand in an Echo chain. For Echo v5 there is
// package echoidem.
//
// It stands behind authentication, which puts the tenant into the context of
// c.Request(), and before the handlers; recovery and logging stand outside:
//
//	idempotent := idempotency.Require(store)
//
//	e := echo.New()
//	e.Use(middleware.Logger(), middleware.Recover(), authenticate, echov4idem.Middleware(idempotent))
//	e.POST("/v1/payments/:id", createPayment)
//
// It serves for a group or for a single route as well. Handlers are written as
// ever: they answer through c or return an error, and find in c.Request() what the
// middleware put into it, such as idempotency.Key(c.Request().Context()).
//
// # Errors
//
// An error that a handler returns is answered by Echo's HTTPErrorHandler before the
// middleware sees the handler return. So it is the error's answer that is the
// outcome: a 4xx is stored, a 5xx is not. [echo.WrapMiddleware] lets the middleware
// see an empty 200 instead.
//
// An error that has been answered is not returned: it would be answered again outside.
// Loggers there see its status. Middleware that turns errors into other errors belongs
// behind this one. An error that the HTTPErrorHandler leaves unanswered counts as a 500,
// and is returned.
//
// A handler that has written nothing and returns the error of its cancelled context
// has no outcome, and the middleware sees that it is so.
//
// # Limits
//
// The middleware must call the next handler at most once, in its own goroutine, and
// with a request whose context descends from that of the request it got.
// [http.TimeoutHandler], for one, does not.
package echov4idem
