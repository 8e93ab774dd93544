// Package signature is what the comment on a tenant's schema says of whom the schema is: the
// generation of a tenant, at the end of whatever else somebody says there.
package signature

import (
	"hash/fnv"
	"regexp"
)

var end = regexp.MustCompile(`\s*\[pgidem: tenant ([^\]]*)\]$`)

// Of returns the name of the generation that a comment is signed with, or "".
func Of(comment string) string {
	if found := end.FindStringSubmatch(comment); found != nil {
		return found[1]
	}
	return ""
}

// Sign returns the comment with the signature of a generation, in place of another one.
func Sign(comment, generation string) string {
	if comment = end.ReplaceAllString(comment, ""); comment != "" {
		comment += " "
	}
	return comment + "[pgidem: tenant " + generation + "]"
}

// LockID is the number of the advisory lock under which a schema is made and signed, its
// privileges change, and its objects are dropped.
func LockID(schema string) int64 {
	h := fnv.New64a()
	h.Write([]byte("pgidem provision " + schema))
	return int64(h.Sum64())
}
