package routers_test

import (
	"io"

	"net/http"

	"github.com/labstack/echo/v4"
	"github.com/labstack/echo/v4/middleware"

	echov4idem "github.com/pgidem/pgidem/adapters/echov4"
)

func echo4(s *work, idempotent wrapper) http.Handler {
	h := echo4Handlers{s}
	authenticate, createPayment := echo4Authenticate, h.createPayment
	// README echo v4 begins here.
	e := echo.New()
	e.Use(middleware.Recover(), authenticate, echov4idem.Middleware(idempotent))
	e.POST("/v1/payments/:id", createPayment)
	// README echo v4 ends here.
	h.others(e)
	return e
}

func echo4Whole(s *work, idempotent wrapper) http.Handler {
	h := echo4Handlers{s}
	e := echo.New()
	e.POST("/v1/payments/:id", h.createPayment)
	h.others(e)
	return recovering(authenticate(idempotent(e)))
}

func echo4Authenticate(next echo.HandlerFunc) echo.HandlerFunc {
	return func(c echo.Context) error {
		ctx, ok := orgOf(c.Request())
		if !ok {
			return echo.ErrUnauthorized
		}
		c.SetRequest(c.Request().WithContext(ctx))
		return next(c)
	}
}

// echo4Handlers are the handlers of the service for Echo v4.
type echo4Handlers struct{ *work }

func (h echo4Handlers) createPayment(c echo.Context) error {
	p := h.pay(c.Request().Context(), c.Param("id"))
	c.Response().Header().Set("Location", "/v1/payments/"+p.ID)
	return c.JSON(http.StatusCreated, p)
}

func (h echo4Handlers) others(e *echo.Echo) {
	e.Logger.SetOutput(io.Discard)
	e.POST("/v1/settings", func(c echo.Context) error {
		h.run(c.Request().Context())
		return c.NoContent(http.StatusNoContent)
	})
	e.POST("/v1/refused", func(c echo.Context) error {
		h.run(c.Request().Context())
		return echo.NewHTTPError(http.StatusPaymentRequired, errNoMoney.Error())
	})
	e.POST("/v1/broken", func(c echo.Context) error {
		h.run(c.Request().Context())
		return errBroken
	})
	e.POST("/v1/panics", func(c echo.Context) error {
		h.panicAtFirst(c.Request().Context())
		return c.NoContent(http.StatusCreated)
	})
	e.POST("/v1/gives-up", func(c echo.Context) error {
		if err := h.giveUpAtFirst(c.Request().Context()); err != nil {
			return err
		}
		return c.NoContent(http.StatusCreated)
	})
	e.POST("/v1/stream", func(c echo.Context) error {
		h.run(c.Request().Context())
		for range 3 {
			io.WriteString(c.Response(), "piece ")
			if err := http.NewResponseController(c.Response()).Flush(); err != nil {
				return err
			}
		}
		return nil
	})
	e.POST("/v1/slow", func(c echo.Context) error {
		h.slow(c.Request().Context())
		return c.String(http.StatusOK, "at last")
	})
	e.POST("/v1/auth/login", func(c echo.Context) error {
		return c.String(http.StatusOK, h.token(c.Request().Context()))
	})
}
