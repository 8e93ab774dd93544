// Package route matches requests against a set of routes, written as the
// patterns of [net/http.ServeMux] without a host:
//
//	POST /v1/auth/login     one method and one path
//	/healthz                any method
//	GET /v1/items/{id}      {id} is exactly one segment; GET includes HEAD
//	/v1/public/             a trailing slash means everything below
//	/static/{rest...}       so does a last wildcard with dots
//	/v1/auth/{$}            exactly /v1/auth/, with the slash
//
// It decides which requests are left out of a protection, such as a check of
// credentials, so a doubtful request is never one of the routes. Other than
// ServeMux, which cleans a path or redirects to the clean one, a [Set] matches
// a path only if it is in clean form already:
//
//   - it begins with a slash, and is not that of an opaque URL or of "*";
//   - it has no empty segment ("//") and none that is "." or "..";
//   - it was sent in the usual encoding, so that [net/url.URL.RawPath] is
//     empty: neither "%2F" nor "%61" for "a" nor "%c3" for "%C3";
//   - when decoded, it has no control character, "%", backslash or semicolon,
//     which some servers behind a proxy decode again, take for a slash, or cut
//     off ("..;").
//
// Matching is case-sensitive, and "/login" and "/login/" are two paths, as they
// are for ServeMux. A path in clean form matches a pattern exactly when
// ServeMux, with that pattern alone, would call its handler.
//
// The reverse does not hold: ServeMux also serves paths in other forms, such as
// "/l%6Fgin". A rule that adds a duty to a route asks [Set.MatchLoosely] instead,
// for which a doubtful request is one of the routes.
package route

import (
	"net/http"
	"net/url"
	"path"
	"strings"
	"unicode"
)

// Set is a set of routes, made by [Compile]. It does not change and is safe for
// concurrent use. A nil *Set has no routes.
type Set struct{ patterns []pattern }

// Match reports whether the request is on one of the routes. There is no
// precedence: any one pattern is enough. The patterns are tried in turn,
// without allocating.
func (s *Set) Match(r *http.Request) bool {
	if s == nil || r.URL == nil || r.URL.Opaque != "" || r.URL.RawPath != "" || !clean(r.URL.Path) {
		return false
	}
	return s.match(r.Method, r.URL.Path)
}

// MatchLoosely reports whether some reading of the request is on one of the routes:
// whatever path ServeMux would serve it under, after a redirect or without.
func (s *Set) MatchLoosely(r *http.Request) bool {
	if s == nil || r.URL == nil {
		return false
	}
	decoded, escaped := r.URL.Path, r.URL.EscapedPath()
	if r.Method != http.MethodConnect { // whose path ServeMux does not clean
		decoded, escaped = cleaned(decoded), cleaned(escaped)
	}
	return s.match(r.Method, decoded) || escaped != decoded && s.match(r.Method, unescaped(escaped))
}

// unescaped reads a path as ServeMux does: segments first, and then their escapes. A
// slash that comes to light in a segment parts nothing any more.
func unescaped(path string) string {
	segments := strings.Split(path, "/")
	for i, segment := range segments {
		if plain, err := url.PathUnescape(segment); err == nil {
			segments[i] = strings.ReplaceAll(plain, "/", "\x00")
		}
	}
	return strings.Join(segments, "/")
}

func (s *Set) match(method, path string) bool {
	for i := range s.patterns {
		if s.patterns[i].match(method, path) {
			return true
		}
	}
	return false
}

// cleaned returns the clean form that ServeMux redirects to. It allocates nothing
// for a path that has it already.
func cleaned(p string) string {
	if !strings.HasPrefix(p, "/") {
		p = "/" + p
	}
	c := path.Clean(p)
	switch {
	case c == p || c != "/" && len(p) == len(c)+1 && strings.HasPrefix(p, c) && p[len(p)-1] == '/':
		return p
	case c != "/" && p[len(p)-1] == '/':
		return c + "/"
	}
	return c
}

// clean reports whether a decoded path has one meaning to whoever reads it.
func clean(path string) bool {
	if !strings.HasPrefix(path, "/") || strings.ContainsFunc(path, ambiguous) {
		return false
	}
	for path != "" && path != "/" {
		var segment string
		segment, path = cut(path)
		if !cleanSegment(segment) {
			return false
		}
	}
	return true
}

func cleanSegment(segment string) bool {
	return segment != "" && segment != "." && segment != ".."
}

// ambiguous reports whether servers disagree about what c means in a path.
func ambiguous(c rune) bool {
	return c == '%' || c == '\\' || c == ';' || unicode.IsControl(c)
}

// cut takes the first segment off a path that begins with a slash. The rest is
// empty or begins with a slash.
func cut(path string) (segment, rest string) {
	path = path[1:]
	if i := strings.IndexByte(path, '/'); i >= 0 {
		return path[:i], path[i:]
	}
	return path, ""
}
