package cli_test

import (
	"errors"
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgidem/pgidem/internal/cli"
)

func TestDirectURL(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		url     string
		name    string
		timeout time.Duration
	}{
		{"postgres://u:p%40ss@h:5432/d?sslmode=disable", "idem-test", cli.ConnectTimeout},
		{"postgres://u:p%40ss@h:5432/d?sslmode=disable&application_name=mine&connect_timeout=3&pool_max_conns=7", "mine", 3 * time.Second},
		{"host=h port=5432 user=u password='p@ss' dbname=d sslmode=disable", "idem-test", cli.ConnectTimeout},
		{"host=h port=5432 user=u password='p@ss' dbname=d sslmode=disable application_name=mine", "mine", cli.ConnectTimeout},
	} {
		database := cli.Database{URL: test.url, Application: "idem-test", Connections: 3}
		if pool, err := database.PoolConfig(); err != nil || pool.MaxConns != 3 {
			t.Errorf("%s: %v", test.url, err)
		}
		got, err := pgx.ParseConfig(database.DirectURL())
		if err != nil {
			t.Fatalf("%s: %v", test.url, err)
		}
		if got.Host != "h" || got.Port != 5432 || got.User != "u" || got.Password != "p@ss" || got.Database != "d" || got.ConnectTimeout != test.timeout {
			t.Errorf("%s: %+v", test.url, got)
		}
		if p := got.RuntimeParams; len(p) != 1 || p["application_name"] != test.name {
			t.Errorf("%s: parameters %v", test.url, p)
		}
	}
	if _, err := (cli.Database{}).PoolConfig(); !errors.Is(err, cli.ErrNoDatabase) {
		t.Errorf("%v", err)
	}
}

func TestErrors(t *testing.T) {
	t.Parallel()
	of := func(severity, code string) error {
		return fmt.Errorf("step: %w", &pgconn.PgError{SeverityUnlocalized: severity, Code: code})
	}
	for err, want := range map[error]bool{
		of("ERROR", "42P01"): false, of("FATAL", "57P01"): true, of("PANIC", "XX000"): true, errors.New("EOF"): true,
	} {
		if got := cli.IsLost(err); got != want {
			t.Errorf("IsLost(%v) is %t", err, got)
		}
	}
	if !cli.IsCancelled(of("ERROR", "57014")) || cli.IsCancelled(of("ERROR", "42P01")) || cli.SQLState(errors.New("EOF")) != "" {
		t.Error("codes are not told apart")
	}
	if code, ok := cli.ExitOf(fmt.Errorf("stopped: %w", cli.Signalled{Signal: syscall.SIGTERM})); code != 143 || !ok {
		t.Errorf("%d, %t", code, ok)
	}
	if _, ok := cli.ExitOf(errors.New("stopped")); ok {
		t.Error("any error counts as a signal")
	}
	if got := cli.OneLine(errors.Join(errors.New("a:\n\tb"), errors.New("c"))); got != "a: b; c" {
		t.Errorf("%q", got)
	}
}

func TestText(t *testing.T) {
	t.Parallel()
	for line := range strings.Lines(cli.Indent(strings.Repeat("some words of a text ", 30))) {
		if len(line) > 85 || !strings.HasPrefix(line, "        some") && !strings.HasPrefix(line, "        ") {
			t.Errorf("%d characters: %q", len(line), line)
		}
	}
	for flag, want := range map[string]string{"database-url": "DATABASE_URL", "dry-run": "IDEM_TEST_DRY_RUN"} {
		if got := cli.Variable("idem-test", flag); got != want {
			t.Errorf("%s: %s", flag, got)
		}
	}
	if got := cli.Plural(1, "record") + ", " + cli.Plural(2, "record"); got != "1 record, 2 records" {
		t.Error(got)
	}
	if cli.IsTerminal(strings.NewReader("")) {
		t.Error("a string is a terminal")
	}
}
