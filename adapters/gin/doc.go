// Package ginidem turns net/http middleware into gin middleware, so that what
// idempotency.Require returns can stand in a gin chain.
//
// It stands behind authentication, which puts the tenant into the context of
// c.Request, and before the handlers; recovery and logging stand outside:
//
//	idempotent := idempotency.Require(store)
//
//	r := gin.New()
//	r.Use(gin.Logger(), gin.Recovery(), authenticate, ginidem.Middleware(idempotent))
//	r.POST("/v1/payments/:id", createPayment)
//
// It serves for a group or for a single route as well. Handlers are written as
// ever: they answer through c, and find in c.Request what the middleware put into
// it, such as idempotency.Key(c.Request.Context()).
//
// # Errors
//
// Middleware that makes answers of c.Errors belongs behind this one, so that its
// answers are the outcome: a 4xx is stored then, a 5xx is not. Where it stands
// outside it still answers, but too late to be seen: a handler that called c.Error
// and set no status counts as one that answered 500, which stores nothing (unless the
// middleware was told to store a 500), and 500 is what the client gets if nobody says
// anything better; and what it writes for a handler that did set a status, by
// c.AbortWithError or c.BindJSON say, is lost. A handler whose errors are but remarks
// sets its status.
//
// # Limits
//
// The middleware must call the next handler at most once, in its own goroutine, and
// with a request whose context descends from that of the request it got.
// [http.TimeoutHandler], for one, does not.
//
// [gin.Engine.HandleContext] puts gin's own writer back in the place of any that
// middleware has set. A handler that answers that way has gone past the middleware,
// and [Middleware] panics rather than let it store an answer that was not given; a retry
// then runs the handler again. Do not use it behind the middleware.
package ginidem
