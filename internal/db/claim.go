package db

import (
	"cmp"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgtype"
)

// KeyOp is something to be done to the record of one key, by itself or together with what
// is done to others. What came of it stands in it once its statements have been run.
type KeyOp interface {
	// Statements returns the statements for it alone.
	Statements() ([]Statement, error)
	// Schema returns the quoted name of the schema that it is done in.
	Schema() string
	// Settled reports, once its statements have been run, whether what came of it is known.
	// It always is of one that was run by itself. It is not of a completion that was run
	// together with others and had no effect: its record may be another attempt's, or gone, or
	// somebody may have changed it at that moment, to extend its lease say, and it is the
	// attempt's still. Then it is to be run by itself, which tells.
	Settled() bool
	base() *keyOp
}

type keyOp struct {
	tenant Tenant
	orgID  pgtype.UUID
	key    string
}

func (o *keyOp) base() *keyOp { return o }

// Settled implements [KeyOp].
func (o *keyOp) Settled() bool { return true }

// Schema implements [KeyOp].
func (o *keyOp) Schema() string { return o.tenant.Schema() }

// compare orders by what is locked. Transactions that lock in this order never wait for
// each other in a circle.
func (o *keyOp) compare(other *keyOp) int {
	return cmp.Or(strings.Compare(o.tenant.schema, other.tenant.schema),
		slices.Compare(o.orgID.Bytes[:], other.orgID.Bytes[:]), strings.Compare(o.key, other.key))
}

func (o *keyOp) sameTenant(other *keyOp) bool {
	return o.tenant.schema == other.tenant.schema && o.orgID == other.orgID
}

// Look is [Queries.ClaimSelect].
type Look struct {
	keyOp
	Row   ClaimSelectRow
	Found bool
}

// Look returns a Look at the record of a key.
func (t Tenant) Look(arg ClaimSelectParams) *Look {
	return &Look{keyOp: keyOp{t, arg.OrgID, arg.Key}}
}

// Statements implements [KeyOp].
func (l *Look) Statements() ([]Statement, error) {
	s, err := l.look()
	return []Statement{s}, err
}

func (l *Look) look() (Statement, error) {
	l.Found = true
	return l.tenant.statement(claimSelect, Statement{
		args: []any{&l.orgID, l.key}, dest: l.Row.dest(), onNone: func() { l.Found = false },
	})
}

// dest is where what [Queries.ClaimSelect] selects goes.
func (row *ClaimSelectRow) dest() []any {
	return []any{
		&row.Token, &row.Attempt, &row.Awaited, &row.RequestHash, &row.CreatedAt, &row.ExpiresAt,
		&row.ResponseStatus, &row.ResponseKept, &row.ResponseHeaders, &row.ResponseBody,
		&row.Completed, &row.Expired, &row.Lapsed,
	}
}

// Claim is [Queries.ClaimInsert] and, if that is asked for, [Queries.ClaimSelect] behind it
// for the record that was in the way.
//
// READ COMMITTED gives the second statement a snapshot of its own, so it sees the row that
// the first met. At a stricter isolation level it may not: found is then false as well,
// and the claim is to be tried again.
type Claim struct {
	Look
	insert  ClaimInsertParams
	Looks   bool
	Claimed bool
}

// Claim returns a Claim of a key.
func (t Tenant) Claim(arg ClaimInsertParams, look bool) *Claim {
	return &Claim{Look: Look{keyOp: keyOp{t, arg.OrgID, arg.Key}}, insert: arg, Looks: look}
}

// Statements implements [KeyOp].
func (c *Claim) Statements() ([]Statement, error) {
	insert, err := c.insertion()
	if err != nil || !c.Looks {
		return []Statement{insert}, err
	}
	look, err := c.look()
	return []Statement{insert, look}, err
}

func (c *Claim) insertion() (Statement, error) {
	a := &c.insert
	return c.tenant.statement(claimInsert, Statement{
		args: []any{a.Ttl, a.Lease, &a.Token, &a.OrgID, a.Key, a.RequestHash}, onTag: c.onTag,
	})
}

func (c *Claim) onTag(tag pgconn.CommandTag) { c.Claimed = tag.RowsAffected() == 1 }

// RecoverableClaim is a [Claim] by [Queries.ClaimInsertRecoverable], which always looks.
type RecoverableClaim struct {
	Claim
	insert ClaimInsertRecoverableParams
}

// RecoverableClaim returns a RecoverableClaim of a key.
func (t Tenant) RecoverableClaim(arg ClaimInsertRecoverableParams) *RecoverableClaim {
	return &RecoverableClaim{Claim: Claim{Look: Look{keyOp: keyOp{t, arg.OrgID, arg.Key}}, Looks: true}, insert: arg}
}

// Statements implements [KeyOp].
func (c *RecoverableClaim) Statements() ([]Statement, error) {
	a := &c.insert
	insert, err := c.tenant.statement(claimInsertRecoverable, Statement{
		args: []any{
			a.Method, a.Target, a.Host, a.Pattern, a.PathValues, a.Headers, a.Body,
			a.Ttl, a.Lease, &a.Token, &a.OrgID, a.Key, a.RequestHash,
		},
		onTag: c.onTag,
	})
	if err != nil {
		return nil, err
	}
	look, err := c.look()
	return []Statement{insert, look}, err
}

// Completion is [Queries.Complete], or [Queries.CompleteRecoverable].
type Completion struct {
	keyOp
	complete    CompleteParams
	recoverable bool
	unsettled   bool
	Held        bool // the attempt held the token
	Awaited     bool
}

// Completion returns the Completion of an attempt.
func (t Tenant) Completion(arg CompleteParams, recoverable bool) *Completion {
	return &Completion{keyOp: keyOp{t, arg.OrgID, arg.Key}, complete: arg, recoverable: recoverable}
}

// Statements implements [KeyOp].
func (c *Completion) Statements() ([]Statement, error) {
	s, err := c.completion()
	return []Statement{s}, err
}

// Settled implements [KeyOp].
func (c *Completion) Settled() bool { return !c.unsettled }

func (c *Completion) completion() (Statement, error) {
	sql := complete
	if c.recoverable {
		sql = completeRecoverable
	}
	c.Held, c.unsettled = true, false
	a := &c.complete
	return c.tenant.statement(sql, Statement{
		args:   []any{a.ResponseStatus, a.ResponseKept, a.ResponseHeaders, a.ResponseBody, &a.OrgID, a.Key, &a.Token},
		dest:   []any{&c.Awaited},
		onNone: func() { c.Held = false },
	})
}

// UUID returns what stands for id in the parameters of queries. It goes to the server in
// binary; a uuid.UUID would go as text, which costs several times as much. As an argument a
// pointer to it does as well, and needs no memory of its own.
func UUID(id [16]byte) pgtype.UUID { return pgtype.UUID{Bytes: id, Valid: true} }
