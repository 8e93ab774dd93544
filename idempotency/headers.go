package idempotency

import (
	"maps"
	"net/http"
	"slices"
	"strings"
)

// keepHeader is the default rule of [WithHeaders].
func keepHeader(name string) bool {
	switch name {
	case "Date", "Set-Cookie", "Authorization", "Www-Authenticate",
		// Hop-by-hop, RFC 9110 section 7.6.1 and the older RFC 2616 section 13.5.1.
		"Connection", "Proxy-Connection", "Keep-Alive", "Te", "Upgrade",
		"Proxy-Authenticate", "Proxy-Authorization":
		return false
	}
	return true
}

// isFraming reports whether a header describes how one message is laid out on the
// wire, and so can belong to no other message.
func isFraming(name string) bool {
	switch name {
	case "Content-Length", "Transfer-Encoding", "Trailer":
		return true
	}
	return strings.HasPrefix(name, http.TrailerPrefix)
}

// handlerHeaders returns those of the final headers that the handler set, given
// the headers that outer middleware had set before it ran, and the names of those
// whose values it added to outer ones. What outer middleware sets it will set
// again on a replay, perhaps to something else, so it is none of the record's.
func (c *config) handlerHeaders(outer, final http.Header) (kept map[string][]string, appended []string) {
	hopByHop := listed(final["Connection"])
	keep := func(name string) bool {
		name = http.CanonicalHeaderKey(name) // a handler may write to the map itself
		return !isFraming(name) && c.keepHeader(name) &&
			!slices.Contains(hopByHop, name)
	}
	kept = make(map[string][]string, len(final))
	for name, values := range final {
		before, wasSet := outer[name]
		switch {
		case wasSet && slices.Equal(before, values), !keep(name):
		case len(before) > 0 && len(before) < len(values) && slices.Equal(before, values[:len(before)]):
			kept[name] = values[len(before):]
			appended = append(appended, name)
		default:
			kept[name] = values
		}
	}
	for name := range outer {
		if _, still := final[name]; !still && keep(name) {
			kept[name] = nil // the handler removed it, and a replay shall remove it again
		}
	}
	slices.Sort(appended)
	return kept, appended
}

// listed returns the header names in a comma-separated list, in canonical form.
func listed(lines []string) (names []string) {
	for _, line := range lines {
		for name := range strings.SplitSeq(line, ",") {
			names = append(names, http.CanonicalHeaderKey(strings.TrimSpace(name)))
		}
	}
	return names
}

// isToken reports whether s is a token, RFC 9110 section 5.6.2: a method or the
// name of a header.
func isToken(s string) bool {
	for i := range len(s) {
		c := s[i]
		alnum := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
		if !alnum && strings.IndexByte("!#$%&'*+-.^_`|~", c) < 0 {
			return false
		}
	}
	return s != ""
}

// replaceHeaders makes dst equal to src.
func replaceHeaders(dst, src http.Header) {
	maps.DeleteFunc(dst, func(name string, _ []string) bool {
		_, ok := src[name]
		return !ok
	})
	maps.Copy(dst, src)
}

// replayHeaders adds the stored headers of rec to those that outer middleware has
// set. It shares no memory with rec, which may be shared with other requests.
func replayHeaders(dst http.Header, rec *Record) {
	for name, values := range rec.ResponseHeaders {
		if slices.Contains(rec.AppendedHeaders, name) {
			dst[name] = append(slices.Clip(dst[name]), values...)
			continue
		}
		dst[name] = slices.Clone(values) // nil stays nil: no line, and none made up by net/http
	}
}
