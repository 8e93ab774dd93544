package tenancy

import (
	"fmt"
	"strings"
)

// maxIdentifier is the length in bytes to which PostgreSQL truncates
// identifiers (NAMEDATALEN - 1). A longer name would silently become another.
const maxIdentifier = 63

// Schema is the name of a PostgreSQL schema that holds tenants' tables. It is
// valid by construction: only [ParseSchema] and the directories of this package
// make one, so its quoted form can be put into SQL text as it is.
//
// The zero Schema names nothing; [Schema.IsZero] tells. Schemas are comparable
// and may serve as map keys.
type Schema struct {
	quoted string // `"name"`: one string serves both forms without allocating
}

// ParseSchema returns the Schema called name.
//
// A name consists of 1 to 63 lower-case letters, digits and underscores and
// does not begin with a digit, so that it means the same quoted and unquoted,
// in every tool. The names that PostgreSQL keeps for itself (pg_ and
// information_schema) and public, which every role of a database may see by
// default, are refused. The error wraps [ErrInvalidSchema].
func ParseSchema(name string) (Schema, error) {
	switch {
	case name == "":
		return Schema{}, fmt.Errorf("%w: empty", ErrInvalidSchema)
	case len(name) > maxIdentifier:
		return Schema{}, fmt.Errorf("%w: %q has %d bytes, PostgreSQL keeps %d", ErrInvalidSchema, name, len(name), maxIdentifier)
	case strings.HasPrefix(name, "pg_"), name == "information_schema":
		return Schema{}, fmt.Errorf("%w: %q is reserved by PostgreSQL", ErrInvalidSchema, name)
	case name == "public":
		return Schema{}, fmt.Errorf("%w: %q is shared by every role; give the tenant a schema of its own", ErrInvalidSchema, name)
	}
	for i := range len(name) {
		c := name[i]
		letter := c >= 'a' && c <= 'z' || c == '_'
		digit := c >= '0' && c <= '9'
		if !letter && (!digit || i == 0) {
			return Schema{}, fmt.Errorf("%w: %q: use lower-case letters, digits and underscores, and no digit first", ErrInvalidSchema, name)
		}
	}
	return Schema{quoted: `"` + name + `"`}, nil
}

// String returns the bare name, as the catalog has it.
func (s Schema) String() string {
	if s.IsZero() {
		return ""
	}
	return s.quoted[1 : len(s.quoted)-1]
}

// Quoted returns the name as a quoted SQL identifier, or "" for the zero Schema.
func (s Schema) Quoted() string { return s.quoted }

// IsZero reports whether s is the zero Schema, which names nothing.
func (s Schema) IsZero() bool { return s.quoted == "" }
