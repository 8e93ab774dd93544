package ginidem

import (
	"context"
	"net/http"

	"github.com/gin-gonic/gin"
)

// Middleware turns net/http middleware into gin middleware. It calls mw once, so
// that whatever mw sets up for its handler is shared by all requests.
//
// When mw answers by itself, the rest of the chain is aborted. When it calls the
// next handler, the chain runs on the writer and the request that mw passes on;
// afterwards, by a panic too, c has its own again. A panic goes on through mw.
func Middleware(mw func(http.Handler) http.Handler) gin.HandlerFunc {
	key := new(exchangeKey)
	handler := mw(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		x, ok := r.Context().Value(key).(*exchange)
		if !ok {
			panic("ginidem: the middleware passed on a request without the context of the one it got")
		}
		x.next(w, r)
	}))
	return func(c *gin.Context) {
		x := &exchange{c: c, front: &front{ResponseWriter: c.Writer}}
		defer func() {
			if !x.ran { // recovery that forgets to abort must not let the handlers run after all
				c.Abort()
			}
		}()
		handler.ServeHTTP(x.front, c.Request.WithContext(context.WithValue(c.Request.Context(), key, x)))
		x.front.finish()
	}
}

// exchangeKey is not of size zero: each [Middleware] has a key of its own.
type exchangeKey byte

// exchange is one request on its way through the middleware.
type exchange struct {
	c     *gin.Context
	front *front // what the middleware writes to
	ran   bool   // the rest of the chain has run to its end
}

// next runs the rest of the chain on what the middleware passed on.
func (x *exchange) next(w http.ResponseWriter, r *http.Request) {
	c := x.c
	outer, request := c.Writer, c.Request
	defer func() { c.Request = request }()
	c.Request = r
	if w == x.front { // nothing is between the handler and gin's own writer
		c.Next()
		x.ran = true
		return
	}
	defer func() { c.Writer = outer }()
	before, errs := outer.Written(), len(c.Errors)
	inner := newWriter(w, r, outer.Status())
	defer inner.close()
	c.Writer = inner
	c.Next()
	x.ran = true
	if outer.Written() && !before && !x.front.used {
		panic("ginidem: the answer went past the middleware; Engine.HandleContext does that")
	}
	x.decide(inner, len(c.Errors) > errs)
}

// decide makes the handler's answer final before the middleware sees the handler
// return. Gin does so only when the whole chain has returned.
func (x *exchange) decide(inner *writer, failed bool) {
	gone := inner.request.Context().Err() != nil
	switch {
	case inner.Written():
	case failed && !inner.set && !gone:
		x.leaveToOthers(inner)
	case x.c.FullPath() == "" && inner.status == inner.initial && unmatched[inner.status] != "":
		x.c.Writer.Header()["Content-Type"] = []string{gin.MIMEPlain}
		_, _ = x.c.Writer.WriteString(unmatched[inner.status]) // through what middleware behind has put there
	case inner.set || !gone:
		inner.WriteHeaderNow()
	}
	// Else the handler gave up in silence when its context was cancelled, and the
	// middleware must be able to see that.
}

// leaveToOthers is for a handler that left its answer to error middleware. If that
// stands outside, its answer is still to come: so the middleware gets a 500 to see,
// and what it then writes goes no further than the status.
func (x *exchange) leaveToOthers(inner *writer) {
	x.front.withdraw(inner.Header())
	inner.WriteHeader(http.StatusInternalServerError)
	inner.WriteHeaderNow()
}

// unmatched is what gin answers after the chain has returned, when no route matched
// and no handler answered.
var unmatched = map[int]string{
	http.StatusNotFound:         "404 page not found",
	http.StatusMethodNotAllowed: "405 method not allowed",
}
