package ginidem_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"

	"github.com/gin-gonic/gin"

	ginidem "github.com/pgidem/pgidem/adapters/gin"
)

func TestTheMiddlewareIsMadeOnce(t *testing.T) {
	t.Parallel()
	s := serve(t)
	s.POST("/x", func(c *gin.Context) { c.String(http.StatusOK, "ok") })
	s.post(t, "/x").want(t, http.StatusOK, "ok")
	s.post(t, "/x").want(t, http.StatusOK, "ok")
	if s.wrapped != 1 {
		t.Errorf("the middleware was made %d times, want 1", s.wrapped)
	}
}

func TestAnAnswerOfTheMiddlewareEndsTheChain(t *testing.T) {
	t.Parallel()
	s := serve(t)
	s.POST("/x", func(*gin.Context) { t.Error("the handler ran") })
	a := s.post(t, "/x", "X-Keeper", "answer")
	a.want(t, http.StatusConflict, "not now")
	if a.Header.Get("X-By") != "keeper" {
		t.Errorf("headers %v", a.Header)
	}
	a = s.post(t, "/x", "X-Keeper", "answer briefly")
	a.want(t, http.StatusNoContent, "")
}

func TestAnswersGoThroughTheMiddleware(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		handler gin.HandlerFunc
		status  int
		body    string
	}{
		"JSON":   {func(c *gin.Context) { c.JSON(http.StatusCreated, gin.H{"a": 1}) }, http.StatusCreated, `{"a":1}`},
		"string": {func(c *gin.Context) { c.String(http.StatusAccepted, "x") }, http.StatusAccepted, "x"},
		"status": {func(c *gin.Context) { c.Status(http.StatusNoContent) }, http.StatusNoContent, ""},
		"status that is changed": {func(c *gin.Context) {
			c.Status(http.StatusNoContent)
			c.Status(http.StatusAccepted)
		}, http.StatusAccepted, ""},
		"nothing":         {func(*gin.Context) {}, http.StatusOK, ""},
		"bare body":       {func(c *gin.Context) { io.WriteString(c.Writer, "bare") }, http.StatusOK, "bare"},
		"redirect":        {func(c *gin.Context) { c.Redirect(http.StatusSeeOther, "/y") }, http.StatusSeeOther, ""},
		"abort":           {func(c *gin.Context) { c.AbortWithStatus(http.StatusForbidden) }, http.StatusForbidden, ""},
		"abort with JSON": {func(c *gin.Context) { c.AbortWithStatusJSON(http.StatusTeapot, gin.H{"b": 2}) }, http.StatusTeapot, `{"b":2}`},
		"abort with error": {func(c *gin.Context) {
			c.AbortWithError(http.StatusPaymentRequired, errors.New("no money"))
		}, http.StatusPaymentRequired, ""},
		"failure with a status": {func(c *gin.Context) {
			c.Error(errors.New("a remark"))
			c.Status(http.StatusOK)
		}, http.StatusOK, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := serve(t)
			s.client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
			s.POST("/x", func(c *gin.Context) {
				c.Header("X-Handler", "h")
				tt.handler(c)
			})
			a := s.post(t, "/x")
			a.want(t, tt.status, tt.body)
			if kept := s.want(t, tt.status, tt.body); kept.header.Get("X-Handler") != "h" || a.Header.Get("X-Handler") != "h" {
				t.Errorf("the handler's header: kept %q, received %q", kept.header.Get("X-Handler"), a.Header.Get("X-Handler"))
			}
		})
	}
}

func TestAStatusSetOutsideIsTheHandlersDefault(t *testing.T) {
	t.Parallel()
	s := serve(t, func(c *gin.Context) { c.Status(http.StatusAccepted) })
	s.POST("/x", func(*gin.Context) {})
	s.post(t, "/x").want(t, http.StatusAccepted, "")
	s.want(t, http.StatusAccepted, "")
}

func TestUnmatchedRoutesAreAnsweredWithin(t *testing.T) {
	t.Parallel()
	s := serve(t)
	s.GET("/get", func(*gin.Context) {})
	a := s.post(t, "/nowhere")
	a.want(t, http.StatusNotFound, "404 page not found")
	if a.Header.Get("Content-Type") != "text/plain" {
		t.Errorf("Content-Type %q, want gin's", a.Header.Get("Content-Type"))
	}
	s.want(t, http.StatusNotFound, "404 page not found")
	s.post(t, "/get").want(t, http.StatusMethodNotAllowed, "405 method not allowed")
	s.want(t, http.StatusMethodNotAllowed, "405 method not allowed")
	s.post(t, "/nowhere", "X-Keeper", "pass").want(t, http.StatusNotFound, "404 page not found")
	s.post(t, "/nowhere", "X-Keeper", "answer briefly").want(t, http.StatusNoContent, "")

	s.NoRoute(func(c *gin.Context) { c.JSON(http.StatusNotFound, "none") })
	s.post(t, "/nowhere").want(t, http.StatusNotFound, `"none"`)
	s.want(t, http.StatusNotFound, `"none"`)
}

