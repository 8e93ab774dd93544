package idempotency_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"net/url"
	"reflect"
	"strings"
	"testing"

	"github.com/pgidem/pgidem/idempotency"
)

func canonical(t testing.TB, body string) string {
	t.Helper()
	hash, err := idempotency.CanonicalJSON(httptest.NewRequest("POST", "/v1/payments", nil), []byte(body))
	if err != nil {
		t.Fatalf("%s: %v", body, err)
	}
	return hash
}

func TestCanonicalJSON(t *testing.T) {
	t.Parallel()
	for name, bodies := range map[string][]string{
		"order and white space": {`{"a":1,"b":[true,null]}`, "{ \"b\" : [ true , null ] ,\r\n\t\"a\" : 1 }"},
		"escapes":               {`"caf\u00e9 \/ \ud83d\ude00"`, `"café / 😀"`},
		"numbers":               {`100`, `1e2`, `100.0`, `1.00E+2`, `1000e-1`},
		"fractions":             {`0.1`, `1e-1`, `0.100`},
		"zeros":                 {`0`, `-0`, `0.0`, `0e9`, `-0.0e-9`},
		"nested order":          {`[{"x":{"b":1,"a":2}}]`, `[{"x":{"a":2,"b":1}}]`},
		"order of odd names":    {`{"\ud83d\ude00":1,"\ufb33":2,"":3}`, "{\"\":3,\"\ufb33\":2,\"😀\":1}"},
	} {
		for _, body := range bodies[1:] {
			if canonical(t, body) != canonical(t, bodies[0]) {
				t.Errorf("%s: %s and %s differ", name, body, bodies[0])
			}
		}
	}
	different := []string{
		`1`, `-1`, `10`, `0.1`, `"1"`, `true`, `false`, `null`, `[]`, `{}`, `[1]`, `[[1]]`, `[1,2]`, `[12]`, `[2,1]`, `["1,2"]`, `["1","2"]`,
		`{"a":1}`, `{"a":"1"}`, `{"a":{}}`, `{"a":[]}`, `{"b":1}`, `{"a":1,"b":2}`, `{"a":2,"b":1}`,
		`9007199254740993`, `9007199254740992`, `0.1000000000000000055`, `1e308`, `1e309`, `1e-400`, `0`,
		// No I-JSON: compared as they are.
		``, ` `, `{`, `{"a":1}{"a":1}`, `{"a":1,"a":1}`, `{"a":1,"a":2}`, "\"\xff\"", "\"\xfe\"", `"\ud800"`, `"\ud801"`, `"\ufffd"`, "\"\ufffd\"", `NaN`, `01`, `1e99999999999`,
		strings.Repeat("[", 600) + strings.Repeat("]", 600), strings.Repeat("[", 600) + " " + strings.Repeat("]", 600),
	}
	seen := make(map[string]string)
	for _, body := range different {
		hash := canonical(t, body)
		if other, ok := seen[hash]; ok {
			t.Errorf("%q and %q have one fingerprint", body, other)
		}
		seen[hash] = body
	}
	one := httptest.NewRequest("POST", "/v1/payments?x=1", nil)
	two := httptest.NewRequest("POST", "/v1/payments?x=2", nil)
	a, _ := idempotency.CanonicalJSON(one, []byte(`{}`))
	b, _ := idempotency.CanonicalJSON(two, []byte(`{}`))
	if a == b {
		t.Error("the query does not count")
	}
}

// FuzzCanonicalJSON checks against encoding/json: what it reads as two values has
// two fingerprints, and what it writes of a value has the fingerprint of that value.
func FuzzCanonicalJSON(f *testing.F) {
	f.Add(`{"a":[1,2.50,"x"],"b":null}`, `{"b":null,"a":[1,2.5,"x"]}`)
	f.Add(`"\u00e9"`, `"é"`)
	f.Add(`{"a":1,"a":2}`, `{"a":2}`)
	f.Add(`1e400`, `-0`)
	f.Fuzz(func(t *testing.T, a, b string) {
		var va, vb any
		if json.Unmarshal([]byte(a), &va) == nil && json.Unmarshal([]byte(b), &vb) == nil &&
			!reflect.DeepEqual(va, vb) && canonical(t, a) == canonical(t, b) {
			t.Errorf("%q and %q are two values with one fingerprint", a, b)
		}
		form, err := idempotency.AppendCanonical(nil, []byte(a))
		if err != nil {
			return
		}
		dec := json.NewDecoder(strings.NewReader(a))
		dec.UseNumber()
		var v any
		if err := dec.Decode(&v); err != nil {
			t.Fatalf("%q has a canonical form, but encoding/json says %v", a, err)
		}
		rewritten, err := json.MarshalIndent(v, "", "\t")
		if err != nil {
			t.Fatal(err)
		}
		again, err := idempotency.AppendCanonical(nil, rewritten)
		if err != nil || !bytes.Equal(form, again) {
			t.Errorf("%q and %q have two forms: %q and %q, %v", a, rewritten, form, again, err)
		}
	})
}

// FuzzFingerprint: two requests have one fingerprint exactly when their method, path,
// query and body are the same, wherever one part ends and the next begins.
func FuzzFingerprint(f *testing.F) {
	f.Add("POST", "/a", "b=c", "d", "POST", "/ab", "=c", "d")
	f.Add("POST", "/a/b", "", "", "POST", "/a%2fb", "", "")
	f.Add("POST", "/a", "", "\x00\x00", "POST", "/a", "\x00", "\x00")
	f.Fuzz(func(t *testing.T, m1, p1, q1, b1, m2, p2, q2, b2 string) {
		one := &http.Request{Method: m1, URL: &url.URL{Path: p1, RawQuery: q1}}
		two := &http.Request{Method: m2, URL: &url.URL{Path: p2, RawQuery: q2}}
		h1, err1 := idempotency.RequestFingerprint(one, []byte(b1))
		h2, err2 := idempotency.RequestFingerprint(two, []byte(b2))
		if err1 != nil || err2 != nil {
			t.Fatal(err1, err2)
		}
		same := m1 == m2 && one.URL.EscapedPath() == two.URL.EscapedPath() && q1 == q2 && b1 == b2
		if (h1 == h2) != same || len(h1) != 64 {
			t.Errorf("%q and %q: fingerprints %s and %s", []string{m1, p1, q1, b1}, []string{m2, p2, q2, b2}, h1, h2)
		}
	})
}

// FuzzKey: whatever a client sends, a key that is accepted is short and printable,
// and means the same when it is quoted.
func FuzzKey(f *testing.F) {
	for _, seed := range []string{"k", `"k"`, `"a\"b"`, `"k";p=1`, " k\t", "  ", ` "k" `, "", `"`, "\x00", strings.Repeat("k", 256)} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, line string) {
		key, err := idempotency.ParseKey([]string{line})
		if err != nil {
			if !errors.Is(err, idempotency.ErrKeyInvalid) {
				t.Errorf("%q: %v", line, err)
			}
			return
		}
		if len(key) == 0 || len(key) > 255 {
			t.Errorf("%q: a key of %d bytes", line, len(key))
		}
		quoted := `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(key) + `"`
		again, err := idempotency.ParseKey([]string{quoted})
		if err != nil || again != key {
			t.Errorf("%q is the key %q, but quoted %q, %v", line, key, again, err)
		}
	})
}
