package route

import (
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"unicode"
)

// pattern is one route.
type pattern struct {
	method   string   // "" is any
	segments []string // "" is a wildcard
	tail     tail
}

// tail is what may follow the segments of a pattern.
type tail uint8

const (
	nothing tail = iota // /a
	slash               // /a/{$}
	subtree             // /a/ and /a/{rest...}
)

// match expects a path in clean form: a slash that is not the last character
// is followed by a segment that is not empty.
func (p *pattern) match(method, path string) bool {
	if p.method != "" && p.method != method && (p.method != http.MethodGet || method != http.MethodHead) {
		return false
	}
	for _, want := range p.segments {
		if path == "" || path == "/" {
			return false
		}
		var segment string
		segment, path = cut(path)
		if want != "" && want != segment {
			return false
		}
	}
	switch p.tail {
	case slash:
		return path == "/"
	case subtree:
		return path != ""
	default:
		return path == ""
	}
}

// Compile returns the set of the routes that the patterns describe; the package
// comment has the syntax. It returns an error that names the first pattern that
// is malformed or could never match, and says what to write instead.
func Compile(patterns ...string) (*Set, error) {
	s := &Set{patterns: make([]pattern, 0, len(patterns))}
	for _, text := range patterns {
		p, err := parse(text)
		if err != nil {
			return nil, fmt.Errorf("pattern %q: %w", text, err)
		}
		s.patterns = append(s.patterns, p)
	}
	return s, nil
}

func parse(text string) (pattern, error) {
	if text == "" {
		return pattern{}, errors.New(`empty; write [METHOD ]PATH, as in "POST /v1/auth/login"`)
	}
	var p pattern
	path := text
	if i := strings.IndexAny(text, " \t"); i >= 0 {
		p.method, path = text[:i], strings.TrimLeft(text[i:], " \t")
		if !validMethod(p.method) {
			return pattern{}, fmt.Errorf("method %q: write it in upper-case letters, as in POST, or leave it out with the space after it", p.method)
		}
	}
	if !strings.HasPrefix(path, "/") {
		return pattern{}, fmt.Errorf("path %q: begin it with a slash; there is no host in a pattern, and a space after a method", path)
	}
	if i := strings.IndexFunc(path, forbidden); i >= 0 {
		return pattern{}, fmt.Errorf(`path %q: write it decoded, without query and fragment, and without spaces, control characters and any of %% \ ; ? #`, path)
	}

	var names []string
	for rest := path; rest != ""; {
		if rest == "/" {
			p.tail = subtree
			break
		}
		var segment string
		segment, rest = cut(rest)
		if !cleanSegment(segment) {
			return pattern{}, fmt.Errorf(`path %q: leave out "//" and the segments "." and ".."; only clean paths match`, path)
		}
		if !strings.ContainsAny(segment, "{}") {
			p.segments = append(p.segments, segment)
			continue
		}

		w, err := parseWildcard(segment)
		switch {
		case err != nil:
			return pattern{}, err
		case w.tail != nothing && rest != "":
			return pattern{}, fmt.Errorf("%s: put it at the end of the path, nothing may follow", segment)
		case slices.Contains(names, w.name):
			return pattern{}, fmt.Errorf("%s: the name %q is used twice; give each wildcard its own", segment, w.name)
		}
		names = append(names, w.name)
		p.tail = w.tail
		if w.tail == nothing {
			p.segments = append(p.segments, "")
		}
	}
	return p, nil
}

type wildcard struct {
	name string // "" for {$}
	tail tail   // nothing for a wildcard of one segment
}

func parseWildcard(segment string) (wildcard, error) {
	name, opened := strings.CutPrefix(segment, "{")
	name, closed := strings.CutSuffix(name, "}")
	if !opened || !closed {
		return wildcard{}, fmt.Errorf("segment %q: a wildcard takes a whole segment, as in {id}; other text cannot have braces", segment)
	}
	if name == "$" {
		return wildcard{tail: slash}, nil
	}
	w := wildcard{name: name}
	if before, dots := strings.CutSuffix(name, "..."); dots {
		w = wildcard{name: before, tail: subtree}
	}
	if !validName(w.name) {
		return wildcard{}, fmt.Errorf("%s: name the wildcard with a Go identifier, as in {id} or {rest...}", segment)
	}
	return w, nil
}

// validMethod allows the methods of the IANA registry and others like them.
// Methods are case-sensitive (RFC 9110 section 9.1), so a pattern with "post"
// would silently match nothing.
func validMethod(method string) bool {
	for i := range len(method) {
		c := method[i]
		upper := c >= 'A' && c <= 'Z'
		other := c >= '0' && c <= '9' || c == '-' || c == '_'
		if !upper && (!other || i == 0) {
			return false
		}
	}
	return method != ""
}

// validName is the rule of ServeMux, which allows Go's keywords.
func validName(name string) bool {
	for i, c := range name {
		if !unicode.IsLetter(c) && c != '_' && (i == 0 || !unicode.IsDigit(c)) {
			return false
		}
	}
	return name != ""
}

// forbidden reports whether c cannot be in the path of a pattern: where it can
// be in a request's, a pattern with it is still more likely a slip.
func forbidden(c rune) bool {
	return ambiguous(c) || unicode.IsSpace(c) || c == '?' || c == '#'
}