func TestTheHandlerSeesTheRequestPassedOn(t *testing.T) {
	t.Parallel()
	after := make(chan bool, 1)
	s := serve(t, func(c *gin.Context) {
		w, r := c.Writer, c.Request
		c.Next()
		after <- c.Writer == w && c.Request == r
	})
	s.POST("/x/:id", func(c *gin.Context) {
		body, _ := c.GetRawData()
		c.String(http.StatusOK, "%s %s %s", c.Param("id"), c.Request.Context().Value(passedKey{}), body)
	})
	s.post(t, "/x/7").want(t, http.StatusOK, "7 passed on body read")
	if !<-after {
		t.Error("the writer or the request was not put back")
	}
}

func TestAPassedOnWriterOfGinsStaysGins(t *testing.T) {
	t.Parallel()
	s := serve(t, func(c *gin.Context) {
		c.Next()
		if !c.Writer.Written() {
			c.String(http.StatusOK, "said outside")
		}
	})
	s.POST("/x", func(*gin.Context) {})
	s.post(t, "/x", "X-Keeper", "pass").want(t, http.StatusOK, "said outside")
}

func TestPanicsGoOn(t *testing.T) {
	t.Parallel()
	s := serve(t, gin.CustomRecoveryWithWriter(nil, func(c *gin.Context, err any) {
		c.String(http.StatusInternalServerError, "recovered %v", err)
	}))
	s.POST("/x", func(c *gin.Context) {
		c.Status(http.StatusCreated)
		panic("p")
	})
	s.post(t, "/x").want(t, http.StatusInternalServerError, "recovered p")
	if !s.want(t, 0, "").panicked {
		t.Error("the middleware saw no panic")
	}
}

func TestAPanicEndsTheChain(t *testing.T) {
	t.Parallel()
	s := serve(t, gin.CustomRecoveryWithWriter(nil, func(c *gin.Context, _ any) { c.Status(http.StatusInternalServerError) }))
	s.POST("/x", func(*gin.Context) { panic("p") }, func(*gin.Context) { t.Error("the next handler ran") })
	s.post(t, "/x").want(t, http.StatusInternalServerError, "")
}

func TestRecoveryWithinIsSeen(t *testing.T) {
	t.Parallel()
	s := serve(t)
	s.POST("/x", gin.RecoveryWithWriter(nil), func(*gin.Context) { panic("p") })
	s.post(t, "/x").want(t, http.StatusInternalServerError, "")
	s.want(t, http.StatusInternalServerError, "")
}

// errorsAsJSON is error middleware as gin's documentation has it.
func errorsAsJSON(c *gin.Context) {
	c.Next()
	if err := c.Errors.Last(); err != nil {
		c.JSON(http.StatusConflict, err.Error())
	}
}

func TestErrorMiddlewareWithinIsSeen(t *testing.T) {
	t.Parallel()
	s := serve(t)
	s.Use(errorsAsJSON)
	s.POST("/x", func(c *gin.Context) { c.Error(errors.New("e")) })
	s.post(t, "/x").want(t, http.StatusConflict, `"e"`)
	s.want(t, http.StatusConflict, `"e"`)
}

func TestErrorMiddlewareOutsideStillAnswers(t *testing.T) {
	t.Parallel()
	s := serve(t, errorsAsJSON)
	s.POST("/x", func(c *gin.Context) {
		c.Header("X-Handler", "h")
		c.Error(errors.New("e"))
	})
	a := s.post(t, "/x")
	a.want(t, http.StatusConflict, `"e"`)
	if a.Header.Get("X-Handler") != "h" {
		t.Error("the handler's header is lost")
	}
	s.want(t, http.StatusInternalServerError, "")
}

func TestAnErrorThatNobodyAnswersIsA500(t *testing.T) {
	t.Parallel()
	s := serve(t)
	s.POST("/x", func(c *gin.Context) { c.Error(errors.New("e")) })
	s.post(t, "/x").want(t, http.StatusInternalServerError, "")
	s.want(t, http.StatusInternalServerError, "")
}

// A client that is gone is a context that is cancelled, and no server is needed.
func TestSilenceOfACancelledHandlerIsSeen(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		handler gin.HandlerFunc
		status  int
	}{
		"silent":         {func(*gin.Context) {}, 0},
		"error":          {func(c *gin.Context) { c.Error(c.Request.Context().Err()) }, 0},
		"status":         {func(c *gin.Context) { c.Status(http.StatusNoContent) }, http.StatusNoContent},
		"default status": {func(c *gin.Context) { c.Status(http.StatusOK) }, http.StatusOK},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithCancel(t.Context())
			k, r := newKeeper(), gin.New()
			r.POST("/x", ginidem.Middleware(k.Middleware), func(*gin.Context) { cancel() }, tt.handler)
			w := httptest.NewRecorder()
			r.ServeHTTP(w, httptest.NewRequestWithContext(ctx, http.MethodPost, "/x", nil))
			k.want(t, tt.status, "")
			if tt.status == 0 && w.Code != http.StatusServiceUnavailable {
				t.Errorf("answer %d, want the middleware's own", w.Code)
			}
		})
	}
}

