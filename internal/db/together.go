package db

import (
	"errors"
	"slices"

	"github.com/jackc/pgx/v5/pgtype"
)

// minMany is for how many keys of a schema there is one statement for all of them. It has
// its place in the statement cache of each connection, so it is to be worth that.
const minMany = 4

// Together returns the statements that do all of ops in one transaction: all claims, all
// completions, and then all looks, which so see what the others have done.
//
// Claims and completions go by the order of their keys. A claim waits for a transaction
// that is about to insert or to complete the same key; a completion waits for no claim.
// So no two of these transactions wait for each other.
//
// What the looks at one key find may be shared among them, and must not be changed.
func Together(ops []KeyOp) ([]Statement, error) {
	ops = slices.Clone(ops)
	slices.SortStableFunc(ops, func(a, b KeyOp) int { return a.base().compare(b.base()) })
	var t together
	for i, op := range ops {
		switch op := op.(type) {
		case *Claim:
			t.claims = append(t.claims, op)
			if op.Looks {
				t.looks = append(t.looks, &op.Look)
			}
		case *Completion:
			if op.recoverable {
				t.alone(&t.completing, op)
			} else {
				t.completions = append(t.completions, op)
			}
		case *Look:
			t.looks = append(t.looks, op)
		default:
			t.alone(&t.claiming, op)
		}
		if i == len(ops)-1 || ops[i+1].base().tenant.schema != op.base().tenant.schema {
			t.endSchema()
		}
	}
	if t.err != nil {
		return nil, t.err
	}
	var all []Statement
	if t.forKeys {
		all = append(all, Statement{sql: planForKeys})
	}
	return slices.Concat(all, t.claiming, t.completing, t.looking), nil
}

// together gathers the operations of a schema, and the statements of all schemas.
type together struct {
	claims      []*Claim
	completions []*Completion
	looks       []*Look

	claiming, completing, looking []Statement
	forKeys                       bool // there are statements that need [Queries.PlanForKeys]
	err                           error
}

// endSchema makes statements of what has been gathered of a schema.
func (t *together) endSchema() {
	claims, completions, looks := t.claims, t.completions, t.looks
	t.claims, t.completions, t.looks = nil, nil, nil
	if len(claims) < minMany || differ(claims) {
		for _, c := range claims {
			t.add(&t.claiming, c.insertion)
		}
	} else {
		t.add(&t.claiming, func() (Statement, error) { return claimMany(claims) })
	}
	if len(completions) < minMany {
		for _, c := range completions {
			t.add(&t.completing, c.completion)
		}
	} else {
		t.forKeys = true
		t.add(&t.completing, func() (Statement, error) { return completionOfMany(completions) })
	}
	if len(looks) < minMany {
		for _, l := range looks {
			t.add(&t.looking, l.look)
		}
	} else {
		t.forKeys = true
		t.add(&t.looking, func() (Statement, error) { return lookMany(looks) })
	}
}

// alone adds the statements of an operation that has none in common with others.
func (t *together) alone(to *[]Statement, op KeyOp) {
	statements, err := op.Statements()
	*to, t.err = append(*to, statements...), errors.Join(t.err, err)
}

func (t *together) add(to *[]Statement, statement func() (Statement, error)) {
	s, err := statement()
	*to, t.err = append(*to, s), errors.Join(t.err, err)
}

// Arrays that pgx encodes without a look at their types for each.
type (
	uuids = pgtype.FlatArray[pgtype.UUID]
	texts = pgtype.FlatArray[string]
	bytes = pgtype.FlatArray[[]byte]
)

// differ reports whether the terms of claims do: then they have no statement in common.
func differ(claims []*Claim) bool {
	first := claims[0].insert
	return slices.ContainsFunc(claims, func(c *Claim) bool { return c.insert.Ttl != first.Ttl || c.insert.Lease != first.Lease })
}

// claimMany is [Queries.ClaimInsertMany].
func claimMany(claims []*Claim) (Statement, error) {
	first, n := claims[0], len(claims)
	tokens, orgIDs, keys, hashes := make(uuids, n), make(uuids, n), make(texts, n), make(bytes, n)
	for i, c := range claims {
		c.Claimed = false
		tokens[i], orgIDs[i], keys[i], hashes[i] = c.insert.Token, c.orgID, c.key, c.insert.RequestHash
	}
	var token pgtype.UUID
	find := finder(claims, func(c *Claim) pgtype.UUID { return c.insert.Token })
	return first.tenant.statement(claimInsertMany, Statement{
		args: []any{first.insert.Ttl, first.insert.Lease, tokens, orgIDs, keys, hashes},
		dest: []any{&token},
		onRow: func() {
			if c := find(token); c != nil {
				c.Claimed = true
			}
		},
	})
}

// completionOfMany is [Queries.CompleteMany].
func completionOfMany(completions []*Completion) (Statement, error) {
	n := len(completions)
	orgIDs, keys, tokens := make(uuids, n), make(texts, n), make(uuids, n)
	statuses, kept, headers, bodies := make([]int32, n), make([]bool, n), make(bytes, n), make(bytes, n)
	for i, c := range completions {
		c.Held = false
		a := &c.complete
		orgIDs[i], keys[i], tokens[i] = a.OrgID, a.Key, a.Token
		statuses[i], kept[i], headers[i], bodies[i] = a.ResponseStatus, a.ResponseKept, a.ResponseHeaders, a.ResponseBody
	}
	var row CompleteManyRow
	find := finder(completions, func(c *Completion) pgtype.UUID { return c.complete.Token })
	return completions[0].tenant.statement(completeMany, Statement{
		args: []any{orgIDs, keys, tokens, statuses, kept, headers, bodies},
		dest: []any{&row.Token, &row.Awaited},
		onRow: func() {
			if c := find(row.Token); c != nil {
				c.Held, c.Awaited = true, row.Awaited
			}
		},
	})
}

// lookMany is [Queries.ClaimSelectMany]. The looks are in the order of their keys; those
// at one key share what is found.
func lookMany(looks []*Look) (Statement, error) {
	orgIDs, keys := make(uuids, 0, len(looks)), make(texts, 0, len(looks))
	for i, l := range looks {
		l.Found = false
		if i == 0 || l.compare(&looks[i-1].keyOp) != 0 {
			orgIDs, keys = append(orgIDs, l.orgID), append(keys, l.key)
		}
	}
	var orgID pgtype.UUID
	var key string
	row := new(ClaimSelectRow)
	return looks[0].tenant.statement(claimSelectMany, Statement{
		args: []any{orgIDs, keys},
		dest: append([]any{&orgID, &key}, row.dest()...),
		onRow: func() {
			met := keyOp{looks[0].tenant, orgID, key}
			i, _ := slices.BinarySearchFunc(looks, &met, func(l *Look, met *keyOp) int { return l.compare(met) })
			for ; i < len(looks) && looks[i].compare(&met) == 0; i++ {
				looks[i].Row, looks[i].Found = *row, true
			}
			*row = ClaimSelectRow{} // its bytes are theirs now
		},
	})
}

// finder returns a function that finds the one of a token, fast when it is asked in about
// the order of all.
func finder[T any](all []*T, token func(*T) pgtype.UUID) func(pgtype.UUID) *T {
	next := 0
	return func(wanted pgtype.UUID) *T {
		for range all {
			at := all[next%len(all)]
			if next++; token(at) == wanted {
				return at
			}
		}
		return nil
	}
}
