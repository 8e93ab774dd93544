package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/pgidem/pgidem/internal/pgtest"
	"github.com/pgidem/pgidem/migrations"
	"github.com/pgidem/pgidem/tenancy"
)

// bench is what all measurements of a run share.
type bench struct {
	settings
	pgbench     string
	databaseURL string
	conn        *pgx.Conn // for looking
	postmaster  int
	looks       int // transactions that looking has committed
	orgs        []uuid.UUID
	service     *exec.Cmd
	hold        io.Closer // its standard input, whose end ends it
	address     string
	filled      map[string]bool // paths whose replays have their records
}

// run measures every work in every round and prints the medians.
func run(ctx context.Context, s settings) (err error) {
	b := &bench{settings: s, filled: make(map[string]bool)}
	if b.pgbench, err = findPgbench(); err != nil {
		return err
	}
	server, err := pgtest.Start(ctx, pgtest.WithDurable())
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, server.Stop()) }()
	if err := b.prepare(ctx, server); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.conn.Close(context.WithoutCancel(ctx))) }()
	if err := b.start(ctx); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.stop()) }()

	seen := make(map[string][]result)
	for round := range s.rounds {
		for _, w := range s.works {
			fmt.Fprintf(os.Stderr, "\rround %d of %d: %-20s", round+1, s.rounds, w.name)
			measure := load
			if w.script != "" {
				measure = pgbench
			}
			res, err := b.profiled(ctx, w, func() (result, error) { return measure(ctx, b, w) })
			if err != nil {
				return err
			}
			seen[w.name] = append(seen[w.name], res)
		}
	}
	fmt.Fprint(os.Stderr, "\r", strings.Repeat(" ", 50), "\r")
	medians := make(map[string]result)
	for name, results := range seen {
		medians[name] = median(results)
	}
	return b.print(os.Stdout, server.Source(), medians)
}

// prepare makes the tenants and what pgbench works on.
func (b *bench) prepare(ctx context.Context, server *pgtest.Server) error {
	url, _, err := server.CreateDatabase(ctx)
	if err != nil {
		return err
	}
	b.databaseURL = url
	if b.conn, err = pgx.Connect(ctx, url); err != nil {
		return err
	}
	if b.postmaster, err = postmasterOf(b.conn); err != nil {
		return err
	}
	if _, err := b.conn.Exec(ctx, baseTables); err != nil {
		return err
	}
	dir, err := tenancy.PerOrg("tenant_")
	if err != nil {
		return err
	}
	count := 1
	for _, w := range b.works {
		count = max(count, w.tenants)
	}
	var schemas []tenancy.Schema
	for range count {
		org := uuid.New()
		schema, err := dir.Schema(ctx, org)
		if err != nil {
			return err
		}
		b.orgs, schemas = append(b.orgs, org), append(schemas, schema)
	}
	fmt.Fprintf(os.Stderr, "migrating %d tenants\n", count)
	if _, err := migrations.All(ctx, url, migrations.Schemas(schemas...)); err != nil {
		return err
	}
	_, err = b.conn.Exec(ctx, "CREATE TABLE "+schemas[0].Quoted()+".payments (LIKE payments INCLUDING ALL)")
	return err
}

// start starts the service process.
func (b *bench) start(ctx context.Context) error {
	exe, err := os.Executable()
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, exe)
	cmd.Env = append(os.Environ(), serveEnv+"="+b.databaseURL, connsEnv+"="+strconv.Itoa(b.conns), coalesceEnv+"="+strconv.Itoa(b.few))
	cmd.Stderr = os.Stderr
	if b.hold, err = cmd.StdinPipe(); err != nil {
		return err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	b.service = cmd
	b.address, err = bufio.NewReader(out).ReadString('\n')
	b.address = strings.TrimSpace(b.address)
	if err != nil {
		return errors.Join(fmt.Errorf("the service did not say its address: %w", err), b.stop())
	}
	return nil
}

// stop ends the service process and waits until it has gone.
func (b *bench) stop() error {
	return errors.Join(b.hold.Close(), b.service.Wait())
}

// tellToReport makes the service's connections report their statistics, and returns how
// many transactions that took.
func (b *bench) tellToReport(ctx context.Context) (int, error) {
	body, err := b.ask(ctx, "/report")
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(string(body))
}

// ask asks the service for something beside the load.
func (b *bench) ask(ctx context.Context, path string) ([]byte, error) {
	client := http.Client{Timeout: 10 * time.Second}
	defer client.CloseIdleConnections()
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+b.address+path, http.NoBody)
	if err != nil {
		return nil, err
	}
	resp, err := client.Do(r)
	if err != nil {
		return nil, err
	}
	body, err := io.ReadAll(resp.Body)
	err = errors.Join(err, resp.Body.Close())
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s: %s", path, resp.Status, body)
	}
	return body, err
}

// profiled runs a measurement under the service's CPU profile, if it is asked for.
func (b *bench) profiled(ctx context.Context, w work, measure func() (result, error)) (result, error) {
	if b.profile == "" || w.script != "" {
		return measure()
	}
	if _, err := b.ask(ctx, "/profile/start"); err != nil {
		return result{}, err
	}
	res, err := measure()
	profile, stopErr := b.ask(ctx, "/profile/stop")
	if err = errors.Join(err, stopErr); err != nil {
		return result{}, err
	}
	return res, os.WriteFile(filepath.Join(b.profile, w.name+".pprof"), profile, 0o600)
}
