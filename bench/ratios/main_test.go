package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// printed returns the lines of the table of a benchmark's output, their cells apart by one space.
func printed(t *testing.T, output string) ([]string, error) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "bench.txt")
	if err := os.WriteFile(path, []byte(output), 0o600); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	err := run([]string{path}, &out)
	var lines []string
	for line := range strings.Lines(out.String()) {
		lines = append(lines, strings.Join(strings.Fields(line), " "))
	}
	return lines, err
}

// TestTable: each is compared with the bare handler of its own server and work.
func TestTable(t *testing.T) {
	t.Parallel()
	lines, err := printed(t, `goos: linux
pkg: github.com/pgidem/pgidem/bench
BenchmarkOneCaller/work=first/server=nethttp/impl=bare-2     1000  100 ns/op  16 B/op  1 allocs/op
BenchmarkOneCaller/work=first/server=nethttp/impl=memory-2   1000  2500 ns/op  1772 B/op  10 allocs/op
BenchmarkOneCaller/work=first/server=fasthttp/impl=bare-2    1000  250.4 ns/op  0 B/op  0 allocs/op
BenchmarkOneCaller/work=first/server=fasthttp/impl=fiber-2   1000  1000 ns/op  830 B/op  8 allocs/op
BenchmarkOneCaller/work=replay/server=nethttp/impl=bare-2    1000  200 ns/op
BenchmarkOneCaller/work=replay/server=nethttp/impl=memory-2  1000  1800000 ns/op  447.6 B/key
BenchmarkOneCaller/work=other/server=nethttp/impl=memory-2   1000  1500 ns/op
BenchmarkInFlight/work=in-flight/server=nethttp/impl=bare-2  1  4000 bytes/request  0.5 goroutines/request
PASS
goos: linux
BenchmarkOneCaller/work=first/server=nethttp/impl=bare-2     1000  200 ns/op  16 B/op  1 allocs/op
BenchmarkOneCaller/work=first/server=nethttp/impl=memory-2   1000  8000 ns/op  1774 B/op  10 allocs/op
`)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		"work server impl median times bare in each round B/op allocs/op and",
		"first nethttp bare 150.0 ns 1.00 16 1",
		"first nethttp memory 5.25 µs 35.0 25.0-40.0 1773 10",
		"first fasthttp bare 250.4 ns 1.00 0 0",
		"first fasthttp fiber 1.00 µs 3.99 830 8",
		"replay nethttp bare 200.0 ns 1.00",
		"replay nethttp memory 1.80 ms 9000 448 B/key",
		"other nethttp memory 1.50 µs",
		"in-flight nethttp bare 4000 bytes/request, 0.50 goroutines/request",
	}
	if strings.Join(lines, "\n") != strings.Join(want, "\n") {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(lines, "\n"), strings.Join(want, "\n"))
	}
}

// TestOtherNames: benchmarks that are named in another way are not taken for one another.
func TestOtherNames(t *testing.T) {
	t.Parallel()
	lines, err := printed(t, `
BenchmarkA/size=1/impl=bare-2  10  100 ns/op
BenchmarkA/size=1/impl=x-2     10  300 ns/op
BenchmarkA/size=2/impl=x-2     10  500 ns/op
BenchmarkB/impl=x-2            10  700 ns/op
BenchmarkB/impl=bare-4         10  350 ns/op
BenchmarkC                     10  900 ns/op
`)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		"A size=1 bare 100.0 ns 1.00",
		"A size=1 x 300.0 ns 3.00",
		"A size=2 x 500.0 ns",
		"B x 700.0 ns",
		"B bare 350.0 ns 1.00",
		"C 900.0 ns",
	}
	if got := lines[1:]; strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// TestNotATable: what cannot be read whole gets no table.
func TestNotATable(t *testing.T) {
	t.Parallel()
	for name, output := range map[string]string{
		"no results": "PASS\nok\n",
		"a broken line": `
BenchmarkA/impl=bare-2  10  100 ns/op
BenchmarkA/impl=x-2     10  3a0 ns/op
`,
	} {
		if lines, err := printed(t, output); err == nil || len(lines) > 0 {
			t.Errorf("%s: error %v and %d lines", name, err, len(lines))
		}
	}
	if err := run([]string{filepath.Join(t.TempDir(), "none.txt")}, new(bytes.Buffer)); err == nil {
		t.Error("a file that is not there: no error")
	}
}
