package idempotencytest

import (
	"fmt"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
)

func names(tests []plainTest, leaseTests []leaseTest) (names []string) {
	for _, test := range tests {
		names = append(names, test.name)
	}
	for _, test := range leaseTests {
		names = append(names, test.name)
	}
	return names
}

// storeNames returns the names of the tests of [TestStore].
func storeNames() []string {
	names := names(storeContract, append(slices.Clone(storeLeaseContract), requestContract...))
	for _, test := range stepContract {
		names = append(names, test.name)
	}
	return names
}

func TestNamesAreUnique(t *testing.T) {
	t.Parallel()
	for _, of := range [][]string{names(contract, leaseContract), storeNames()} {
		slices.Sort(of)
		for i := range len(of) - 1 {
			if of[i] == of[i+1] {
				t.Errorf("two tests are called %s", of[i])
			}
		}
	}
}

var (
	columns     = regexp.MustCompile(` {2,}`)
	subtestName = regexp.MustCompile(`^[A-Z][A-Za-z0-9]*$`)
)

// contractRows returns the names of subtests in the table of a package comment: what
// stands, separated by commas, in the last column of those preformatted lines that
// have columns. A heading is no such name, because it has a space or begins in lower
// case.
func contractRows(doc string) (names []string) {
	comment, _, _ := strings.Cut(doc, "\npackage ")
	for line := range strings.Lines(comment) {
		text, ok := strings.CutPrefix(line, "//\t")
		if !ok {
			continue
		}
		cells := columns.Split(strings.TrimRight(text, " \n"), -1)
		if len(cells) < 2 {
			continue
		}
		for name := range strings.SplitSeq(cells[len(cells)-1], ", ") {
			if name = strings.TrimSuffix(name, ","); subtestName.MatchString(name) {
				names = append(names, name)
			}
		}
	}
	return names
}

// contractFaults says how a table that names these subtests differs from the tests
// that there are: it must name every test of TestMiddleware, and may name tests of
// TestStore.
func contractFaults(rows []string) (faults []string) {
	known := names(contract, leaseContract)
	for _, name := range known {
		if !slices.Contains(rows, name) {
			faults = append(faults, fmt.Sprintf("the table does not name %s", name))
		}
	}
	known = append(known, storeNames()...)
	for _, name := range rows {
		if !slices.Contains(known, name) {
			faults = append(faults, fmt.Sprintf("the table names %s, and there is no such test", name))
		}
	}
	return faults
}

func TestContractTable(t *testing.T) {
	t.Parallel()
	doc, err := os.ReadFile("../doc.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, fault := range contractFaults(contractRows(string(doc))) {
		t.Error(fault)
	}
}

func TestContractRows(t *testing.T) {
	t.Parallel()
	const doc = `// Package made up is a package:
//
//	protect := made.Up(store,
//		made.WithUp("POST  NotAName"),
//	)
//
// # The contract
//
//	a request           its answer           proved by
//	------------------  -------------------  ---------
//	without a key       passes through       NoKeyPassesThrough
//	with one, again     replay, CamelCase    Replay, ReplayOfNothing,
//	                                         ReplayCheck
//	not a row
// not  preformatted  Either
package made

//	not  in the  Comment
`
	want := []string{"NoKeyPassesThrough", "Replay", "ReplayOfNothing", "ReplayCheck"}
	if got := contractRows(doc); !reflect.DeepEqual(got, want) {
		t.Errorf("names %q, want %q", got, want)
	}
}

func TestContractFaults(t *testing.T) {
	t.Parallel()
	all := append(names(contract, leaseContract), "ClaimReleased")
	if faults := contractFaults(all); faults != nil {
		t.Errorf("a whole table has faults: %q", faults)
	}
	rows := append(slices.DeleteFunc(slices.Clone(all), func(name string) bool { return name == "Replay" }), "Reply")
	want := []string{"the table does not name Replay", "the table names Reply, and there is no such test"}
	if got := contractFaults(rows); !reflect.DeepEqual(got, want) {
		t.Errorf("faults %q, want %q", got, want)
	}
}
