// Command pgload measures the middleware as a service runs it: real HTTP over loopback
// from keep-alive clients to a server process of its own, over a real PostgreSQL with its
// default durability. Beside each work, in the same run, pgbench does the least possible
// work for the same guarantee on the same server over as many connections:
//
//	go run ./pgload                         # in the folder bench; about seven minutes
//	go run ./pgload -work first,replay -duration 2s -rounds 1
//
// Client, service and database share one machine, so figures are worth something only
// as ratios within one run. What is printed are medians over an odd number of rounds, in
// each of which every work has its turn; a ratio is that of two medians of requests/s.
//
// Requests/s, and all that is given for one request, are of requests that were served. Tries
// of a retry storm that were refused because another try of their key was in flight are sent
// again, and counted by themselves: 409s, for each request served. The latencies, p50 and p99,
// are of all responses, refusals among them.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strings"
	"time"
)

// settings are the terms of a run.
type settings struct {
	duration time.Duration
	rounds   int
	clients  int
	conns    int
	works    []work
	few      int
	json     bool
	profile  string // folder for CPU profiles of the service, or empty
}

func main() {
	if address := os.Getenv(serveEnv); address != "" {
		exit(serve())
	}
	s, err := parse(os.Args[1:])
	if err != nil {
		fmt.Fprintln(os.Stderr, "pgload:", err)
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	err = run(ctx, s)
	stop()
	exit(err)
}

func exit(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "pgload:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// parse reads the command line.
func parse(args []string) (settings, error) {
	var s settings
	flags := flag.NewFlagSet("pgload", flag.ExitOnError)
	flags.DurationVar(&s.duration, "duration", 5*time.Second, "how long each measurement takes")
	flags.IntVar(&s.rounds, "rounds", 3, "how often each work is measured: an odd number")
	flags.IntVar(&s.clients, "clients", 16, "keep-alive clients, each with one request at a time")
	flags.IntVar(&s.conns, "conns", 16, "connections to the database, of the service and of pgbench")
	flags.IntVar(&s.few, "few", 2, "pgstore.WithCoalescing of the works with few transactions at once")
	flags.BoolVar(&s.json, "json", false, "print the medians as JSON lines")
	flags.StringVar(&s.profile, "profile", "", "a folder for a CPU profile of the service in each work's last round")
	names := flags.String("work", "", "works to measure, separated by commas (default all): "+strings.Join(workNames(), ", "))
	_ = flags.Parse(args) // ends the program instead
	if s.duration < 100*time.Millisecond || s.rounds < 1 || s.clients < 1 || s.conns < 1 || s.few < 1 || flags.NArg() > 0 {
		return s, errors.New("give a duration of 100ms or more, rounds, clients, conns and few of 1 or more, and no other arguments")
	}
	if s.rounds%2 == 0 {
		return s, fmt.Errorf("%d rounds: give an odd number, so that the median of a figure is one that was measured", s.rounds)
	}
	if *names == "" {
		s.works = works
		return s, nil
	}
	for name := range strings.SplitSeq(*names, ",") {
		i := slices.IndexFunc(works, func(w work) bool { return w.name == strings.TrimSpace(name) })
		if i < 0 {
			return s, fmt.Errorf("no work is called %q; there are %s", name, strings.Join(workNames(), ", "))
		}
		s.works = append(s.works, works[i])
	}
	return s.withBases(), nil
}

// withBases adds the works that the chosen ones are compared with.
func (s settings) withBases() settings {
	for _, w := range slices.Clone(s.works) {
		for _, base := range works {
			if base.name == w.base && !slices.ContainsFunc(s.works, func(w work) bool { return w.name == base.name }) {
				s.works = append(s.works, base)
			}
		}
	}
	slices.SortFunc(s.works, func(a, b work) int { return a.index() - b.index() })
	return s
}
