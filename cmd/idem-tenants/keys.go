package main

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/pflag"

	"github.com/pgidem/pgidem/idempotency"
	"github.com/pgidem/pgidem/idempotency/pgstore"
)

func scopeFlag(flags *pflag.FlagSet, scope *string) {
	flags.StringVar(scope, "scope", "", "`DIGITS` of the scope in front of the key, 32 hexadecimal ones as inspect shows them, where one key stands in several scopes")
}

// scopeDigits is how long the scope in front of a stored key is, before the byte 0x1f.
const scopeDigits = 32

// splitKey returns the scope that stands in front of a stored key, if one does, and the key
// that the client sent.
func splitKey(stored string) (scope, key string) {
	scope, key, found := strings.Cut(stored, "\x1f")
	if _, err := hex.DecodeString(scope); !found || err != nil || len(scope) != scopeDigits {
		return "", stored
	}
	return scope, key
}

// inspectKeys returns what is known of a key that a client sent: of each scope in which it
// stands, unless it stands without one, or the scope is given.
func (p place) inspectKeys(ctx context.Context, key, scope string) ([]pgstore.KeyInfo, error) {
	if scope != "" {
		if s, _ := splitKey(scope + "\x1f" + key); s == "" {
			return nil, usagef("--scope: %q are not 32 hexadecimal digits", scope)
		}
		key = scope + "\x1f" + key
	}
	info, err := pgstore.Inspect(ctx, p.pool, p.schema, p.org, key)
	if err == nil {
		return []pgstore.KeyInfo{info}, nil
	}
	unknown := exitError{exitNotFound, fmt.Errorf("nothing is known of key %q of %s: it was never sent, or was released without an outcome, or has been purged since it expired", key, p.org)}
	switch {
	case !errors.Is(err, idempotency.ErrNotFound):
		return nil, p.explain(err)
	case scope != "":
		return nil, unknown
	}
	stored, err := pgstore.ScopedKeys(ctx, p.pool, p.schema, p.org, key)
	if err != nil {
		return nil, err
	}
	var found []pgstore.KeyInfo
	for _, key := range stored {
		switch info, err := pgstore.Inspect(ctx, p.pool, p.schema, p.org, key); {
		case err == nil:
			found = append(found, info)
		case !errors.Is(err, idempotency.ErrNotFound): // gone meanwhile
			return nil, err
		}
	}
	if len(found) == 0 {
		return nil, unknown
	}
	return found, nil
}
