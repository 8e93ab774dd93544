package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgidem/pgidem/internal/pgtest"
)

// run measures every way with every number of tenants and callers.
func run(ctx context.Context, s settings) (err error) {
	url, source := s.url, "the database that was given"
	if url == "" {
		server, err := pgtest.Start(ctx, append([]pgtest.Option{pgtest.WithDurable(), pgtest.WithParameter("max_connections", "500")}, s.set...)...)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, server.Stop()) }()
		source = server.Source()
		if url, _, err = server.CreateDatabase(ctx); err != nil {
			return err
		}
	}
	if err := prepare(ctx, url, slices.Max(s.tenants)); err != nil || s.only == "prepare" {
		return err
	}
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, conn.Close(context.WithoutCancel(ctx))) }()
	catalogs, err := catalogSize(ctx, conn)
	if err != nil {
		return err
	}
	fmt.Printf("%s; %d CPUs; %d connections; medians of %d rounds of %v; catalogs of %d MiB; parameters set: %v\n\n",
		source, runtime.NumCPU(), s.conns, s.rounds, s.duration, catalogs>>20, s.params)
	for _, tenants := range s.tenants {
		if err := s.measure(ctx, conn, url, tenants); err != nil {
			return err
		}
	}
	return nil
}

// measure measures all ways with so many tenants, and prints what it saw.
func (s settings) measure(ctx context.Context, conn *pgx.Conn, url string, tenants int) (err error) {
	var running []*process
	defer func() {
		for _, p := range running {
			err = errors.Join(err, p.stop())
		}
	}()
	for _, w := range s.ways {
		p, err := s.start(ctx, w, url)
		if err != nil {
			return err
		}
		running = append(running, p)
		if _, err := p.do(order{Tenants: tenants, Callers: 16, Each: true}); err != nil {
			return err
		}
	}
	fmt.Printf(line, "tenants", "traffic", "callers", "way", "pairs/s", "ratio", "p50", "p99", "service MiB", "backend MiB", "most MiB")
	for _, traffic := range s.traffic {
		if tenants == 1 && traffic != s.traffic[0] {
			continue
		}
		for _, callers := range s.callers {
			o := order{Tenants: tenants, Callers: callers, Zipf: traffic == "zipf", Duration: s.warm}
			seen := make([][]result, len(running))
			for round := range s.rounds + 1 {
				for i, p := range running {
					res, err := p.do(o)
					if err != nil {
						return err
					}
					if round > 0 { // the first warms
						seen[i] = append(seen[i], res)
					}
				}
				o.Duration = s.duration
			}
			base := median(seen[0]).Rate
			for i, p := range running {
				m := median(seen[i])
				mean, most, err := backendMemory(ctx, conn, p.name)
				if err != nil {
					return err
				}
				fmt.Printf(line, strconv.Itoa(tenants), traffic, strconv.Itoa(callers), s.ways[i],
					fmt.Sprintf("%.0f", m.Rate), fmt.Sprintf("%.2f", m.Rate/base), m.P50.Round(10*time.Microsecond).String(), m.P99.Round(10*time.Microsecond).String(),
					strconv.FormatInt(m.Resident>>20, 10), fmt.Sprintf("%.1f", mean), fmt.Sprintf("%.1f", most))
			}
		}
	}
	return nil
}

const line = "%8s  %-8s %7s  %-22s %8s %6s %9s %9s %12s %12s %9s\n"

// median returns the figures' medians.
func median(results []result) result {
	pick := func(figure func(result) float64) float64 {
		all := make([]float64, len(results))
		for i, r := range results {
			all[i] = figure(r)
		}
		slices.Sort(all)
		return (all[(len(all)-1)/2] + all[len(all)/2]) / 2
	}
	return result{
		Rate:     pick(func(r result) float64 { return r.Rate }),
		P50:      time.Duration(pick(func(r result) float64 { return float64(r.P50) })),
		P99:      time.Duration(pick(func(r result) float64 { return float64(r.P99) })),
		Resident: int64(pick(func(r result) float64 { return float64(r.Resident) })),
	}
}

// process is a way at work.
type process struct {
	name    string
	cmd     *exec.Cmd
	orders  io.WriteCloser
	answers *bufio.Reader
}

func (s settings) start(ctx context.Context, way, url string) (*process, error) {
	exe, err := os.Executable()
	if err != nil {
		return nil, err
	}
	p := &process{name: "pgtenants " + way, cmd: exec.CommandContext(ctx, exe)}
	p.cmd.Env = append(os.Environ(), wayEnv+"="+way, urlEnv+"="+url, connsEnv+"="+strconv.Itoa(s.conns))
	p.cmd.Stderr = os.Stderr
	if p.orders, err = p.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	p.answers = bufio.NewReader(out)
	return p, p.cmd.Start()
}

func (p *process) do(o order) (res result, err error) {
	if err := json.NewEncoder(p.orders).Encode(o); err != nil {
		return res, err
	}
	line, err := p.answers.ReadBytes('\n')
	if err != nil {
		return res, fmt.Errorf("%s: %w", p.name, err)
	}
	if err = json.Unmarshal(line, &res); err == nil && res.Err != "" {
		err = fmt.Errorf("%s: %s", p.name, res.Err)
	}
	return res, err
}

func (p *process) stop() error { return errors.Join(p.orders.Close(), p.cmd.Wait()) }

// backendMemory returns how much memory, in MiB, the server's processes of a way have that
// they share with nobody (RssAnon of /proc/PID/status): the mean, and the most.
func backendMemory(ctx context.Context, conn *pgx.Conn, name string) (mean, most float64, err error) {
	rows, _ := conn.Query(ctx, "SELECT pid FROM pg_stat_activity WHERE application_name = left($1, 63) AND datname = current_database()", name)
	pids, err := pgx.CollectRows(rows, pgx.RowTo[int])
	if err != nil || len(pids) == 0 {
		return 0, 0, err
	}
	for _, pid := range pids {
		bytes, err := resident(pid, "RssAnon")
		if err != nil {
			return 0, 0, err
		}
		mib := float64(bytes) / (1 << 20)
		mean += mib / float64(len(pids))
		most = max(most, mib)
	}
	return mean, most, nil
}

// catalogSize returns the size of the system catalogs in bytes, with their indexes.
func catalogSize(ctx context.Context, conn *pgx.Conn) (bytes int64, err error) {
	err = conn.QueryRow(ctx, "SELECT sum(pg_total_relation_size(oid))::bigint FROM pg_class WHERE relnamespace = 'pg_catalog'::regnamespace AND relkind = 'r'").Scan(&bytes)
	return bytes, err
}
