package routers_test

import (
	"errors"
	"io"
	"net/http"

	"github.com/gin-gonic/gin"

	ginidem "github.com/pgidem/pgidem/adapters/gin"
)

func init() {
	gin.SetMode(gin.ReleaseMode)
	gin.DefaultErrorWriter = io.Discard
}

func ginEngine(s *work, idempotent wrapper) http.Handler {
	h := ginHandlers{work: s}
	authenticate, createPayment, answerErrors := ginAuthenticate, h.createPayment, ginErrors
	// README gin begins here.
	r := gin.New()
	r.Use(gin.Recovery(), authenticate, ginidem.Middleware(idempotent), answerErrors)
	r.POST("/v1/payments/:id", createPayment)
	// README gin ends here.
	h.others(r)
	return r
}

func ginWhole(s *work, idempotent wrapper) http.Handler {
	h := ginHandlers{work: s, whole: true}
	r := gin.New()
	r.Use(ginErrors)
	r.POST("/v1/payments/:id", h.createPayment)
	h.others(r)
	return recovering(authenticate(idempotent(r)))
}

func ginAuthenticate(c *gin.Context) {
	ctx, ok := orgOf(c.Request)
	if !ok {
		c.AbortWithStatus(http.StatusUnauthorized)
		return
	}
	c.Request = c.Request.WithContext(ctx)
}

// ginErrors answers for the handlers that left an error.
func ginErrors(c *gin.Context) {
	c.Next()
	last := c.Errors.Last()
	switch {
	case last == nil:
	case errors.Is(last, errNoMoney):
		c.JSON(http.StatusPaymentRequired, gin.H{"error": last.Error()})
	default:
		c.JSON(http.StatusInternalServerError, gin.H{"error": "something went wrong"})
	}
}

// ginHandlers are the handlers of the service for gin.
type ginHandlers struct {
	*work
	// The middleware stands around the whole engine. Then a handler that gives up has
	// to say so, because gin answers 200 for one that says nothing.
	whole bool
}

func (h ginHandlers) createPayment(c *gin.Context) {
	p := h.pay(c.Request.Context(), c.Param("id"))
	c.Header("Location", "/v1/payments/"+p.ID)
	c.JSON(http.StatusCreated, p)
}

func (h ginHandlers) others(r *gin.Engine) {
	r.POST("/v1/settings", func(c *gin.Context) {
		h.run(c.Request.Context())
		c.Status(http.StatusNoContent)
	})
	r.POST("/v1/refused", func(c *gin.Context) {
		h.run(c.Request.Context())
		c.Error(errNoMoney)
	})
	r.POST("/v1/broken", func(c *gin.Context) {
		h.run(c.Request.Context())
		c.Error(errBroken)
	})
	r.POST("/v1/panics", func(c *gin.Context) {
		h.panicAtFirst(c.Request.Context())
		c.Status(http.StatusCreated)
	})
	r.POST("/v1/gives-up", func(c *gin.Context) {
		err := h.giveUpAtFirst(c.Request.Context())
		switch {
		case err == nil:
			c.Status(http.StatusCreated)
		case h.whole:
			c.Error(err)
		}
	})
	r.POST("/v1/stream", func(c *gin.Context) {
		h.run(c.Request.Context())
		pieces := 0
		c.Stream(func(w io.Writer) bool {
			io.WriteString(w, "piece ")
			pieces++
			return pieces < 3
		})
	})
	r.POST("/v1/slow", func(c *gin.Context) {
		h.slow(c.Request.Context())
		c.String(http.StatusOK, "at last")
	})
	r.POST("/v1/auth/login", func(c *gin.Context) {
		c.String(http.StatusOK, h.token(c.Request.Context()))
	})
}
