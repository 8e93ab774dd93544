// Command pgtenants measures the store over many tenants: claims and completions, without
// HTTP in front, over ways of reaching the tenants' schemas that have the same number of
// connections, beside the same store on one shared table in the same run:
//
//	go run ./pgtenants                      # in the folder bench; about a quarter of an hour
//	go run ./pgtenants -tenants 1000 -ways shared,pool,pools:8x2 -rounds 1
//
// Each way is a process of its own, so that what it needs can be told apart; they take turns
// in each round. A way is shared (one table for all tenants), pool (a schema each, one pool),
// or pools:NxM (a schema each, hashed to N pools of M connections), each followed by /option
// or more: cache=N for the statement cache of a connection, few=N for [pgstore.WithCoalescing]
// (shared/few=16 gathers less than shared does), generic for plans that are
// never made for single parameters, exec for nothing prepared.
//
// Client, service and database share one machine, so figures are worth something only as
// ratios within one run.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"time"

	"github.com/pgidem/pgidem/internal/pgtest"
)

// settings are the terms of a run.
type settings struct {
	tenants  []int
	callers  []int
	traffic  []string
	ways     []string
	conns    int
	duration time.Duration
	warm     time.Duration
	rounds   int
	url      string
	only     string
	set      []pgtest.Option // of the new server
	params   []string        // the same, to be printed
}

func main() {
	if way := os.Getenv(wayEnv); way != "" {
		exit(serve(way))
	}
	s, err := parse(os.Args[1:])
	if err != nil {
		fmt.Fprintln(os.Stderr, "pgtenants:", err)
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	err = run(ctx, s)
	stop()
	exit(err)
}

func exit(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "pgtenants:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// parse reads the command line.
func parse(args []string) (s settings, err error) {
	flags := flag.NewFlagSet("pgtenants", flag.ExitOnError)
	tenants := flags.String("tenants", "1,100,1000,10000", "numbers of tenants")
	callers := flags.String("callers", "16,64", "numbers of callers, each with one request at a time")
	traffic := flags.String("traffic", "uniform,zipf", "how tenants are chosen: uniform, or zipf with exponent 1")
	ways := flags.String("ways", "shared,shared/few=16,pool,pools:4x4/cache=10000", "ways to measure; the first is what the others are compared with")
	flags.IntVar(&s.conns, "conns", 16, "connections of each way")
	flags.DurationVar(&s.duration, "duration", 2*time.Second, "how long each measurement takes")
	flags.DurationVar(&s.warm, "warm", 6*time.Second, "how long the traffic goes on before the first, after one request for each tenant")
	flags.IntVar(&s.rounds, "rounds", 3, "how often each way is measured")
	flags.StringVar(&s.url, "url", "", "a database to use, which keeps its tenants for the next run (default a new server)")
	flags.StringVar(&s.only, "only", "", "prepare: make the tenants in the database of -url, and measure nothing")
	flags.Func("set", "`NAME=VALUE` of a parameter of the new server; repeat it for more", func(text string) error {
		name, value, ok := strings.Cut(text, "=")
		if !ok || name == "" {
			return errors.New("give NAME=VALUE")
		}
		s.set, s.params = append(s.set, pgtest.WithParameter(name, value)), append(s.params, text)
		return nil
	})
	_ = flags.Parse(args) // ends the program instead
	s.traffic, s.ways = strings.Split(*traffic, ","), strings.Split(*ways, ",")
	for list, to := range map[string]*[]int{*tenants: &s.tenants, *callers: &s.callers} {
		for text := range strings.SplitSeq(list, ",") {
			n, convErr := strconv.Atoi(text)
			if convErr != nil || n < 1 {
				err = errors.Join(err, fmt.Errorf("%q is no number of tenants or callers", text))
			}
			*to = append(*to, n)
		}
	}
	for _, t := range s.traffic {
		if t != "uniform" && t != "zipf" {
			err = errors.Join(err, fmt.Errorf("no traffic is called %q", t))
		}
	}
	for _, w := range s.ways {
		_, wayErr := parseWay(w, s.conns)
		err = errors.Join(err, wayErr)
	}
	if s.url != "" && len(s.set) > 0 {
		err = errors.Join(err, errors.New("-set is for a new server, and -url for one that has its settings"))
	}
	if s.rounds < 1 || s.duration < 100*time.Millisecond || s.conns < 1 || flags.NArg() > 0 {
		err = errors.Join(err, errors.New("give rounds and conns of 1 or more, a duration of 100ms or more, and no other arguments"))
	}
	return s, err
}
