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
// the headers that outer middleware had set before it ran; those whose values it added to
// outer ones are marked as appended. What outer middleware sets it will set
// again on a replay, perhaps to something else, so it is none of the record's.
func (c *config) handlerHeaders(outer http.Header, final packedHeaders) packedHeaders {
	hopByHop := listed(final.lines("Connection"))
	keep := func(name string) bool {
		name = http.CanonicalHeaderKey(name) // a handler may write to the map itself
		return !isFraming(name) && c.keepHeader(name) &&
			!slices.Contains(hopByHop, name)
	}
	if len(outer) == 0 && final.all(keep) {
		return final
	}
	var room [512]byte
	kept := room[:0]
	for rest := final; len(rest) > 0; {
		var h packedHeader
		h, rest = rest.next()
		before, wasSet := outer[h.name]
		var few [4]string
		values := h.appendTo(few[:0])
		switch {
		case wasSet && slices.Equal(before, values), !keep(h.name):
		case len(before) > 0 && len(before) < len(values) && slices.Equal(before, values[:len(before)]):
			kept = appendHeader(kept, h.name, true, values[len(before):])
		default:
			kept = appendHeader(kept, h.name, false, values)
		}
	}
	for name := range outer {
		if _, still := final.find(name); !still && keep(name) {
			kept = appendHeader(kept, name, false, nil) // the handler removed it, and a replay shall remove it again
		}
	}
	return packedHeaders(kept)
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

// addHeaders sets the headers in dst, or adds those that are appended to what is there. Their
// values are put into room, which grows where it must.
func addHeaders(dst http.Header, headers packedHeaders, room []string) {
	for len(headers) > 0 {
		var h packedHeader
		h, headers = headers.next()
		var values []string
		values, room = h.in(room)
		if h.appended {
			values = append(slices.Clip(dst[h.name]), values...)
		}
		dst[h.name] = values
	}
}
