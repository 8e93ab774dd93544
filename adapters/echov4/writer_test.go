package echov4idem_test

import (
	"errors"
	"io"
	"net/http"
	"testing"
	"time"

	"github.com/labstack/echo/v4"
)

func TestAFlushSendsWhatThereIs(t *testing.T) {
	t.Parallel()
	s := serve(t)
	read := make(chan bool)
	s.POST("/x", func(c echo.Context) error {
		c.Response().WriteHeader(http.StatusAccepted)
		c.Response().Flush()
		<-read
		_, err := io.WriteString(c.Response(), "rest")
		return err
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
	if !s.want(t, http.StatusAccepted, "rest").sent {
		t.Error("the middleware saw no flush")
	}
}

func TestStreamsGoThroughTheMiddleware(t *testing.T) {
	t.Parallel()
	s := serve(t)
	s.POST("/x", func(c echo.Context) error {
		for range 2 {
			io.WriteString(c.Response(), "tick ")
			if err := http.NewResponseController(c.Response()).Flush(); err != nil {
				return err
			}
		}
		return errors.New("too late to say so")
	})
	s.post(t, "/x").want(t, http.StatusOK, "tick tick ")
	if !s.want(t, http.StatusOK, "tick tick ").sent {
		t.Error("the middleware saw no flush")
	}
}

func TestDeadlinesReachTheConnection(t *testing.T) {
	t.Parallel()
	s := serve(t)
	s.POST("/x", func(c echo.Context) error {
		return http.NewResponseController(c.Response()).SetWriteDeadline(time.Now().Add(time.Hour))
	})
	s.post(t, "/x").want(t, http.StatusOK, "")
}

func TestAHijackIsSeen(t *testing.T) {
	t.Parallel()
	s := serve(t)
	s.POST("/x", func(c echo.Context) error {
		conn, rw, err := c.Response().Hijack()
		if err != nil {
			return err
		}
		defer conn.Close()
		rw.WriteString("HTTP/1.1 202 Accepted\r\nContent-Length: 3\r\nConnection: close\r\n\r\nraw")
		return rw.Flush()
	})
	s.post(t, "/x").want(t, http.StatusAccepted, "raw")
	if !s.want(t, 0, "").hijacked {
		t.Error("the middleware saw no hijack")
	}
}
