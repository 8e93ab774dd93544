package routers_test

import (
	"os"
	"strings"
	"testing"
)

func TestREADMEShowsTheWirings(t *testing.T) {
	t.Parallel()
	readme, err := os.ReadFile("../README.md")
	if err != nil {
		t.Fatal(err)
	}
	for name, file := range map[string]string{
		"net/http":  "nethttp_test.go",
		"one route": "nethttp_test.go",
		"chi":       "chi_test.go",
		"gin":       "gin_test.go",
		"echo v4":   "echo4_test.go",
		"echo v5":   "echo5_test.go",
	} {
		source, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		_, wiring, _ := strings.Cut(string(source), "\t// README "+name+" begins here.\n")
		wiring, _, found := strings.Cut(wiring, "\t// README "+name+" ends here.\n")
		wiring = strings.ReplaceAll("\n"+wiring, "\n\t", "\n")
		if !found || !strings.Contains(string(readme), "```go"+wiring+"```\n") {
			t.Errorf("the wiring of %s in README.md is not the one of %s; copy it over:\n%s", name, file, wiring)
		}
	}
}
