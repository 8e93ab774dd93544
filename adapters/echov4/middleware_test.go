package echov4idem_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"

	"github.com/labstack/echo/v4"
	"github.com/labstack/echo/v4/middleware"

	echov4idem "github.com/pgidem/pgidem/adapters/echov4"
)

func TestTheMiddlewareIsMadeOnce(t *testing.T) {
	t.Parallel()
	s := serve(t)
	s.POST("/x", func(c echo.Context) error { return c.String(http.StatusOK, "x") })
	s.POST("/y", func(c echo.Context) error { return c.String(http.StatusOK, "y") })
	s.post(t, "/x").want(t, http.StatusOK, "x")
	s.post(t, "/y").want(t, http.StatusOK, "y")
	if s.wrapped != 1 {
		t.Errorf("the middleware was made %d times, want 1", s.wrapped)
	}
}

func TestAnAnswerOfTheMiddlewareEndsTheChain(t *testing.T) {
	t.Parallel()
	s := serve(t)
	s.POST("/x", func(echo.Context) error { t.Error("the handler ran"); return nil })
	a := s.post(t, "/x", "X-Keeper", "answer")
	a.want(t, http.StatusConflict, "not now")
	if a.Header.Get("X-By") != "keeper" || a.Header.Get("X-Late") != "" {
		t.Errorf("headers %v", a.Header)
	}
	s.post(t, "/x", "X-Keeper", "answer briefly").want(t, http.StatusNoContent, "")
}

func TestAnswersGoThroughTheMiddleware(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		handler echo.HandlerFunc
		status  int
		body    string
	}{
		"JSON":       {func(c echo.Context) error { return c.JSON(http.StatusCreated, map[string]int{"a": 1}) }, http.StatusCreated, `{"a":1}` + "\n"},
		"string":     {func(c echo.Context) error { return c.String(http.StatusAccepted, "x") }, http.StatusAccepted, "x"},
		"no content": {func(c echo.Context) error { return c.NoContent(http.StatusNoContent) }, http.StatusNoContent, ""},
		"nothing":    {func(echo.Context) error { return nil }, http.StatusOK, ""},
		"bare body":  {func(c echo.Context) error { _, err := io.WriteString(c.Response(), "bare"); return err }, http.StatusOK, "bare"},
		"redirect":   {func(c echo.Context) error { return c.Redirect(http.StatusSeeOther, "/y") }, http.StatusSeeOther, ""},
		"HTTP error": {func(echo.Context) error { return echo.NewHTTPError(http.StatusPaymentRequired, "no money") },
			http.StatusPaymentRequired, `{"message":"no money"}` + "\n"},
		"error": {func(echo.Context) error { return errors.New("e") },
			http.StatusInternalServerError, `{"message":"Internal Server Error"}` + "\n"},
		"error after an answer": {func(c echo.Context) error {
			return errors.Join(c.String(http.StatusOK, "x"), errors.New("e"))
		}, http.StatusOK, "x"},
		"JSON that cannot be": {func(c echo.Context) error { return c.JSON(http.StatusOK, func() {}) },
			http.StatusInternalServerError, `{"message":"Internal Server Error"}` + "\n"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := serve(t)
			s.client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
			s.POST("/x", func(c echo.Context) error {
				c.Response().Header().Set("X-Handler", "h")
				return tt.handler(c)
			})
			a := s.post(t, "/x")
			a.want(t, tt.status, tt.body)
			if kept := s.want(t, tt.status, tt.body); kept.header.Get("X-Handler") != "h" || a.Header.Get("X-Handler") != "h" {
				t.Errorf("the handler's header: kept %q, received %q", kept.header.Get("X-Handler"), a.Header.Get("X-Handler"))
			}
		})
	}
}

func TestUnmatchedRoutesAreAnsweredWithin(t *testing.T) {
	t.Parallel()
	s := serve(t)
	s.GET("/get", func(echo.Context) error { return nil })
	s.post(t, "/nowhere").want(t, http.StatusNotFound, `{"message":"Not Found"}`+"\n")
	s.want(t, http.StatusNotFound, `{"message":"Not Found"}`+"\n")
	s.post(t, "/get").want(t, http.StatusMethodNotAllowed, `{"message":"Method Not Allowed"}`+"\n")
	s.want(t, http.StatusMethodNotAllowed, `{"message":"Method Not Allowed"}`+"\n")
}

func TestItMayStandBeforeTheRouter(t *testing.T) {
	t.Parallel()
	s := serve(t)
	before := newKeeper()
	s.Pre(echov4idem.Middleware(before.Middleware))
	s.POST("/x/:id", func(c echo.Context) error { return c.String(http.StatusOK, c.Param("id")) })
	s.post(t, "/x/7").want(t, http.StatusOK, "7")
	before.want(t, http.StatusOK, "7")
}

