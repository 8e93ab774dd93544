package idempotencytest

import (
	"bytes"
	"strings"
	"testing"

	"github.com/pgidem/pgidem/idempotency"
)

func testOddPayloads(t *testing.T, f *fixture) {
	every := make([]byte, 256)
	for i := range every {
		every[i] = byte(i)
	}
	for name, change := range map[string]func(*idempotency.Record){
		"nothing but a status": func(r *idempotency.Record) {
			r.ResponseBody, r.ResponseHeaders, r.AppendedHeaders = nil, nil, nil
		},
		"every byte":           func(r *idempotency.Record) { r.ResponseBody = every },
		"white space":          func(r *idempotency.Record) { r.ResponseBody = []byte(" \r\n\tx\x00\n ") },
		"header of odd bytes":  func(r *idempotency.Record) { r.ResponseHeaders["X-Odd"] = []string{"", " ", "\x80\xff", "a,b"} },
		"header of odd name":   func(r *idempotency.Record) { r.ResponseHeaders["x-ODD"] = []string{"x"} },
		"hash of other form":   func(r *idempotency.Record) { r.RequestHash = "v2:not-hexadecimal" },
		"hash of upper case":   func(r *idempotency.Record) { r.RequestHash = strings.Repeat("AB", 32) },
		"empty hash":           func(r *idempotency.Record) { r.RequestHash = "" },
		"scoped key":           func(r *idempotency.Record) { r.Key = strings.Repeat("f", 32) + "\x1f" + strings.Repeat("k", 255) },
		"key with odd letters": func(r *idempotency.Record) { r.Key = `';DROP TABLE "x"--%s\` },
		"unusual status":       func(r *idempotency.Record) { r.ResponseStatus = 799 },
		"unknown status":       func(r *idempotency.Record) { r.ResponseStatus = 0 },
	} {
		rec := f.record(name)
		change(rec)
		f.put(t, rec)
		wantEqual(t, f.get(t, f.org, rec.Key), rec)
	}
}

func testLargePayload(t *testing.T, f *fixture) {
	rec := f.record("key")
	rec.ResponseBody = bytes.Repeat([]byte("0123456789abcdef"), 4<<20/16)
	f.put(t, rec)
	wantEqual(t, f.get(t, f.org, "key"), rec)
}
