package pgtest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"sync"
	"syscall"
)

// init turns the process into a supervisor when it was started as one. It has
// to be here: the program's main, or testing's, must not run.
func init() {
	if os.Getenv(supervisorEnv) == "" {
		return
	}
	_ = os.Unsetenv(supervisorEnv)
	if err := supervise(os.Stdin, os.Stdout); err != nil {
		os.Exit(1)
	}
	os.Exit(0)
}

// backend is one server in the hands of its supervisor.
type backend interface {
	info() serverInfo
	stop() error
}

// crashable is a backend that can be killed and brought back.
type crashable interface {
	kill() error
	restart(ctx context.Context) error
}

// supervise serves requests from in until it ends or a signal comes, and then
// cleans up. It must be called by the goroutine of the main thread: the kernel
// ends a postmaster along with the thread that started it.
func supervise(in io.Reader, out io.Writer) (err error) {
	// Told of broken pipes, the runtime does not end the process when it
	// writes to a process that is gone.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer cancel()
	up := &uplink{out: json.NewEncoder(out)}

	var server backend
	defer func() {
		if server != nil {
			err = server.stop()
		}
		up.send(message{Pgtest: kindEnd, Text: errorText(err)})
	}()

	requests := make(chan request)
	go func() {
		defer cancel() // the end of the input ends a request under way
		defer close(requests)
		for dec := json.NewDecoder(in); ; {
			var req request
			if dec.Decode(&req) != nil {
				return
			}
			requests <- req
		}
	}()
	for {
		var req request
		select {
		case <-ctx.Done():
			return nil
		case req = <-requests:
		}
		var info serverInfo
		var err error
		switch req.Op {
		case opStart:
			if server, err = choose(ctx, req.Spec, req.Run, up.log); err == nil {
				info = server.info()
			}
		case opKill, opRestart:
			err = crash(ctx, server, req.Op)
		}
		up.send(message{Pgtest: kindReply, Text: errorText(err), Server: info})
	}
}

func crash(ctx context.Context, server backend, op string) error {
	c, ok := server.(crashable)
	switch {
	case !ok:
		return errors.New("only a throw-away cluster of server binaries can do that")
	case op == opKill:
		return c.kill()
	default:
		return c.restart(ctx)
	}
}

// uplink sends messages to the process. One that is gone hears nothing.
type uplink struct {
	mu  sync.Mutex
	out *json.Encoder
}

func (u *uplink) send(msg message) {
	u.mu.Lock()
	defer u.mu.Unlock()
	_ = u.out.Encode(msg)
}

func (u *uplink) log(format string, args ...any) {
	u.send(message{Pgtest: kindLog, Text: fmt.Sprintf(format, args...)})
}

func errorText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}