// An error handler of somebody's who does not look whether the response is committed.
func TestAnErrorIsAnsweredOnce(t *testing.T) {
	t.Parallel()
	for _, stream := range []bool{false, true} {
		t.Run(fmt.Sprint("stream ", stream), func(t *testing.T) {
			t.Parallel()
			seen := make(chan string, 1)
			s := serve(t, func(next echo.HandlerFunc) echo.HandlerFunc {
				return func(c echo.Context) error {
					err := next(c)
					seen <- fmt.Sprint(err, " ", c.Response().Status, " ", c.Response().Size)
					return err
				}
			})
			s.HTTPErrorHandler = func(err error, c echo.Context) {
				c.Response().Header().Add("X-Error", err.Error())
				c.String(http.StatusConflict, "e!")
				if stream {
					c.Response().Flush()
				}
			}
			s.POST("/x", func(echo.Context) error { return errors.New("e") })
			a := s.post(t, "/x")
			a.want(t, http.StatusConflict, "e!")
			if got := a.Header["X-Error"]; len(got) != 1 {
				t.Errorf("X-Error %q", got)
			}
			s.want(t, http.StatusConflict, "e!")
			if got := <-seen; got != "<nil> 409 2" {
				t.Errorf("a logger outside sees %q", got)
			}
		})
	}
}

func TestTheHandlerSeesTheRequestPassedOn(t *testing.T) {
	t.Parallel()
	after := make(chan bool, 1)
	s := serve(t, func(next echo.HandlerFunc) echo.HandlerFunc {
		return func(c echo.Context) error {
			w, r := c.Response(), c.Request()
			err := next(c)
			after <- c.Response() == w && c.Request() == r
			return err
		}
	})
	s.POST("/x/:id", func(c echo.Context) error {
		body, _ := io.ReadAll(c.Request().Body)
		return c.String(http.StatusOK, fmt.Sprintf("%s %s %s", c.Param("id"), c.Request().Context().Value(passedKey{}), body))
	})
	s.post(t, "/x/7").want(t, http.StatusOK, "7 passed on body read")
	if !<-after {
		t.Error("the writer or the request was not put back")
	}
}

func TestAPassedOnWriterOfEchosStaysEchos(t *testing.T) {
	t.Parallel()
	s := serve(t, func(next echo.HandlerFunc) echo.HandlerFunc {
		return func(c echo.Context) error {
			if err := next(c); err != nil {
				return c.String(http.StatusOK, "said outside")
			}
			return nil
		}
	})
	s.POST("/x", func(echo.Context) error { return errors.New("e") })
	s.post(t, "/x", "X-Keeper", "pass").want(t, http.StatusOK, "said outside")
}

func TestPanicsGoOn(t *testing.T) {
	t.Parallel()
	s := serve(t, middleware.Recover())
	s.POST("/x", func(echo.Context) error { panic("p") })
	s.post(t, "/x").want(t, http.StatusInternalServerError, `{"message":"Internal Server Error"}`+"\n")
	if !s.want(t, 0, "").panicked {
		t.Error("the middleware saw no panic")
	}
}

func TestRecoveryWithinIsSeen(t *testing.T) {
	t.Parallel()
	s := serve(t)
	s.Use(middleware.Recover())
	s.POST("/x", func(echo.Context) error { panic("p") })
	s.post(t, "/x").want(t, http.StatusInternalServerError, `{"message":"Internal Server Error"}`+"\n")
	s.want(t, http.StatusInternalServerError, `{"message":"Internal Server Error"}`+"\n")
}

// A client that is gone is a context that is cancelled, and no server is needed.
func TestSilenceOfACancelledHandlerIsSeen(t *testing.T) {
	t.Parallel()
	shutdown := errors.New("shutdown")
	for name, tt := range map[string]struct {
		handler echo.HandlerFunc
		status  int
	}{
		"silent":         {func(echo.Context) error { return nil }, 0},
		"error":          {func(c echo.Context) error { return fmt.Errorf("query: %w", c.Request().Context().Err()) }, 0},
		"deadline":       {func(echo.Context) error { return context.DeadlineExceeded }, 0},
		"cause":          {func(c echo.Context) error { return context.Cause(c.Request().Context()) }, 0},
		"status":         {func(c echo.Context) error { return c.NoContent(http.StatusNoContent) }, http.StatusNoContent},
		"other error":    {func(echo.Context) error { return echo.ErrForbidden }, http.StatusForbidden},
		"error too late": {func(c echo.Context) error { c.NoContent(http.StatusAccepted); return context.Canceled }, http.StatusAccepted},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithCancelCause(t.Context())
			k, e := newKeeper(), newEcho()
			e.HTTPErrorHandler = func(err error, c echo.Context) {
				if !c.Response().Committed {
					c.NoContent(499) // as some do for a client that is gone
				}
			}
			if tt.status == http.StatusForbidden {
				e.HTTPErrorHandler = func(_ error, c echo.Context) { c.NoContent(http.StatusForbidden) }
			}
			e.POST("/x", func(c echo.Context) error { cancel(shutdown); return tt.handler(c) }, echov4idem.Middleware(k.Middleware))
			w := httptest.NewRecorder()
			e.ServeHTTP(w, httptest.NewRequestWithContext(ctx, http.MethodPost, "/x", nil))
			k.want(t, tt.status, "")
			if tt.status == 0 && w.Body.String() != "no outcome\n" {
				t.Errorf("answer %d %q, want the middleware's own", w.Code, w.Body)
			}
		})
	}
}

