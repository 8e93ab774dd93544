//go:build unix

package pgtest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
)

// cluster is a throw-away cluster: one folder, which holds the data, the socket
// and the log and is all that there is of it on disk.
type cluster struct {
	bin      binaries
	as       *account
	folder   string
	spec     spec
	port     int
	password string

	postmaster *postmaster // nil before the first start
}

// startLocal makes a cluster from the server binaries on this machine.
func startLocal(ctx context.Context, s spec, log logf) (backend, error) {
	as, err := serverAccount()
	if err != nil {
		return nil, err
	}
	candidates, err := findBinaries(ctx, as, s.Env.BinDir, log)
	if err != nil {
		return nil, err
	}
	var tried []error
	for _, bin := range candidates {
		c, err := newCluster(ctx, bin, as, s)
		if err == nil {
			log("using %s", c.info().Source)
			return c, nil
		}
		err = fmt.Errorf("a cluster of %s: %w", bin.folder, err)
		tried = append(tried, err)
		if ctx.Err() != nil {
			break
		}
		log("%v", err)
	}
	return nil, errors.Join(tried...)
}

func newCluster(ctx context.Context, bin binaries, as *account, s spec) (_ *cluster, err error) {
	folder, err := as.makeFolder()
	if err != nil {
		return nil, err
	}
	c := &cluster{bin: bin, as: as, folder: folder, spec: s, port: 5432, password: randomHex(16)}
	defer func() {
		if err != nil {
			err = errors.Join(err, c.stop())
		}
	}()
	if err := c.initdb(ctx); err != nil {
		return nil, err
	}
	for try := 1; ; try++ {
		if err := c.configure(); err != nil {
			return nil, err
		}
		err := c.start(ctx)
		// Between the choice of a port and its use, another process may have
		// taken it.
		if err == nil || !s.TCP || ctx.Err() != nil || try == 3 {
			return c, err
		}
	}
}

func (c *cluster) initdb(ctx context.Context) error {
	passwordFile := filepath.Join(c.folder, "password")
	if err := os.WriteFile(passwordFile, []byte(c.password+"\n"), 0o600); err != nil {
		return err
	}
	defer func() { _ = os.Remove(passwordFile) }()
	if err := os.Chown(passwordFile, c.as.uid, c.as.gid); err != nil {
		return err
	}
	// The local socket needs no password: only the account can enter the folder.
	cmd := exec.CommandContext(ctx, c.bin.path("initdb"),
		"--pgdata", c.data(), "--username", superuser, "--pwfile", passwordFile,
		"--auth-local", "trust", "--auth-host", "scram-sha-256",
		"--encoding", "UTF8", "--no-locale", "--no-sync", "--no-instructions")
	cmd.Dir = c.folder
	cmd.Env = serverEnviron()
	cmd.SysProcAttr = c.as.attributes()
	// initdb has children; with it, all of its group ends.
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = 5 * time.Second
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("initdb: %w: %s", err, lastLines(string(out)))
	}
	return nil
}

// configure appends the settings to postgresql.conf, where of several lines for
// one parameter the last one holds.
func (c *cluster) configure() error {
	params := []parameter{{"listen_addresses", ""}}
	if c.spec.TCP {
		port, err := freePort()
		if err != nil {
			return err
		}
		c.port = port
		params = []parameter{{"listen_addresses", "127.0.0.1"}}
	}
	params = append(params, c.spec.parameters()...)
	params = append(params, parameter{"port", strconv.Itoa(c.port)}, parameter{"unix_socket_directories", c.folder})
	var conf strings.Builder
	for _, p := range params {
		fmt.Fprintf(&conf, "%s = '%s'\n", p.Name, strings.ReplaceAll(p.Value, "'", "''"))
	}
	f, err := os.OpenFile(filepath.Join(c.data(), "postgresql.conf"), os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(conf.String())
	return errors.Join(err, f.Close())
}

func freePort() (int, error) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	return l.Addr().(*net.TCPAddr).Port, l.Close()
}

func (c *cluster) data() string { return filepath.Join(c.folder, "data") }

// start starts the postmaster and waits until it takes connections. After an
// error the postmaster is gone.
func (c *cluster) start(ctx context.Context) error {
	p, err := startPostmaster(c)
	if err != nil {
		return err
	}
	c.postmaster = p
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for {
		err := ping(ctx, c.url())
		if err == nil {
			return nil
		}
		select {
		case <-p.ended:
			return fmt.Errorf("the server ended: %w: %s", p.err, c.logTail())
		case <-ctx.Done():
			c.halt(syscall.SIGQUIT)
			return fmt.Errorf("the server takes no connections (%w): %s", err, c.logTail())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// ping connects once, to see whether the server lets clients in.
func ping(ctx context.Context, url string) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return err
	}
	return conn.Close(ctx)
}

func (c *cluster) url() string {
	u := url.URL{Scheme: "postgres", User: url.User(superuser), Path: "/postgres"}
	query := url.Values{"sslmode": {"disable"}}
	if c.spec.TCP {
		u.User = url.UserPassword(superuser, c.password)
		u.Host = net.JoinHostPort("127.0.0.1", strconv.Itoa(c.port))
	} else {
		query.Set("host", c.folder)
		query.Set("port", strconv.Itoa(c.port))
	}
	u.RawQuery = query.Encode()
	return u.String()
}

func (c *cluster) info() serverInfo {
	return serverInfo{
		URL:    c.url(),
		Source: fmt.Sprintf("PostgreSQL %s of %s, a throw-away cluster in %s", c.bin.version, c.bin.folder, c.folder),
		Create: c.spec.createOptions(c.bin.major),
	}
}

func (c *cluster) restart(ctx context.Context) error {
	c.halt(syscall.SIGINT)
	return c.start(ctx)
}

func (c *cluster) kill() error {
	if c.postmaster == nil || c.postmaster.isOver() {
		return errors.New("the server is not running")
	}
	return c.postmaster.kill()
}

// halt ends the postmaster if it runs: by the signal, and by SIGKILL when that
// takes too long.
func (c *cluster) halt(sig syscall.Signal) {
	if c.postmaster == nil || c.postmaster.isOver() {
		return
	}
	_ = c.postmaster.cmd.Process.Signal(sig)
	select {
	case <-c.postmaster.ended:
	case <-time.After(20 * time.Second):
		_ = c.postmaster.kill()
	}
}

// stop ends the server, without the checkpoint that would save data for later,
// and removes the folder.
func (c *cluster) stop() error {
	c.halt(syscall.SIGQUIT)
	if _, err := os.Stat(filepath.Join(c.data(), "postmaster.pid")); err == nil {
		c.recover()
	}
	return os.RemoveAll(c.folder)
}

// recover runs the cluster for a moment without taking connections. A server
// that was killed leaves, beside its pid file, a System V shared memory segment
// behind which outlives the folder; the next one to start on the data removes
// it. Where the data are beyond recovery, the segment (56 bytes) stays.
func (c *cluster) recover() {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, c.bin.path("postgres"), "--single", "-D", c.data(), "postgres")
	cmd.Dir = c.folder
	cmd.Env = serverEnviron()
	cmd.SysProcAttr = c.as.attributes()
	_ = cmd.Run()
}

func (c *cluster) logFile() string { return filepath.Join(c.folder, "log") }

func (c *cluster) logTail() string {
	log, err := os.ReadFile(c.logFile())
	if err != nil {
		return err.Error()
	}
	return lastLines(string(log))
}
