package pgtest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
)

const (
	// superuser is the role that the URL of a cluster or container names.
	superuser = "postgres"

	defaultImage = "docker.io/library/postgres:17-alpine"
)

// container is a server in a container, held by the command line of an engine.
type container struct {
	engine   string // docker or podman
	image    string
	name     string
	password string
	address  string // host:port
	version  string
	major    int
	spec     spec
}

// startContainer starts a server by the first container engine that runs.
func startContainer(ctx context.Context, s spec, log logf) (backend, error) {
	image := s.Env.Image
	if image == "" {
		image = defaultImage
	}
	var tried []error
	for _, engine := range []string{"docker", "podman"} {
		if err := engineRuns(ctx, engine); err != nil {
			tried = append(tried, err)
			continue
		}
		c := &container{engine: engine, image: image, name: "pgidem-pgtest-" + randomHex(6), password: randomHex(16), spec: s}
		err := c.start(ctx, log)
		if err == nil {
			log("using %s", c.info().Source)
			return c, nil
		}
		err = errors.Join(fmt.Errorf("%s with %s: %w", image, engine, err), c.stop())
		log("%v", err)
		tried = append(tried, err)
		if ctx.Err() != nil {
			break
		}
	}
	return nil, errors.Join(tried...)
}

// engineRuns asks the engine's service for an answer; the command alone may be
// installed without it.
func engineRuns(ctx context.Context, engine string) error {
	if _, err := exec.LookPath(engine); err != nil {
		return fmt.Errorf("%s is not installed", engine)
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, engine, "info")
	cmd.WaitDelay = time.Second
	out, err := cmd.CombinedOutput()
	switch {
	case ctx.Err() != nil:
		return fmt.Errorf("%s info gives no answer", engine)
	case err != nil:
		return fmt.Errorf("%s does not run: %s", engine, lastLine(string(out)))
	}
	return nil
}

func (c *container) start(ctx context.Context, log logf) error {
	if _, err := c.command(ctx, 30*time.Second, "image", "inspect", c.image); err != nil {
		log("pulling %s with %s", c.image, c.engine)
		if _, err := c.command(ctx, 10*time.Minute, "pull", "--quiet", c.image); err != nil {
			return err
		}
	}
	// From here on the engine is not interrupted: it would go on by itself and
	// finish the container after it was removed.
	run := []string{
		"run", "--detach", "--rm", "--name", c.name, "--publish", "127.0.0.1::5432", "--shm-size", "256m",
		"--env", "POSTGRES_PASSWORD", "--env", "POSTGRES_INITDB_ARGS=--encoding=UTF8 --no-locale",
		c.image, "postgres",
	}
	for _, p := range c.spec.parameters() {
		run = append(run, "-c", p.Name+"="+p.Value)
	}
	if _, err := c.command(context.WithoutCancel(ctx), 2*time.Minute, run...); err != nil {
		return err
	}
	ports, err := c.command(ctx, 30*time.Second, "port", c.name, "5432/tcp")
	if err != nil {
		return err
	}
	_, port, err := net.SplitHostPort(firstLine(ports))
	if err != nil {
		return fmt.Errorf("%s port: %w", c.engine, err)
	}
	c.address = net.JoinHostPort("127.0.0.1", port)
	return c.wait(ctx)
}

// wait waits until the server is there to stay: an image starts one for its
// initialisation and another one afterwards.
func (c *container) wait(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	var logs string
	var seen time.Time
	for tick := 0; ; tick++ {
		started, err := c.ask(ctx)
		if err == nil && started.Equal(seen) {
			return nil
		}
		seen = started
		if err != nil && tick%4 == 0 {
			out, said, logErr := c.output(context.WithoutCancel(ctx), 10*time.Second, "logs", "--tail", "6", c.name)
			if logErr != nil && ctx.Err() == nil {
				return fmt.Errorf("the container ended: %w: %s", logErr, lastLines(logs))
			}
			logs = out + said // PostgreSQL logs to its standard error
		}
		if ctx.Err() != nil {
			return fmt.Errorf("no connection to %s (%w): %s", c.address, err, lastLines(logs))
		}
		pause(ctx, 250*time.Millisecond)
	}
}

// ask connects and returns when the server was started.
func (c *container) ask(ctx context.Context) (started time.Time, err error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	conn, err := pgx.Connect(ctx, c.url())
	if err != nil {
		return time.Time{}, err
	}
	defer func() { _ = conn.Close(ctx) }()
	err = conn.QueryRow(ctx, `
SELECT pg_catalog.pg_postmaster_start_time(),
       pg_catalog.current_setting('server_version'),
       pg_catalog.current_setting('server_version_num')::int / 10000`).Scan(&started, &c.version, &c.major)
	return started, err
}

func (c *container) url() string {
	u := url.URL{
		Scheme:   "postgres",
		User:     url.UserPassword(superuser, c.password),
		Host:     c.address,
		Path:     "/postgres",
		RawQuery: "sslmode=disable",
	}
	return u.String()
}

func (c *container) info() serverInfo {
	return serverInfo{
		URL:    c.url(),
		Source: fmt.Sprintf("PostgreSQL %s of %s, %s container %s", c.version, c.image, c.engine, c.name),
		Create: c.spec.createOptions(c.major),
	}
}

// stop removes the container and its volume, at whatever stage it is.
func (c *container) stop() error {
	_, err := c.command(context.Background(), time.Minute, "rm", "--force", "--volumes", c.name)
	if err == nil {
		return nil
	}
	left, listErr := c.command(context.Background(), 30*time.Second, "ps", "--all", "--quiet", "--filter", "name="+c.name)
	if listErr == nil && strings.TrimSpace(left) == "" {
		return nil // it never came to be, or it ended and --rm took it
	}
	return err
}

// command runs the engine's command and returns what it printed; what it said
// beside that, such as a greeting of podman's stand-in for docker, is no answer.
func (c *container) command(ctx context.Context, limit time.Duration, args ...string) (string, error) {
	stdout, _, err := c.output(ctx, limit, args...)
	return stdout, err
}

// output is command with both of its outputs.
func (c *container) output(ctx context.Context, limit time.Duration, args ...string) (stdout, stderr string, err error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, c.engine, args...)
	cmd.Env = append(os.Environ(), "POSTGRES_PASSWORD="+c.password) // not for all to see in a list of processes
	cmd.WaitDelay = time.Second
	var out, said strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &said
	err = cmd.Run()
	if ctx.Err() != nil {
		err = ctx.Err()
	}
	if err != nil {
		reason := said.String()
		if strings.TrimSpace(reason) == "" {
			reason = out.String()
		}
		err = fmt.Errorf("%s %s: %w: %s", c.engine, args[0], err, lastLines(reason))
	}
	return out.String(), said.String(), err
}
