package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
)

// baseTables are what pgbench works on: the least that can hold a record, with the types
// that the library's has, and a business table like the service's.
const baseTables = `
CREATE TABLE pairs (
    org_id uuid NOT NULL, key text COLLATE "C" NOT NULL, token uuid NOT NULL, request_hash bytea NOT NULL,
    expires_at timestamptz NOT NULL, lease_until timestamptz NOT NULL, status integer, body bytea,
    PRIMARY KEY (org_id, key)
) WITH (fillfactor = 70);
CREATE TABLE payments (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, amount bigint NOT NULL);
INSERT INTO pairs
SELECT '6ba7b810-9dad-11d1-80b4-00c04fd430c8', 'old-' || n, gen_random_uuid(), sha256('x'), now() + '1 day', now(), 201, '{"id":12345}'
FROM generate_series(1, 10000) AS n;
`

const (
	keyOfScript = `\set n random(1, 9000000000000000000)
`
	insertPair = `INSERT INTO pairs (org_id, key, token, request_hash, expires_at, lease_until) VALUES ('6ba7b810-9dad-11d1-80b4-00c04fd430c8', 'key-' || :n, '6ba7b811-9dad-11d1-80b4-00c04fd430c8', '\x000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f', now() + '1 day', now() + '30 s');
`
	pairScript = keyOfScript + insertPair +
		`UPDATE pairs SET status = 201, body = '{"id":12345}' WHERE org_id = '6ba7b810-9dad-11d1-80b4-00c04fd430c8' AND key = 'key-' || :n;
`
	txScript = keyOfScript + `BEGIN;
SELECT pg_try_advisory_xact_lock(:n);
INSERT INTO payments (amount) VALUES (1200) RETURNING id;
INSERT INTO pairs (org_id, key, token, request_hash, expires_at, lease_until, status, body) VALUES ('6ba7b810-9dad-11d1-80b4-00c04fd430c8', 'key-' || :n, '6ba7b811-9dad-11d1-80b4-00c04fd430c8', '\x000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f', now() + '1 day', now(), 201, '{"id":12345}');
COMMIT;
`
	selectScript = `\set n random(1, 10000)
SELECT token, request_hash, expires_at, status, body FROM pairs WHERE org_id = '6ba7b810-9dad-11d1-80b4-00c04fd430c8' AND key = 'old-' || :n;
`
	pairLargeScript = keyOfScript + insertPair +
		`UPDATE pairs SET status = 201, body = convert_to(:body, 'UTF8') WHERE org_id = '6ba7b810-9dad-11d1-80b4-00c04fd430c8' AND key = 'key-' || :n;
`
)

// findPgbench looks where packages put it.
func findPgbench() (string, error) {
	if path, err := exec.LookPath("pgbench"); err == nil {
		return path, nil
	}
	found, _ := filepath.Glob("/usr/lib/postgresql/*/bin/pgbench")
	if dir := os.Getenv("PG_BINDIR"); dir != "" {
		found = append(found, filepath.Join(dir, "pgbench"))
	}
	for _, path := range slices.Backward(found) {
		if _, err := os.Stat(path); err == nil {
			return path, nil
		}
	}
	return "", errors.New("pgbench is not in PATH: install it (Debian: postgresql), or name its folder by PG_BINDIR")
}

var (
	tpsLine     = regexp.MustCompile(`(?m)^tps = ([0-9.]+)`)
	failedLine  = regexp.MustCompile(`(?m)^number of failed transactions: ([0-9]+)`)
	processedIs = regexp.MustCompile(`(?m)^number of transactions actually processed: ([0-9]+)`)
)

// pgbench runs a script for the duration over as many connections as the service has.
// Latencies come from its log of transactions.
func pgbench(ctx context.Context, b *bench, w work) (result, error) {
	folder, err := os.MkdirTemp("", "pgload-")
	if err != nil {
		return result{}, err
	}
	defer func() { _ = os.RemoveAll(folder) }()
	script := filepath.Join(folder, "script.sql")
	if err := os.WriteFile(script, []byte(w.script), 0o600); err != nil {
		return result{}, err
	}
	before, err := b.look(ctx)
	if err != nil {
		return result{}, err
	}
	cmd := exec.CommandContext(ctx, b.pgbench, "--no-vacuum", "--protocol=prepared",
		"--client", strconv.Itoa(b.conns), "--jobs", strconv.Itoa(min(b.conns, 2)),
		"--time", strconv.Itoa(max(1, int(b.duration.Seconds()))),
		"--define", "body="+largeBody, "--file", script, "--log", "--log-prefix", filepath.Join(folder, "log"), b.databaseURL)
	out, err := cmd.CombinedOutput()
	if err != nil {
		return result{}, fmt.Errorf("pgbench %s: %w: %s", w.name, err, bytes.TrimSpace(out))
	}
	after, err := b.look(ctx)
	if err != nil {
		return result{}, err
	}
	tps, done := tpsLine.FindSubmatch(out), processedIs.FindSubmatch(out)
	if failed := failedLine.FindSubmatch(out); tps == nil || done == nil || failed != nil && string(failed[1]) != "0" {
		return result{}, fmt.Errorf("pgbench %s: not every transaction succeeded: %s", w.name, bytes.TrimSpace(out))
	}
	requests, _ := strconv.Atoi(string(done[1]))
	res := before.to(after, requests)
	res.rate, _ = strconv.ParseFloat(string(tps[1]), 64)
	latencies, err := loggedLatencies(folder)
	if err != nil {
		return result{}, err
	}
	res.p50, res.p99 = quantiles(latencies)
	return res, nil
}
