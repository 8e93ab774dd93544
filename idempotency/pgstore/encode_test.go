package pgstore_test

import (
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/pgidem/pgidem/idempotency"
	"github.com/pgidem/pgidem/idempotency/pgstore"
)

func TestHashForms(t *testing.T) {
	t.Parallel()
	for hash, size := range map[string]int{
		strings.Repeat("0f", 32):        33, // the usual form: half the room
		strings.Repeat("0F", 32):        65,
		strings.Repeat("0g", 32):        65,
		strings.Repeat("0f", 31):        63,
		"":                              1,
		"\x01" + strings.Repeat("x", 5): 7,
	} {
		stored := pgstore.EncodeHash(hash)
		if len(stored) != size {
			t.Errorf("%q is stored in %d bytes, want %d", hash, len(stored), size)
		}
		if got := pgstore.DecodeHash(stored); got != hash {
			t.Errorf("%q came back as %q", hash, got)
		}
	}
}

func FuzzHash(f *testing.F) {
	f.Add(strings.Repeat("0f", 32))
	f.Add("")
	f.Fuzz(func(t *testing.T, hash string) {
		if got := pgstore.DecodeHash(pgstore.EncodeHash(hash)); got != hash {
			t.Errorf("%q came back as %q", hash, got)
		}
	})
}

func TestHeadersThatAreNone(t *testing.T) {
	t.Parallel()
	if stored := pgstore.EncodeHeaders(&idempotency.Record{}); stored != nil {
		t.Errorf("no headers are stored as %q", stored)
	}
	var rec idempotency.Record
	if err := pgstore.DecodeHeaders(&rec, nil); err != nil || rec.ResponseHeaders != nil {
		t.Errorf("nothing was read as %v, %v", rec.ResponseHeaders, err)
	}
}

// TestHeadersOfEarlierVersions: what is in tables stays readable, and is written the same.
func TestHeadersOfEarlierVersions(t *testing.T) {
	t.Parallel()
	const stored = "\x01" +
		"\x00\x0cContent-Type\x01\x10application/json" +
		"\x00\x04Link\x03\x01a\x01b\x01c" +
		"\x01\x04Vary\x02\x06Accept\x06Origin" +
		"\x00\x08X-Absent\x00" +
		"\x00\x07X-Empty\x01\x00"
	want := map[string][]string{
		"Content-Type": {"application/json"}, "Link": {"a", "b", "c"}, "Vary": {"Accept", "Origin"}, "X-Absent": nil, "X-Empty": {""},
	}
	var rec idempotency.Record
	if err := pgstore.DecodeHeaders(&rec, []byte(stored)); err != nil {
		t.Fatal(err)
	}
	same := func(a, b []string) bool { return slices.Equal(a, b) && (a == nil) == (b == nil) }
	if !maps.EqualFunc(rec.ResponseHeaders, want, same) || !slices.Equal(rec.AppendedHeaders, []string{"Vary"}) {
		t.Errorf("read as %q, appended %q", rec.ResponseHeaders, rec.AppendedHeaders)
	}
	for name, values := range rec.ResponseHeaders { // none may reach into another's
		if cap(values) > len(values) {
			t.Errorf("the values of %s have room for %d more", name, cap(values)-len(values))
		}
	}
	if again := pgstore.EncodeHeaders(&rec); string(again) != stored {
		t.Errorf("written again as %q", again)
	}
}

// TestDamagedHeaders: every stored form that is cut short or of another version is
// an error, and none makes the reader panic or allocate without bound.
func TestDamagedHeaders(t *testing.T) {
	t.Parallel()
	rec := &idempotency.Record{
		ResponseHeaders: map[string][]string{"A": {"1", "2"}, "B": nil, "C": {strings.Repeat("x", 300)}},
		AppendedHeaders: []string{"A"},
	}
	whole := pgstore.EncodeHeaders(rec)
	boundaries := 0
	for n := 1; n < len(whole); n++ {
		var got idempotency.Record
		if err := pgstore.DecodeHeaders(&got, whole[:n]); err == nil {
			boundaries++ // cut between two headers
		}
	}
	if boundaries > len(rec.ResponseHeaders) {
		t.Errorf("%d of %d cut forms were accepted", boundaries, len(whole)-1)
	}
	for name, stored := range map[string]string{
		"newer version":         "\x02\x00\x01A\x00",
		"name longer than all":  "\x01\x00\x7fA",
		"more values than room": "\x01\x00\x01A\xff\xff\xff\x7f",
		"endless number":        "\x01\x00\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",
	} {
		if err := pgstore.DecodeHeaders(&idempotency.Record{}, []byte(stored)); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func FuzzHeaders(f *testing.F) {
	f.Add([]byte("\x01\x01\x01A\x02\x011\x012"))
	f.Add([]byte("\x01\x00\x01A\x00"))
	f.Fuzz(func(t *testing.T, stored []byte) {
		var rec, again idempotency.Record
		if pgstore.DecodeHeaders(&rec, stored) != nil {
			return
		}
		if err := pgstore.DecodeHeaders(&again, pgstore.EncodeHeaders(&rec)); err != nil {
			t.Fatal(err)
		}
		slices.Sort(rec.AppendedHeaders)
		if !maps.EqualFunc(rec.ResponseHeaders, again.ResponseHeaders, slices.Equal) ||
			!slices.Equal(slices.Compact(rec.AppendedHeaders), again.AppendedHeaders) {
			t.Errorf("%+v came back as %+v", rec, again)
		}
	})
}