func TestLoggersSeeStatusAndSize(t *testing.T) {
	t.Parallel()
	seen := make(chan string, 2)
	logger := func(c *gin.Context) {
		c.Next()
		seen <- fmt.Sprint(c.Writer.Status(), c.Writer.Size(), c.Writer.Written())
	}
	s := serve(t, logger)
	s.POST("/body", logger, func(c *gin.Context) { c.String(http.StatusCreated, "four") })
	s.POST("/none", logger, func(c *gin.Context) { c.Status(http.StatusNoContent) })
	s.post(t, "/body").want(t, http.StatusCreated, "four")
	within, outside := <-seen, <-seen
	if within != "201 4 true" || outside != "201 4 true" {
		t.Errorf("seen %q within and %q outside", within, outside)
	}
	s.post(t, "/none").want(t, http.StatusNoContent, "")
	within, outside = <-seen, <-seen
	if within != "204 -1 false" || outside != "204 0 true" {
		t.Errorf("seen %q within and %q outside", within, outside)
	}
	s.post(t, "/body", "X-Keeper", "answer").want(t, http.StatusConflict, "not now")
	if outside = <-seen; outside != "409 7 true" {
		t.Errorf("seen %q outside", outside)
	}
}

func TestAnswersThatGoPastTheMiddlewareAreNoOutcome(t *testing.T) {
	t.Parallel()
	said := make(chan any, 1)
	s := serve(t, gin.CustomRecoveryWithWriter(nil, func(_ *gin.Context, err any) { said <- err }))
	s.POST("/x", func(c *gin.Context) {
		if c.Request.Header.Get("X-Keeper") == "" {
			c.Request.Header.Set("X-Keeper", "pass")
			c.Request.URL.Path = "/y"
			s.HandleContext(c)
		}
	})
	s.POST("/y", func(c *gin.Context) { c.String(http.StatusOK, "y") })
	s.post(t, "/x").want(t, http.StatusOK, "y")
	if !s.want(t, 0, "").panicked {
		t.Error("the middleware saw no panic")
	}
	<-said
}

// Recovery that does not abort lets gin go on in the chain.
func TestAForeignContextIsRefused(t *testing.T) {
	t.Parallel()
	said := make(chan any, 1)
	r := gin.New()
	r.Use(gin.CustomRecoveryWithWriter(nil, func(_ *gin.Context, err any) { said <- err }))
	r.Use(ginidem.Middleware(func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			next.ServeHTTP(w, r.WithContext(context.Background()))
		})
	}))
	r.POST("/x", func(*gin.Context) { t.Error("the handler ran") })
	r.ServeHTTP(httptest.NewRecorder(), httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/x", nil))
	if err := <-said; err == nil {
		t.Error("no panic")
	}
}

func TestTwoMiddlewaresAndManyRequestsDoNotMix(t *testing.T) {
	t.Parallel()
	s := serve(t)
	second := newKeeper()
	s.POST("/x/:id", ginidem.Middleware(second.Middleware), func(c *gin.Context) {
		c.String(http.StatusOK, c.Param("id"))
	})
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

func TestInformationalAnswersDecideNothing(t *testing.T) {
	t.Parallel()
	r := gin.New()
	r.Use(ginidem.Middleware(func(http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusEarlyHints)
			w.WriteHeader(http.StatusAccepted)
		})
	}))
	r.POST("/x", func(*gin.Context) { t.Error("the handler ran") })
	w := httptest.NewRecorder()
	r.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/x", nil))
	if w.Code != http.StatusAccepted {
		t.Errorf("answer %d, want %d", w.Code, http.StatusAccepted)
	}
}

// lateWriter is gin middleware that changes its mind about a header at the first byte of
// the body, as compression does.
type lateWriter struct{ gin.ResponseWriter }

func (w lateWriter) Write(p []byte) (int, error) {
	if !w.Written() {
		w.Header().Del("Content-Encoding")
	}
	return w.ResponseWriter.Write(p)
}

func (w lateWriter) WriteString(s string) (int, error) { return w.Write([]byte(s)) }

func TestMiddlewareOutsideSeesTheFirstByteFirst(t *testing.T) {
	t.Parallel()
	s := serve(t, func(c *gin.Context) {
		c.Header("Content-Encoding", "made-up")
		c.Writer = lateWriter{c.Writer}
	})
	s.POST("/x", func(c *gin.Context) { c.String(http.StatusPaymentRequired, "no money") })
	for range 2 {
		a := s.post(t, "/x")
		a.want(t, http.StatusPaymentRequired, "no money")
		if a.Header.Get("Content-Encoding") != "" {
			t.Errorf("headers %v", a.Header)
		}
	}
}