func TestAnErrorOfADeadlineOfTheHandlersOwnIsAnOutcome(t *testing.T) {
	t.Parallel()
	s := serve(t)
	s.POST("/x", func(echo.Context) error { return context.DeadlineExceeded })
	s.post(t, "/x").want(t, http.StatusInternalServerError, `{"message":"Internal Server Error"}`+"\n")
	s.want(t, http.StatusInternalServerError, `{"message":"Internal Server Error"}`+"\n")
}

func TestLoggersSeeStatusAndSize(t *testing.T) {
	t.Parallel()
	seen := make(chan string, 2)
	logger := func(next echo.HandlerFunc) echo.HandlerFunc {
		return func(c echo.Context) error {
			err := next(c)
			response := c.Response()
			seen <- fmt.Sprint(response.Status, response.Size, response.Committed)
			return err
		}
	}
	s := serve(t, logger)
	s.POST("/body", func(c echo.Context) error { return c.String(http.StatusCreated, "four") }, logger)
	s.POST("/none", func(c echo.Context) error { return c.NoContent(http.StatusNoContent) }, logger)
	s.post(t, "/body").want(t, http.StatusCreated, "four")
	if within, outside := <-seen, <-seen; within != "201 4 true" || outside != "201 4 true" {
		t.Errorf("seen %q within and %q outside", within, outside)
	}
	s.post(t, "/none").want(t, http.StatusNoContent, "")
	if within, outside := <-seen, <-seen; within != "204 0 true" || outside != "204 0 true" {
		t.Errorf("seen %q within and %q outside", within, outside)
	}
	s.post(t, "/body", "X-Keeper", "answer").want(t, http.StatusConflict, "not now")
	if outside := <-seen; outside != "409 7 true" {
		t.Errorf("seen %q outside", outside)
	}
}

func TestAForeignContextIsRefused(t *testing.T) {
	t.Parallel()
	said := make(chan error, 1)
	e := newEcho()
	e.HTTPErrorHandler = func(err error, _ echo.Context) { said <- err }
	e.Use(middleware.Recover(), echov4idem.Middleware(func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			next.ServeHTTP(w, r.WithContext(context.Background()))
		})
	}))
	e.POST("/x", func(echo.Context) error { t.Error("the handler ran"); return nil })
	e.ServeHTTP(httptest.NewRecorder(), httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/x", nil))
	<-said
}

func TestTwoMiddlewaresAndManyRequestsDoNotMix(t *testing.T) {
	t.Parallel()
	s := serve(t)
	second := newKeeper()
	s.POST("/x/:id", func(c echo.Context) error { return c.String(http.StatusOK, c.Param("id")) },
		echov4idem.Middleware(second.Middleware))
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			if a := s.post(t, fmt.Sprint("/x/", i)); a.body != fmt.Sprint(i) {
				t.Errorf("answer %q, want %d", a.body, i)
			}
		})
	}
	wg.Wait()
	if len(s.kept) != 20 || len(second.kept) != 20 {
		t.Errorf("kept %d and %d responses, want 20 each", len(s.kept), len(second.kept))
	}
}

// TestAnErrorHandlerThatSaysNothing: what nobody answers is no success to be stored.
func TestAnErrorHandlerThatSaysNothing(t *testing.T) {
	t.Parallel()
	s := serve(t)
	s.HTTPErrorHandler = func(error, echo.Context) {}
	s.POST("/x", func(echo.Context) error { return errors.New("e") })
	a := s.post(t, "/x")
	a.want(t, http.StatusInternalServerError, "")
}

// TestAnErrorBehindATimeout: middleware that drops what was written when it is given an
// error is given none that has been answered.
func TestAnErrorBehindATimeout(t *testing.T) {
	t.Parallel()
	s := serve(t, middleware.TimeoutWithConfig(middleware.TimeoutConfig{Timeout: time.Minute})) //nolint:staticcheck // deprecated, and in use all the same
	s.POST("/x", func(echo.Context) error { return echo.NewHTTPError(http.StatusPaymentRequired, "no money") })
	for range 2 {
		a := s.post(t, "/x")
		a.want(t, http.StatusPaymentRequired, "{\"message\":\"no money\"}\n")
	}
}
