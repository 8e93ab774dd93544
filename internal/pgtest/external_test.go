package pgtest_test

import (
	"bytes"
	"net/url"
	"strings"
	"testing"

	"github.com/pgidem/pgidem/internal/pgtest"
)

// The tests of this file set environment variables, so they are not parallel.

func TestExternal(t *testing.T) {
	host := pgtest.NewServer(t, pgtest.WithTCP())
	admin := connect(t, host.URL())
	execute(t, admin, "CREATE DATABASE pgidem_test_of_another_run")
	for _, name := range []string{"PGIDEM_TEST_DATABASE_URL", "DATABASE_URL"} {
		t.Run(name, func(t *testing.T) {
			t.Setenv("PGIDEM_TEST_DATABASE_URL", "")
			t.Setenv("DATABASE_URL", "postgres://nobody@127.0.0.1:1/wrong")
			t.Setenv(name, host.URL())

			var log bytes.Buffer
			server, err := pgtest.Start(t.Context(), pgtest.WithLog(&log))
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = server.Stop() }()
			if server.URL() != host.URL() {
				t.Errorf("URL %s, want that of %s", server.URL(), name)
			}
			if log.Len() > 0 {
				t.Errorf("progress lines %q, want none", log.String())
			}
			if !strings.Contains(server.Source(), name) || strings.Contains(server.Source(), password(t, host.URL())) {
				t.Errorf("Source %q, want the variable and no password in it", server.Source())
			}

			kept, drop, err := server.CreateDatabase(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			execute(t, connect(t, kept), "CREATE TABLE public.t (id int)")
			if err := drop(t.Context()); err != nil {
				t.Fatal(err)
			}
			if err := drop(t.Context()); err != nil {
				t.Errorf("second drop: %v, want none", err)
			}
			left, _, err := server.CreateDatabase(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			connect(t, left) // is thrown out
			if n := databases(t, admin, "pgidem_test_"); n != 2 {
				t.Errorf("databases before Stop: %d, want 2", n)
			}
			for _, op := range []func() error{server.Kill, func() error { return server.Restart(t.Context()) }} {
				if err := op(); err == nil {
					t.Error("a server that the environment names can be killed or restarted")
				}
			}
			if err := server.Stop(); err != nil {
				t.Fatal(err)
			}
			if n := databases(t, admin, "pgidem_test_"); n != 1 {
				t.Errorf("databases after Stop: %d, want the one of another run", n)
			}
		})
	}
}

func TestExternalUnusable(t *testing.T) {
	host := pgtest.NewServer(t, pgtest.WithTCP())
	execute(t, connect(t, host.URL()), "CREATE ROLE modest LOGIN PASSWORD 'secret'")
	modest, err := url.Parse(host.URL())
	if err != nil {
		t.Fatal(err)
	}
	modest.User = url.UserPassword("modest", "secret")

	for _, tt := range []struct{ name, url, want string }{
		{"unreachable", "postgres://me:secret@127.0.0.1:1/db", "cannot reach postgres://me:xxxxx@127.0.0.1:1/db"},
		{"wrong password", strings.Replace(modest.String(), "secret", "secret2", 1), "cannot reach"},
		{"another database system", "mysql://me:secret@127.0.0.1/db", "is not a postgres:// URL"},
		{"not a URL", "host=127.0.0.1 password=secret", "is not a postgres:// URL"},
		{"malformed", "postgres://me:secret@[/", "is not a postgres:// URL"},
		{"no right to create", modest.String(), `ALTER ROLE "modest" CREATEDB`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Setenv("PGIDEM_TEST_DATABASE_URL", tt.url)
			server, err := pgtest.Start(t.Context())
			if err == nil {
				t.Fatalf("no error but %s", server.Source())
			}
			for _, want := range []string{tt.want, "PGIDEM_TEST_DATABASE_URL", "unset it"} {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("error %q, want %q in it", err, want)
				}
			}
			if strings.Contains(err.Error(), "secret") {
				t.Errorf("error %q shows the password", err)
			}
		})
	}
}

func password(t *testing.T, rawURL string) string {
	t.Helper()
	u, err := url.Parse(rawURL)
	if err != nil {
		t.Fatal(err)
	}
	password, _ := u.User.Password()
	return password
}
