package pgtest

import (
	"context"
	"errors"
	"fmt"
	"strings"
)

type logf func(format string, args ...any)

const advice = "install PostgreSQL %d or newer (Debian, Ubuntu: apt-get install postgresql; " +
	"Fedora: dnf install postgresql-server; Alpine: apk add postgresql; macOS: brew install postgresql), " +
	"or start Docker or Podman, or set PGIDEM_TEST_DATABASE_URL to a server on which databases may be created"

// choose brings a server up by the first way that works.
func choose(ctx context.Context, s spec, run string, log logf) (backend, error) {
	if s.Env.URL != "" && !s.LocalOnly {
		return useExternal(ctx, s.Env, run)
	}
	var tried []error
	ways := []func(context.Context, spec, logf) (backend, error){startLocal, startContainer, installAndStart}
	if s.LocalOnly {
		ways = []func(context.Context, spec, logf) (backend, error){startLocal, installAndStart}
	}
	for _, way := range ways {
		server, err := way(ctx, s, log)
		if err == nil {
			return server, nil
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		tried = append(tried, err)
	}
	list := strings.ReplaceAll(errors.Join(tried...).Error(), "\n", "\n  - ")
	return nil, fmt.Errorf("no PostgreSQL for the tests. Tried:\n  - %s\n"+advice, list, minVersion)
}
