package idempotencytest_test

import (
	"maps"
	"net/http"
	"slices"
	"strings"

	"github.com/pgidem/pgidem/idempotency"
)

// stored returns what the store makes of a record on its way in, which without a
// flaw is the record itself.
func (s *flawedStore) stored(rec *idempotency.Record) *idempotency.Record {
	change, ok := payloadFlaws[s.flaw]
	if !ok {
		return rec
	}
	rec = rec.Clone()
	change(rec)
	return rec
}

// payloadFlaws are what stores do to payloads that are not what their authors
// expected.
var payloadFlaws = map[flaw]func(*idempotency.Record){
	"loses the body":             func(r *idempotency.Record) { r.ResponseBody = nil },
	"truncates bodies at 64 KiB": func(r *idempotency.Record) { r.ResponseBody = r.ResponseBody[:min(len(r.ResponseBody), 64<<10)] },
	"bodies must be valid UTF-8": func(r *idempotency.Record) {
		r.ResponseBody = []byte(strings.ToValidUTF8(string(r.ResponseBody), "\uFFFD"))
	},
	"bodies end at a zero byte": func(r *idempotency.Record) {
		before, _, _ := strings.Cut(string(r.ResponseBody), "\x00")
		r.ResponseBody = []byte(before)
	},
	"trims bodies":                       func(r *idempotency.Record) { r.ResponseBody = []byte(strings.TrimSpace(string(r.ResponseBody))) },
	"loses the status":                   func(r *idempotency.Record) { r.ResponseStatus = 200 },
	"loses tombstones":                   func(r *idempotency.Record) { r.Tombstone = false },
	"loses the headers":                  func(r *idempotency.Record) { r.ResponseHeaders = nil },
	"loses AppendedHeaders":              func(r *idempotency.Record) { r.AppendedHeaders = nil },
	"appends every header":               func(r *idempotency.Record) { r.AppendedHeaders = slices.Sorted(maps.Keys(r.ResponseHeaders)) },
	"keeps one value a header":           eachHeader(func(values []string) []string { return values[:min(len(values), 1)] }),
	"sorts the values of a header":       eachHeader(func(values []string) []string { return slices.Sorted(slices.Values(values)) }),
	"turns round the values of a header": eachHeader(func(values []string) []string { slices.Reverse(values); return values }),
	"drops values that repeat":           eachHeader(slices.Compact[[]string]),
	"joins the values with commas":       eachHeader(joined(", ")),
	"joins the values with spaces":       eachHeader(joined(" ")),
	"drops empty values": eachHeader(func(values []string) []string {
		return slices.DeleteFunc(values, func(v string) bool { return v == "" })
	}),
	"header values must be valid UTF-8": eachHeader(func(values []string) []string {
		for i := range values {
			values[i] = strings.ToValidUTF8(values[i], "\uFFFD")
		}
		return values
	}),
	"drops headers without values": func(r *idempotency.Record) {
		maps.DeleteFunc(r.ResponseHeaders, func(_ string, values []string) bool { return len(values) == 0 })
	},
	"writes header names in one form": func(r *idempotency.Record) {
		for name, values := range r.ResponseHeaders {
			delete(r.ResponseHeaders, name)
			r.ResponseHeaders[http.CanonicalHeaderKey(name)] = values
		}
	},
	"writes fingerprints in lower case": func(r *idempotency.Record) { r.RequestHash = strings.ToLower(r.RequestHash) },
}

func eachHeader(change func(values []string) []string) func(*idempotency.Record) {
	return func(r *idempotency.Record) {
		for name, values := range r.ResponseHeaders {
			r.ResponseHeaders[name] = change(values)
		}
	}
}

func joined(separator string) func([]string) []string {
	return func(values []string) []string {
		if len(values) < 2 {
			return values
		}
		return []string{strings.Join(values, separator)}
	}
}
