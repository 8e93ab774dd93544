package ginidem_test

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/gin-gonic/gin"

	ginidem "github.com/pgidem/pgidem/adapters/gin"
)

func TestStreamsGoThroughTheMiddleware(t *testing.T) {
	t.Parallel()
	s := serve(t)
	s.POST("/x", func(c *gin.Context) {
		n := 0
		c.Stream(func(io.Writer) bool {
			n++
			c.SSEvent("tick", n)
			return n < 2
		})
	})
	const events = "event:tick\ndata:1\n\nevent:tick\ndata:2\n\n"
	s.post(t, "/x").want(t, http.StatusOK, events)
	if !s.want(t, http.StatusOK, events).sent {
		t.Error("the middleware saw no flush")
	}
}

func TestAFlushSendsWhatThereIs(t *testing.T) {
	t.Parallel()
	s := serve(t)
	read := make(chan bool)
	s.POST("/x", func(c *gin.Context) {
		c.Status(http.StatusAccepted)
		if err := http.NewResponseController(c.Writer).Flush(); err != nil {
			t.Error(err)
		}
		<-read
		c.Writer.WriteString("rest")
	})
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, s.url+"/x", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := s.client.Do(r) // the header is here before the handler has returned
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	close(read)
	if body, _ := io.ReadAll(resp.Body); resp.StatusCode != http.StatusAccepted || string(body) != "rest" {
		t.Errorf("answer %d %q", resp.StatusCode, body)
	}
}

func TestAFlushTellsItsError(t *testing.T) {
	t.Parallel()
	s := serve(t)
	s.POST("/x", func(c *gin.Context) {
		c.Header("X-Broken", "yes")
		if err := http.NewResponseController(c.Writer).Flush(); !errors.Is(err, errBroken) {
			t.Errorf("flush: %v, want the error of the middleware's writer", err)
		}
	})
	s.post(t, "/x")
}

func TestDeadlinesReachTheConnection(t *testing.T) {
	t.Parallel()
	s := serve(t)
	s.POST("/x", func(c *gin.Context) {
		if err := http.NewResponseController(c.Writer).SetWriteDeadline(time.Now().Add(time.Hour)); err != nil {
			t.Error(err)
		}
	})
	s.post(t, "/x").want(t, http.StatusOK, "")
}

func TestAHijackIsSeen(t *testing.T) {
	t.Parallel()
	s := serve(t)
	s.POST("/x", func(c *gin.Context) {
		conn, rw, err := c.Writer.Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close()
		rw.WriteString("HTTP/1.1 202 Accepted\r\nContent-Length: 3\r\nConnection: close\r\n\r\nraw")
		rw.Flush()
		if !c.Writer.Written() {
			t.Error("after a hijack nothing counts as written")
		}
	})
	s.post(t, "/x").want(t, http.StatusAccepted, "raw")
	if !s.want(t, 0, "").hijacked {
		t.Error("the middleware saw no hijack")
	}
}

func TestAHijackAfterTheBodyIsRefused(t *testing.T) {
	t.Parallel()
	s := serve(t)
	s.POST("/x", func(c *gin.Context) {
		c.String(http.StatusOK, "body")
		if _, _, err := c.Writer.Hijack(); err == nil {
			t.Error("hijacked after a part of the body")
		}
	})
	s.post(t, "/x").want(t, http.StatusOK, "body")
}

func TestCloseNotifyFollowsTheContextPassedOn(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	r := gin.New()
	r.POST("/x", ginidem.Middleware(newKeeper().Middleware), func(c *gin.Context) {
		gone := c.Writer.CloseNotify()
		select {
		case <-gone:
			t.Error("gone too early")
		default:
		}
		cancel()
		select {
		case <-gone:
		case <-time.After(10 * time.Second):
			t.Error("a cancelled context is not told")
		}
	})
	r.ServeHTTP(httptest.NewRecorder(), httptest.NewRequestWithContext(ctx, http.MethodPost, "/x", nil))
}

// pushing is the writer of a connection that takes pushes.
type pushing struct {
	*httptest.ResponseRecorder
	pushed string
}

func (p *pushing) Push(target string, _ *http.PushOptions) error {
	p.pushed = target
	return nil
}

func TestPushesReachTheConnection(t *testing.T) {
	t.Parallel()
	for name, outside := range map[string]gin.HandlerFunc{
		"gin's writer":    func(*gin.Context) {},
		"around gin's":    func(c *gin.Context) { c.Writer = struct{ gin.ResponseWriter }{c.Writer} },
		"of an adapter's": ginidem.Middleware(newKeeper().Middleware),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := gin.New()
			r.POST("/x", outside, ginidem.Middleware(newKeeper().Middleware), func(c *gin.Context) {
				if p := c.Writer.Pusher(); p != nil {
					p.Push("/style.css", nil)
				}
			})
			w := &pushing{ResponseRecorder: httptest.NewRecorder()}
			r.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/x", nil))
			if w.pushed != "/style.css" {
				t.Errorf("pushed %q", w.pushed)
			}
			// Without a pusher there is none, and no panic.
			r.ServeHTTP(httptest.NewRecorder(), httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/x", nil))
		})
	}
}
