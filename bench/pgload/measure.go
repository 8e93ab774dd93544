package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
)

// result is what one measurement saw.
type result struct {
	rate     float64 // requests served a second
	p50, p99 time.Duration

	// Of one request that was served:
	serviceCPU, databaseCPU time.Duration
	commits, wal, updates   float64

	handlers float64 // runs of the handler
	refused  float64 // tries that were refused because another one of the key was in flight
}

// look is a reading of all that is counted.
type look struct {
	service, database time.Duration // CPU
	commits, updates  int64
	wal               int64
}

// to returns what a number of requests has cost between two looks.
func (before look) to(after look, requests int) result {
	n := float64(max(requests, 1))
	return result{
		serviceCPU:  time.Duration(float64(after.service-before.service) / n),
		databaseCPU: time.Duration(float64(after.database-before.database) / n),
		commits:     float64(after.commits-before.commits) / n,
		wal:         float64(after.wal-before.wal) / n,
		updates:     float64(after.updates-before.updates) / n,
	}
}

// look reads the counters. The backends that idle are told to report theirs first.
func (b *bench) look(ctx context.Context) (l look, err error) {
	told, err := b.tellToReport(ctx)
	if err != nil {
		return l, err
	}
	// What looking itself commits is counted out; that of this connection is seen by the
	// next look.
	b.looks += told
	err = b.conn.QueryRow(ctx, `
		SELECT d.xact_commit, (SELECT coalesce(sum(n_tup_upd + n_tup_del), 0) FROM pg_stat_user_tables)::bigint,
		       pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')::bigint
		FROM pg_stat_database AS d
		WHERE d.datname = current_database()`).Scan(&l.commits, &l.updates, &l.wal)
	if err != nil {
		return l, err
	}
	l.commits -= int64(b.looks)
	b.looks++
	if b.service != nil {
		if l.service, err = cpuOf(b.service.Process.Pid); err != nil {
			return l, err
		}
	}
	l.database, err = cpuOfFamily(b.postmaster)
	return l, err
}

// ticks is the unit of /proc, which is 100 a second wherever Go runs Linux.
const tick = 10 * time.Millisecond

// cpuOf returns the CPU time of a process.
func cpuOf(pid int) (time.Duration, error) {
	own, _, _, err := stat(pid)
	return own, err
}

// cpuOfFamily returns the CPU time of a process, and of its children, those that have
// ended among them.
func cpuOfFamily(pid int) (time.Duration, error) {
	own, reaped, _, err := stat(pid)
	if err != nil {
		return 0, err
	}
	total := own + reaped
	folders, err := filepath.Glob("/proc/[0-9]*")
	for _, folder := range folders {
		child, _ := strconv.Atoi(filepath.Base(folder))
		own, reaped, parent, err := stat(child)
		if err == nil && parent == pid { // else it has ended meanwhile
			total += own + reaped
		}
	}
	return total, err
}

// stat reads the CPU times of a process, of its children that have ended, and its parent.
func stat(pid int) (own, reaped time.Duration, parent int, err error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, 0, 0, fmt.Errorf("CPU times are read from Linux's /proc: %w", err)
	}
	_, rest, ok := strings.Cut(string(b), ") ") // the name may hold anything
	fields := strings.Fields(rest)
	if !ok || len(fields) < 15 {
		return 0, 0, 0, fmt.Errorf("/proc/%d/stat reads %q", pid, b)
	}
	number := func(i int) time.Duration {
		n, convErr := strconv.ParseInt(fields[i], 10, 64)
		err = errors.Join(err, convErr)
		return time.Duration(n) * tick
	}
	parent, _ = strconv.Atoi(fields[1])
	return number(11) + number(12), number(13) + number(14), parent, err
}

// postmasterOf returns the process that has started the backend of a connection.
func postmasterOf(conn *pgx.Conn) (int, error) {
	_, _, parent, err := stat(int(conn.PgConn().PID()))
	return parent, err
}

// loggedLatencies reads pgbench's logs of transactions: the third field is microseconds.
func loggedLatencies(folder string) ([]time.Duration, error) {
	logs, err := filepath.Glob(filepath.Join(folder, "log.*"))
	if err != nil {
		return nil, err
	}
	var latencies []time.Duration
	for _, log := range logs {
		f, err := os.Open(log)
		if err != nil {
			return nil, err
		}
		lines := bufio.NewScanner(f)
		for lines.Scan() {
			fields := strings.Fields(lines.Text())
			if len(fields) < 3 {
				continue
			}
			us, err := strconv.ParseInt(fields[2], 10, 64)
			if err != nil {
				continue // a failed or skipped transaction, which the summary counts
			}
			latencies = append(latencies, time.Duration(us)*time.Microsecond)
		}
		if err := errors.Join(lines.Err(), f.Close()); err != nil {
			return nil, err
		}
	}
	return latencies, nil
}

// quantiles returns the median and the 99th percentile.
func quantiles(latencies []time.Duration) (p50, p99 time.Duration) {
	if len(latencies) == 0 {
		return 0, 0
	}
	slices.Sort(latencies)
	return latencies[len(latencies)/2], latencies[len(latencies)*99/100]
}

// median returns the result whose every figure is the median of that figure, over an odd number of
// results.
func median(results []result) result {
	pick := func(figure func(result) float64) float64 {
		all := make([]float64, len(results))
		for i, r := range results {
			all[i] = figure(r)
		}
		slices.Sort(all)
		return all[len(all)/2]
	}
	duration := func(figure func(result) time.Duration) time.Duration {
		return time.Duration(pick(func(r result) float64 { return float64(figure(r)) }))
	}
	return result{
		rate:        pick(func(r result) float64 { return r.rate }),
		p50:         duration(func(r result) time.Duration { return r.p50 }),
		p99:         duration(func(r result) time.Duration { return r.p99 }),
		serviceCPU:  duration(func(r result) time.Duration { return r.serviceCPU }),
		databaseCPU: duration(func(r result) time.Duration { return r.databaseCPU }),
		commits:     pick(func(r result) float64 { return r.commits }),
		wal:         pick(func(r result) float64 { return r.wal }),
		updates:     pick(func(r result) float64 { return r.updates }),
		handlers:    pick(func(r result) float64 { return r.handlers }),
		refused:     pick(func(r result) float64 { return r.refused }),
	}
}
