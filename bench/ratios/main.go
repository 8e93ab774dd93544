// Command ratios prints the results of benchmarks as one table, in which each is compared with
// the bare handler of its server. It reads files, or its standard input:
//
//	go run ./ratios bench.txt
//
// A benchmark's name is "Benchmark../work=first/server=nethttp/impl=memory": results that
// differ in impl alone are a row's, and what they are compared with is impl=bare.
// Benchstat compares them as well, and says whether a difference may be chance, but as
// percentages: +2400% is 25 times as long.
package main

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/perf/benchfmt"
)

func main() {
	if err := run(os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "ratios:", err)
		os.Exit(1)
	}
}

// run reads the files and writes their table. A result that cannot be read is an error: part of a
// table might be taken for all of it.
func run(paths []string, out io.Writer) error {
	var t table
	files := benchfmt.Files{Paths: paths, AllowStdin: true}
	for files.Scan() {
		switch r := files.Result().(type) {
		case *benchfmt.Result:
			t.add(r)
		case *benchfmt.SyntaxError:
			return r
		}
	}
	if err := files.Err(); err != nil {
		return err
	}
	if len(t.rows) == 0 {
		return errors.New("no results of benchmarks; give the output of go test -bench")
	}
	return t.print(out)
}
