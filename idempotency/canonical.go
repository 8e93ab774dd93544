package idempotency

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

// CanonicalJSON is a [Fingerprint] for clients that build a request's JSON anew for
// each retry: bodies that mean the same have the same fingerprint, whatever the
// order of their members (RFC 8785 section 3.2.3), white space, escapes, and the
// way numbers are written. Give it to [WithFingerprint].
//
// Numbers agree when their decimal values do: 100, 1e2 and 100.0 are one number,
// but digits beyond the precision of a double, which RFC 8785 would round off,
// count; two amounts are never taken for one. A body that is no I-JSON (RFC 7493:
// not JSON at all, a member twice in an object, a lone surrogate) or nested more
// than 500 deep is compared byte for byte. Method, path and query count as they do
// by default.
func CanonicalJSON(r *http.Request, body []byte) (string, error) {
	canonical, err := appendCanonical(make([]byte, 0, len(body)+64), body)
	if err != nil {
		return requestFingerprint(r, body)
	}
	return fingerprint("pgidem-json-1", r, canonical), nil
}

var errNotCanonical = errors.New("idempotency: body has no canonical form")

// maxJSONDepth bounds the recursion, and so the stack.
const maxJSONDepth = 500

// appendCanonical appends a form of the body that is the same for all bodies of
// one meaning, and for no others.
func appendCanonical(dst, body []byte) ([]byte, error) {
	if !utf8.Valid(body) { // the decoder would replace what is wrong
		return nil, errNotCanonical
	}
	dec := json.NewDecoder(bytes.NewReader(body))
	dec.UseNumber()
	token, err := dec.Token()
	if err != nil {
		return nil, err
	}
	dst, err = appendValue(dst, dec, token, 0)
	if err != nil {
		return nil, err
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return nil, errNotCanonical
	}
	return dst, nil
}

func appendValue(dst []byte, dec *json.Decoder, token json.Token, depth int) ([]byte, error) {
	if depth > maxJSONDepth {
		return nil, errNotCanonical
	}
	switch v := token.(type) {
	case json.Delim:
		if v == '{' {
			return appendObject(dst, dec, depth)
		}
		return appendArray(dst, dec, depth)
	case string:
		return appendText(append(dst, '"'), v)
	case json.Number:
		return appendNumber(append(dst, '#'), v.String())
	case bool:
		return strconv.AppendBool(dst, v), nil
	default:
		return append(dst, "null"...), nil
	}
}

func appendArray(dst []byte, dec *json.Decoder, depth int) ([]byte, error) {
	dst = append(dst, '[')
	for {
		token, err := dec.Token()
		if err != nil {
			return nil, err
		}
		if token == json.Delim(']') {
			return append(dst, ']'), nil
		}
		if dst, err = appendValue(dst, dec, token, depth+1); err != nil {
			return nil, err
		}
	}
}

func appendObject(dst []byte, dec *json.Decoder, depth int) ([]byte, error) {
	type member struct {
		name  string
		value []byte
	}
	var members []member
	for {
		token, err := dec.Token()
		if err != nil {
			return nil, err
		}
		if token == json.Delim('}') {
			break
		}
		name, _ := token.(string) // the decoder lets nothing else stand here
		if token, err = dec.Token(); err != nil {
			return nil, err
		}
		value, err := appendValue(nil, dec, token, depth+1)
		if err != nil {
			return nil, err
		}
		members = append(members, member{name, value})
	}
	slices.SortFunc(members, func(a, b member) int { return strings.Compare(a.name, b.name) })
	dst = append(dst, '{')
	for i, m := range members {
		if i > 0 && members[i-1].name == m.name {
			return nil, errNotCanonical
		}
		var err error
		if dst, err = appendText(dst, m.name); err != nil {
			return nil, err
		}
		dst = append(dst, m.value...)
	}
	return append(dst, '}'), nil
}

// appendText appends a string behind its length. A replacement character may stand
// for a lone surrogate, which the decoder does not let us see.
func appendText(dst []byte, s string) ([]byte, error) {
	if strings.ContainsRune(s, utf8.RuneError) {
		return nil, errNotCanonical
	}
	dst = binary.AppendUvarint(dst, uint64(len(s)))
	return append(dst, s...), nil
}

// appendNumber appends the decimal value of a JSON number: its digits without zeros
// at either end, and the power of ten of the last one.
func appendNumber(dst []byte, literal string) ([]byte, error) {
	rest, negative := strings.CutPrefix(literal, "-")
	mantissa, exponent := rest, 0
	if i := strings.IndexAny(rest, "eE"); i >= 0 {
		var err error
		mantissa = rest[:i]
		if exponent, err = strconv.Atoi(rest[i+1:]); err != nil || exponent > 1e9 || exponent < -1e9 {
			return nil, errNotCanonical
		}
	}
	whole, fraction, _ := strings.Cut(mantissa, ".")
	digits := strings.TrimLeft(whole+fraction, "0")
	exponent -= len(fraction)
	trimmed := strings.TrimRight(digits, "0")
	exponent += len(digits) - len(trimmed)
	if trimmed == "" { // zero has no sign here, as in RFC 8785 section 3.2.2.3
		return append(dst, '0', ';'), nil
	}
	if negative {
		dst = append(dst, '-')
	}
	dst = append(dst, trimmed...)
	dst = append(dst, 'e')
	dst = strconv.AppendInt(dst, int64(exponent), 10)
	return append(dst, ';'), nil
}
