package db

import (
	"context"
	"errors"
	"strings"
	"sync"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// marker stands before each table name in queries. It is a comment to
// PostgreSQL, so a statement that reached the server with it would look for the
// table in search_path: that is why every statement of [Tenant] must lose it.
const marker = "/*tenant.*/"

var (
	errNoSchema = errors.New("db: no tenant schema: the statement was not run")
	errNoMarker = errors.New("db: statement without the tenant marker: it was not run")
)

// Tenant is a [DBTX] whose statements run in one tenant's schema, whatever the
// connection's search_path is. It sets no state on the connection.
type Tenant struct {
	db     DBTX
	schema string
	texts  *Texts
}

// Bind returns a Tenant that runs statements over db in the schema with the given
// quoted name. An empty name makes every statement fail.
func (t *Texts) Bind(db DBTX, quotedSchema string) Tenant {
	return Tenant{db: db, schema: quotedSchema, texts: t}
}

// Schema returns the quoted name of the schema.
func (t Tenant) Schema() string { return t.schema }

// statement returns s with the text of sql in the tenant's schema.
func (t Tenant) statement(sql string, s Statement) (_ Statement, err error) {
	s.sql, err = t.texts.in(t.schema, sql)
	return s, err
}

// Exec implements [DBTX].
func (t Tenant) Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error) {
	text, err := t.texts.in(t.schema, sql)
	if err != nil {
		return pgconn.CommandTag{}, err
	}
	return t.db.Exec(ctx, text, args...)
}

// Query implements [DBTX].
func (t Tenant) Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error) {
	text, err := t.texts.in(t.schema, sql)
	if err != nil {
		return nil, err
	}
	return t.db.Query(ctx, text, args...)
}

// QueryRow implements [DBTX].
func (t Tenant) QueryRow(ctx context.Context, sql string, args ...any) pgx.Row {
	text, err := t.texts.in(t.schema, sql)
	if err != nil {
		return errRow{err}
	}
	return t.db.QueryRow(ctx, text, args...)
}

type errRow struct{ err error }

func (r errRow) Scan(...any) error { return r.err }

// maxTexts bounds the texts that a [Texts] keeps, of about half a kilobyte each.
const maxTexts = 1 << 16

// Texts remembers statements with a tenant's schema put in, so that the request
// path rewrites none. The zero Texts is empty and ready; it is safe for
// concurrent use and must not be copied.
type Texts struct {
	mu    sync.RWMutex
	texts map[textKey]string
}

type textKey struct{ schema, sql string }

// in returns sql with the marker before each table replaced by the quoted schema.
func (t *Texts) in(schema, sql string) (string, error) {
	key := textKey{schema, sql}
	t.mu.RLock()
	text, ok := t.texts[key]
	t.mu.RUnlock()
	if ok {
		return text, nil
	}
	return t.add(key)
}

// Len returns how many texts are remembered.
func (t *Texts) Len() int {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return len(t.texts)
}

func (t *Texts) add(key textKey) (string, error) {
	if key.schema == "" {
		return "", errNoSchema
	}
	if !strings.Contains(key.sql, marker) {
		return "", errNoMarker
	}
	text := strings.ReplaceAll(key.sql, marker, key.schema+".")

	t.mu.Lock()
	defer t.mu.Unlock()
	if t.texts == nil {
		t.texts = make(map[textKey]string)
	}
	if len(t.texts) >= maxTexts {
		for victim := range t.texts { // an arbitrary one: rewriting it again is cheap
			delete(t.texts, victim)
			break
		}
	}
	t.texts[key] = text
	return text, nil
}
